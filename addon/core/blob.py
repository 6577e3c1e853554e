# SPDX-License-Identifier: GPL-3.0-or-later
"""Blobs: the bytes of an image, named by their SHA-256."""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass

_hash_pattern = re.compile(r"[0-9a-f]{64}")


def is_hash(text: str) -> bool:
    """Whether this is the name of a blob: 64 lower-case hexadecimal digits."""
    return _hash_pattern.fullmatch(text) is not None


@dataclass(frozen=True)
class Blob:
    """The bytes of one image file."""

    data: bytes

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the bytes, 64 lower-case hexadecimal digits. Worked out once."""
        return hashlib.sha256(self.data).hexdigest()

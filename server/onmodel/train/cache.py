# SPDX-License-Identifier: GPL-3.0-or-later
"""Encoded pictures, maps and captions on disk, found by what they were made of.

A key is a hash of everything that went in (pixels, crop, the encoding weights), never of a name
or a date. So nothing stale is ever read, runs share what they have in common, and the folder can
be deleted at any time.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from onmodel.lora.save import write_atomically
from onmodel.models import safe
from onmodel.models.errors import ModelError

log = logging.getLogger(__name__)

version = "1"
"""Changes when the way of encoding does."""


def key_of(*parts: object) -> str:
    """A key from everything that decides the content."""
    digest = hashlib.sha256(version.encode())
    for part in parts:
        digest.update(b"\x1f" + str(part).encode())
    return digest.hexdigest()


class Cache:
    """Tensors by kind and key. hits, misses: how often `get` had something."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hits = self.misses = 0

    def path(self, kind: str, key: str) -> Path:
        """The file of an entry, there or not."""
        return self.folder / kind / key[:2] / f"{key}.safetensors"

    def get(self, kind: str, key: str) -> dict[str, torch.Tensor] | None:
        """What `put` stored, None where there is nothing whole."""
        path = self.path(kind, key)
        if not path.is_file():
            self.misses += 1
            return None
        try:
            safe.read_header(path)
            found = load_file(str(path))
        except (ModelError, OSError) as error:
            log.warning("The cached %s is damaged and is made anew: %s", path, error)
            self.misses += 1
            return None
        self.hits += 1
        return found

    def put(self, kind: str, key: str, tensors: dict[str, torch.Tensor]) -> None:
        """Store tensors. Raises OSError where the disk is full."""
        path = self.path(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        # A torn file is found out when it is read; no need to wait for the disk.
        write_atomically(path, save(whole), sync=False)

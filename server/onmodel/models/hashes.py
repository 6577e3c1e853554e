# SPDX-License-Identifier: GPL-3.0-or-later
"""Hashes of files, remembered by path, size and modification time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

from onmodel.models import safe

log = logging.getLogger(__name__)


class HashCache:
    """file: a JSON file that may be lost at any time; it only saves reading."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, str] = {}
        self._changed = False
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            self._known = {str(k): str(v) for k, v in data.items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, AttributeError) as error:
            log.warning("The hash cache %s is unreadable and starts anew: %s", file, error)

    def of(self, path: Path) -> str:
        """SHA-256 of the file."""
        key = _key([path], path.parent)
        if key not in self._known:
            self._put(key, safe.file_hash(path))
        return self._known[key]

    def of_many(self, paths: list[Path], root: Path) -> str:
        """`safe.fingerprint` of a model's weight files; files outside root go by their names."""
        inside = [p for p in paths if p.is_relative_to(root)]
        outside = [p for p in paths if not p.is_relative_to(root)]
        key = _key(paths, root)
        if key not in self._known:
            digest = safe.fingerprint(inside, root)
            for path in outside:
                part = safe.fingerprint([path], path.parent)
                digest = hashlib.sha256(f"{digest}{part}".encode()).hexdigest()
            self._put(key, digest)
        return self._known[key]

    def save(self) -> None:
        """Write it down if something is new. A failure is logged: the cache only saves time."""
        if not self._changed:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._file.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(self._known), encoding="utf-8")
            temporary.replace(self._file)
            self._changed = False
        except OSError as error:
            log.warning("The hash cache %s cannot be written: %s", self._file, error)

    def _put(self, key: str, value: str) -> None:
        self._known[key] = value
        self._changed = True


def _key(paths: list[Path], root: Path) -> str:
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(paths)]
    return hashlib.sha256(repr((str(root), stats)).encode()).hexdigest()

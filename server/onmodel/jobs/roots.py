# SPDX-License-Identifier: GPL-3.0-or-later
"""Which folders a request may have the server read: those under the roots the person allowed.

A path passes by its letters first, before the disk is touched (a network path would already tell
its host something), then by where it really leads. Links that lead out of the roots are refused,
in the folder's own path and in what lies in it. Hidden folders under a root are refused as well:
keys and settings lie there.

The look is taken at submit and again when a worker begins. Somebody who can write into the
folder between that and the reading could read those files anyway: the server has no rights that
its owner has not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

max_entries = 20_000
deepest = 3
"""Folders below the named one that are looked into: 10_name/masks/ and masks/10_name/."""


class RootError(Exception):
    """A path that is not read. message: a sentence; fix: what to do."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class Roots:
    """The allowed folders, resolved once."""

    def __init__(self, folders: Iterable[Path]) -> None:
        named = [folder.expanduser().absolute() for folder in folders]
        self.folders = tuple(folder.resolve() for folder in named)
        self._named = tuple(dict.fromkeys([*named, *self.folders]))

    def folder(self, path: str) -> Path:
        """The real folder of an allowed path, with everything in it allowed too. RootError."""
        real = self._real(path)
        if not real.is_dir():
            raise RootError(
                f"There is no folder {path} on the server's machine.",
                "Name a folder of pictures that lies there.",
            )
        self._check_content(real)
        return real

    def _real(self, path: str) -> Path:
        given = Path(path)
        if not given.is_absolute() or ".." in given.parts or any(ord(c) < 32 for c in path):
            raise RootError(
                f"“{path}” is not a whole path.",
                "Write it from the root of the disk, without “..”.",
            )
        if self._below(given, self._named) is None:
            raise self._outside(path)
        try:
            real = given.resolve(strict=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, Python < 3.13
            raise RootError(
                f"There is no folder {path} on the server's machine.",
                "Name a folder of pictures that lies there.",
            ) from error
        below = self._below(real, self.folders)
        if below is None:
            raise self._outside(path)
        if any(part.startswith(".") for part in below.parts):
            raise RootError(
                f"{path} lies in a hidden folder.", "Move the pictures to a folder of their own."
            )
        return real

    def _below(self, path: Path, roots: Iterable[Path]) -> Path | None:
        """What of the path comes after the first root that it lies in; None if in none."""
        for root in roots:
            if path.is_relative_to(root):
                return path.relative_to(root)
        return None

    def _outside(self, path: str) -> RootError:
        roots = ", ".join(str(root) for root in self.folders) or "none"
        return RootError(
            f"The server may not read {path}: it lies outside of the folders it was allowed "
            f"({roots}).",
            "Move the pictures there, or start the server with --train-root and their folder.",
        )

    def _check_content(self, folder: Path) -> None:
        """No link in the folder leads out of the roots. Raises RootError."""
        seen = 0
        waiting = [(folder, 0)]
        while waiting:
            place, depth = waiting.pop()
            with os.scandir(place) as entries:
                for entry in entries:
                    seen += 1
                    if seen > max_entries:
                        raise RootError(
                            f"{folder} holds more than {max_entries} files.",
                            "Name the folder that holds the pictures and nothing else.",
                        )
                    if entry.name.startswith("."):
                        continue
                    if entry.is_symlink():
                        self._check_link(Path(entry.path))
                    elif depth < deepest - 1 and entry.is_dir(follow_symlinks=False):
                        waiting.append((Path(entry.path), depth + 1))

    def _check_link(self, link: Path) -> None:
        real = link.resolve()
        below = self._below(real, self.folders)
        hidden = below is not None and any(part.startswith(".") for part in below.parts)
        if below is None or hidden or real.is_dir():
            raise RootError(
                f"{link.name} in {link.parent} is a link to another place.",
                "Put the file itself there; the server follows no links out of its folders.",
            )

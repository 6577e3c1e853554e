# SPDX-License-Identifier: GPL-3.0-or-later
"""Thresholds that were measured on a cast itself, kept where the server keeps its data.

A file is named by what it was measured on: the embedder's state and each character's portraits, by
content. So nothing goes stale: other portraits or another state of the embedder are another file.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from onmodel.identity.calibrate import Calibration, CalibrationError, Member, calibrate_members
from onmodel.identity.interface import Array

log = logging.getLogger(__name__)

Cast = Mapping[str, tuple[str, ...]]
"""Each character's portraits: hashes of their files."""


class Calibrations:
    """The shelf of calibrations. folder: where they are kept; None: only in memory."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._known: dict[tuple[str, frozenset[str]], Calibration | str] = {}
        self._read: set[str] = set()

    def find(self, fingerprint: str, cast: Cast) -> Calibration | None:
        """The calibration of the largest cast that holds all these characters, or None."""
        wanted = people(cast)
        self._read_new()
        fitting = [
            (len(who), found)
            for (state, who), found in self._known.items()
            if state == fingerprint and wanted <= who and isinstance(found, Calibration)
        ]
        return max(fitting, key=lambda item: item[0])[1] if fitting else None

    def of(
        self,
        embedder: str,
        fingerprint: str,
        cast: Cast,
        members: Callable[[], Mapping[str, Member]],
        strangers: Callable[[], Array | None],
    ) -> Calibration | str:
        """The calibration of a cast, or why it has none: kept, of a larger cast, or measured now.

        members, strangers: asked only where it has to be measured.
        """
        found = self.find(fingerprint, cast)
        if found is not None:
            return found
        key = (fingerprint, people(cast))
        if key not in self._known:
            try:
                made = calibrate_members(embedder, members(), strangers())
            except CalibrationError as error:
                self._known[key] = str(error)
            else:
                try:
                    self.keep(fingerprint, cast, made)
                except OSError as error:
                    # A drawing does not fail for that: the cast is measured again next time.
                    log.warning("The thresholds of a cast could not be kept: %s", error)
        return self._known[key]

    def keep(self, fingerprint: str, cast: Cast, calibration: Calibration) -> None:
        """Put a calibration on the shelf, in place of one of the same cast. Raises OSError."""
        who = people(cast)
        self._known[fingerprint, who] = calibration
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        told = {"fingerprint": fingerprint, "people": sorted(who), **asdict(calibration)}
        path = self.folder / f"{_name(fingerprint, who)}.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        part.replace(path)

    def _read_new(self) -> None:
        """Take in files that were put there since: by another process, or before this one."""
        for path in sorted(self.folder.glob("*.json")) if self.folder is not None else ():
            if path.name in self._read:
                continue
            self._read.add(path.name)
            try:
                told = json.loads(path.read_text(encoding="utf-8"))
                state, who = told.pop("fingerprint"), frozenset(told.pop("people"))
                made = Calibration(**told)
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                log.warning("%s is no calibration and is left out: %s", path, error)
                continue
            if path.stem == _name(state, who):
                self._known.setdefault((state, who), made)


def people(cast: Cast) -> frozenset[str]:
    """Who a cast is, by content: a digest of each character's portraits, in any order."""
    return frozenset(_digest(*sorted(set(portraits))) for portraits in cast.values() if portraits)


def _name(fingerprint: str, who: frozenset[str]) -> str:
    return _digest(fingerprint, *sorted(who))


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:32]

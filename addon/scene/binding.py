# SPDX-License-Identifier: GPL-3.0-or-later
"""Which stored shot belongs to which camera marker.

Blender's markers have no identity: name, frame and camera can each change. A stored shot (a row
of `Scene.onmodel.shots`) keeps a uid that never changes and remembers the camera, the name and the
frame its marker had. Rows and markers are paired by the first of these rules that fits; where
several pairs fit one rule, the pair nearest in time is made first:

    1. same camera, same name, same frame: nothing happened
    2. same camera, same name: the marker was moved
    3. same camera, same frame: the marker was renamed
    4. same name, same frame: another camera was bound
    5. same name: another camera was bound and the marker moved
    6. same camera: the marker was renamed and moved

A row that had no marker at the last look is paired by rules 1 and 2 only: its marker came back by
undo or paste. Any other marker is a new shot. So a rename, a move in time, a reorder and a change
of camera each keep the shot; only doing all three at once makes a new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """A timeline marker with a camera, or what a row remembers of it.

    camera: anything that is equal for the same camera (the object itself, or its name).
    """

    frame: int
    name: str
    camera: object
    detached: bool = False


_rules = (
    ("camera", "name", "frame"),
    ("camera", "name"),
    ("camera", "frame"),
    ("name", "frame"),
    ("name",),
    ("camera",),
)
_rules_of_detached = 2


def bind(markers: Sequence[Mark], rows: Sequence[Mark]) -> list[int | None]:
    """For each marker the index of its row, or None for a new shot. See the module's rules."""
    found: list[int | None] = [None] * len(markers)
    free = set(range(len(rows)))
    for number, fields in enumerate(_rules):
        candidates: dict[tuple[object, ...], list[int]] = {}
        for r in free:
            if number < _rules_of_detached or not rows[r].detached:
                candidates.setdefault(_key(rows[r], fields), []).append(r)
        pairs = [
            (abs(m.frame - rows[r].frame), i, r)
            for i, m in enumerate(markers)
            if found[i] is None
            for r in candidates.get(_key(m, fields), ())
        ]
        for _, i, r in sorted(pairs):
            if found[i] is None and r in free:
                found[i] = r
                free.discard(r)
        if not free or None not in found:
            break
    return found


def _key(mark: Mark, fields: tuple[str, ...]) -> tuple[object, ...]:
    return tuple(getattr(mark, f) for f in fields)


def uid_for(mark: Mark, camera_name: str, taken: Iterable[str]) -> str:
    """An identity for a new shot: the same marker gets the same one on every look."""
    used = set(taken)
    text = f"{camera_name}\n{mark.name}\n{mark.frame}"
    count = 0
    while True:
        uid = hashlib.sha256(f"{text}\n{count}".encode()).hexdigest()[:12]
        if uid not in used:
            return uid
        count += 1

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the cast's benches share when they report: who is there, short rows, gates and shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import cast_people
from bench.cast_drawing import Eye
from bench.cast_people import Cell, Member
from bench.harness import Figure
from world.frame_plans import Frame

Array = np.ndarray

least_auc = 0.90
"""On true renders' heads of the same kind, for an embedder to judge drawings of them."""
few = 4
"""Pairs below which no interval is worth printing."""


@dataclass(frozen=True)
class Company:
    """By look: people with LoRAs and people without."""

    own: dict[str, list[Member]]
    others: dict[str, list[Member]]

    @property
    def everybody(self) -> list[Member]:
        """All with LoRAs."""
        return [member for members in self.own.values() for member in members]

    def cells(self, count: int) -> list[Cell]:
        """As many frames of `count` people as are wanted."""
        return cast_people.cells(count, cast_people.frames_wanted(), self.own, self.others)

    def outsiders(self, cell: Cell) -> list[Member]:
        """Strangers of a frame's look who are not in it."""
        present = set(cell.plan.identities)
        return [m for m in self.others[cell.plan.look] if m.identity not in present]


@dataclass(frozen=True)
class Row:
    """A barred figure's name, for when it cannot be taken."""

    name: str
    bar: float
    op: str
    unit: str = ""


def assembled(rows: Sequence[Row]) -> Company | list[Figure]:
    """Who is there; where LoRAs are missing, these rows as short figures that say so."""
    folder = cast_people.results_folder()
    reason = cast_people.lacking(folder)
    if reason:
        return [Figure(row.name, None, row.unit, row.bar, row.op, reason) for row in rows]
    return Company(cast_people.cast(folder), cast_people.strangers(folder))


def eyes() -> list[Eye]:
    """Every embedder that is installed here; the world's own first."""
    from onmodel.identity import registry

    return [Eye(registry.get(one.name)) for one in registry.available() if not one.missing]


def heads_auc(
    eye: Eye, cells: Sequence[Cell], frames: Sequence[Frame], company: Company
) -> tuple[Any, int] | None:
    """How well an embedder tells the true heads of these frames apart, and how many it refused.

    Genuine: a head and its own references; impostors: it and those of everybody else of its look.
    None: too few heads have a face. People whose references show it none are left out.
    """
    from onmodel.identity.report import auc_interval

    genuine, impostors, refused = [], [], 0
    for cell, frame in zip(cells, frames, strict=True):
        look = cell.plan.look
        everybody = [m for m in (*company.own[look], *company.others[look]) if eye.can_know(m)]
        for index, member in enumerate(cell.members):
            head = eye.true(frame, index)
            if head is None or member not in everybody:
                refused += 1
                continue
            genuine.append(float(eye.knows(member) @ head))
            impostors += [
                float(eye.knows(one) @ head) for one in everybody if one.name != member.name
            ]
    if len(genuine) < few:
        return None
    return auc_interval(genuine, impostors), refused

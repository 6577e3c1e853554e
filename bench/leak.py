# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether one character's identity gets into the head of the character beside it.

Frames of two people with a LoRA each (those of `people`). For every head and the neighbour's
references: its likeness to them, less its mean likeness to the references of strangers of that look
whom nothing here was trained on. The mean is barred; with few people its interval is wide. Two
people may be alike or unlike by nature, so the same is printed of the true renders; and of drawings
with both LoRAs on the whole picture, which do leak.

The last row has nothing to do with nature: how much more a head is like the neighbour than in the
same drawing, same seed, without the neighbour's LoRA. A leak would put the whole interval above
zero: its low end is barred. Intervals: two-stage bootstrap over pairs of people and heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bench.cast_drawing import Draughtsman, Drawing, Eye, How, draughtsman, frames
from bench.cast_numbers import grouped
from bench.cast_people import Cell
from bench.cast_report import Company, Row, assembled, eyes, few
from bench.harness import Figure
from world.frame_plans import Frame

Array = np.ndarray
Look = Callable[[int, int], Array | None]

rows = [
    Row("leak: A on B's head over a stranger's", 0.0, "<=", "cosine"),
    Row("leak: A on B's head for A's LoRA, low end", 0.0, "<=", "cosine"),
]


def run() -> list[Figure]:
    """All figures of two people."""
    company = assembled(rows)
    if isinstance(company, list):
        return company
    eye = eyes()[0]
    cells = [c for c in company.cells(2) if all(m.lora is not None for m in c.members)]
    if not cells:
        reason = "no look has two people with a LoRA"
        return [Figure(row.name, None, row.unit, row.bar, row.op, reason) for row in rows]
    shown = frames([cell.plan for cell in cells])
    with draughtsman(company.everybody) as hand:
        figures = _over_strangers(cells, shown, company, hand, eye)
        return [*figures, _for_the_lora(cells, shown, hand, eye)]


def over_strangers(
    cells: Sequence[Cell], look: Look, company: Company, eye: Eye
) -> list[tuple[str, float]]:
    """For each head with a face: whose neighbour on whom, and likeness to it over strangers'."""
    out = []
    for place, cell in enumerate(cells):
        strangers = np.stack([eye.knows(one) for one in company.outsiders(cell)])
        for index, member in enumerate(cell.members):
            head = look(place, index)
            if head is None:
                continue
            for other in cell.members:
                if other is not member:
                    over = float(eye.knows(other) @ head) - float((strangers @ head).mean())
                    out.append((f"{other.name} on {member.name}", over))
    return out


def _over_strangers(
    cells: Sequence[Cell],
    shown: Sequence[Frame],
    company: Company,
    hand: Draughtsman,
    eye: Eye,
) -> list[Figure]:
    from onmodel.identity.report import grouped_difference

    def drawn(how: How) -> list[Drawing]:
        return hand.draw([hand.request(c, f, how) for c, f in zip(cells, shown, strict=True)])

    bound, whole = drawn(How()), drawn(How("whole", faces=False))
    looks: dict[str, Look] = {
        "": lambda place, index: eye.drawn(bound[place].pixels, shown[place], index),
        ", before the face pass": lambda p, i: eye.drawn(bound[p].base, shown[p], i),
        ", LoRAs on the whole picture": lambda p, i: eye.drawn(whole[p].pixels, shown[p], i),
        ", true renders": lambda place, index: eye.true(shown[place], index),
    }
    figures = []
    for title, look in looks.items():
        values = over_strangers(cells, look, company, eye)
        bar = 0.0 if title in ("", ", before the face pass") else None
        name = f"leak: A on B's head over a stranger's{title}"
        if len(values) < few:
            note = f"{len(values)} heads have a face"
            figures.append(Figure(name, None, "cosine", bar, "<=", note))
            continue
        found = grouped_difference(grouped(values))
        note = f"{found}, {len(values)} heads"
        figures.append(Figure(name, found.value, "cosine", bar, "<=", note))
    return figures


def _for_the_lora(
    cells: Sequence[Cell], shown: Sequence[Frame], hand: Draughtsman, eye: Eye
) -> Figure:
    """The neighbour's LoRA in its region against the same drawing without it."""
    from onmodel.identity.report import grouped_difference

    # The pass would draw each head alone, where nobody's neighbour has a LoRA.
    left_out = [cell.plan.number // 2 % 2 for cell in cells]
    both = [How(faces=False)] * len(cells)
    alone = [How(without=index, faces=False) for index in left_out]
    pictures = [
        hand.draw([hand.request(c, f, how) for c, f, how in zip(cells, shown, hows, strict=True)])
        for hows in (both, alone)
    ]
    values = []
    for place, (cell, frame) in enumerate(zip(cells, shown, strict=True)):
        away, own = left_out[place], 1 - left_out[place]
        heads = [eye.drawn(drawn[place].pixels, frame, own) for drawn in pictures]
        if heads[0] is not None and heads[1] is not None:
            mean = eye.knows(cell.members[away])
            name = f"{cell.members[away].name} on {cell.members[own].name}"
            values.append((name, float(mean @ heads[0] - mean @ heads[1])))
    name = "leak: A on B's head for A's LoRA, low end"
    if len(values) < few:
        note = f"{len(values)} pairs show a face"
        return Figure(name, None, "cosine", 0.0, "<=", note)
    found = grouped_difference(grouped(values))
    note = f"{found}, {len(values)} heads, with A's LoRA in its region less without"
    return Figure(name, found.low, "cosine", 0.0, "<=", note)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Which way of binding LoRAs to regions draws best: the table that the default is chosen from.

The frames of two people with a LoRA each, same seeds, without the face pass (which draws each head
alone). Of each way: how like its own character a head is; how like the neighbour's over strangers'
(`leak`); the step across a figure's outline over the true render's (`seams`); and of the first two
how far they lie from the default's, head by head. What the ways cost is in `regions`. The default
is right where no other way is better by an interval that leaves out zero: barred.

ONMODEL_CAST_FRAMES: frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bench.cast_drawing import Drawing, Eye, How, draughtsman, frames
from bench.cast_numbers import grouped
from bench.cast_people import Cell
from bench.cast_report import Company, Row, assembled, eyes, few
from bench.harness import Figure
from bench.leak import Look, over_strangers
from bench.seams import outlines
from world.frame_plans import Frame

rows = [Row("ways: the default, heads by which another way is better", 0.0, "<=", "cosine")]


def run() -> list[Figure]:
    """All figures of two people."""
    from onmodel.generate.regional_settings import standard

    company = assembled(rows)
    if isinstance(company, list):
        return company
    cells = [c for c in company.cells(2) if all(m.lora is not None for m in c.members)]
    if not cells:
        row = rows[0]
        reason = "no look has two people with a LoRA"
        return [Figure(row.name, None, row.unit, row.bar, row.op, reason)]
    ways = {
        "default": standard,
        "hard edges": replace(standard, soft=False),
        "edges blurred by a cell": replace(standard, feather=1.0),
        "grown in the first half": replace(standard, grown=(0.0, 0.5)),
        "grown throughout": replace(standard, grown=(0.0, 1.0)),
        "without keys of its own": replace(standard, own_keys=False),
        "a pass per LoRA": replace(standard, way="pass"),
    }
    shown = frames([cell.plan for cell in cells])
    eye = eyes()[0]
    drawn: dict[str, list[Drawing]] = {}
    for name, settings in ways.items():
        with draughtsman(company.everybody, settings) as hand:
            wanted = [
                hand.request(c, f, How(faces=False)) for c, f in zip(cells, shown, strict=True)
            ]
            drawn[name] = hand.draw(wanted)
    return _figures(cells, shown, drawn, company, eye)


def likeness_by_head(
    cells: Sequence[Cell], shown: Sequence[Frame], drawn: Sequence[Drawing], eye: Eye
) -> dict[tuple[int, int], float]:
    """Cosine of each head that has a face to its own references, by frame and person."""
    found = {}
    for place, (cell, frame) in enumerate(zip(cells, shown, strict=True)):
        for index, member in enumerate(cell.members):
            head = eye.drawn(drawn[place].pixels, frame, index)
            if head is not None:
                found[place, index] = float(eye.knows(member) @ head)
    return found


def looking(eye: Eye, pictures: Sequence[np.ndarray], shown: Sequence[Frame]) -> Look:
    """The embedding of a frame's head in its picture."""
    return lambda place, index: eye.drawn(pictures[place], shown[place], index)


def _figures(
    cells: Sequence[Cell],
    shown: Sequence[Frame],
    drawn: dict[str, list[Drawing]],
    company: Company,
    eye: Eye,
) -> list[Figure]:
    from onmodel.identity.report import grouped_difference, mean

    likeness = {name: likeness_by_head(cells, shown, own, eye) for name, own in drawn.items()}
    usual = likeness["default"]
    figures, better = [], []
    for name, own in drawn.items():
        pictures = [one.pixels for one in own]

        leaks = over_strangers(cells, looking(eye, pictures, shown), company, eye)
        heads = [(cells[p].members[i].name, value) for (p, i), value in likeness[name].items()]
        if len(heads) < few or len(leaks) < few:
            figures.append(Figure(f"ways: {name}", None, note="too few heads have a face"))
            continue
        inside, leak = grouped_difference(grouped(heads)), grouped_difference(grouped(leaks))
        outline = mean(outlines(shown, pictures)[0])
        figures += [
            Figure(f"ways: {name}, likeness to its own", inside.value, "cosine", note=str(inside)),
            Figure(
                f"ways: {name}, to the neighbour over a stranger's",
                leak.value,
                "cosine",
                note=str(leak),
            ),
            Figure(
                f"ways: {name}, outline over the render's", outline.value, "ΔE₀₀", note=str(outline)
            ),
        ]
        if name != "default":
            gains = [
                (cells[p].members[i].name, value - usual[p, i])
                for (p, i), value in likeness[name].items()
                if (p, i) in usual
            ]
            gain = grouped_difference(grouped(gains))
            better.append((gain.low, name, gain))
            title = f"ways: {name}, likeness less the default's"
            figures.append(Figure(title, gain.value, "cosine", note=str(gain)))
    row = rows[0]
    if not better:
        return [*figures, Figure(row.name, None, row.unit, row.bar, row.op, "no way to compare")]
    low, name, gain = max(better)
    note = f"the best other way's low end: {name}, {gain}"
    return [*figures, Figure(row.name, low, row.unit, row.bar, row.op, note)]

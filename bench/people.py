# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the right identity is in the right region, with two to five people in one frame.

The heads of a drawing are given to the frame's characters so that the sum of their likeness is
largest (`cast_numbers.assigned`); a frame is right where that is everybody's own place. A frame is
accepted where every head has a face and none has the verdict "other", as the product's thresholds
have it. Beside it the same frames and seeds with all LoRAs on the whole picture, the prompts still
in their regions (the LoRAs of `bench.lora_test` share one trigger, so prompts alone cannot tell
them apart), and the true renders, which say what is possible.

People beyond those with a LoRA are held by words; they count like the others. Frames are drawn with
the face pass, as they are delivered. Of three and more people, half of the frames are also drawn
with the LoRAs on the whole picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.cast_drawing import Draughtsman, Drawing, Eye, How, draughtsman, frames, likeness
from bench.cast_numbers import assigned
from bench.cast_people import Cell
from bench.cast_report import Company, Row, assembled, eyes
from bench.harness import Figure

Array = np.ndarray

counts = (2, 3, 4, 5)
rows = [Row(f"people: {n}, right of accepted frames", 1.0, ">=") for n in counts]


def run() -> list[Figure]:
    """All figures, by the number of people."""
    company = assembled(rows)
    if isinstance(company, list):
        return company
    world = eyes()[0]
    with draughtsman(company.everybody) as hand:
        return [figure for n in counts for figure in _people(n, company, hand, world)]


@dataclass
class Tally:
    """Frames by what became of them. reasons: of the rejected."""

    right: int = 0
    wrong: int = 0
    no_face: int = 0
    other: int = 0
    right_of_all: int = 0

    @property
    def accepted(self) -> int:
        """Frames that nothing rejected."""
        return self.right + self.wrong

    @property
    def frames(self) -> int:
        """All."""
        return self.accepted + self.no_face + self.other

    def words(self) -> str:
        """Rates with their intervals."""
        from onmodel.identity.report import share

        rejected = self.no_face + self.other
        found = f"rejected {share(rejected, self.frames)} of {self.frames}"
        found += f" ({self.no_face} without a face, {self.other} by verdict)"
        all_of_them = share(self.right_of_all, self.frames)
        return f"{found}; right of all frames {all_of_them}"


def tally(
    cells: Sequence[Cell],
    look: Callable[[int, int], Array | None],
    eye: Eye,
    verdict: Callable[[float], str],
) -> Tally:
    """look(frame, person): an embedding or None."""
    out = Tally()
    for place, cell in enumerate(cells):
        heads = [look(place, index) for index in range(len(cell.members))]
        alike = likeness(eye, heads, cell.members)
        if alike is None:
            out.no_face += 1
            continue
        right = assigned(alike) == tuple(range(len(cell.members)))
        out.right_of_all += right
        if any(verdict(float(alike[i, i])) == "other" for i in range(len(alike))):
            out.other += 1
        elif right:
            out.right += 1
        else:
            out.wrong += 1
    return out


def _people(count: int, company: Company, hand: Draughtsman, eye: Eye) -> list[Figure]:
    from onmodel.identity import registry

    calibration = registry.calibration(eye.embedder.name)
    name = f"people: {count}"
    if calibration is None:
        reason = f"{eye.embedder.name} has no calibration: nothing tells what to accept"
        return [Figure(f"{name}, right of accepted frames", None, "", 1.0, ">=", reason)]
    cells = company.cells(count)
    shown = frames([cell.plan for cell in cells])

    def drawn(how: How, first: int) -> list[Drawing]:
        pairs = zip(cells[:first], shown[:first], strict=True)
        return hand.draw([hand.request(cell, frame, how) for cell, frame in pairs])

    bound = drawn(How(), len(cells))
    whole = drawn(How("whole", faces=False), -(-len(cells) // (1 if count == 2 else 2)))

    def counted(pictures: Sequence[Array]) -> Tally:
        return tally(
            cells[: len(pictures)],
            lambda place, index: eye.drawn(pictures[place], shown[place], index),
            eye,
            calibration.verdict,
        )

    by_lora = sum(m.lora is not None for cell in cells for m in cell.members) / len(cells)
    ways = {"": counted([one.pixels for one in bound])}
    ways[", before the face pass"] = counted([one.base for one in bound])
    ways[", LoRAs on the whole picture"] = counted([one.pixels for one in whole])
    ways[", true renders"] = tally(
        cells, lambda place, index: eye.true(shown[place], index), eye, calibration.verdict
    )
    held = f"{by_lora:.1f} of {count} by LoRA, the others by words" if by_lora < count else ""
    figures = []
    for title, found in ways.items():
        bar = 1.0 if not title else None
        words = "; ".join(w for w in (found.words(), "" if title else held) if w)
        way, title = title, f"{name}, right of accepted frames{title}"
        if not found.accepted and way:
            # What stands beside the barred figure may well have nothing to show.
            figures.append(Figure(f"{name}, accepted frames{way}", 0.0, note=words))
            continue
        if not found.accepted:
            figures.append(Figure(title, None, "", bar, ">=", f"none is accepted; {words}"))
            continue
        figures.append(
            Figure(title, found.right / found.accepted, "", bar, ">=", f"{_share(found)}; {words}")
        )
    return figures


def _share(found: Tally) -> str:
    from onmodel.identity.report import share

    return f"{share(found.right, found.accepted)}, {found.accepted} accepted"

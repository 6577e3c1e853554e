# SPDX-License-Identifier: GPL-3.0-or-later
"""What the face pass touches, and whether borders show: of feathered masks and of regions.

On the frames of two people. Bytes: each frame drawn with the pass and without, same seed, counted
where no feathered head mask reaches; the masks are widened here by the feather's reach, from the
request alone, not by the server's own code. Seam: CIEDE2000 between the last pixel of a feathered
mask and its neighbour outside, against one step further in; heads that were put back only.

A region's border is a figure's outline, where the colour steps in every picture: what counts there
is the step across less the step inside, against the same of the true render at the same places.
Intervals: bootstrap over frames, each frame's mean counting once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from addon.core.request import FacePass
from bench.cast_drawing import Drawing, How, draughtsman, frames
from bench.cast_numbers import steps
from bench.cast_report import Row, assembled, few
from bench.harness import Figure
from world.frame_plans import Frame

Array = np.ndarray

rows = [
    Row("seams: bytes changed outside the feathered masks", 0.0, "=="),
    Row("seams: face pass, across less inside, mean", 0.0, "<=", "ΔE₀₀"),
    Row("seams: regions, outline over the render's, mean", 0.0, "<=", "ΔE₀₀"),
]


def run() -> list[Figure]:
    """All figures of two people."""
    company = assembled(rows)
    if isinstance(company, list):
        return company
    cells = company.cells(2)
    shown = frames([cell.plan for cell in cells])
    with draughtsman(company.everybody) as hand:

        def drawn(how: How) -> list[Drawing]:
            return hand.draw([hand.request(c, f, how) for c, f in zip(cells, shown, strict=True)])

        on, off = drawn(How()), drawn(How(faces=False))
    return [
        *_bytes(shown, on, off),
        *_faces(shown, on),
        *_regions(shown, off),
    ]


def reach(frame: Frame, index: int) -> Array:
    """(H, W) bool: where a head's feathered mask may change a picture. The feather is a mean over a
    square window of this radius, as a share of the head's height."""
    head = frame.people[index].head
    mask = frame.heads == index + 1
    if head is None:
        return np.zeros_like(mask)
    radius = max(1, round(head.box.height * FacePass().feather))
    padded = np.pad(mask, radius)
    height, width = mask.shape
    out = np.zeros_like(mask)
    for down in range(2 * radius + 1):
        for right in range(2 * radius + 1):
            out |= padded[down : down + height, right : right + width]
    others = (frame.heads > 0) & ~mask
    return out & ~others


def _bytes(shown: Sequence[Frame], on: Sequence[Drawing], off: Sequence[Drawing]) -> list[Figure]:
    changed = inside = heads = different = 0
    for frame, one, other in zip(shown, on, off, strict=True):
        allowed = np.zeros(frame.heads.shape, bool)
        for index, head in enumerate(one.heads):
            if head["face"]["state"] == "repaired":
                heads += 1
                allowed |= reach(frame, index)
        bytes_changed = one.pixels != other.pixels
        changed += int(bytes_changed[~allowed].sum())
        inside += int(bytes_changed[allowed].sum())
        different += int((one.base != other.pixels).sum())
    note = f"{len(shown)} frames, {heads} heads put back; {inside} bytes changed inside"
    return [
        Figure("seams: bytes changed outside the feathered masks", changed, "", 0.0, "==", note),
        Figure(
            "seams: bytes that the picture before the pass differs by",
            different,
            note="from the drawing without it: the other benches take it for that drawing",
        ),
    ]


def _colour(pixels: Array) -> Array:
    from onmodel.rehearsal.judge.attributes import lab

    found: Array = lab(pixels.astype(np.float64) / 255)
    return found


def _faces(shown: Sequence[Frame], on: Sequence[Drawing]) -> list[Figure]:
    """At the borders of feathered masks of heads that were put back, and before the pass."""
    from onmodel.identity.report import mean

    after, before, across, inside = [], [], [], []
    for frame, one in zip(shown, on, strict=True):
        found = []
        for picture in (one.pixels, one.base):
            colour = _colour(picture)
            pairs = [
                steps(colour, reach(frame, index))
                for index, head in enumerate(one.heads)
                if head["face"]["state"] == "repaired"
            ]
            pairs = [pair for pair in pairs if len(pair[0])]
            found.append([np.concatenate(part) for part in zip(*pairs, strict=True)])
        if not found[0]:
            continue
        across.append(float(found[0][0].mean()))
        inside.append(float(found[0][1].mean()))
        after.append(across[-1] - inside[-1])
        before.append(float(found[1][0].mean() - found[1][1].mean()))
    name = "seams: face pass, across less inside, mean"
    if len(after) < few:
        note = f"{len(after)} frames have a head that was put back"
        return [Figure(name, None, "ΔE₀₀", 0.0, "<=", note)]
    note = f"{mean(after)}, {len(after)} frames; across {mean(across)}, inside {mean(inside)}"
    return [
        Figure(name, float(np.mean(after)), "ΔE₀₀", 0.0, "<=", note),
        Figure(
            "seams: the same places before the pass",
            float(np.mean(before)),
            "ΔE₀₀",
            note=str(mean(before)),
        ),
    ]


def outlines(
    shown: Sequence[Frame], pictures: Sequence[Array]
) -> tuple[list[float], list[float], list[float]]:
    """Of each frame the step across the outlines of its figures less the step inside, over the same
    of its render; the drawn step across; the drawn step inside. All ΔE₀₀."""
    over, across, inside = [], [], []
    for frame, drawn in zip(shown, pictures, strict=True):
        found = []
        for picture in (drawn, frame.rgb):
            colour = _colour(picture)
            pairs = [steps(colour, frame.owner == i + 1) for i in range(len(frame.people))]
            both = [np.concatenate(part) for part in zip(*pairs, strict=True)]
            found.append((float(both[0].mean()), float(both[1].mean())))
        across.append(found[0][0])
        inside.append(found[0][1])
        over.append((found[0][0] - found[0][1]) - (found[1][0] - found[1][1]))
    return over, across, inside


def _regions(shown: Sequence[Frame], off: Sequence[Drawing]) -> list[Figure]:
    """At the borders of the characters' regions, drawn and rendered."""
    from onmodel.identity.report import mean

    over, across, inside = outlines(shown, [one.pixels for one in off])
    name = "seams: regions, outline over the render's, mean"
    if len(over) < few:
        return [Figure(name, None, "ΔE₀₀", 0.0, "<=", f"{len(over)} frames are too few")]
    note = f"{mean(over)}, {len(over)} frames; drawn: across {mean(across)}, inside {mean(inside)}"
    return [Figure(name, float(np.mean(over)), "ΔE₀₀", 0.0, "<=", note)]

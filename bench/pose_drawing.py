# SPDX-License-Identifier: GPL-3.0-or-later
"""Our pose drawing against controlnet-aux's own pictures of the same points."""

import numpy as np

from addon.core import png
from addon.core.openpose import draw_pose
from bench.harness import Figure
from tests.addon.golden import openpose_oracle as oracle


def run() -> list[Figure]:
    """Least stick IoU and largest colour difference over the kept pictures, and live if it can."""
    pairs = [
        (case, png.decode(oracle.picture_file(number).read_bytes()))
        for number, case in enumerate(oracle.kept_cases())
    ]
    note = f"{len(pairs)} pictures drawn by controlnet-aux"
    if oracle.available():
        live = [oracle.random_case(500 + s, 1024, 1024, 1 + s % 3) for s in range(12)]
        pairs += [(case, oracle.draw(case)) for case in live]
        note += f" and kept, {len(live)} drawn by it now"
    least, apart = 1.0, 0
    for case, theirs in pairs:
        ours = draw_pose(case.people, case.width, case.height)
        a, b = ours.any(axis=2), theirs.any(axis=2)
        least = min(least, float((a & b).sum() / (a | b).sum()))
        apart = max(apart, int(np.abs(ours.astype(int) - theirs)[a & b].max()))
    return [
        Figure("pose drawing, least stick IoU", least, bar=0.99, op=">=", note=note),
        Figure("pose drawing, largest colour difference", apart, "of 255", bar=1),
    ]

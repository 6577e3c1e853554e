# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the head is in a portrait of the rehearsal world: its own embedder has no detector.

The judge's net (onmodel.rehearsal.judge) says which pixels are head (face, neck, eyes, mouth) and
hair; a linear rule over where these lie gives the box, which a label alone does not: hair hangs
and a neck is a head's pixel too. The rule is ridge regression (Hoerl & Kennard 1970), fitted on
the world's renders by `python -m onmodel.identity.find_fit`, which prints what it is worth on
people that nothing was fitted on. A second look at the cut-out head finds small ones better.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from onmodel.identity.interface import Array, HeadBox, NoFace, check_picture, head_size, square

log = logging.getLogger(__name__)

rule_file = Path(__file__).parent / "weights" / "rehearsal_finder.json"
least_labels = 30
"""Fewest head pixels, of the judge's 128², that are taken for a head."""
closer = 2.4
"""Side of the second look's square over the head box's longer side."""
small_head = 48
"""Heads that the first look shows at fewer of its 128 pixels get the second look."""
_head, _hair, _side, _cells = 2, 3, 128, 12


def find_head(image: Array) -> HeadBox | NoFace:
    """The head box of the largest head in a picture (H, W, 3) uint8, or why there is none."""
    check_picture(image)
    box = _look(image)
    if isinstance(box, NoFace):
        return box
    if head_size(box) * _side / max(image.shape[:2]) >= small_head:
        return box
    x0, y0, x1, y1 = square(box, closer)
    height, width = image.shape[:2]
    left, top = max(0, int(x0)), max(0, int(y0))
    part = image[top : min(height, int(y1) + 1), left : min(width, int(x1) + 1)]
    again = _look(np.ascontiguousarray(part))
    if isinstance(again, NoFace):
        return box
    return (again[0] + left, again[1] + top, again[2] + left, again[3] + top)


def _look(image: Array) -> HeadBox | NoFace:
    small = np.asarray(Image.fromarray(image).resize((_side, _side), Image.Resampling.BOX))
    labels = judge().parts(small[None])[0]
    return box_of_labels(labels, image.shape[1], image.shape[0], _rule())


def box_of_labels(labels: Array, width: int, height: int, rule: Array) -> HeadBox | NoFace:
    """The head box in a picture of width x height from the judge's labels (128, 128) of it.

    rule: (features, 4) as `fit` gives.
    """
    seen = _describe(labels, width, height)
    if seen is None:
        return NoFace("undetected", "No head was found in the picture.")
    numbers, (x, y), scale = seen
    x0, y0, x1, y1 = (float(v) for v in numbers @ rule)
    if x1 <= x0 or y1 <= y0:
        return NoFace("undetected", "No head was found in the picture.")
    return (x + scale * x0, y + scale * y0, x + scale * x1, y + scale * y1)


@functools.cache
def judge() -> Any:
    """The judge that ships, warm."""
    from onmodel.rehearsal.judge.net import Judge

    return Judge()


@functools.cache
def _rule() -> Array:
    return np.array(json.loads(rule_file.read_text())["rule"])


def largest_blob(mask: Array) -> Array:
    """(H, W) bool: the connected part (4 neighbours) of a mask with the most pixels."""
    left, best = mask.copy(), np.zeros_like(mask)
    while int(left.sum()) > int(best.sum()):
        grown = np.zeros_like(mask)
        grown[tuple(np.argwhere(left)[0])] = True
        count = 0
        while int(grown.sum()) > count:
            count = int(grown.sum())
            wide = grown.copy()
            wide[1:] |= grown[:-1]
            wide[:-1] |= grown[1:]
            wide[:, 1:] |= grown[:, :-1]
            wide[:, :-1] |= grown[:, 1:]
            grown = wide & left
        left &= ~grown
        if count > int(best.sum()):
            best = grown
    return best


def _describe(
    labels: Array, width: int, height: int
) -> tuple[Array, tuple[float, float], float] | None:
    """Numbers about the largest head in the labels, its centre and scale in pixels; None: no head.

    The numbers: 1, quantiles across and down of the head's and of all its and its hair's pixels,
    how much of it is hair, and what of a grid about the centre head and hair cover.
    """
    whole = largest_blob(np.isin(labels, (_head, _hair)))
    head = whole & (labels == _head)
    if int(head.sum()) < least_labels:
        return None
    across, down = width / _side, height / _side
    rows, columns = (at + 0.5 for at in np.nonzero(whole))
    own = labels[whole] == _head
    x, y = columns * across, rows * down
    centre = (float(np.median(x[own])), float(np.median(y[own])))
    scale = float(np.sqrt(len(x) * across * down))
    u, v = (x - centre[0]) / scale, (y - centre[1]) / scale
    at = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
    spread = [np.quantile(part, at) for part in (u[own], v[own], u, v)]
    grids = []
    for mine in (own, ~own):
        reach = [(-1.2, 1.2), (-1.2, 1.2)]
        counts, _, _ = np.histogram2d(v[mine], u[mine], bins=_cells, range=reach)
        grids.append(counts.ravel() / len(x) * _cells)
    return np.concatenate([[1.0, 1 - own.mean()], *spread, *grids]), centre, scale


def fit(examples: Sequence[tuple[Array, int, int, HeadBox]], stiffness: float = 3.0) -> Array:
    """(features, 4): the rule, from labels (128, 128), width and height of the picture, its box."""
    inputs, targets = [], []
    for labels, width, height, box in examples:
        for flip in (False, True):
            seen = _describe(labels[:, ::-1] if flip else labels, width, height)
            if seen is None:
                continue
            x0, y0, x1, y1 = box
            if flip:
                x0, x1 = width - x1, width - x0
            numbers, (x, y), scale = seen
            inputs.append(numbers)
            targets.append([(x0 - x) / scale, (y0 - y) / scale, (x1 - x) / scale, (y1 - y) / scale])
    a, b = np.array(inputs), np.array(targets)
    bend = a.T @ a + stiffness * np.diag(np.r_[0.0, np.ones(a.shape[1] - 1)])
    return np.asarray(np.linalg.solve(bend, a.T @ b))

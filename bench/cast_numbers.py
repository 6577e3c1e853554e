# SPDX-License-Identifier: GPL-3.0-or-later
"""Arithmetic of the cast's benches: who is most like whom, and colour steps across a border."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def assigned(likeness: Array) -> tuple[int, ...]:
    """For each row (a head) the column (a character) that it gets, each column once, so that the
    sum is largest; of equal sums the first in order.

    likeness: (n, n). It is the optimum that the Hungarian method (Kuhn 1955) finds; five people
    have 120 orders, so all are looked at.
    """
    n = len(likeness)
    if likeness.shape != (n, n) or not np.isfinite(likeness).all():
        raise ValueError(f"An assignment needs a square of numbers, not {likeness.shape}.")
    rows = np.arange(n)
    orders = list(itertools.permutations(range(n)))
    return max(orders, key=lambda order: float(likeness[rows, list(order)].sum()))


def delta_e(one: Array, other: Array) -> Array:
    """CIEDE2000 of colours (..., 3) in CIELAB (L* 0..100), shape (...,); parametric factors 1.

    After G. Sharma, W. Wu, E. N. Dalal, "The CIEDE2000 Color-Difference Formula: Implementation
    Notes, Supplementary Test Data, and Mathematical Observations", Color Research & Application
    30(1), 2005; the numbers in the comments are that paper's equations.
    """
    l1, a1, b1 = np.moveaxis(np.asarray(one, np.float64), -1, 0)
    l2, a2, b2 = np.moveaxis(np.asarray(other, np.float64), -1, 0)
    mean_chroma = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2  # 2, 3
    g = 0.5 * (1 - np.sqrt(mean_chroma**7 / (mean_chroma**7 + 25.0**7)))  # 4
    p1, p2 = (1 + g) * a1, (1 + g) * a2  # 5
    c1, c2 = np.hypot(p1, b1), np.hypot(p2, b2)  # 6
    h1, h2 = (np.degrees(np.arctan2(b, p)) % 360 for b, p in ((b1, p1), (b2, p2)))  # 7
    grey = c1 * c2 == 0
    turn = h2 - h1
    # Opposite hues are 180 apart by the rule, whichever way their last bits were rounded.
    half = 180 + 1e-9
    turn = np.where(turn > half, turn - 360, np.where(turn < -half, turn + 360, turn))
    turn = np.where(grey, 0.0, turn)  # 10
    step_l, step_c = l2 - l1, c2 - c1  # 8, 9
    step_h = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn) / 2)  # 11
    mean_l, mean_c = (l1 + l2) / 2, (c1 + c2) / 2  # 12, 13
    total = h1 + h2
    far = np.abs(h1 - h2) > half
    mean_h = np.where(far, np.where(total < 360, total + 360, total - 360), total) / 2
    mean_h = np.where(grey, total, mean_h)  # 14
    t = (
        1
        - 0.17 * np.cos(np.radians(mean_h - 30))
        + 0.24 * np.cos(np.radians(2 * mean_h))
        + 0.32 * np.cos(np.radians(3 * mean_h + 6))
        - 0.20 * np.cos(np.radians(4 * mean_h - 63))
    )  # 15
    spin = 30 * np.exp(-(((mean_h - 275) / 25) ** 2))  # 16
    rotation = -2 * np.sqrt(mean_c**7 / (mean_c**7 + 25.0**7)) * np.sin(np.radians(2 * spin))  # 17
    bright = (mean_l - 50) ** 2
    s_l = 1 + 0.015 * bright / np.sqrt(20 + bright)  # 18
    s_c, s_h = 1 + 0.045 * mean_c, 1 + 0.015 * mean_c * t  # 19, 20
    x, y, z = step_l / s_l, step_c / s_c, step_h / s_h
    found: Array = np.sqrt(np.maximum(x * x + y * y + z * z + rotation * y * z, 0.0))  # 22
    return found


def steps(lab: Array, mask: Array) -> tuple[Array, Array]:
    """Colour steps at a mask's border: (n,) CIEDE2000 across it, and (n,) one step further in.

    lab: (H, W, 3). mask: (H, W) bool. Of each pair of neighbours of which the mask holds one, in
    rows and in columns, whose next pixel on the inner side the mask holds too.
    """
    across, inside = [], []
    for picture, inner in ((lab, mask), (lab.swapaxes(0, 1), mask.T)):
        for colour, held in ((picture, inner), (picture[:, ::-1], inner[:, ::-1])):
            at = ~held[:, :-2] & held[:, 1:-1] & held[:, 2:]
            outer, first, second = colour[:, :-2][at], colour[:, 1:-1][at], colour[:, 2:][at]
            across.append(delta_e(outer, first))
            inside.append(delta_e(first, second))
    return np.concatenate(across), np.concatenate(inside)


def grouped(values: Sequence[tuple[str, float]]) -> list[tuple[list[float], list[float]]]:
    """Values by whose they are, as `identity.report.grouped_difference` takes differences."""
    names = sorted({name for name, _ in values})
    own = {name: [value for whose, value in values if whose == name] for name in names}
    return [(own[name], [0.0] * len(own[name])) for name in names]

# SPDX-License-Identifier: GPL-3.0-or-later
"""Line drawings from geometry: silhouettes, creases and the borders of objects, white on black.

Cleaner than lines found in a picture, since no light or texture takes part.
"""

from __future__ import annotations

import numpy as np

_jump = 0.03
"""Share of the distance by which a surface must lie behind the one before it."""

_crease = 28.0
"""Degrees between neighbouring pixels at 1024 pixels. In small pictures a pixel spans more of a
rounded form, so that more is asked there."""

_widest_crease = 50.0
_thick_from = 800
_band = 64


def line_map(z: np.ndarray, normals: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """A lineart map for a ControlNet.

    z: (H, W) float, planar metres, infinite for the background. normals: (H, W, 3), in any space,
    zero where there is none. ids: (H, W) integer, equal on pixels of one object.
    Returns (H, W) uint8, 0 or 255; lines are 1 pixel wide, 2 from 800 pixels on the longer side.

    A jump in depth counts where the disparity (1/z, on which flat things are flat in the picture)
    steps by more than it does on both sides, so that floors seen at a low angle stay empty. The
    line lies on what is in front.
    """
    height, width = z.shape
    longest = max(height, width)
    angle = min(_widest_crease, _crease * max(1.0, 1024 / longest) ** 0.5)
    lines = np.empty((height, width), bool)
    for top in range(0, height, _band):
        # Two rows around a band decide about its own; a band at a time stays in the processor.
        start, end = max(0, top - 2), min(height, top + _band + 2)
        rows = slice(start, end)
        found = _edges(z[rows], normals[rows], ids[rows], angle, longest >= _thick_from)
        lines[top : top + _band] = found[top - start : top - start + _band]
    return _without_specks(lines).astype(np.uint8) * 255


def _edges(
    z: np.ndarray, normals: np.ndarray, ids: np.ndarray, angle: float, thick: bool
) -> np.ndarray:
    """(H, W) bool: the pixels of lines. angle: of a crease, degrees. thick: on both its sides."""
    z = np.asarray(z, np.float32)
    usable = np.isfinite(z) & (z > 0)
    disparity = np.divide(np.float32(1), z, out=np.zeros_like(z), where=usable)
    # One array per axis: numpy is several times slower on interleaved ones.
    axes = np.ascontiguousarray(np.moveaxis(np.asarray(normals, np.float32), 2, 0))
    length = np.sqrt(axes[0] * axes[0] + axes[1] * axes[1] + axes[2] * axes[2])
    shaded = usable & (length > 1e-6)
    axes /= np.where(shaded, length, np.float32(1))
    limit = np.float32(np.cos(np.radians(angle)))
    lines = np.zeros(z.shape, bool)
    for axis in (0, 1):
        first, second = _pair(axis)
        near, far = disparity[first], disparity[second]
        edge = _steps(disparity, axis) > _jump * np.maximum(near, far)
        edge |= ids[first] != ids[second]
        bend = axes[0][first] * axes[0][second]
        for other in axes[1:]:
            bend += other[first] * other[second]
        edge |= (bend < limit) & shaded[first] & shaded[second]
        front = near >= far
        lines[first] |= edge & (front | thick)
        lines[second] |= edge & (~front | thick)
    return lines


def _pair(axis: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of all pixels with a next one along the axis, and of those next ones."""
    whole, first, second = slice(None), slice(None, -1), slice(1, None)
    return ((first, whole), (second, whole)) if axis == 0 else ((whole, first), (whole, second))


def _steps(disparity: np.ndarray, axis: int) -> np.ndarray:
    """How much more each pair of neighbours differs than the pair beside it that differs less."""
    step = np.abs(np.diff(disparity, axis=axis))
    beside = np.empty_like(step)
    # Views with the stepped axis first; memory stays as it is.
    along, out = (step, beside) if axis == 0 else (step.T, beside.T)
    if len(along) > 2:
        np.minimum(along[:-2], along[2:], out=out[1:-1])
        out[0], out[-1] = along[1], along[-2]
        step -= beside
    return step


def _without_specks(lines: np.ndarray) -> np.ndarray:
    """Drop pixels that have at most one other beside them, diagonals included."""
    padded = np.pad(lines, 1).astype(np.uint8)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] - padded[1:-1, 1:-1]
    return lines & (around > 1)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Which pixels some triangles cover, and on which of them they are the nearest surface.

The index pass tells objects apart, not parts of one. A head on a body mesh is found by drawing
the head's triangles alone, with numpy, and comparing with the depth pass: where the depths agree
the head is what the camera sees.
"""

from __future__ import annotations

import numpy as np

_slack = 0.004
"""Metres that depths may differ: displacement, smooth normals' terminator, single precision."""

_jitter = 0.1
"""Pixels between where Cycles looked and the pixel's centre, generously."""

_chunk = 1 << 20
"""Pixels handled at once: the arrays stay in the cache's reach."""


def cover(
    corners: np.ndarray, z_pass: np.ndarray, perspective: bool, clip_start: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw triangles.

    corners: (T, 3, 3) float, canvas x, y px and planar z metres of each corner (`View.project`).
    z_pass: (H, W) float32 planar depth of the nearest surface in metres, inf where nothing is.
    perspective: whether 1/z, else z, is linear on the canvas.
    clip_start: triangles with a corner nearer than this are left out.
    Returns (covered, nearest), (H, W) bool: pixels whose centre lies in a triangle, and those of
    them where a triangle's depth is that of the pass.
    """
    height, width = z_pass.shape
    covered = np.zeros(height * width, bool)
    nearest = np.zeros(height * width, bool)
    corners = np.asarray(corners, np.float64)
    inside = (
        (corners[:, :, 2].min(axis=1) > clip_start)
        & (corners[:, :, 0].max(axis=1) > 0)
        & (corners[:, :, 0].min(axis=1) < width)
        & (corners[:, :, 1].max(axis=1) > 0)
        & (corners[:, :, 1].min(axis=1) < height)
    )
    corners = corners[inside]
    if not len(corners):
        return covered.reshape(z_pass.shape), nearest.reshape(z_pass.shape)
    flat_z = z_pass.ravel()
    triangle, row, left, right = _rows(corners, width, height)
    # In a small head most triangles lie between the pixels' centres.
    used, triangle = np.unique(triangle, return_inverse=True)
    plane, slope = _planes(corners[used], perspective)
    counts = right - left
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        begun = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, begun + _chunk, "right")), start + 1)
        part = slice(start, stop)
        n = counts[part]
        span = np.repeat(np.arange(stop - start), n)
        x = np.arange(len(span)) - np.repeat(np.cumsum(n) - n - left[part], n)
        pixel = (row[part] * width)[span] + x
        covered[pixel] = True
        t = triangle[part]
        first = plane[t, 0] + plane[t, 2] * (row[part] + 0.5) + plane[t, 1] * 0.5
        value = first[span] + plane[t, 1][span] * x
        z = np.divide(1.0, value) if perspective else value
        close = np.abs(z - flat_z[pixel]) <= slope[t][span]
        nearest[pixel[close]] = True
        start = stop
    return covered.reshape(z_pass.shape), nearest.reshape(z_pass.shape)


def _planes(corners: np.ndarray, perspective: bool) -> tuple[np.ndarray, np.ndarray]:
    """Per triangle (a, b, c) with value = a + b x + c y, and the depth tolerance in metres."""
    p0, p1, p2 = corners[:, 0], corners[:, 1], corners[:, 2]
    area = (p1[:, 0] - p0[:, 0]) * (p2[:, 1] - p0[:, 1]) - (p2[:, 0] - p0[:, 0]) * (
        p1[:, 1] - p0[:, 1]
    )
    area = np.where(np.abs(area) > 1e-12, area, np.inf)  # edge-on: one depth will do
    depth = corners[:, :, 2]
    value = 1.0 / depth if perspective else depth
    d1, d2 = value[:, 1] - value[:, 0], value[:, 2] - value[:, 0]
    b = (d1 * (p2[:, 1] - p0[:, 1]) - d2 * (p1[:, 1] - p0[:, 1])) / area
    c = (d2 * (p1[:, 0] - p0[:, 0]) - d1 * (p2[:, 0] - p0[:, 0])) / area
    a = value[:, 0] - b * p0[:, 0] - c * p0[:, 1]
    # How much z changes over the jitter; never more than the triangle is deep.
    steep = np.abs(b) + np.abs(c)
    if perspective:
        steep = steep * depth.max(axis=1) ** 2
    slope = np.minimum(steep * _jitter, np.ptp(depth, axis=1))
    return np.stack([a, b, c], axis=1), slope + _slack


def _rows(
    corners: np.ndarray, width: int, height: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Triangle number, row, first column, column behind the last, for each row of each triangle.

    A pixel counts when its centre is inside.
    """
    order = np.argsort(corners[:, :, 1], axis=1)
    xy = np.take_along_axis(corners[:, :, :2], order[:, :, None], axis=1)
    x, y = xy[:, :, 0], xy[:, :, 1]
    top = np.clip(np.ceil(y[:, 0] - 0.5), 0, height).astype(np.int64)
    bottom = np.clip(np.ceil(y[:, 2] - 0.5), 0, height).astype(np.int64)
    counts = np.maximum(bottom - top, 0)
    triangle = np.repeat(np.arange(len(counts)), counts)
    row = np.arange(len(triangle)) - np.repeat(np.cumsum(counts) - counts - top, counts)

    def slope(i: int, j: int) -> np.ndarray:
        rise = y[:, j] - y[:, i]
        return np.divide(x[:, j] - x[:, i], rise, out=np.zeros_like(rise), where=rise > 1e-12)

    long, upper, lower = slope(0, 2), slope(0, 1), slope(1, 2)
    at = row + 0.5
    x0, y0 = x[triangle, 0], y[triangle, 0]
    x1, y1 = x[triangle, 1], y[triangle, 1]
    one = x0 + long[triangle] * (at - y0)
    other = np.where(at < y1, x0 + upper[triangle] * (at - y0), x1 + lower[triangle] * (at - y1))
    left = np.clip(np.ceil(np.minimum(one, other) - 0.5), 0, width).astype(np.int64)
    right = np.clip(np.ceil(np.maximum(one, other) - 0.5), 0, width).astype(np.int64)
    kept = right > left
    return triangle[kept], row[kept], left[kept], right[kept]

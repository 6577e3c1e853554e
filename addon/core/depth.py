# SPDX-License-Identifier: GPL-3.0-or-later
"""Depth maps as MiDaS draws them: disparity, near is white, what is infinitely far is black.

The ControlNets for depth were trained on estimated disparity, so the map is affine in 1/z, with
the same two ends on every keyframe of a shot (else the whole picture would change its brightness
when somebody walks by).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_samples = 1 << 17
"""So many pixels of a frame are enough for its percentiles."""

_low, _high = 0.5, 98.0
"""Percentiles of distance. A low one for the near end: a hand before the lens is small."""

_least_span = 1.05


def depth_range(depths: Sequence[np.ndarray]) -> tuple[float, float]:
    """The distances in metres that become white and black on all depth maps of a shot.

    depths: planar distances along the view axis in metres, one array of any shape per keyframe;
        infinite, NaN and non-positive ones are background.
    Returns (near, far), near < far. Percentiles, so that a stray pixel does not spend the range.
    Where a keyframe sees nothing, the others decide; where all see nothing, any range draws an
    empty map and (1, 2) is returned.
    """
    kept = []
    for depth in depths:
        depth = np.asarray(depth, np.float32)
        flat = depth.ravel()
        stride = max(1, flat.size // _samples)
        # With a common divisor only some columns would be looked at.
        while math.gcd(stride, depth.shape[-1]) != 1:
            stride += 1
        flat = flat[::stride]
        kept.append(flat[np.isfinite(flat) & (flat > 0)])
    seen = np.concatenate(kept) if kept else np.empty(0, np.float32)
    if not seen.size:
        return 1.0, 2.0
    near, far = (float(v) for v in np.percentile(seen, (_low, _high)))
    return near, max(far, near * _least_span)


def depth_map(z: np.ndarray, near: float, far: float) -> np.ndarray:
    """A depth map for a ControlNet.

    z: (H, W) float32, planar metres; infinite, NaN or non-positive is background.
    near, far: metres, 0 < near < far, see `depth_range`; what lies beyond is clamped.
    Returns (H, W) uint8: 255 at near, 0 at far and for the background.
    Raises ValueError for a range that is none.
    """
    return _scaled(z, near, far, 255.0).astype(np.uint8)


def depth_master(z: np.ndarray, near: float, far: float) -> np.ndarray:
    """As `depth_map`, (H, W) uint16, 65535 at near: to keep beside the shot."""
    return _scaled(z, near, far, 65535.0).astype(np.uint16)


def _scaled(z: np.ndarray, near: float, far: float, top: float) -> np.ndarray:
    if not 0 < near < far < np.inf:
        raise ValueError(f"A depth range must be 0 < near < far, not {near} to {far} metres.")
    z = np.asarray(z, np.float32)
    # NaN and non-positive distances become infinite ones: their disparity is 0, below far's.
    disparity = np.divide(
        np.float32(1.0), z, out=np.zeros_like(z), where=np.greater(z, 0) & np.isfinite(z)
    )
    scale = top / (1.0 / near - 1.0 / far)
    disparity *= np.float32(scale)
    disparity -= np.float32(scale / far)
    np.clip(disparity, 0.0, top, out=disparity)
    return np.rint(disparity, out=disparity)

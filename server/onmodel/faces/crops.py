# SPDX-License-Identifier: GPL-3.0-or-later
"""The square that holds a head, out of the picture and back into it. Numbers only, no model.

The paper's steps (III-D): the square that contains the mask of face, hair, beard and ears is
enlarged to the model's size by the Lanczos filter, the mask too; what was drawn is composited by
the original mask, brought back to size and put into the frame. Here the composite is made at the
frame's own size, so that pixels outside the mask never pass through a filter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

Bounds = tuple[float, float, float, float]
"""left, top, right, bottom in canvas pixels."""


@dataclass(frozen=True)
class Square:
    """A square of whole pixels that lies inside the canvas."""

    left: int
    top: int
    side: int

    @property
    def rows_columns(self) -> tuple[slice, slice]:
        """To index an image (H, W, …) with."""
        top, left = self.top, self.left
        return slice(top, top + self.side), slice(left, left + self.side)


def mask_bounds(mask: np.ndarray) -> Bounds | None:
    """The bounds of a mask (H, W) bool; None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def square_around(
    bounds: Bounds, margin: float, multiple: int, width: int, height: int
) -> Square | None:
    """The square around bounds, inside a canvas of width x height pixels.

    margin: added on every side, as a part of the longer side. The side is rounded up to
    `multiple`, so that equal heads of neighbouring keyframes get equal squares, and cut down to
    the canvas; at the canvas's border the square is moved inwards. None where even the largest
    square of the canvas does not hold the bounds.
    """
    left, top = max(bounds[0], 0.0), max(bounds[1], 0.0)
    right, bottom = min(bounds[2], float(width)), min(bounds[3], float(height))
    inner = max(math.ceil(right) - math.floor(left), math.ceil(bottom) - math.floor(top))
    largest = min(width, height)
    if right <= left or bottom <= top or inner > largest:
        return None
    wanted = max(right - left, bottom - top) * (1 + 2 * margin)
    side = min(math.ceil(wanted / multiple) * multiple, largest)
    side = max(side, inner)

    def start(low: float, high: float, limit: int) -> int:
        centred = round((low + high - side) / 2)
        # Rounding must not cut a bound off.
        kept = min(max(centred, math.ceil(high) - side), math.floor(low))
        return min(max(kept, 0), limit - side)

    return Square(start(left, right, width), start(top, bottom, height), side)


def enlarge(image: np.ndarray, square: Square, size: int) -> np.ndarray:
    """The square of a picture (H, W, 3) uint8 at size x size pixels, by Lanczos."""
    return _resized(image[square.rows_columns], size, Image.Resampling.LANCZOS)


def enlarge_map(image: np.ndarray, square: Square, size: int) -> np.ndarray:
    """The square of a conditioning map (H, W[, 3]) uint8. Bilinear: Lanczos rings, and a ring in
    a depth map is a ridge."""
    return _resized(image[square.rows_columns], size, Image.Resampling.BILINEAR)


def enlarge_mask(mask: np.ndarray, square: Square, size: int) -> np.ndarray:
    """The square of a mask (H, W) bool, (size, size) float32 0..1, by Lanczos, cut to the range."""
    part = Image.fromarray(mask[square.rows_columns].astype(np.float32))
    large = np.array(part.resize((size, size), Image.Resampling.LANCZOS))
    return large.clip(0.0, 1.0)


def feather(mask: np.ndarray, radius: int, allowed: np.ndarray | None = None) -> np.ndarray:
    """How much of the repaired picture counts, (H, W) float32 0..1.

    mask: (H, W) bool. 1 deeper than `radius` pixels inside it, exactly 0 farther than `radius`
    outside it, between them a straight ramp along straight edges. allowed: (H, W) bool, where a
    repair may reach at all: not into somebody who stands before.
    """
    soft = mask.astype(np.float32)
    if radius > 0:
        for axis in (0, 1):
            soft = _box_mean(soft, radius, axis)
        # The sums' rounding leaves crumbs where nothing is covered: not one byte may change there.
        near = mask
        for axis in (0, 1):
            near = _spread(near, radius, axis)
        soft = np.where(near, soft.clip(0.0, 1.0), np.float32(0.0))
    if allowed is not None:
        soft = np.where(allowed, soft, np.float32(0.0))
    return soft


def paste(image: np.ndarray, repaired: np.ndarray, square: Square, alpha: np.ndarray) -> np.ndarray:
    """A copy of the picture with the repaired square in it. Where alpha is 0 no byte differs.

    image: (H, W, 3) uint8. repaired: (n, n, 3) uint8, brought to the square's size by Lanczos.
    alpha: (H, W) float32 as `feather` gives; what lies outside the square does not count.
    """
    new = _resized(repaired, square.side, Image.Resampling.LANCZOS)
    out = image.copy()
    part = out[square.rows_columns]
    share = alpha[square.rows_columns]
    touched = share > 0
    weight = share[touched][:, None]
    mixed = part[touched] * (1 - weight) + new[touched] * weight
    part[touched] = np.rint(mixed).astype(np.uint8)
    return out


def _resized(image: np.ndarray, size: int, by: Image.Resampling) -> np.ndarray:
    if image.shape[:2] == (size, size):
        return image.copy()
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize((size, size), by))


def _windows(values: np.ndarray, radius: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Running sums along an axis, taken `radius` behind and before each place; 0 beyond the edge.

    In float64, so that sums of ones and zeros are exact.
    """
    sums = np.cumsum(values, axis=axis, dtype=np.float64)
    zero = np.zeros_like(np.take(sums, [0], axis=axis))
    sums = np.concatenate([zero, sums], axis=axis)
    count = values.shape[axis]
    places = np.arange(count)
    high = np.take(sums, np.minimum(places + radius + 1, count), axis=axis)
    low = np.take(sums, np.maximum(places - radius, 0), axis=axis)
    return high, low


def _box_mean(values: np.ndarray, radius: int, axis: int) -> np.ndarray:
    """The mean over 2 * radius + 1 places of the canvas; at its border over those that are there,
    so that a head at the border is not feathered against nothing."""
    high, low = _windows(values, radius, axis)
    ones, none = _windows(np.ones_like(values), radius, axis)
    return ((high - low) / (ones - none)).astype(np.float32)


def _spread(mask: np.ndarray, radius: int, axis: int) -> np.ndarray:
    """True where anything within `radius` along the axis is."""
    high, low = _windows(mask.astype(np.float32), radius, axis)
    return np.asarray(high - low > 0)

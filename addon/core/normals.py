# SPDX-License-Identifier: GPL-3.0-or-later
"""Normal maps as ControlNet's NormalBae and the union models have them.

Red is left, green is up, blue is towards the camera; a wall that faces the camera is
(128, 128, 255). Games and Blender's own matcaps have red to the right: this is not that.
"""

from __future__ import annotations

import numpy as np

background_colour = (128, 128, 255)
_band = 64
"""Rows at a time, which stay in the processor's own memory."""


def normal_map(
    normals_world: np.ndarray, matrix_world: np.ndarray, background: np.ndarray
) -> np.ndarray:
    """Colours of the normals as the camera sees them.

    normals_world: (H, W, 3) in world space (Blender's pass), of any length.
    matrix_world: (4, 4), camera to world (x right, y up, looks along -z); its scale is ignored.
    background: (H, W) bool. Pixels with no normal (length 0) are background too.
    Returns (H, W, 3) uint8 RGB: R = (1 - x) / 2, G = (1 + y) / 2, B = (1 + z) / 2 of the unit
    normal in camera space; the background is (128, 128, 255).
    """
    axes = np.asarray(matrix_world, np.float64)[:3, :3]
    # The columns are the camera's axes in the world: their dot products with a normal are its
    # camera coordinates. Red is mirrored here.
    axes = (axes / np.linalg.norm(axes, axis=0) * [-1.0, 1.0, 1.0]).astype(np.float32)
    colours = np.empty(normals_world.shape, np.uint8)
    for top in range(0, len(colours), _band):
        rows = slice(top, top + _band)
        _colour(normals_world[rows], axes, background[rows], colours[rows])
    return colours


def _colour(normals: np.ndarray, axes: np.ndarray, background: np.ndarray, out: np.ndarray) -> None:
    """Some rows of `normal_map`; axes: (3, 3), the camera's as columns, the first one mirrored."""
    # One array per axis: numpy is several times slower on interleaved ones.
    x, y, z = np.ascontiguousarray(np.moveaxis(np.asarray(normals, np.float32), 2, 0))
    length = np.sqrt(x * x + y * y + z * z)
    empty = background | ~(length > 1e-6)
    length[empty] = 1.0
    scale = np.float32(127.5) / length
    for channel in range(3):
        along = x * axes[0, channel]
        along += y * axes[1, channel]
        along += z * axes[2, channel]
        along *= scale
        along += np.float32(127.5)
        np.rint(along, out=along)
        along[empty] = background_colour[channel]
        # Rounding may leave the range by a hair.
        out[:, :, channel] = np.clip(along, 0.0, 255.0, out=along)

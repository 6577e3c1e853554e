# SPDX-License-Identifier: GPL-3.0-or-later
"""Cameras as four numbers: the frustum of a frame, of a canvas, and points on it.

Every lens, sensor fit, shift and pixel aspect of Blender comes down to the left, right, bottom
and top of what the camera sees: on the plane 1 m before a perspective camera, in metres for an
orthographic one. The formulas are those of Blender's `BKE_camera_params_compute_viewplane`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .request import Box, Canvas, projections

Frustum = tuple[float, float, float, float]
"""Left, right, bottom, top."""

sensor_fits = ("AUTO", "HORIZONTAL", "VERTICAL")
_names = {"PERSP": "perspective", "ORTHO": "orthographic"}


class ProjectionError(ValueError):
    """A camera or a size that cannot be drawn; the message says why and what to do."""


def projection_of(camera_type: str) -> str:
    """ "perspective" or "orthographic" for Blender's `Camera.type`.

    Raises ProjectionError for panoramic and custom cameras.
    """
    if camera_type in projections:
        return camera_type
    if camera_type not in _names:
        kind = "panoramic" if camera_type == "PANO" else camera_type.lower()
        raise ProjectionError(
            f"The camera is {kind}, which no image model can draw. "
            "Set its type to Perspective or Orthographic."
        )
    return _names[camera_type]


def render_size(resolution_x: int, resolution_y: int, percentage: int) -> tuple[int, int]:
    """The frame's size in pixels, cut to whole ones as Blender does."""
    return resolution_x * percentage // 100, resolution_y * percentage // 100


@dataclass(frozen=True)
class View:
    """A camera at one moment.

    frustum: left, right, bottom, top, see the module's head.
    projection: "perspective" or "orthographic".
    matrix_world: (4, 4), camera to world; scale is ignored, as Blender ignores it.
    clip_start, clip_end: metres.
    """

    frustum: Frustum
    projection: str
    matrix_world: np.ndarray
    clip_start: float
    clip_end: float

    def rigid(self) -> np.ndarray:
        """(4, 4) float64 matrix_world without scale."""
        matrix = np.array(self.matrix_world, np.float64).reshape(4, 4)
        matrix[:3, :3] /= np.linalg.norm(matrix[:3, :3], axis=0)
        return matrix

    def to_camera(self, points_world: np.ndarray) -> np.ndarray:
        """(N, 3) world points to camera space: x right, y up, the camera looks along -z."""
        inverse = np.linalg.inv(self.rigid())
        return np.asarray(points_world, np.float64) @ inverse[:3, :3].T + inverse[:3, 3]

    def project(self, points_world: np.ndarray, width: int, height: int) -> np.ndarray:
        """World points on a canvas of this size that the frustum fills.

        Returns (N, 3) float64: x, y in canvas pixels (origin at the top left, y down) and z, the
        distance along the view axis in metres, negative behind the camera. x and y are always
        finite; for points that are not before the camera they mean nothing.
        """
        camera = self.to_camera(points_world)
        left, right, bottom, top = self.frustum
        z = -camera[:, 2]
        flat = camera[:, :2]
        if self.projection == "perspective":
            flat = flat / np.where(np.abs(z) < 1e-6, 1e-6, z)[:, None]
        x = (flat[:, 0] - left) / (right - left) * width
        y = (top - flat[:, 1]) / (top - bottom) * height
        return np.stack([x, y, z], axis=1)

    def unproject(self, points_canvas: np.ndarray, width: int, height: int) -> np.ndarray:
        """The inverse of `project`: (N, 3) canvas x, y and z metres to world points (N, 3)."""
        points = np.asarray(points_canvas, np.float64)
        left, right, bottom, top = self.frustum
        z = points[:, 2]
        reach = z if self.projection == "perspective" else np.ones_like(z)
        x = (left + points[:, 0] / width * (right - left)) * reach
        y = (top - points[:, 1] / height * (top - bottom)) * reach
        rigid = self.rigid()
        return np.stack([x, y, -z], axis=1) @ rigid[:3, :3].T + rigid[:3, 3]


def frame_frustum(
    lens: float,
    sensor_width: float,
    sensor_height: float,
    sensor_fit: str,
    shift_x: float,
    shift_y: float,
    ortho_scale: float,
    projection: str,
    width: int,
    height: int,
    pixel_aspect_x: float,
    pixel_aspect_y: float,
) -> Frustum:
    """What Blender's camera sees in a frame of width x height pixels (percentage applied).

    lens, sensor_width, sensor_height: mm. shift_x, shift_y, ortho_scale: as in Blender.
    sensor_fit: "AUTO", "HORIZONTAL" or "VERTICAL". projection: ours or Blender's camera type.
    Raises ProjectionError for other projections and for sizes that are not positive.
    """
    projection = projection_of(projection)
    if sensor_fit not in sensor_fits:
        raise ProjectionError(f"Unknown sensor fit {sensor_fit!r}; it is one of {sensor_fits}.")
    if min(width, height, pixel_aspect_x, pixel_aspect_y) <= 0:
        raise ProjectionError(f"A frame of {width} x {height} pixels cannot be drawn.")
    # All in units of a pixel's width, as Blender does it.
    tall = height * pixel_aspect_y / pixel_aspect_x
    horizontal = sensor_fit == "HORIZONTAL" or (sensor_fit == "AUTO" and width >= tall)
    # With AUTO, Blender keeps the sensor's width even where the frame is upright.
    sensor = sensor_height if sensor_fit == "VERTICAL" else sensor_width
    across = ortho_scale if projection == "orthographic" else sensor / lens
    view = width if horizontal else tall
    unit = across / view
    x, y = shift_x * view, shift_y * view
    return (
        (x - width / 2) * unit,
        (x + width / 2) * unit,
        (y - tall / 2) * unit,
        (y + tall / 2) * unit,
    )


def canvas_for(display_aspect: float, native_pixels: int, multiple: int) -> tuple[int, int, Box]:
    """The canvas that a model draws a frame of this shape on.

    display_aspect: the frame's width over its height as shown, pixel aspect applied.
    native_pixels: the area the model was trained at. multiple: of what its sides must be.
    Returns width, height and the frame's place on it: the frame fits one of the two sides exactly
    and is centred on the other, where the canvas shows more of the scene. Of the sizes near
    native_pixels it is the one with the least of that, large deviations in area weighed in.
    Raises ProjectionError for values that are not positive.
    """
    if not (0 < display_aspect < math.inf and native_pixels > 0 and multiple > 0):
        raise ProjectionError(f"No canvas has the aspect {display_aspect}.")
    ideal_width = math.sqrt(native_pixels * display_aspect)
    columns = ideal_width / multiple
    best: tuple[float, int, int, Box] | None = None
    for n in range(max(1, math.floor(columns * 0.85)), math.ceil(columns * 1.15) + 1):
        width = n * multiple
        rows = width / display_aspect / multiple
        for m in {max(1, math.floor(rows)), max(1, math.ceil(rows))}:
            height = m * multiple
            crop = _centred(display_aspect, width, height)
            overscan = 1 - crop.width * crop.height / (width * height)
            score = overscan + 0.25 * abs(math.log(width * height / native_pixels))
            if best is None or score < best[0] - 1e-12:
                best = (score, width, height, crop)
    assert best is not None  # the range always holds one size at least
    return best[1], best[2], best[3]


def _centred(aspect: float, width: int, height: int) -> Box:
    """The largest box of this aspect in the middle of a canvas."""
    if width >= height * aspect:
        inner = height * aspect
        return Box((width - inner) / 2, 0.0, float(inner), float(height))
    inner = width / aspect
    return Box(0.0, (height - inner) / 2, float(width), float(inner))


def canvas_frustum(frame: Frustum, canvas: Canvas) -> Frustum:
    """The frustum of the whole canvas, where `frame` is that of its crop."""
    left, right, bottom, top = frame
    crop = canvas.crop
    unit_x, unit_y = (right - left) / crop.width, (top - bottom) / crop.height
    outer_left, outer_top = left - crop.x * unit_x, top + crop.y * unit_y
    return (
        outer_left,
        outer_left + canvas.width * unit_x,
        outer_top - canvas.height * unit_y,
        outer_top,
    )


def camera_settings(frustum: Frustum, projection: str) -> dict[str, Any]:
    """Settings of a Blender camera that sees this frustum on a canvas of square pixels.

    Returns attributes of `bpy.types.Camera`: type, sensor_fit "HORIZONTAL", shift_x, shift_y, and
    lens with sensor_width (mm), or ortho_scale.
    """
    left, right, bottom, top = frustum
    width = right - left
    settings: dict[str, Any] = {
        "type": "ORTHO" if projection_of(projection) == "orthographic" else "PERSP",
        "sensor_fit": "HORIZONTAL",
        "shift_x": (left + right) / 2 / width,
        "shift_y": (bottom + top) / 2 / width,
    }
    if settings["type"] == "ORTHO":
        settings["ortho_scale"] = width
    else:
        # Blender takes no lens under 1 mm: a wider sensor does the same.
        settings["sensor_width"] = max(36.0, width)
        settings["lens"] = settings["sensor_width"] / width
    return settings

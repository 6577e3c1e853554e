# SPDX-License-Identifier: GPL-3.0-or-later
"""How exactly an image plane fills its camera's frame, measured with Blender's own projection."""

from __future__ import annotations

import bpy
import numpy as np


def corners_px(
    scene: bpy.types.Scene, camera: bpy.types.Object, plane: bpy.types.Object
) -> np.ndarray:
    """The plane's corners (4, 2) in pixels of the shot's frame at the current frame.

    Left bottom, right bottom, right top, left top; x right, y up, origin at the left bottom. The
    frame is the plane's own, cut by the scene's resolution percentage as Blender cuts it.
    """
    graph = bpy.context.evaluated_depsgraph_get()
    width, height = frame_px(scene, plane)
    aspect_x, aspect_y = plane["onmodel_pixel_aspect"]
    posed, seen = plane.evaluated_get(graph), camera.evaluated_get(graph)
    projection = np.array(
        seen.calc_matrix_camera(graph, x=width, y=height, scale_x=aspect_x, scale_y=aspect_y)
    )
    place = np.array(seen.matrix_world, float)
    place[:3, :3] /= np.linalg.norm(place[:3, :3], axis=0)  # a camera's scale is not of its view
    view = np.linalg.inv(place)
    corners = np.array([[*v.co, 1.0] for v in posed.data.vertices], float)
    clip = corners @ (projection @ view @ np.array(posed.matrix_world, float)).T
    return (clip[:, :2] / clip[:, 3:] * 0.5 + 0.5) * (width, height)


def frame_px(scene: bpy.types.Scene, plane: bpy.types.Object) -> tuple[int, int]:
    """The size in pixels of the frame that the plane fills, percentage applied."""
    percent = scene.render.resolution_percentage
    return plane["onmodel_width"] * percent // 100, plane["onmodel_height"] * percent // 100


def corner_error_px(
    scene: bpy.types.Scene, camera: bpy.types.Object, plane: bpy.types.Object
) -> float:
    """The largest distance (pixels) of a corner of the plane from its corner of the frame."""
    width, height = frame_px(scene, plane)
    frame = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
    found = corners_px(scene, camera, plane)
    return float(np.linalg.norm(found - frame, axis=1).max())

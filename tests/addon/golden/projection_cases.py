# SPDX-License-Identifier: GPL-3.0-or-later
"""Cameras of every kind, and what Blender itself says of them.

`blender_answer` runs inside Blender; `python tests/addon/golden/projection_cases.py` (with bpy)
writes its answers to projection.json, which the plain tests hold the projection to.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np

path = Path(__file__).with_name("projection.json")


def cases() -> list[dict[str, Any]]:
    """Every sensor fit, projection and frame shape, with lenses and shifts drawn by a seed."""
    draw = random.Random(7)
    sizes = [
        (1920, 1080, 100, 1.0, 1.0),
        (1080, 1920, 100, 1.0, 1.0),
        (1024, 1024, 100, 1.0, 1.0),
        (2048, 858, 50, 1.0, 1.0),
        (720, 576, 100, 16.0, 15.0),
        (720, 576, 33, 1.0, 1.5),
        (1440, 1080, 67, 4.0, 3.0),
        (501, 333, 51, 1.0, 1.0),
    ]
    found = []
    for (fit, kind), size in itertools.product(
        itertools.product(("AUTO", "HORIZONTAL", "VERTICAL"), ("PERSP", "ORTHO")), sizes
    ):
        found.append(
            {
                "type": kind,
                "sensor_fit": fit,
                "lens": draw.choice([12.0, 24.0, 50.0, 85.5, 200.0]),
                "sensor_width": draw.choice([36.0, 23.5, 6.17]),
                "sensor_height": draw.choice([24.0, 15.6, 30.0]),
                "shift_x": draw.choice([0.0, 0.2, -0.45]),
                "shift_y": draw.choice([0.0, -0.1, 0.6]),
                "ortho_scale": draw.choice([0.7, 6.0, 14.3]),
                "size": size,
                "location": [draw.uniform(-5, 5) for _ in range(3)],
                "rotation": [draw.uniform(-math.pi, math.pi) for _ in range(3)],
                "scale": draw.choice([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [0.5, 1.5, 3.0]]),
            }
        )
    return found


def blender_answer(case: dict[str, Any]) -> dict[str, Any]:
    """The camera's matrix, points before it, and where they fall in the frame.

    Changes the render settings of the current scene.
    """
    import bpy
    from bpy_extras.object_utils import world_to_camera_view
    from mathutils import Vector

    scene = bpy.context.scene
    data = bpy.data.cameras.new("projection")
    camera = bpy.data.objects.new("projection", data)
    scene.collection.objects.link(camera)
    scene.camera = camera
    for name in ("type", "sensor_fit", "lens", "sensor_width", "sensor_height", "ortho_scale"):
        setattr(data, name, case[name])
    data.shift_x, data.shift_y = case["shift_x"], case["shift_y"]
    full_x, full_y, percentage, aspect_x, aspect_y = case["size"]
    render = scene.render
    render.resolution_x, render.resolution_y, render.resolution_percentage = (
        full_x,
        full_y,
        percentage,
    )
    render.pixel_aspect_x, render.pixel_aspect_y = aspect_x, aspect_y
    camera.location, camera.scale = case["location"], case["scale"]
    camera.rotation_euler = case["rotation"]
    try:
        depsgraph = bpy.context.evaluated_depsgraph_get()
        width, height = full_x * percentage // 100, full_y * percentage // 100
        matrix = camera.calc_matrix_camera(
            depsgraph, x=width, y=height, scale_x=aspect_x, scale_y=aspect_y
        )
        # Points are made and turned in double precision: Blender's own inverse of a camera that is
        # metres away costs some thousandths of a pixel.
        world = np.array(camera.matrix_world, np.float64)
        world[:3, :3] /= np.linalg.norm(world[:3, :3], axis=0)
        draw = random.Random(str(case))
        points, frame, view = [], [], []
        for _ in range(6):
            reach = draw.uniform(0.5, 30)
            side = case["ortho_scale"] if case["type"] == "ORTHO" else reach * 15 / case["lens"]
            local = [draw.uniform(-1, 1) * side, draw.uniform(-1, 1) * side, -reach, 1.0]
            point = (world @ local)[:3].tolist()
            points.append(point)
            clip = np.array(matrix, np.float64) @ local
            x, y = clip[:2] / clip[3]
            frame.append([(x + 1) / 2 * width, (1 - y) / 2 * height, reach])
            if percentage == 100:
                # It takes the whole resolution, so it is a witness only where that is the frame.
                seen = world_to_camera_view(scene, camera, Vector(point))
                view.append([seen.x * width, (1 - seen.y) * height, seen.z])
        return {
            "matrix_world": [list(row) for row in camera.matrix_world],
            "points": points,
            "frame": frame,
            "view": view,
        }
    finally:
        bpy.data.objects.remove(camera)
        bpy.data.cameras.remove(data)


def error(case: dict[str, Any], answer: dict[str, Any]) -> tuple[float, float]:
    """The largest distance (pixels; metres in depth) from ours to Blender's matrix, to its view.

    "View" is bpy_extras' world_to_camera_view, in single precision throughout.
    """
    from addon.core import projection

    x, y, percentage, aspect_x, aspect_y = case["size"]
    width, height = projection.render_size(x, y, percentage)
    frustum = projection.frame_frustum(
        lens=case["lens"],
        sensor_width=case["sensor_width"],
        sensor_height=case["sensor_height"],
        sensor_fit=case["sensor_fit"],
        shift_x=case["shift_x"],
        shift_y=case["shift_y"],
        ortho_scale=case["ortho_scale"],
        projection=case["type"],
        width=width,
        height=height,
        pixel_aspect_x=aspect_x,
        pixel_aspect_y=aspect_y,
    )
    view = projection.View(
        frustum, projection.projection_of(case["type"]), np.array(answer["matrix_world"]), 0.1, 100
    )
    ours = view.project(np.array(answer["points"]), width, height)
    view_error = np.abs(ours - answer["view"]).max() if answer["view"] else 0.0
    return float(np.abs(ours - answer["frame"]).max()), float(view_error)


if __name__ == "__main__":
    data = [{"case": case, "answer": blender_answer(case)} for case in cases()]
    path.write_text(json.dumps(data, separators=(",", ":")) + "\n")

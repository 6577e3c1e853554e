# SPDX-License-Identifier: GPL-3.0-or-later
import json
import math

import numpy as np
import pytest

from addon.core import projection
from addon.core.projection import View
from addon.core.request import Canvas
from tests.addon.golden import projection_cases

golden = json.loads(projection_cases.path.read_text())


def test_every_fit_projection_shift_and_pixel_aspect_agrees_with_blender():
    assert {(g["case"]["sensor_fit"], g["case"]["type"]) for g in golden} == {
        (fit, kind) for fit in projection.sensor_fits for kind in ("PERSP", "ORTHO")
    }
    errors = [projection_cases.error(g["case"], g["answer"]) for g in golden]
    assert max(matrix for matrix, _ in errors) < 1e-3
    assert max(view for _, view in errors) < 0.02


@pytest.mark.parametrize("kind", ["PANO", "CUSTOM"])
def test_a_camera_no_model_can_draw_is_refused_in_words(kind):
    with pytest.raises(projection.ProjectionError, match="Perspective or Orthographic"):
        projection.projection_of(kind)


def frustum(**changes):
    settings = {
        "lens": 50.0,
        "sensor_width": 36.0,
        "sensor_height": 24.0,
        "sensor_fit": "AUTO",
        "shift_x": 0.1,
        "shift_y": -0.2,
        "ortho_scale": 6.0,
        "projection": "perspective",
        "width": 1920,
        "height": 1080,
        "pixel_aspect_x": 1.0,
        "pixel_aspect_y": 1.0,
    }
    return projection.frame_frustum(**{**settings, **changes})


@pytest.mark.parametrize("kind", ["perspective", "orthographic"])
def test_unproject_undoes_project_and_scale_does_not_matter(kind):
    turn = np.array([[0, -1, 0, 3], [1, 0, 0, -2], [0, 0, 1, 5], [0, 0, 0, 1]], float)
    scaled = turn @ np.diag([2.0, 2.0, 0.5, 1.0])
    points = np.array([[2.5, -2.2, 1.0], [3.0, -2.0, -9.0], [4.0, -1.0, 3.0]])
    seen = View(frustum(), kind, turn, 0.1, 100).project(points, 640, 360)
    view = View(frustum(), kind, scaled, 0.1, 100)
    assert np.allclose(view.project(points, 640, 360), seen)
    assert np.allclose(view.unproject(seen, 640, 360), points)
    assert np.allclose(seen[:, 2], [4, 14, 2])


def test_points_behind_the_camera_have_negative_depth_and_finite_places():
    view = View(frustum(), "perspective", np.eye(4), 0.1, 100)
    seen = view.project(np.array([[0, 0, 3.0], [1, 1, 0.0], [0, 0, -3.0]]), 640, 360)
    assert np.isfinite(seen).all()
    assert seen[0, 2] == -3 and seen[1, 2] == 0 and seen[2, 2] == 3


aspects = [*np.geomspace(1 / 2.5, 2.5, 37), 16 / 9, 2.39, 1.85, 4 / 3, 9 / 16, 768 / 576 * 1.0667]


@pytest.mark.parametrize(("native", "multiple"), [(1 << 20, 64), (1 << 20, 8), (1 << 16, 32)])
def test_a_canvas_covers_the_frame_with_little_to_spare(native, multiple):
    for aspect in aspects:
        width, height, crop = projection.canvas_for(aspect, native, multiple)
        assert width % multiple == 0 and height % multiple == 0
        assert math.isclose(crop.width / crop.height, aspect, rel_tol=1e-6)
        assert crop.x >= 0 and crop.x + crop.width <= width + 1e-9
        assert crop.y >= 0 and crop.y + crop.height <= height + 1e-9
        assert crop.width == width or crop.height == height
        side = multiple / math.sqrt(native)
        assert abs(math.log(width * height / native)) < 0.1 + side
        assert 1 - crop.width * crop.height / (width * height) < side * 0.6
        # Upright frames are treated as lying ones.
        assert projection.canvas_for(1 / aspect, native, multiple)[:2] == (height, width)


def test_canvases_that_people_know():
    assert projection.canvas_for(1, 1 << 20, 64)[:2] == (1024, 1024)
    assert projection.canvas_for(16 / 9, 1 << 20, 64)[:2] == (1344, 768)
    assert projection.canvas_for(1, 1 << 16, 32)[:2] == (256, 256)
    with pytest.raises(projection.ProjectionError):
        projection.canvas_for(0, 1 << 20, 64)


@pytest.mark.parametrize("kind", ["perspective", "orthographic"])
@pytest.mark.parametrize("fit", projection.sensor_fits)
@pytest.mark.parametrize("lens", [0.4 + 1, 50.0])
def test_the_plain_camera_of_the_canvas_sees_the_frame_at_its_crop(kind, fit, lens):
    size = {"width": 1080, "height": 1920, "pixel_aspect_x": 1.2, "pixel_aspect_y": 1.0}
    frame = frustum(projection=kind, sensor_fit=fit, lens=lens, **size)
    aspect = 1080 * 1.2 / 1920
    assert math.isclose((frame[1] - frame[0]) / (frame[3] - frame[2]), aspect)
    width, height, crop = projection.canvas_for(aspect, 1 << 20, 64)
    outer = projection.canvas_frustum(frame, Canvas(width, height, crop))
    settings = projection.camera_settings(outer, kind)
    again = frustum(
        projection=settings["type"],
        sensor_fit=settings["sensor_fit"],
        lens=settings.get("lens", 50.0),
        sensor_width=settings.get("sensor_width", 36.0),
        ortho_scale=settings.get("ortho_scale", 1.0),
        shift_x=settings["shift_x"],
        shift_y=settings["shift_y"],
        width=width,
        height=height,
    )
    assert np.allclose(again, outer)
    assert settings.get("lens", 1.0) >= 1.0
    # A point on the frame falls on the same place of the crop.
    point = np.array([[0.02, 0.03, -1.5]])
    small = View(frame, kind, np.eye(4), 0.1, 100).project(point, 1080, 1920)[0]
    big = View(outer, kind, np.eye(4), 0.1, 100).project(point, width, height)[0]
    assert math.isclose(crop.x + small[0] / 1080 * crop.width, big[0], rel_tol=1e-9)
    assert math.isclose(crop.y + small[1] / 1920 * crop.height, big[1], rel_tol=1e-9)


def test_render_size_is_cut_as_blender_cuts_it():
    assert projection.render_size(501, 333, 51) == (255, 169)

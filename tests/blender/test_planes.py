# SPDX-License-Identifier: GPL-3.0-or-later
"""Image planes fill the shot's frame, on their own frames only, and can be switched by take."""

import itertools
import json
import math
from pathlib import Path

import bpy
import numpy as np
import pytest
from bpy_extras.object_utils import world_to_camera_view

from addon.core import png
from addon.planes import check, keys, planes, strips
from addon.planes.errors import PlaneError
from addon.planes.planes import Frame, PlaneKey

sample = Path(__file__).resolve().parents[2] / "samples" / "storyboard.blend"
red, green, blue, white = (170, 80, 70), (80, 150, 90), (80, 90, 160), (225, 225, 225)


def picture(path: Path, width: int = 64, height: int = 36) -> Path:
    """Four quarters: red, green above, blue, white below."""
    image = np.zeros((height, width, 3), np.uint8)
    h, w = height // 2, width // 2
    image[:h, :w], image[:h, w:], image[h:, :w], image[h:, w:] = red, green, blue, white
    path.write_bytes(png.encode(image, 1))
    return path


@pytest.fixture
def drawing(tmp_path):
    return picture(tmp_path / "drawing.png")


def camera(scene, **settings):
    data = bpy.data.cameras.new("Camera")
    item = bpy.data.objects.new("Camera", data)
    scene.collection.objects.link(item)
    item.location = (3.1, -4.2, 1.7)
    item.rotation_euler = (math.radians(81), math.radians(4), math.radians(37))
    for name, value in settings.items():
        setattr(data, name, value)
    scene.camera = item
    return item


def errors(scene, cam, plane):
    """Corner errors (pixels) by our check and by Blender's own world_to_camera_view."""
    bpy.context.view_layer.update()
    graph = bpy.context.evaluated_depsgraph_get()
    matrix = plane.evaluated_get(graph).matrix_world
    width, height = check.frame_px(scene, plane)
    seen = [world_to_camera_view(scene, cam, matrix @ v.co) for v in plane.data.vertices]
    wanted = [(0, 0), (1, 0), (1, 1), (0, 1)]
    theirs = max(
        math.hypot((s.x - x) * width, (s.y - y) * height)
        for s, (x, y) in zip(seen, wanted, strict=True)
    )
    return check.corner_error_px(scene, cam, plane), theirs


lenses = [
    dict(lens=24.0),
    dict(lens=85.0, shift_x=0.21, shift_y=-0.14),
    dict(type="ORTHO", ortho_scale=5.5),
    dict(type="ORTHO", ortho_scale=3.0, shift_x=-0.1, shift_y=0.3),
]
frames = [
    Frame(1920, 1080),
    Frame(1080, 1920),
    Frame(1000, 1000),
    Frame(1440, 1080, 4.0, 3.0),
    Frame(720, 576, 1.0, 1.422),
]


@pytest.mark.parametrize("fit", ["AUTO", "HORIZONTAL", "VERTICAL"])
def test_every_camera_is_filled(empty_scene, drawing, fit):
    scene = empty_scene
    cam = camera(scene, sensor_fit=fit, sensor_width=30.0, sensor_height=22.0)
    render = scene.render
    worst = 0.0
    for settings, shape, percent in itertools.product(lenses, frames, (100, 37)):
        cam.data.type, cam.data.shift_x, cam.data.shift_y = "PERSP", 0.0, 0.0
        for name, value in settings.items():
            setattr(cam.data, name, value)
        render.resolution_x, render.resolution_y = shape.width, shape.height
        render.pixel_aspect_x, render.pixel_aspect_y = shape.pixel_aspect_x, shape.pixel_aspect_y
        render.resolution_percentage = percent
        plane = planes.place(scene, cam, drawing, "010", 1, 1, (1, 10))
        ours, theirs = errors(scene, cam, plane)
        worst = max(worst, ours)
        # Blender's helper does not cut the percentage to whole pixels.
        assert ours < 0.1, (settings, shape, percent)
        assert theirs < (0.1 if percent == 100 else 1.6), (settings, shape, percent)
    assert worst < 0.1


def test_the_shots_own_size_not_the_scenes(empty_scene, drawing):
    scene = empty_scene
    cam = camera(scene, lens=40.0, shift_y=0.1)
    scene.render.resolution_x, scene.render.resolution_y = 1920, 1080
    plane = planes.place(scene, cam, drawing, "010", 1, 1, (1, 10), Frame(1080, 1920))
    assert errors(scene, cam, plane)[0] < 0.1
    scene.render.resolution_x, scene.render.resolution_y = 1080, 1920
    assert errors(scene, cam, plane)[1] < 0.1


def test_scaled_parented_and_far_cameras(empty_scene, drawing):
    scene = empty_scene
    parent = bpy.data.objects.new("Crane", None)
    scene.collection.objects.link(parent)
    parent.location, parent.scale = (140.0, -90.0, 30.0), (2.0, 2.0, 2.0)
    parent.rotation_euler = (0.2, 0.3, 1.1)
    cam = camera(scene, lens=50.0)
    cam.parent, cam.scale = parent, (0.5, 3.0, 1.7)
    bpy.context.view_layer.update()
    plane = planes.place(scene, cam, drawing, "010", 1, 1, (1, 10))
    ours, theirs = errors(scene, cam, plane)
    assert ours < 0.5
    assert theirs < 0.5


def test_it_follows_an_animated_lens_shift_and_camera(empty_scene, drawing):
    scene = empty_scene
    cam = camera(scene)
    for frame, lens, shift, x in ((1, 24.0, 0.0, 0.0), (21, 90.0, 0.2, 4.0)):
        cam.data.lens, cam.data.shift_x, cam.location.x = lens, shift, x
        cam.data.keyframe_insert("lens", frame=frame)
        cam.data.keyframe_insert("shift_x", frame=frame)
        cam.keyframe_insert("location", frame=frame)
    plane = planes.place(scene, cam, drawing, "010", 1, 1, (1, 21))
    for frame in (1, 8, 21):
        scene.frame_set(frame)
        assert errors(scene, cam, plane)[0] < 0.2
    drivers = plane.animation_data.drivers
    assert len(drivers) == 4
    # Plain arithmetic: works where scripts are not allowed to run.
    assert all(d.driver.is_simple_expression for d in drivers)


def render(scene, path: Path, engine: str = "CYCLES") -> np.ndarray:
    scene.render.engine = engine
    if engine == "CYCLES":
        scene.cycles.device, scene.cycles.samples = "CPU", 1
        scene.cycles.use_denoising = scene.cycles.use_adaptive_sampling = False
        scene.cycles.pixel_filter_type = "BOX"
    scene.render.image_settings.file_format = "PNG"
    scene.render.image_settings.color_mode = "RGBA"
    scene.render.film_transparent = True
    scene.render.dither_intensity = 0.0
    scene.render.threads_mode, scene.render.threads = "FIXED", 1
    scene.render.filepath = str(path)
    bpy.ops.render.render(write_still=True)
    return png.decode(path.read_bytes())


def quarters(image: np.ndarray) -> list[tuple[int, ...]]:
    h, w = image.shape[:2]
    points = [
        (h // 4, w // 4),
        (h // 4, 3 * w // 4),
        (3 * h // 4, w // 4),
        (3 * h // 4, 3 * w // 4),
    ]
    return [tuple(int(c) for c in image[p][:3]) for p in points]


@pytest.mark.parametrize("view", ["Standard", "AgX", "Filmic"])
def test_a_render_shows_the_drawing_edge_to_edge(empty_scene, drawing, tmp_path, view):
    scene = empty_scene
    scene.view_settings.view_transform = view
    cam = camera(scene, lens=35.0, shift_x=0.12, shift_y=-0.08)
    blocker = bpy.data.meshes.new("Blocker")
    blocker.from_pydata([(-1, -1, -0.3), (1, -1, -0.3), (0, 1, -0.3)], [], [(0, 1, 2)])
    near = bpy.data.objects.new("Blocker", blocker)
    near.parent = cam
    scene.collection.objects.link(near)
    scene.render.resolution_x, scene.render.resolution_y = 96, 54
    scene.frame_set(5)
    planes.place(scene, cam, drawing, "010", 5, 1, (4, 6))
    image = render(scene, tmp_path / "out.png")
    assert image.shape[:2] == (54, 96)
    assert (image[..., 3] == 255).all(), "the plane does not cover the whole frame"
    # Blender's inverse of AgX is a table: near, not exact (and AgX never shows pure colours).
    near_enough = 6 if view == "AgX" else 2
    for found, wanted in zip(quarters(image), (red, green, blue, white), strict=True):
        assert np.abs(np.array(found) - wanted).max() <= near_enough, (view, found, wanted)
    # The quarters meet in the middle of the picture: nothing is moved or scaled.
    row = image[10, :, 0].astype(int)
    assert abs(int(np.argmax(np.abs(np.diff(row)))) + 1 - 48) <= 1


def test_seen_on_its_frames_only(empty_scene, drawing, tmp_path):
    scene = empty_scene
    scene.render.resolution_x, scene.render.resolution_y = 32, 18
    cam = camera(scene)
    plane = planes.place(scene, cam, drawing, "010", 5, 1, (4, 6))
    for curve in keys.curves(plane):
        assert {p.interpolation for p in curve.keyframe_points} == {"CONSTANT"}
    graph = bpy.context.evaluated_depsgraph_get()
    for frame in (1, 3, 4, 5, 6, 7, 20):
        scene.frame_set(frame)
        seen = 4 <= frame <= 6
        assert plane.hide_render is not seen
        assert plane.hide_viewport is not seen
        shown = any(i.object.original == plane for i in graph.object_instances)
        assert shown is seen, frame
    scene.frame_set(7)
    assert render(scene, tmp_path / "after.png")[..., 3].max() == 0
    scene.frame_set(6)
    assert render(scene, tmp_path / "on.png")[..., 3].min() == 255


def test_opacity_lets_the_scene_through(empty_scene, drawing, tmp_path):
    scene = empty_scene
    scene.render.resolution_x, scene.render.resolution_y = 32, 18
    cam = camera(scene)
    plane = planes.place(scene, cam, drawing, "010", 1, 1, (1, 6), opacity=0.0)
    scene.frame_set(1)
    assert render(scene, tmp_path / "clear.png")[..., 3].max() == 0
    planes.set_opacity(plane, 1.0)
    assert render(scene, tmp_path / "full.png")[..., 3].min() == 255


def test_takes_live_side_by_side(empty_scene, tmp_path):
    scene = empty_scene
    cam = camera(scene)
    scene.frame_set(5)
    made = {
        take: planes.place(
            scene, cam, picture(tmp_path / f"take_{take}.png"), "010", 5, take, (1, 9)
        )
        for take in (1, 2, 3)
    }
    other = planes.place(scene, cam, picture(tmp_path / "other.png"), "020", 5, 1, (1, 9))
    assert planes.takes(scene, "010", 5) == [1, 2, 3]
    assert planes.picked_take(scene, "010", 5) == 3
    planes.pick_take(scene, "010", 5, 1)
    assert planes.picked_take(scene, "010", 5) == 1
    for frame in (5, 9, 1):
        scene.frame_set(frame)
        assert [made[t].hide_render for t in (1, 2, 3)] == [False, True, True]
        assert not other.hide_render
    with pytest.raises(PlaneError, match="Take 9 of frame 5 is not"):
        planes.pick_take(scene, "010", 5, 9)


def test_placing_again_replaces(empty_scene, tmp_path):
    scene = empty_scene
    cam = camera(scene)
    for i in range(3):
        request = json.dumps({"seed": i})
        planes.place(
            scene, cam, picture(tmp_path / "d.png"), "010", 5, 1, (1, 9), request_json=request
        )
    (plane,) = planes.planes(scene)
    assert json.loads(planes.request_of(plane)) == {"seed": 2}
    assert planes.key_of(plane) == PlaneKey("010", 5, 1)
    assert len(bpy.data.images) == len(bpy.data.materials) == len(bpy.data.actions) == 1
    (top,) = [c for c in scene.collection.children if c.name == "Onmodel Keyframes"]
    assert [c.name for c in top.children] == ["Keyframes 010"]


def test_a_picture_drawn_anew_is_read_anew(empty_scene, tmp_path):
    scene = empty_scene
    cam = camera(scene)
    path = picture(tmp_path / "d.png")
    planes.place(scene, cam, path, "010", 5, 1, (1, 9))
    picture(path, 20, 10)
    plane = planes.place(scene, cam, path, "010", 5, 1, (1, 9))
    node = next(n for n in plane.data.materials[0].node_tree.nodes if n.type == "TEX_IMAGE")
    assert tuple(node.image.size) == (20, 10)


def test_clearing_leaves_the_scene_as_it_was(empty_scene, drawing):
    scene = empty_scene
    cam = camera(scene)
    stores = [getattr(bpy.data, n) for n in ("objects", "meshes", "materials", "images")]
    stores += [bpy.data.actions, bpy.data.collections]
    before = [sorted(i.name for i in s) for s in stores]
    planes.place(scene, cam, drawing, "010", 5, 1, (1, 9))
    planes.place(scene, cam, drawing, "020", 5, 1, (1, 9))
    assert planes.clear(scene, "010") == 1
    assert [planes.key_of(p).shot for p in planes.planes(scene)] == ["020"]
    assert planes.remove(scene, PlaneKey("020", 5, 1))
    assert not planes.remove(scene, PlaneKey("020", 5, 1))
    assert [sorted(i.name for i in s) for s in stores] == before


def test_planes_survive_saving(empty_scene, drawing, tmp_path):
    cam = camera(empty_scene)
    planes.place(empty_scene, cam, drawing, "010", 5, 1, (1, 9), request_json='{"a": "ü"}')
    blend = tmp_path / "film.blend"
    bpy.ops.wm.save_as_mainfile(filepath=str(blend))
    bpy.ops.wm.open_mainfile(filepath=str(blend))
    scene = bpy.context.scene
    scene.frame_set(5)
    (plane,) = planes.planes(scene)
    assert planes.request_of(plane) == '{"a": "ü"}'
    assert errors(scene, scene.camera, plane)[0] < 0.1
    assert not plane.hide_render


def test_what_cannot_be_placed_says_why(empty_scene, drawing, tmp_path):
    scene = empty_scene
    cam = camera(scene)
    with pytest.raises(PlaneError, match=r"gone\.png is gone\. Render the keyframe again"):
        planes.place(scene, cam, tmp_path / "gone.png", "010", 1, 1, (1, 5))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture at all")
    with pytest.raises(PlaneError, match="Render"):
        planes.place(scene, cam, broken, "010", 1, 1, (1, 5))
    with pytest.raises(PlaneError, match="no frames"):
        planes.place(scene, cam, drawing, "010", 1, 1, (5, 4))
    with pytest.raises(PlaneError, match="clipped to"):
        planes.place(scene, cam, drawing, "010", 1, 1, (1, 5), distance=5000.0)
    cam.data.type = "PANO"
    with pytest.raises(PlaneError, match="Choose such a camera"):
        planes.place(scene, cam, drawing, "010", 1, 1, (1, 5))
    assert planes.planes(scene) == []
    assert not bpy.data.images


def test_ranges_fill_the_shot():
    assert planes.show_ranges([1, 25, 48], 1, 48) == {1: (1, 13), 25: (14, 36), 48: (37, 48)}
    assert planes.show_ranges([10], 1, 20) == {10: (1, 20)}
    assert planes.show_ranges([1, 2], 1, 2) == {1: (1, 1), 2: (2, 2)}
    assert planes.show_ranges([7, 99], 1, 20) == {7: (1, 20)}


def test_strips_one_channel_a_take(empty_scene, drawing):
    scene = empty_scene
    for take in (1, 2):
        for first, last in ((1, 12), (13, 24)):
            strips.place_strip(scene, drawing, "010", first, take, (first, last), '{"seed": 1}')
    strips.place_strip(scene, drawing, "010", 1, 2, (1, 12), '{"seed": 2}')
    found = strips.strips(scene)
    assert [(s.channel, strips.strip_range(s)) for s in found] == [
        (1, (1, 12)),
        (2, (1, 12)),
        (1, (13, 24)),
        (2, (13, 24)),
    ]
    assert found[1]["onmodel_request"] == '{"seed": 2}'
    assert strips.remove_strip(scene, PlaneKey("010", 1, 1))
    assert strips.clear_strips(scene) == 3
    assert strips.strips(scene) == []


def test_every_lens_of_the_sample(drawing):
    bpy.ops.wm.open_mainfile(filepath=str(sample))
    scene = bpy.context.scene
    markers = sorted((m for m in scene.timeline_markers if m.camera), key=lambda m: m.frame)
    worst = {}
    for i, marker in enumerate(markers):
        end = markers[i + 1].frame - 1 if i + 1 < len(markers) else scene.frame_end
        for shape in (Frame(1920, 1080), Frame(1080, 1920)):
            plane = planes.place(
                scene,
                marker.camera,
                drawing,
                marker.name,
                marker.frame,
                1,
                (marker.frame, end),
                shape,
            )
            for frame in (marker.frame, (marker.frame + end) // 2, end):
                scene.frame_set(frame)
                error = check.corner_error_px(scene, marker.camera, plane)
                worst[marker.name] = max(worst.get(marker.name, 0.0), error)
    assert len(worst) >= 5
    assert max(worst.values()) < 0.5, worst

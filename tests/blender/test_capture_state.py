# SPDX-License-Identifier: GPL-3.0-or-later
"""A capture leaves the file exactly as it was, whatever happens; errors are clear sentences."""

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

from addon.capture import exr, passes  # noqa: E402
from addon.capture.capture import ShotCapture, capture_keyframe, find_camera  # noqa: E402
from addon.capture.errors import CaptureError  # noqa: E402
from addon.core.shots import Shot  # noqa: E402

from . import capture_scene as cs  # noqa: E402

pixels, multiple = 96 * 96, 32


@pytest.fixture
def film(empty_scene):
    """A scene with all that a capture could disturb. Returns scene, camera, cast."""
    scene = empty_scene
    scene.frame_start, scene.frame_end = 1, 40
    people = [cs.make_person("A", (-0.4, 0, 0)), cs.make_person("B", (0.4, 0.5, 0))]
    people[0].meshes[0].pass_index = 7
    cs.make_box("Box", (0, 2, 0), (1, 1, 1)).pass_index = 3
    camera = cs.make_camera((0, -5, 1.2), (0, 0, 1))
    other = cs.make_camera((3, -5, 1.2), (0, 0, 1), name="Other")
    scene.camera = other
    scene.timeline_markers.new("010", frame=1).camera = camera
    scene.timeline_markers.new("020", frame=30).camera = other
    rig = people[0].armature
    rig.keyframe_insert("location", frame=1)
    rig.location.x = 1.0
    rig.keyframe_insert("location", frame=20)
    camera.data.keyframe_insert("lens", frame=1)
    scene.world = bpy.data.worlds.new("World")
    scene.render.resolution_percentage = 50
    scene.keyframe_insert("audio_volume", frame=3)
    layer = scene.view_layers.new("Second")
    layer.use_pass_mist = True
    scene.view_layers[0].material_override = bpy.data.materials.new("Clay")
    if bpy.app.version >= (5, 0, 0):
        tree = bpy.data.node_groups.new("Film", "CompositorNodeTree")
        scene.compositing_node_group = tree
    else:
        scene.use_nodes = True
        tree = scene.node_tree
    tree.nodes.new("CompositorNodeBlur")
    scene.frame_set(5)
    # What the artist has changed but not keyed, the first thing that a frame change loses.
    rig.location = (-0.7, 0.1, 0.0)
    bone = rig.pose.bones["mixamorig:LeftArm"]
    bone.rotation_mode = "XYZ"
    bone.rotation_euler.x = 0.5
    camera.data.lens = 43
    bpy.context.view_layer.update()
    bpy.context.view_layer.objects.active = people[1].meshes[0]
    people[1].meshes[0].select_set(True)
    people[0].meshes[0].hide_set(True)
    bpy.app.handlers.render_pre.append(never)
    yield scene, camera, people
    for handlers in (bpy.app.handlers.render_pre, bpy.app.handlers.frame_change_post):
        if never in handlers:
            handlers.remove(never)


def never(*_):
    raise AssertionError("A capture ran a render handler of somebody else.")


def shot(camera, frames=(1, 20)):
    return Shot("010", camera.name, 1, 29, keyframes=list(frames))


def test_capture_leaves_everything_as_it_was(film):
    scene, camera, people = film
    before = cs.state()
    assert len(before) > 5000
    with ShotCapture(scene, shot(camera), people, pixels, multiple) as capture:
        for step in capture.steps():
            assert cs.difference(before, cs.state()) == {}, step
    assert cs.difference(before, cs.state()) == {}
    assert tuple(people[0].armature.location)[:2] == pytest.approx((-0.7, 0.1))
    # The keyed places were captured, not the unkeyed one.
    xs = [k.poses["A"].body[1].x for k in capture.keyframes]
    assert xs[1] > xs[0] and camera.data.lens == pytest.approx(43)
    # The evaluated scene is that of the artist's frame, too.
    bpy.context.view_layer.update()
    assert cs.difference(before, cs.state()) == {}
    evaluated = people[0].armature.evaluated_get(bpy.context.view_layer.depsgraph)
    assert evaluated.location.x == pytest.approx(-0.7)


def test_cancel_at_every_step_leaves_everything_as_it_was(film):
    scene, camera, people = film
    before = cs.state()
    for stop in range(1, 5):
        capture = ShotCapture(scene, shot(camera, [1]), people, pixels, multiple)
        steps = capture.steps()
        for _ in range(stop):
            next(steps, None)
        capture.close()
        assert list(steps) == []
        assert cs.difference(before, cs.state()) == {}
    # A stepper that is dropped without a word does no harm either.
    steps = ShotCapture(scene, shot(camera), people, pixels, multiple).steps()
    next(steps)
    del steps
    assert cs.difference(before, cs.state()) == {}


@pytest.mark.parametrize(
    "broken", ["render_still", "read_channels", "look", "_set_indices", "_flat_material"]
)
def test_an_error_anywhere_leaves_everything_as_it_was(film, monkeypatch, broken):
    scene, camera, people = film
    before = cs.state()

    def fail(*_args, **_options):
        raise OSError(28, "No space left on device")

    if broken == "read_channels":
        monkeypatch.setattr(exr, "read_channels", fail)
    elif broken == "look":
        people[1].rig_map.joints["left_wrist"] = ("mixamorig:LeftHand", "no such end")
        people[1].rig_map.joints["left_elbow"] = ("mixamorig:LeftForeArm", "tail")
        from addon.capture.gather import Watcher

        def no_sight(_self, _depsgraph):
            raise CaptureError("No sight.", "Look again.")

        people[1].rig_map.joints["left_wrist"] = ("mixamorig:LeftHand", "head")
        monkeypatch.setattr(Watcher, "read", no_sight)
    elif broken == "render_still":
        # A picture cannot be written where a folder already has its name.
        real = passes._set_render

        def into_a_folder(stage, width, height, path):
            path.mkdir()
            real(stage, width, height, path)

        monkeypatch.setattr(passes, "_set_render", into_a_folder)
    else:
        monkeypatch.setattr(passes, broken, fail)
    with pytest.raises((CaptureError, OSError)) as caught:
        capture_keyframe(scene, camera, 1, people, pixels, multiple)
    if broken in ("read_channels", "look", "render_still"):
        assert isinstance(caught.value, CaptureError)
        assert caught.value.message.endswith(".") and caught.value.fix.endswith(".")
    assert cs.difference(before, cs.state()) == {}


def test_an_error_in_reading_a_character_is_said(film, monkeypatch):
    from addon.capture.gather import Watcher

    scene, camera, people = film
    before = cs.state()

    def broken(_self, _depsgraph):
        raise KeyError("not ours")

    monkeypatch.setattr(Watcher, "read", broken)
    with pytest.raises(CaptureError, match="could not be read from the scene"):
        capture_keyframe(scene, camera, 1, people, pixels, multiple)
    assert cs.difference(before, cs.state()) == {}


def test_a_capture_comes_back_between_its_parts(film):
    """The render is one step; what follows is split, so that a window lives on in between."""
    scene, camera, people = film
    with ShotCapture(scene, shot(camera), people, 1024 * 1024, 64) as capture:
        told = list(capture.steps())
    assert len(capture.keyframes) == 2
    renders = [i for i, what in enumerate(told) if what.endswith("rendered")]
    assert len(renders) == 2
    assert len(told) > 2 * len(renders)


def test_what_is_deleted_meanwhile_is_said(film):
    scene, camera, people = film
    steps = ShotCapture(scene, shot(camera), people, pixels, multiple).steps()
    next(steps)
    bpy.data.objects.remove(people[1].meshes[0])
    with pytest.raises(CaptureError, match="deleted while it was captured"):
        list(steps)


def test_a_render_of_the_artist_stays(film):
    scene, _camera, _people = film
    scene.render.engine = "CYCLES"
    scene.cycles.samples = 1
    scene.cycles.use_denoising = False
    scene.render.resolution_x = scene.render.resolution_y = 32
    bpy.app.handlers.render_pre.remove(never)
    bpy.ops.render.render()
    before = cs.state()
    assert any(i.type == "RENDER_RESULT" for i in bpy.data.images)
    capture_keyframe(scene, _camera, 20, _people, pixels, multiple)
    assert cs.difference(before, cs.state()) == {}


def test_linked_characters_are_captured_and_left_alone(empty_scene, tmp_path):
    library = tmp_path / "people.blend"
    people = bpy.data.collections.new("People")
    empty_scene.collection.children.link(people)
    person = cs.make_person("A", collection=people)
    rig, body = person.armature.name, person.meshes[0].name
    bpy.ops.wm.save_as_mainfile(filepath=str(library))
    bpy.ops.wm.read_factory_settings(use_empty=True)
    with bpy.data.libraries.load(str(library), link=True) as (_, wanted):
        wanted.collections = ["People"]
    scene = bpy.context.scene
    scene.collection.children.link(wanted.collections[0])
    person.armature, person.meshes = bpy.data.objects[rig], [bpy.data.objects[body]]
    camera = cs.make_camera((0, -5, 1.2), (0, 0, 1))
    before = cs.state()
    keyframe = capture_keyframe(scene, camera, 1, [person], pixels, multiple)
    assert keyframe.present == ["A"] and person.meshes[0].library is not None
    assert cs.difference(before, cs.state()) == {}


# --- sentences -----------------------------------------------------------------------------------


def refused(scene, camera, people=(), frame=1, native=pixels, **options):
    before = cs.state()
    with pytest.raises(CaptureError) as caught:
        capture_keyframe(scene, camera, frame, people, native, multiple, **options)
    assert cs.difference(before, cs.state()) == {}
    return str(caught.value)


def test_what_cannot_be_captured_is_said(film):
    scene, camera, people = film
    assert "4096" in refused(scene, camera, native=20000 * 20000)
    camera.data.type = "PANO"
    assert "panoramic" in refused(scene, camera)
    camera.data.type = "PERSP"
    people[1].meshes.append(people[0].meshes[0])
    assert "belongs to A and to B" in refused(scene, camera, people)
    for gone in ("Nobody", "Box"):
        with pytest.raises(CaptureError, match="is not in the scene"):
            find_camera(scene, gone)


def test_nobody_in_the_picture_is_no_error(film):
    scene, camera, people = film
    camera.rotation_euler.x -= 3.0
    keyframe = capture_keyframe(scene, camera, 1, people, pixels, multiple)
    assert keyframe.present == [] and keyframe.heads == {}
    states = {p.state for pose in keyframe.poses.values() for p in pose.body}
    assert states <= {"behind", "outside"}
    assert not keyframe.maps["depth"].any() and not keyframe.maps["pose"].any()
    assert not any(m.any() for m in keyframe.masks.values())


def test_truncated_and_foreign_files_are_refused(film, tmp_path):
    good = tmp_path / "good.exr"
    real = exr.read_channels

    def keep(path):
        good.write_bytes(path.read_bytes())
        return real(path)

    scene, camera, people = film
    passes.exr.read_channels = keep
    try:
        capture_keyframe(scene, camera, 1, people, pixels, multiple)
    finally:
        passes.exr.read_channels = real
    data = good.read_bytes()
    assert {np.isfinite(c).all() for c in real(good).values()} == {True}
    for broken in (b"", data[:3], data[:40], data[: len(data) // 2], data[:-1], b"PNG" + data):
        (tmp_path / "bad.exr").write_bytes(broken)
        with pytest.raises(exr.ExrError):
            real(tmp_path / "bad.exr")

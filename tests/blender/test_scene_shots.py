# SPDX-License-Identifier: GPL-3.0-or-later
"""Shots of a scene: reading, editing, and that all of it survives save, undo and copy."""

import bpy
import pytest

from addon.core.request import Size
from addon.scene import settings_hash, shots
from addon.scene.errors import SceneError
from tests.blender import whole_addon


@pytest.fixture
def scene(empty_scene):
    """An empty film of 100 frames with two cameras and two shots: 010 (1-24), 020 (25-100)."""
    with whole_addon.registered():
        scene = bpy.context.scene
        scene.frame_start, scene.frame_end = 1, 100
        for name, frame in (("A", 1), ("B", 25)):
            camera = bpy.data.objects.new(name, bpy.data.cameras.new(name))
            scene.collection.objects.link(camera)
            shots.add_shot(scene, frame, camera)
        yield scene


def names(scene):
    return [(s.name, s.start, s.end) for s in shots.read_shots(scene)]


def uids(scene):
    return {s.name: s.uid for s in shots.read_shots(scene)}


def test_ranges_are_inclusive_and_meet(scene):
    assert names(scene) == [("010", 1, 24), ("020", 25, 100)]
    assert [s.keyframes for s in shots.read_shots(scene)] == [[1, 24], [25, 100]]
    assert [m.name for m in shots.camera_markers(scene)] == ["010", "020"]


def test_reading_needs_no_rows_and_writes_none(scene):
    before = uids(scene)
    scene.onmodel.shots.clear()
    scene.timeline_markers[0].name = "F_01"
    assert [s.name for s in shots.read_shots(scene)] == ["010", "020"]
    assert len(scene.onmodel.shots) == 0
    found = shots.read_shots(scene)
    shots.sync(scene)
    assert shots.read_shots(scene) == found
    assert before["020"] in uids(scene).values()
    assert shots.is_synced(scene)


def test_rows_follow_markers_moved_and_renamed_in_the_timeline(scene):
    before = uids(scene)
    rows = {r.name: r for r in scene.onmodel.shots}
    rows["020"].prompt = "night"
    marker = next(m for m in scene.timeline_markers if m.name == "020")
    marker.frame, marker.name = 40, "finale"
    assert not shots.is_synced(scene)
    second = shots.read_shots(scene)[1]
    assert (second.name, second.start, second.prompt) == ("finale", 40, "night")
    assert second.uid == before["020"]
    shots.sync(scene)
    assert [r.name for r in scene.onmodel.shots] == ["010", "finale"]


def test_names_typed_in_the_list_go_to_the_marker(scene):
    scene.onmodel.shots[1].name = "chase"
    assert sorted(m.name for m in scene.timeline_markers) == ["010", "chase"]
    assert shots.is_synced(scene)


def test_a_shot_between_two_gets_a_number_between(scene):
    shots.add_shot(scene, 12, bpy.data.objects["A"])
    assert names(scene) == [("010", 1, 11), ("015", 12, 24), ("020", 25, 100)]
    assert scene.onmodel.shots[scene.onmodel.shot_index].name == "015"


def test_reorder_keeps_lengths_and_marks(scene):
    before = uids(scene)
    shots.mark_keyframe(scene, before["010"], 10)
    shots.mark_keyframe(scene, before["020"], 30)
    shots.move_shot(scene, before["010"], 1)
    assert names(scene) == [("020", 1, 76), ("010", 77, 100)]
    assert uids(scene) == before
    assert {s.name: s.keyframes for s in shots.read_shots(scene)} == {
        "020": [1, 6, 76],
        "010": [77, 86, 100],
    }
    shots.move_shot(scene, before["010"], 1)  # there is no further place
    shots.move_shot(scene, before["010"], -1)
    assert names(scene) == [("010", 1, 24), ("020", 25, 100)]


def test_remove_leaves_the_camera_and_joins_the_frames(scene):
    shots.remove_shot(scene, uids(scene)["020"])
    assert names(scene) == [("010", 1, 100)]
    assert "B" in bpy.data.objects
    assert len(scene.onmodel.shots) == 1


def test_a_deleted_marker_leaves_its_row_until_it_comes_back(scene):
    before = uids(scene)
    marker = next(m for m in scene.timeline_markers if m.name == "020")
    scene.timeline_markers.remove(marker)
    shots.sync(scene)
    assert [(r.name, r.detached) for r in scene.onmodel.shots] == [("010", False), ("020", True)]
    assert names(scene) == [("010", 1, 100)]
    scene.timeline_markers.new("020", frame=50).camera = bpy.data.objects["B"]
    assert uids(scene) == before


def test_overrides_reach_the_shot(scene):
    row = scene.onmodel.shots[1]
    row.use_seed, row.seed = True, 99
    row.use_resolution, row.width, row.height = True, 1080, 1920
    row.use_handles, row.handles = True, 3
    row.takes, row.first, row.enabled = 2, False, False
    row.prompt, row.negative_prompt = "  rain ", "sun"
    shot = shots.read_shots(scene)[1]
    assert (shot.seed, shot.frame_size, shot.handles) == (99, Size(1080, 1920), 3)
    assert (shot.takes, shot.keyframes, shot.enabled) == (2, [100], False)
    assert (shot.prompt, shot.negative_prompt) == ("rain", "sun")
    first = shots.read_shots(scene)[0]
    assert (first.seed, first.frame_size, first.takes) == (None, None, None)


def test_another_camera_and_a_rename_keep_the_shot(scene):
    before = uids(scene)
    camera = bpy.data.objects.new("C", bpy.data.cameras.new("C"))
    scene.collection.objects.link(camera)
    shots.bind_camera(scene, before["010"], camera)
    shots.rename_shot(scene, before["010"], "open")
    assert shots.read_shots(scene)[0].camera == "C"
    assert uids(scene)["open"] == before["010"]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda s: shots.add_shot(s, 25), "already starts at frame 25"),
        (lambda s: shots.rename_shot(s, uids(s)["010"], "020"), "already a shot named 020"),
        (lambda s: shots.rename_shot(s, uids(s)["010"], " "), "needs a name"),
        (lambda s: shots.mark_keyframe(s, uids(s)["010"], 25), "not in shot 010"),
        (lambda s: shots.find(s, "nobody"), "no marker"),
    ],
)
def test_wrong_edits_say_why(scene, wrong, sentence):
    scene.camera = bpy.data.objects["A"]
    with pytest.raises(SceneError, match=sentence) as caught:
        wrong(scene)
    assert caught.value.fix
    assert names(scene) == [("010", 1, 24), ("020", 25, 100)]


def test_no_camera_at_all(scene):
    scene.camera = None
    with pytest.raises(SceneError, match="no camera"):
        shots.add_shot(scene, 50)


def test_saved_and_opened_again(scene, tmp_path):
    before = shots.read_shots(scene)
    row = scene.onmodel.shots[0]
    row.prompt = "dawn"
    shots.mark_keyframe(scene, row.uid, 12)
    path = tmp_path / "film.blend"
    bpy.ops.wm.save_as_mainfile(filepath=str(path))
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.wm.open_mainfile(filepath=str(path))
    after = shots.read_shots(bpy.context.scene)
    assert [s.uid for s in after] == [s.uid for s in before]
    assert (after[0].prompt, after[0].keyframes) == ("dawn", [1, 12, 24])


def test_undone(scene):
    bpy.ops.ed.undo_push(message="start")
    before = shots.read_shots(scene)
    uid = before[0].uid
    shots.remove_shot(scene, uid)
    bpy.context.scene.onmodel.shots[0].prompt = "gone"
    bpy.ops.ed.undo_push(message="remove")
    bpy.ops.ed.undo()
    assert shots.read_shots(bpy.context.scene) == before


def test_a_copy_of_the_scene_has_the_shots_and_is_its_own(scene):
    scene.onmodel.shots[0].prompt = "dawn"
    copy = scene.copy()
    assert shots.read_shots(copy) == shots.read_shots(scene)
    shots.rename_shot(copy, shots.read_shots(copy)[0].uid, "alt")
    copy.onmodel.shots[0].prompt = "dusk"
    assert shots.read_shots(scene)[0].name == "010"
    assert shots.read_shots(scene)[0].prompt == "dawn"


def test_the_hash_of_settings_tells_what_was_typed(scene):
    def now():
        return settings_hash.of_shot(scene, shots.place(scene)[0])

    first = now()
    assert now() == first
    scene.onmodel.shots[1].prompt = "of another shot"
    assert now() == first
    scene.onmodel.shots[0].prompt = "rain"
    second = now()
    scene.onmodel.seed += 1
    assert len({first, second, now()}) == 3

# SPDX-License-Identifier: GPL-3.0-or-later
"""Cast, film and the sentences about a scene that cannot be drawn."""

import bpy
import pytest

from addon.core.request import Lora, Sampling
from addon.scene import cast, film, problems, shots
from addon.scene.errors import SceneError
from tests.blender import whole_addon

mixamo = (
    ("Hips", None),
    ("Spine", "Hips"),
    ("Spine1", "Spine"),
    ("Neck", "Spine1"),
    ("Head", "Neck"),
    *(
        (f"{side}Hand{finger}{n}", f"{side}Hand{finger}{n - 1}" if n > 1 else f"{side}Hand")
        for side in ("Left", "Right")
        for finger in ("Thumb", "Index", "Middle", "Ring", "Pinky")
        for n in (1, 2, 3)
    ),
)
limbs = (
    *(
        (f"{side}{bone}", parent if parent in ("Hips", "Spine1") else f"{side}{parent}")
        for side in ("Left", "Right")
        for bone, parent in (
            ("Shoulder", "Spine1"),
            ("Arm", "Shoulder"),
            ("ForeArm", "Arm"),
            ("Hand", "ForeArm"),
            ("UpLeg", "Hips"),
            ("Leg", "UpLeg"),
            ("Foot", "Leg"),
        )
    ),
)
mixamo = (*mixamo[:5], *limbs, *mixamo[5:])


def make_rig(name, bones):
    """An armature object of these (bone, parent) pairs, one above the other."""
    data = bpy.data.armatures.new(name)
    item = bpy.data.objects.new(name, data)
    bpy.context.scene.collection.objects.link(item)
    bpy.context.view_layer.objects.active = item
    bpy.ops.object.mode_set(mode="EDIT")
    for k, (bone, parent) in enumerate(bones):
        made = data.edit_bones.new(bone)
        made.head, made.tail = (0, 0, k), (0, 0, k + 1)
        if parent:
            made.parent = data.edit_bones[parent]
    bpy.ops.object.mode_set(mode="OBJECT")
    return item


def make_mesh(name, rig=None, parent=None):
    item = bpy.data.objects.new(name, bpy.data.meshes.new(name))
    bpy.context.scene.collection.objects.link(item)
    if rig:
        item.modifiers.new("Armature", "ARMATURE").object = rig
    item.parent = parent
    return item


@pytest.fixture
def scene(empty_scene, tmp_path):
    """Ada (Mixamo bones; body, hair) in the cast, one shot with a prompt, an output folder."""
    with whole_addon.registered():
        scene = bpy.context.scene
        rig = make_rig("Ada_rig", [(f"mixamorig:{b}", p and f"mixamorig:{p}") for b, p in mixamo])
        make_mesh("Body", rig)
        hair = make_mesh("Hair", parent=rig)
        hair.parent_type, hair.parent_bone = "BONE", "mixamorig:Head"
        make_mesh("Ribbon", parent=hair)
        make_mesh("Chair")
        make_mesh("WGT-root", parent=rig).hide_render = True
        camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
        scene.collection.objects.link(camera)
        shots.add_shot(scene, 1, camera).prompt = "a room"
        scene.onmodel.output = str(tmp_path)
        cast.add_character(scene, bpy.data.objects["Body"])
        yield scene


def said(scene, **options):
    return [(p.level, p.message) for p in problems.validate(scene, **options)]


def test_a_character_is_found_by_its_mesh(scene):
    (ada,) = cast.read_cast(scene)
    assert (ada.name, ada.noun) == ("Ada", "person")
    assert ada.armature.name == "Ada_rig"
    assert [m.name for m in ada.meshes] == ["Body", "Hair", "Ribbon"]
    assert ada.rig_map.joints["left_elbow"] == ("mixamorig:LeftForeArm", "head")


def test_a_rig_joins_once(scene):
    with pytest.raises(SceneError, match="already plays Ada"):
        cast.add_character(scene, bpy.data.objects["Ada_rig"])
    with pytest.raises(SceneError, match="No armature is selected"):
        cast.add_character(scene, bpy.data.objects["Chair"])
    assert cast.uncast_rigs(scene) == []


@pytest.mark.parametrize(
    ("rig", "name"),
    [("RIG-Bo.001", "Bo"), ("old man rig", "Old man"), ("Armature", "Character"), ("Jo", "Jo")],
)
def test_names_out_of_rigs(scene, rig, name):
    assert cast.add_character(scene, make_rig(rig, mixamo)).name == name


def test_everything_typed_is_read(scene, tmp_path):
    row = scene.onmodel.cast[0]
    row.noun, row.trigger, row.prompt = "woman", "ad4", "red coat"
    for name, weight, enabled in (("ada_v2", 0.8, True), ("old", 1.0, False)):
        lora = row.loras.add()
        lora.name, lora.weight, lora.enabled = name, weight, enabled
    portrait = tmp_path / "ada.png"
    portrait.write_bytes(b"x")
    row.references.add().filepath = str(portrait)
    row.references.add().filepath = str(tmp_path / "gone.png")
    joint = row.joints.add()
    joint.joint, joint.bone, joint.end = "left_elbow", "mixamorig:Head", "tail"
    (ada,) = cast.read_cast(scene)
    assert (ada.noun, ada.trigger, ada.prompt) == ("woman", "ad4", "red coat")
    assert ada.loras == [Lora("ada_v2", 0.8)]
    assert [p.path for p in ada.references] == [portrait]
    assert ada.rig_map.joints["left_elbow"] == ("mixamorig:Head", "tail")
    assert ("warning", "Ada's portraits were not found: gone.png.") in said(scene)
    assert cast.drop_lost_references(row) == 1


def test_unmapped_rig_and_its_repair_by_hand(scene):
    rig = make_rig("Blob", [("a", None), ("b", "a")])
    make_mesh("Blob body", rig)
    row = cast.add_character(scene, rig)
    level, message = next(s for s in said(scene) if "Blob" in s[1])
    assert (level, message) == ("error", "No joint of Blob's rig Blob was recognised.")
    with pytest.raises(SceneError, match="by hand"):
        cast.read_cast(scene)
    joint = row.joints.add()
    joint.joint, joint.bone = "nose", "b"
    assert cast.read_cast(scene)[1].rig_map.joints == {"nose": ("b", "head")}
    level, message = next(s for s in said(scene) if "Blob" in s[1])
    assert level == "warning"
    assert "no bone for: right shoulder" in message


def test_a_correction_that_does_not_fit_is_named(scene):
    joint = scene.onmodel.cast[0].joints.add()
    joint.joint, joint.bone = "left_elbow", "Elbow"
    assert any("(left_elbow to Elbow) does not fit" in m for _, m in said(scene))


def test_a_character_without_armature_or_mesh(scene):
    row = scene.onmodel.cast[0]
    row.meshes.clear()
    assert said(scene)[0] == ("error", "Ada has no mesh in this scene.")
    bpy.data.objects.remove(bpy.data.objects["Ada_rig"])
    first = problems.validate(scene)[0]
    assert first.message == "Ada has no armature in this scene."
    assert first.fix_operator == "onmodel.cast_bind"


def test_no_armature_in_the_scene(scene):
    scene.onmodel.cast.clear()
    found = problems.validate(scene)
    assert found[0].fix_operator == "onmodel.cast_add_all"
    bpy.data.objects.remove(bpy.data.objects["Ada_rig"])
    (only,) = problems.validate(scene)
    assert only.message == "The scene has no armature, so no character can be drawn."
    assert only.level == "warning"


def test_no_camera_marker(scene):
    scene.timeline_markers.clear()
    first = problems.validate(scene)[0]
    assert first.level == "error"
    assert first.message == "No camera is bound to a marker, so there is no shot to draw."
    assert first.fix_operator == "onmodel.shot_add"
    bpy.data.objects.remove(bpy.data.objects["Camera"])
    first = problems.validate(scene)[0]
    assert first.message == "The scene has no camera, so there is no shot to draw."


def test_two_of_one_name_and_one_mesh_of_two(scene):
    other = make_rig("Other", mixamo)
    row = cast.add_character(scene, other)
    row.name = "ada"
    row.meshes.add().item = bpy.data.objects["Body"]
    found = said(scene)
    assert ("error", "Two characters are named Ada.") in found
    assert ("error", "The mesh Body belongs to both Ada and ada.") in found
    with pytest.raises(SceneError, match="Two characters are named ada"):
        cast.read_cast(scene)


def test_keyframes_outside_none_and_shots_off(scene):
    row = scene.onmodel.shots[0]
    row.keyframes.add().frame = 999
    row.keyframes[0].marked = True
    found = problems.validate(scene)
    assert [p.fix_operator for p in found] == ["onmodel.keyframes_drop_stray"]
    assert "outside it: 999" in found[0].message
    row.first = row.last = False
    assert any("has no keyframe" in m for _, m in said(scene))
    row.enabled = False
    assert said(scene)[0] == ("error", "Every shot is switched off.")


def test_two_cameras_at_one_frame_and_a_shot_outside(scene):
    camera = bpy.data.objects["Camera"]
    late = scene.timeline_markers.new("late", frame=scene.frame_end + 1)
    late.camera = camera
    twin = scene.timeline_markers.new("twin", frame=1)
    twin.camera = camera
    found = said(scene)
    assert any(level == "error" and "Two cameras are bound at frame 1" in m for level, m in found)
    assert any("late lies outside the film's frames (1-250)" in m for _, m in found)


def test_panoramic_camera(scene):
    bpy.data.cameras["Camera"].type = "PANO"
    assert said(scene)[0][1] == "The camera of shot 010, Camera, is panoramic."


def test_a_good_scene_has_no_problem(scene):
    assert said(scene) == []


def test_film_is_read(scene, tmp_path):
    s = scene.onmodel
    s.film, s.prompt, s.seed, s.takes = "park", " ink ", 7, 2
    s.steps, s.use_guidance, s.guidance, s.native_side = 8, True, 2.5, 256
    s.depth.weight, s.depth.end, s.lineart.use = 0.7, 0.5, True
    s.loras.add().name = "ink_style"
    found = film.read_film(scene)
    assert (found.name, found.prompt, found.seed, found.takes) == ("park", "ink", 7, 2)
    assert found.sampling == Sampling("default", 8, 2.5)
    assert (found.native_pixels, found.output) == (65536, tmp_path)
    assert [(m.kind, m.weight, m.start, m.end) for m in found.maps] == [
        ("pose", 1.0, 0.0, 1.0),
        ("depth", 0.7, 0.0, 0.5),
        ("lineart", 1.0, 0.0, 1.0),
    ]
    assert found.loras == [Lora("ink_style", 1.0)]


def test_film_that_cannot_be(scene):
    s = scene.onmodel
    s.pose.start, s.pose.end = 0.5, 0.5
    assert said(scene)[0] == ("error", "The pose map stops guiding before it begins.")
    s.pose.use = s.depth.use = False
    assert said(scene) == [
        ("warning", "All maps are off, so the drawing does not follow the scene.")
    ]


def test_a_file_never_saved_has_no_folder_of_its_own(scene):
    scene.onmodel.output = "//onmodel"
    assert film.output_folder(scene) is None
    first = problems.validate(scene)[0]
    assert (first.level, first.fix_operator) == ("error", "wm.save_as_mainfile")
    assert said(scene, output_given=True) == []
    assert film.film_name(scene) == "film"


def test_the_cast_is_copied_with_the_scene(scene):
    copy = scene.copy()
    copy.onmodel.cast[0].noun = "robot"
    assert [c.name for c in cast.read_cast(copy)] == ["Ada"]
    assert scene.onmodel.cast[0].noun == "person"

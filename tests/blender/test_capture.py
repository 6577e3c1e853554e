# SPDX-License-Identifier: GPL-3.0-or-later
"""What a capture sees: masks, joints, depth, normals, heads, through all kinds of cameras."""

import math

import numpy as np
import pytest

bpy = pytest.importorskip("bpy")

from addon.capture.capture import ShotCapture, capture_keyframe  # noqa: E402
from addon.core.request import Size  # noqa: E402
from addon.core.shots import Shot  # noqa: E402

from . import capture_scene as cs  # noqa: E402

pixels, multiple = 192 * 192, 32

cameras = {
    "plain": {},
    "shift": {"shift_x": 0.2, "shift_y": -0.1, "lens": 40.0},
    "portrait": {"_size": (720, 1280), "lens": 30.0},
    "orthographic": {"type": "ORTHO", "ortho_scale": 4.0},
    "vertical fit": {"sensor_fit": "VERTICAL", "sensor_height": 20.0, "shift_y": 0.05},
    "wide pixels": {"_aspect": (2.0, 1.0), "_size": (720, 576)},
    "ortho portrait shift": {
        "_size": (600, 1000),
        "type": "ORTHO",
        "ortho_scale": 4.0,
        "shift_x": -0.1,
    },
}


def film(name="plain", at=(0.5, -6.0, 1.6), to=(0.0, 0.0, 0.9)):
    """Sets size and pixel aspect of the scene, returns a camera of one of the kinds above."""
    settings = dict(cameras[name])
    render = bpy.context.scene.render
    render.resolution_x, render.resolution_y = settings.pop("_size", (1280, 720))
    render.pixel_aspect_x, render.pixel_aspect_y = settings.pop("_aspect", (1.0, 1.0))
    return cs.make_camera(at, to, **settings)


def capture(scene, camera, cast=(), frame=1, **options):
    return capture_keyframe(scene, camera, frame, cast, pixels, multiple, **options)


def blender_projection(scene, camera, keyframe, points):
    """Where Blender itself puts world points, moved from the frame to the canvas."""
    from bpy_extras.object_utils import world_to_camera_view
    from mathutils import Vector

    crop = keyframe.canvas.crop
    found = []
    for point in points:
        x, y, z = world_to_camera_view(scene, camera, Vector(point))
        found.append((crop.x + x * crop.width, crop.y + (1 - y) * crop.height, z))
    return np.array(found)


# --- masks ---------------------------------------------------------------------------------------


def test_masks_are_the_object_index_pass_and_the_occluder_wins(empty_scene):
    near = cs.make_person("Near", (0.15, -1.0, 0.0))
    far = cs.make_person("Far", (-0.1, 0.5, 0.0), turn=20)
    wall = cs.make_box("Wall", (0.0, -1.5, 0.3), (0.6, 0.05, 0.6))
    wall.pass_index = 1
    camera = film()
    keyframe = capture(empty_scene, camera, [near, far])
    first, second = keyframe.masks["Near"] > 0, keyframe.masks["Far"] > 0
    assert not (first & second).any()
    assert keyframe.present == ["Far", "Near"]
    assert set(np.unique(keyframe.masks["Near"])) == {0, 255}

    ids = index_pass(empty_scene, camera, keyframe, {near.meshes[0]: 3, far.meshes[0]: 4, wall: 5})
    assert (first == (ids == 3)).all()
    assert (second == (ids == 4)).all()
    # All three overlap on the canvas: what is nearer has the pixels.
    assert (ids == 5).sum() > 100
    alone = capture(empty_scene, camera, [far]).masks["Far"] > 0
    assert (alone == second).all()
    near.meshes[0].hide_render = wall.hide_render = True
    free = capture(empty_scene, camera, [far]).masks["Far"] > 0
    assert free.sum() > second.sum() and (free | second == free).all()


def index_pass(scene, camera, keyframe, indices):
    """The object index pass of a plain render of the scene itself, by an independent way."""
    import tempfile
    from pathlib import Path

    from addon.capture import exr
    from addon.core.projection import camera_settings

    for item, index in indices.items():
        item.pass_index = index
    scene.render.engine = "CYCLES"
    scene.cycles.samples = 1
    scene.cycles.filter_width = 0.01
    scene.cycles.use_denoising = False
    scene.view_layers[0].use_pass_object_index = True
    scene.render.resolution_x, scene.render.resolution_y = (
        keyframe.canvas.width,
        keyframe.canvas.height,
    )
    scene.render.pixel_aspect_x = scene.render.pixel_aspect_y = 1.0
    data = camera.data.copy()
    for name, value in camera_settings(keyframe.view.frustum, keyframe.view.projection).items():
        setattr(data, name, value)
    camera.data = data
    scene.camera = camera
    settings = scene.render.image_settings
    if bpy.app.version >= (5, 0, 0):
        settings.media_type = "MULTI_LAYER_IMAGE"
        settings.use_exr_interleave = True
    settings.file_format, settings.exr_codec = "OPEN_EXR_MULTILAYER", "NONE"
    settings.color_depth = "32"
    with tempfile.TemporaryDirectory() as folder:
        scene.render.filepath = str(Path(folder) / "all.exr")
        bpy.ops.render.render(write_still=True)
        channels = exr.read_channels(Path(folder) / "all.exr")
        name = next(n for n in channels if "Index" in n)
        return np.array(channels[name]).astype(int)


def test_instances_and_linked_props_belong_to_nobody(empty_scene):
    person = cs.make_person("A")
    held = cs.make_box("Prop", (0.75, -0.3, 1.42), (0.2, 0.2, 0.2))
    held.parent, held.parent_type = person.armature, "BONE"
    held.parent_bone = "mixamorig:LeftHand"
    hidden = bpy.data.collections.new("Instanced")
    box = cs.make_box("Inside", (0, 0, 0), (0.3, 0.3, 0.3))
    empty_scene.collection.objects.unlink(box)
    hidden.objects.link(box)
    instance = bpy.data.objects.new("Instance", None)
    instance.instance_type, instance.instance_collection = "COLLECTION", hidden
    instance.location = (0, -1, 0.5)
    empty_scene.collection.objects.link(instance)
    camera = film()
    with_both = capture(empty_scene, camera, [person])
    before = with_both.depth[with_both.masks["A"] == 0]
    assert np.isfinite(before).sum() > 200  # both are there, and are not the character
    empty_scene.collection.objects.unlink(instance)
    without = capture(empty_scene, camera, [person])
    assert (without.masks["A"] > 0).sum() > (with_both.masks["A"] > 0).sum()


def test_visibility_is_that_of_the_view_layer(empty_scene):
    person = cs.make_person("A")
    for name, change in (
        ("Planes", "planes"),
        ("Excluded", "exclude"),
        ("Hidden", "hide_render"),
        ("Object", "object"),
    ):
        collection = bpy.data.collections.new(name)
        empty_scene.collection.children.link(collection)
        box = cs.make_box(f"Box {name}", (0, -1, 1), (3, 0.1, 3))
        empty_scene.collection.objects.unlink(box)
        collection.objects.link(box)
        layer = bpy.context.view_layer.layer_collection.children[name]
        if change == "exclude":
            layer.exclude = True
        elif change == "planes":
            collection["onmodel_planes"] = True
        elif change == "hide_render":
            collection.hide_render = True
        elif change == "object":
            box.hide_render = True
    # What the artist hid from the viewport only is rendered, as in a final render.
    person.meshes[0].hide_set(True)
    person.armature.hide_viewport = True
    keyframe = capture(empty_scene, film(), [person])
    assert (keyframe.masks["A"] > 0).sum() > 1000
    assert np.isfinite(keyframe.depth).sum() == (keyframe.masks["A"] > 0).sum()


def test_second_view_layer_is_the_one_that_is_asked_for(empty_scene):
    person = cs.make_person("A")
    collection = bpy.data.collections.new("Wall")
    empty_scene.collection.children.link(collection)
    wall = cs.make_box("Wall", (0, -1, 1), (3, 0.1, 3))
    empty_scene.collection.objects.unlink(wall)
    collection.objects.link(wall)
    other = empty_scene.view_layers.new("Without.the wall")
    other.layer_collection.children["Wall"].exclude = True
    camera = film()
    assert capture(empty_scene, camera, [person]).present == []
    assert capture(empty_scene, camera, [person], view_layer="Without.the wall").present == ["A"]


def test_holes_in_materials_are_holes_in_masks(empty_scene):
    person = cs.make_person("A", (0, 1, 0))
    card = cs.make_box("Card", (0, 0, 1), (4, 0.01, 4))
    material = bpy.data.materials.new("Leaf")
    if bpy.app.version < (5, 0, 0):
        material.use_nodes = True
    card.data.materials.append(material)
    camera = film()
    assert capture(empty_scene, camera, [person]).present == []
    material.node_tree.nodes["Principled BSDF"].inputs["Alpha"].default_value = 0.0
    assert capture(empty_scene, camera, [person]).present == ["A"]


# --- joints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", cameras)
def test_joints_are_where_blender_projects_them(empty_scene, kind):
    person = cs.make_person("A", (0.2, 0.3, 0.0), turn=25)
    arm = person.armature.pose.bones["mixamorig:LeftArm"]
    arm.rotation_mode = "XYZ"
    arm.rotation_euler = (0.3, 0.2, 0.9)
    camera = film(kind)
    keyframe = capture(empty_scene, camera, [person])
    bones = person.armature.pose.bones
    world = person.armature.matrix_world
    from addon.core import rigs

    checked = 0
    for point, name in zip(keyframe.poses["A"].body, rigs.body_joints, strict=True):
        if name not in person.rig_map.joints:
            continue
        bone, end = person.rig_map.joints[name]
        place = world @ getattr(bones[bone], end)
        x, y, z = blender_projection(empty_scene, camera, keyframe, [place])[0]
        assert abs(point.x - x) < 0.05 and abs(point.y - y) < 0.05
        assert abs(point.z - z) < 1e-3
        checked += 1
    assert checked == 12


def test_pixels_and_joints_share_one_camera(empty_scene):
    """A small ball at a joint is drawn where the joint is projected, to a pixel."""
    for kind in cameras:
        bpy.ops.wm.read_factory_settings(use_empty=True)
        scene = bpy.context.scene
        person = cs.make_person("A")
        person.meshes[0].hide_render = True
        ball = cs.make_box("Ball", (0.45, -0.3, 1.42), (0.12, 0.12, 0.12))
        shown = cs.SimpleNamespace(**{**vars(person), "meshes": [ball]})
        camera = film(kind)
        keyframe = capture(scene, camera, [shown])
        rows, columns = np.nonzero(keyframe.masks["A"])
        corners = [ball.matrix_world @ v.co for v in ball.data.vertices]
        placed = blender_projection(scene, camera, keyframe, corners)
        assert abs(columns.min() - placed[:, 0].min()) <= 1, kind
        assert abs(columns.max() + 1 - placed[:, 0].max()) <= 1, kind
        assert abs(rows.min() - placed[:, 1].min()) <= 1, kind
        assert abs(rows.max() + 1 - placed[:, 1].max()) <= 1, kind


def states(keyframe, name="A"):
    from addon.core import rigs

    points = zip(rigs.body_joints, keyframe.poses[name].body, strict=True)
    return {joint: point.state for joint, point in points if point}


def test_states_of_joints(empty_scene):
    person = cs.make_person("A")
    camera = film("plain", at=(0, -7, 1.2), to=(0, 0, 1.2))
    assert set(states(capture(empty_scene, camera, [person])).values()) == {"visible"}

    # A board before the left forearm, and one right behind it, which hides nothing.
    board = cs.make_box("Board", (0.7, -0.5, 1.42), (0.2, 0.02, 0.2))
    cs.make_box("Behind", (-0.7, 0.2, 1.42), (0.2, 0.02, 0.2))
    found = states(capture(empty_scene, camera, [person]))
    assert found["left_wrist"] == "hidden"
    assert found["right_wrist"] == found["left_elbow"] == "visible"
    board.hide_render = True

    # Another character hides too.
    other = cs.make_person("B", (0.0, -0.6, 0.0))
    found = states(capture(empty_scene, camera, [person, other]))
    assert found["left_knee"] == "hidden"
    assert "hidden" not in states(capture(empty_scene, camera, [person, other]), "B").values()
    other.meshes[0].hide_render = True

    # Close by: arms and legs leave the canvas; from between the hands one is behind.
    near = film("plain", at=(0, -1.2, 1.6), to=(0, 0, 1.6))
    found = states(capture(empty_scene, near, [person]))
    assert found["left_ankle"] == "outside" and found["nose"] == "visible"
    between = film("plain", at=(0.5, 0, 1.42), to=(-5, 0, 1.42))
    found = states(capture(empty_scene, between, [person]))
    assert found["left_wrist"] == "behind" and found["right_wrist"] != "behind"


def test_back_view_hides_the_face_and_tells_yaw(empty_scene):
    from mathutils import Vector

    person = cs.make_person("A")
    for turn in (0, 60, -60, 180):
        person.armature.rotation_euler.z = math.radians(turn)
        keyframe = capture(empty_scene, film("plain", (0, -5, 1.6), (0, 0, 1.6)), [person])
        head, found = keyframe.heads["A"], states(keyframe)
        assert abs((head.yaw - turn + 180) % 360 - 180) < 0.5
        assert abs(head.pitch) < 2.0
        if turn == 180:
            assert {found["nose"], found["left_eye"], found["right_eye"]} == {"hidden"}
        if turn == 0:
            assert {found["nose"], found["left_eye"], found["right_ear"]} == {"visible"}
    bone = person.armature.pose.bones["mixamorig:Head"]
    bone.rotation_mode = "XYZ"
    person.armature.rotation_euler.z = 0
    camera = film("plain", (0, -5, 1.6), (0, 0, 1.6))
    for angle in (-0.4, 0.4):
        bone.rotation_euler.x = angle
        head = capture(empty_scene, camera, [person]).heads["A"]
        assert abs(abs(head.pitch) - math.degrees(0.4)) < 2.0
        bpy.context.view_layer.update()
        forward = (bone.matrix @ bone.bone.matrix_local.inverted()).to_3x3() @ Vector((0, -1, 0))
        assert (head.pitch > 0) == (forward.z > 0)


# --- heads ---------------------------------------------------------------------------------------


def test_head_region(empty_scene):
    person = cs.make_person("A")
    hat = cs.make_box("Hat", (0, 0, 1.9), (0.3, 0.3, 0.1))
    hat.parent, hat.parent_type = person.armature, "BONE"
    hat.parent_bone = "mixamorig:Head"
    hat.matrix_parent_inverse = (
        person.armature.matrix_world @ person.armature.pose.bones["mixamorig:Head"].matrix
    ).inverted()
    bpy.context.view_layer.update()
    camera = film("plain", (0, -4, 1.6), (0, 0, 1.6))
    bare = capture(empty_scene, camera, [person]).heads["A"]
    person.meshes.append(hat)
    keyframe = capture(empty_scene, camera, [person])
    head = keyframe.heads["A"]
    mask = head.mask > 0
    assert (keyframe.masks["A"][mask] == 255).all()
    assert head.visible > 0.99 and bare.visible > 0.9
    assert mask.sum() > (bare.mask > 0).sum()
    # Box and mask agree with the head's corners as Blender projects them.
    corners = [(x, y, z) for x in (-0.1, 0.1) for y in (-0.1, 0.1) for z in (1.55, 1.8)]
    placed = blender_projection(empty_scene, camera, keyframe, corners)
    assert abs(bare.box.x - placed[:, 0].min()) < 0.1
    assert abs(bare.box.width - np.ptp(placed[:, 0])) < 0.1
    assert abs(bare.box.y - placed[:, 1].min()) < 0.1
    rows = np.nonzero(bare.mask)[0]
    assert abs(rows.max() + 1 - placed[placed[:, 2] < 4, 1].max()) <= 1.5
    # Half of it behind a board.
    cs.make_box("Board", (0.5, -1, 1.7), (1, 0.02, 1))
    assert 0.4 < capture(empty_scene, camera, [person]).heads["A"].visible < 0.6


def test_hair_strands_on_the_head_are_head(empty_scene):
    from mathutils import Matrix

    person = cs.make_person("A")
    camera = film("plain", (0, -4, 1.6), (0, 0, 1.6))
    bald = capture(empty_scene, camera, [person]).heads["A"]
    strands = bpy.data.hair_curves.new("Hair")
    strands.add_curves([4] * 60)
    places = [(-0.1 + i / 300, -0.02, 1.78 + 0.05 * j) for i in range(60) for j in range(4)]
    strands.attributes["position"].data.foreach_set("vector", np.ravel(places))
    radius = strands.attributes.get("radius") or strands.attributes.new("radius", "FLOAT", "POINT")
    radius.data.foreach_set("value", np.full(240, 0.005))
    hair = bpy.data.objects.new("Hair", strands)
    empty_scene.collection.objects.link(hair)
    hair.parent, hair.parent_type = person.armature, "BONE"
    hair.parent_bone = "mixamorig:Head"
    bpy.context.view_layer.update()
    hair.matrix_world = Matrix.Identity(4)
    person.meshes.append(hair)
    keyframe = capture(empty_scene, camera, [person])
    head = keyframe.heads["A"]
    assert head.box.y < bald.box.y - 5
    assert np.nonzero(head.mask)[0].min() == np.nonzero(keyframe.masks["A"])[0].min()
    assert abs(np.nonzero(head.mask)[0].min() - head.box.y) < 1


def test_fog_hides_nobody(empty_scene):
    person = cs.make_person("A")
    fog = cs.make_box("Fog", (0, -1, 1), (4, 0.5, 4))
    material = bpy.data.materials.new("Fog")
    if bpy.app.version < (5, 0, 0):
        material.use_nodes = True
    nodes, links = material.node_tree.nodes, material.node_tree.links
    nodes.clear()
    volume, output = nodes.new("ShaderNodeVolumePrincipled"), nodes.new("ShaderNodeOutputMaterial")
    links.new(volume.outputs[0], output.inputs["Volume"])
    fog.data.materials.append(material)
    assert capture(empty_scene, film(), [person]).present == ["A"]


def test_marked_vertices_give_head_and_face(empty_scene):
    person = cs.make_person("A")
    mesh = person.meshes[0].data
    points = [v.co.copy() for v in mesh.vertices]
    head = mesh.attributes.new("onmodel_head", "INT", "POINT")
    head.data.foreach_set("value", [int(p.z > 1.54) for p in points])
    face = mesh.attributes.new("onmodel_face", "INT", "POINT")
    front = next(i for i, p in enumerate(points) if p.z > 1.75 and p.y < -0.05 and p.x > 0)
    numbers = [-1] * len(points)
    numbers[front] = 30
    face.data.foreach_set("value", numbers)
    camera = film("plain", (0, -4, 1.6), (0, 0, 1.6))
    for subdivided in (False, True):
        if subdivided:
            person.meshes[0].modifiers.new("Subdivision", "SUBSURF").subdivision_type = "SIMPLE"
        keyframe = capture(empty_scene, camera, [person])
        expected = blender_projection(empty_scene, camera, keyframe, [points[front]])[0]
        found = keyframe.poses["A"].face
        assert len(found) == 70 and found[29] is None
        for point in (found[30], keyframe.poses["A"].body[0]):
            assert abs(point.x - expected[0]) < 0.05 and abs(point.y - expected[1]) < 0.05
            assert point.state == "visible"
        assert keyframe.heads["A"].visible > 0.9


# --- depth, normals, lines -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", cameras)
def test_depth_of_planes_is_planar(empty_scene, kind):
    cs.make_box("Wall", (0, 3, 0), (60, 1, 60))
    camera = film(kind, at=(0, -4, 0), to=(0, 0, 0))
    keyframe = capture(empty_scene, camera)
    assert np.abs(keyframe.depth - 6.5).max() < 1e-3
    camera.rotation_euler.z += 0.4
    keyframe = capture(empty_scene, camera)
    rows, columns = np.indices(keyframe.depth.shape)
    points = np.stack([columns + 0.5, rows + 0.5, keyframe.depth], axis=2).reshape(-1, 3)
    world = keyframe.view.unproject(points, keyframe.canvas.width, keyframe.canvas.height)
    assert np.abs(world[:, 1] - 2.5).max() < 5e-3


def test_normal_colours_of_known_faces(empty_scene):
    camera = film("plain", at=(0, -4, 0), to=(0, 0, 0))
    for turn, axis, colour in (
        (0.0, "Z", (128, 128, 255)),
        (-math.pi / 4, "Z", (218, 128, 218)),  # its front looks to the left: red
        (math.pi / 4, "Z", (37, 128, 218)),
        (-math.pi / 4, "X", (128, 218, 218)),  # to the top: green
    ):
        box = cs.make_box("Box", (0, 0, 0), (1, 0.02, 1))
        box.location = (0, 0, 0)
        box.rotation_euler["XYZ".index(axis)] = turn
        keyframe = capture(empty_scene, camera)
        middle = tuple(s // 2 for s in keyframe.depth.shape)
        found = keyframe.maps["normal"][middle].astype(int)
        assert np.abs(found - colour).max() <= 1, (turn, axis, found)
        assert tuple(keyframe.maps["normal"][0, 0]) == (128, 128, 255)
        bpy.data.objects.remove(box)


def test_maps_have_one_shape_and_the_frame_is_cut_out_of_the_canvas(empty_scene):
    person = cs.make_person("A")
    keyframe = capture(empty_scene, film("wide pixels"), [person])
    shape = (keyframe.canvas.height, keyframe.canvas.width)
    assert {k: m.shape for k, m in keyframe.maps.items()} == {
        "pose": (*shape, 3),
        "normal": (*shape, 3),
        "depth": shape,
        "lineart": shape,
    }
    assert all(m.dtype == np.uint8 and m.any() for m in keyframe.maps.values())
    assert keyframe.frame_size == Size(720, 576)
    assert abs(keyframe.canvas.crop.width / keyframe.canvas.crop.height - 2 * 720 / 576) < 1e-6
    assert {"render", "read", "masks", "heads", "joints", "pose", "normal", "lineart"} <= set(
        keyframe.timings
    )


# --- shots ---------------------------------------------------------------------------------------


def test_a_shot_moves_with_its_frames_and_shares_its_depth_range(empty_scene):
    person = cs.make_person("A")
    person.armature.keyframe_insert("location", frame=1)
    person.armature.location.y = 4
    person.armature.keyframe_insert("location", frame=20)
    camera = film("plain", at=(0, -4, 1), to=(0, 0, 1))
    camera.data.keyframe_insert("lens", frame=1)
    camera.data.lens = 80
    camera.data.keyframe_insert("lens", frame=20)
    empty_scene.frame_set(7)
    shot = Shot("010", camera.name, 1, 20, keyframes=[1, 20], frame_size=Size(900, 900))
    with ShotCapture(empty_scene, shot, [person], pixels, multiple) as stepper:
        said = list(stepper.steps())
    assert len(said) >= 4 and all(s.startswith("010") for s in said)
    first, last = stepper.keyframes
    assert (first.frame, last.frame) == (1, 20) and first.frame_size == Size(900, 900)
    assert abs(last.poses["A"].body[8].z - first.poses["A"].body[8].z - 4) < 1e-3
    ratio = (first.view.frustum[1] - first.view.frustum[0]) / (
        last.view.frustum[1] - last.view.frustum[0]
    )
    assert abs(ratio - 80 / 50) < 1e-3
    # One range: the nearer keyframe is the brighter one.
    assert first.maps["depth"].max() == 255
    assert last.maps["depth"].max() < 128
    assert empty_scene.frame_current == 7


def test_a_part_of_a_shot_is_captured_with_the_range_of_all_of_it(empty_scene):
    person = cs.make_person("A")
    for frame, y in ((1, 0), (10, 2), (20, 6)):
        person.armature.location.y = y
        person.armature.keyframe_insert("location", frame=frame)
    camera = film("plain", at=(0, -4, 1), to=(0, 0, 1))
    shot = Shot("010", camera.name, 1, 20, keyframes=[1, 10, 20], frame_size=Size(900, 900))

    def taken(frames=None):
        with ShotCapture(empty_scene, shot, [person], pixels, multiple, frames=frames) as stepper:
            said = list(stepper.steps())
        assert len(said) >= 4
        return {
            k.frame: {kind: m.tobytes() for kind, m in {**k.maps, **k.masks}.items()}
            for k in stepper.keyframes
        }

    every = taken()
    assert len({maps["depth"] for maps in every.values()}) == 3
    for frames in ([1], [10], [20], [1, 20]):
        assert taken(frames) == {frame: every[frame] for frame in frames}

# SPDX-License-Identifier: GPL-3.0-or-later
"""The shipped storyboard has what it promises, in every Blender that opens it."""

import json
import struct
from pathlib import Path

import bpy
import numpy as np
import pytest
from bpy_extras.object_utils import world_to_camera_view
from mathutils import Vector

import addon
from addon.scene import cast, problems, shots

root = Path(__file__).resolve().parents[2]
sample = root / "samples" / "storyboard.blend"


@pytest.fixture(scope="module")
def scene():
    registered = hasattr(bpy.types.Scene, "onmodel")
    if not registered:
        addon.register()
    bpy.ops.wm.open_mainfile(filepath=str(sample))
    yield bpy.context.scene
    if not registered:
        addon.unregister()


@pytest.fixture(scope="module")
def film(scene):
    return {shot.name: shot for shot in shots.read_shots(scene)}


@pytest.fixture(scope="module")
def actors(scene):
    return {member.name: member for member in cast.read_cast(scene)}


def go(scene, shot, which=0):
    """To a keyframe of the shot; returns its camera with the shot's size set."""
    if shot.frame_size is not None:
        scene.render.resolution_x = shot.frame_size.width
        scene.render.resolution_y = shot.frame_size.height
    else:
        scene.render.resolution_x, scene.render.resolution_y = 1920, 1080
    scene.frame_set(shot.keyframes[which])
    return bpy.data.objects[shot.camera]


def points(name):
    """The posed vertices (N, 3) of a person, world."""
    item = bpy.data.objects[name].evaluated_get(bpy.context.evaluated_depsgraph_get())
    mesh = item.to_mesh()
    flat = np.empty(len(mesh.vertices) * 3, np.float32)
    mesh.vertices.foreach_get("co", flat)
    world = np.array(item.matrix_world)
    item.to_mesh_clear()
    return flat.reshape(-1, 3) @ world[:3, :3].T + world[:3, 3]


def landmarks(name):
    """Vertex number of each of the 70 face points."""
    mesh = bpy.data.objects[name].data
    numbers = np.empty(len(mesh.vertices), np.int32)
    mesh.attributes["onmodel_face"].data.foreach_get("value", numbers)
    found = np.full(70, -1)
    marked = np.flatnonzero(numbers >= 0)
    found[numbers[marked]] = marked
    return found


def on_frame(scene, camera, found):
    """(N, 3): x, y in 0..1 of the frame, distance."""
    return np.array([world_to_camera_view(scene, camera, Vector(p)) for p in found])


def inside(seen):
    return (seen[:, 2] > 0) & ((seen[:, :2] >= 0) & (seen[:, :2] <= 1)).all(axis=1)


def facing(name, camera):
    """1 when the face looks into the camera, -1 when it looks away from it."""
    posed, at = points(name), landmarks(name)
    across = posed[at[42]] - posed[at[39]]  # from the right eye's inner corner to the left's
    down = posed[at[8]] - posed[at[27]]  # from the nose bridge to the chin
    forward = np.cross(across, -down)
    if forward @ (posed[at[30]] - (posed[at[36]] + posed[at[45]]) / 2) < 0:
        forward = -forward
    to_camera = np.array(camera.matrix_world.translation) - posed[at[27]]
    if camera.data.type == "ORTHO":
        to_camera = np.array(camera.matrix_world.col[2])[:3]
    return float(forward @ to_camera / np.linalg.norm(forward) / np.linalg.norm(to_camera))


def test_it_is_small_and_asks_for_no_rights(scene):
    assert sample.stat().st_size < 6e6
    assert not any(text.use_module for text in bpy.data.texts)
    for item in bpy.data.objects:
        drivers = item.animation_data.drivers if item.animation_data else []
        assert all(d.driver.type != "SCRIPTED" or d.driver.is_simple_expression for d in drivers), (
            item.name
        )
    assert not [i for i in bpy.data.images if i.filepath], "the file depends on others"
    assert not bpy.data.libraries


def test_an_artist_finds_it_tidy(scene):
    assert [c.name for c in scene.collection.children] == ["Cast", "Set", "Cameras"]
    assert not scene.collection.objects
    cast_names = [c.name for c in bpy.data.collections["Cast"].children]
    assert cast_names == ["Mara", "Jonas"]
    for item in scene.objects:
        assert not item.name.startswith(("Cube", "Mesh", "Object", "metarig", "WGT")), item.name


def test_the_add_on_finds_nothing_to_complain_about(scene):
    assert [p.message for p in problems.validate(scene, output_given=True)] == []


def test_shots_and_keyframes(film, scene):
    assert list(film) == ["010", "020", "030", "040", "050", "060", "070"]
    assert all(2 <= len(shot.keyframes) <= 3 for shot in film.values())
    starts = [shot.start for shot in film.values()]
    ends = [shot.end for shot in film.values()]
    assert starts[0] == scene.frame_start
    assert ends[-1] == scene.frame_end
    assert starts[1:] == [e + 1 for e in ends[:-1]]
    assert len({shot.camera for shot in film.values()}) == 7
    assert all(shot.prompt for shot in film.values())


def test_one_mixamo_one_rigify(actors):
    assert {n: a.rig_map.family for n, a in actors.items()} == {"Mara": "Mixamo", "Jonas": "Rigify"}
    for name, prefix in (("Mara", "mixamorig:"), ("Jonas", "DEF-")):
        member = actors[name]
        assert member.rig_map.unmapped == []
        (mesh,) = member.meshes
        assert all(g.name.startswith(prefix) for g in mesh.vertex_groups)
        bones = member.armature.data.bones
        assert all(bones[g.name].use_deform for g in mesh.vertex_groups)
        assert member.armature.animation_data.action is not None
    assert "rig_id" in actors["Jonas"].armature.data  # what Rigify writes into a generated rig


def test_they_look_different(actors, scene):
    looks = {n: set(a.prompt.split(", ")) for n, a in actors.items()}
    assert looks["Mara"] & looks["Jonas"] == {"smiling"}
    assert actors["Mara"].noun == "young woman"
    assert actors["Jonas"].noun == "man"
    rest = {n: np.array([v.co for v in a.meshes[0].data.vertices]) for n, a in actors.items()}
    tall = {n: r[:, 2].max() for n, r in rest.items()}
    assert tall["Jonas"] - tall["Mara"] > 0.1


def test_each_is_drawn_by_the_lora_that_ships_for_it(scene, actors):
    folder = root / "server" / "onmodel" / "rehearsal" / "sample_loras"
    shipped = {file.stem: file.read_bytes() for file in folder.glob("*.safetensors")}
    named = {n: [(lora.name, lora.weight) for lora in a.loras] for n, a in actors.items()}
    assert named == {n: [(n, 1.0)] if n in shipped else [] for n in actors}
    assert set(shipped) <= set(actors)
    for name, data in shipped.items():
        header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
        words = header["__metadata__"]
        assert words["modelspec.trigger_phrase"] == f"{actors[name].trigger} {actors[name].noun}"
        assert not any("dirs" in key or "tag_frequency" in key for key in words)
        assert len(data) < 3e6
        assert scene.onmodel.model == "rehearsal", "the model that the LoRA fits"
    assert len({a.trigger for n, a in actors.items() if n in shipped}) == len(shipped)


def test_faces_are_marked(actors):
    for name in actors:
        at = landmarks(name)
        assert (at >= 0).all()
        assert len(set(at.tolist())) >= 66
        co = np.array([v.co for v in bpy.data.objects[name].data.vertices])[at]
        assert co[68, 0] < 0 < co[69, 0]  # the right pupil, the left pupil
        assert co[8, 2] < co[57, 2] < co[33, 2] < co[27, 2] < co[19, 2]  # chin, lip, nose, brow


def test_nobody_stands_in_the_ground_or_floats(film, scene):
    for shot in film.values():
        for which in range(len(shot.keyframes)):
            go(scene, shot, which)
            for name in ("Mara", "Jonas"):
                low = float(points(name)[:, 2].min())
                assert -0.02 < low < 0.035, (shot.name, shot.keyframes[which], name, low)


def test_what_each_shot_is_for(film, scene):
    def seen(shot, name, which=0):
        camera = go(scene, film[shot], which)
        return on_frame(scene, camera, points(name)[::5])

    for which in range(3):  # the establishing shot shows both from head to foot
        assert inside(seen("010", "Mara", which)).all()
        assert inside(seen("010", "Jonas", which)).all()
    assert film["020"].frame_size.width < film["020"].frame_size.height
    assert inside(seen("020", "Mara", 2)).all()
    head = seen("030", "Jonas")  # the close-up: the face alone is half the picture's height
    camera = go(scene, film["030"], 1)
    face = on_frame(scene, camera, points("Jonas")[landmarks("Jonas")])
    assert inside(face).all()
    assert face[:, 1].max() - face[:, 1].min() > 0.3
    assert not inside(head).all()
    shifted = bpy.data.objects[film["050"].camera].data
    assert abs(shifted.shift_x) > 0.01
    assert abs(shifted.shift_y) > 0.05
    assert bpy.data.objects[film["060"].camera].data.type == "ORTHO"
    assert bpy.data.objects[film["020"].camera].data.sensor_fit == "VERTICAL"


def test_the_back_view_is_from_behind(film, scene):
    camera = go(scene, film["070"])
    assert facing("Mara", camera) < -0.8
    assert facing("Jonas", camera) < -0.8
    camera = go(scene, film["020"], 2)
    assert facing("Mara", camera) > 0.8


def test_one_occludes_the_other(film, scene):
    """Of Mara's points in the picture, some are behind Jonas and some are not."""
    for which in (0, 1):
        camera = go(scene, film["040"], which)
        graph = bpy.context.evaluated_depsgraph_get()
        origin = camera.matrix_world.translation
        found = points("Mara")[::5]
        at = on_frame(scene, camera, found)
        found, at = found[inside(at)], at[inside(at)]
        # One point a cell of the picture: the head's mesh is finer than the body's.
        found = found[np.unique((at[:, :2] * 60).astype(int), axis=0, return_index=True)[1]]
        hit = []
        for point in found:
            ray = Vector(point) - origin
            reached, _, _, _, item, _ = scene.ray_cast(
                graph, origin, ray.normalized(), distance=ray.length - 0.005
            )
            hit.append(item.name if reached else "")
        hidden = hit.count("Jonas") / len(hit)
        assert 0.1 < hidden < 0.7, hidden


def test_the_zoom_and_the_tracking_camera_move(film, scene):
    lens = [go(scene, film["030"], i).data.lens for i in (0, 1)]
    assert lens[1] - lens[0] > 5
    place = [go(scene, film["020"], i).matrix_world.translation.copy() for i in (0, 2)]
    assert (place[1] - place[0]).length > 0.3

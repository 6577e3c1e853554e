# SPDX-License-Identifier: GPL-3.0-or-later
"""An unchanged keyframe gives the same maps to the byte, whatever happened in the file since.

What is drawn is known by the hashes of its maps: one pixel that differs is a drawing made again.
"""

import hashlib
from pathlib import Path

import bpy
import numpy as np
import pytest

import addon
from addon.capture.capture import capture_keyframe
from addon.core import png
from addon.planes import planes
from addon.scene import cast, shots

sample = Path(__file__).resolve().parents[2] / "samples" / "storyboard.blend"


@pytest.fixture(scope="module", autouse=True)
def registered():
    already = hasattr(bpy.types.Scene, "onmodel")
    if not already:
        addon.register()
    yield
    if not already:
        addon.unregister()


def open_sample():
    """The sample anew: its scene and shots by name."""
    bpy.ops.wm.open_mainfile(filepath=str(sample))
    scene = bpy.context.scene
    return scene, {shot.name: shot for shot in shots.read_shots(scene)}


def hashes(scene, shot, frame):
    """Kind of map, or the name of a mask, to the SHA-256 of its bytes."""
    camera = scene.objects[shot.camera]
    cast_now = cast.read_cast(scene)
    found = capture_keyframe(scene, camera, frame, cast_now, 256 * 256, 64, shot.frame_size)
    named = {**found.maps, **found.masks}
    return {k: hashlib.sha256(np.ascontiguousarray(v)).hexdigest() for k, v in named.items()}


def put_plane(scene, shot, frame, folder):
    """A drawing before the shot's camera, as a run places it."""
    path = folder / f"{shot.name}_{frame}.png"
    path.write_bytes(png.encode(np.full((32, 32, 3), 90, np.uint8)))
    camera = scene.objects[shot.camera]
    planes.place(scene, camera, path, shot.name, frame, 1, (shot.start, shot.end))


def test_a_keyframe_is_the_same_whatever_was_done_before(tmp_path):
    scene, film = open_sample()
    shot = film["030"]
    frame = shot.keyframes[0]
    first = hashes(scene, shot, frame)
    assert {"normal", "lineart", "depth", "pose"} <= set(first) and len(first) > 4
    hashes(scene, film["010"], film["010"].keyframes[-1])
    assert hashes(scene, shot, frame) == first, "after another shot"
    put_plane(scene, film["010"], 1, tmp_path)
    assert hashes(scene, shot, frame) == first, "after a drawing was placed in another shot"
    put_plane(scene, shot, frame, tmp_path)
    scene.frame_set(frame)
    assert hashes(scene, shot, frame) == first, "behind its own drawing"
    scene, film = open_sample()
    assert hashes(scene, film["030"], frame) == first, "opened anew"
    scene.render.threads_mode, scene.render.threads = "FIXED", 1
    scene.frame_set(film["060"].start)
    scene.cycles.seed = 7
    assert hashes(scene, film["030"], frame) == first, "on another frame, with other settings"


def test_materials_that_the_view_layer_does_not_show_change_no_map():
    scene, film = open_sample()
    shot = film["030"]
    frame = shot.keyframes[0]
    first = hashes(scene, shot, frame)
    glass = bpy.data.materials.new("Glass")
    if bpy.app.version < (5, 0, 0):
        glass.use_nodes = True
    glass.node_tree.nodes["Principled BSDF"].inputs["Alpha"].default_value = 0.5
    mesh = bpy.data.meshes.new("Pane")
    mesh.materials.append(glass)
    aside = bpy.data.collections.new("Aside")
    scene.collection.children.link(aside)
    aside.objects.link(bpy.data.objects.new("Pane", mesh))
    bpy.context.view_layer.layer_collection.children["Aside"].exclude = True
    assert hashes(scene, shot, frame) == first

# SPDX-License-Identifier: GPL-3.0-or-later
"""A film of two shots with two people of boxes, for tests of rendering."""

import bpy

from tests.blender import capture_scene


def register():
    """The add-on's data on scenes, once a process."""
    from addon.scene import properties

    if not hasattr(bpy.types.Scene, "onmodel"):
        properties.register()


def make_film():
    """A new file: shot 010 on frames 1-20 with three keyframes, shot 020 on 21-40 with one."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    register()
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end = 1, 40
    scene.render.resolution_x, scene.render.resolution_y = 320, 180
    scene.render.resolution_percentage = 100
    capture_scene.make_box("Floor", (0, 0, -0.1), (12, 12, 0.2))
    settings = scene.onmodel
    settings.film, settings.prompt, settings.seed = "test film", "ink and wash", 7
    for name, at, noun in (("Ada", (-0.6, 0, 0), "woman"), ("Ben", (0.6, 0.5, 0), "man")):
        person = capture_scene.make_person(name, at)
        row = settings.cast.add()
        row.name, row.noun, row.armature = name, noun, person.armature
        row.meshes.add().item = person.meshes[0]
    for frame, name, at in ((1, "010", (0, -4, 1.4)), (21, "020", (1.5, -2.5, 1.5))):
        marker = scene.timeline_markers.new(name, frame=frame)
        marker.camera = capture_scene.make_camera(at, (0, 0, 1), f"Camera {name}")
    return scene


def read_shots(scene):
    """The film's two shots."""
    from addon.core.shots import Overrides, shots_from_markers

    markers = [(m.frame, m.name, m.camera.name) for m in scene.timeline_markers]
    overrides = {
        "010": Overrides(prompt="two friends meet", marked=frozenset({10})),
        "020": Overrides(prompt="a close talk", last=False, seed=99),
    }
    return shots_from_markers(markers, scene.frame_start, scene.frame_end, overrides)

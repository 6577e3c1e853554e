# SPDX-License-Identifier: GPL-3.0-or-later
"""A film of two shots with two people of boxes, for tests of rendering."""

import time

import bpy

from tests.blender import capture_scene

stuck_seconds = 300.0
"""After so long without an end a session will never have one, however busy the machine is."""


def register():
    """The add-on's data on scenes, once a process."""
    from addon.scene import properties

    if not hasattr(bpy.types.Scene, "onmodel"):
        properties.register()


def make_film():
    """A new file: shot 010 on frames 1-20 with three keyframes, shot 020 on 21-40 with two."""
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
    from addon.scene import shots

    shots.sync(scene)
    first, second = scene.onmodel.shots
    first.prompt, second.prompt = "two friends meet", "a close talk"
    first.keyframes.add().frame = 10
    first.keyframes[0].marked = True
    second.use_seed, second.seed = True, 99
    return scene


def read_shots(scene):
    """The film's two shots, as the add-on reads them."""
    from addon.scene import shots

    return shots.read_shots(scene)


def run(session, until=None):
    """Steps a session to its end, or until something is so; its state in a word."""
    end = time.monotonic() + stuck_seconds
    while not session.ended and not (until and until()):
        session.step()
        time.sleep(0.002)
        assert time.monotonic() < end, f"stuck in {session.state}: {session.message}"
    return session.state.value


def calm(monkeypatch, server):
    """Keeps a server in this process from running while Blender captures (see network.py)."""
    from addon.render.session import RenderSession, State

    step = RenderSession.step

    def calm_step(session):
        server.pause(session.state in (State.planning, State.capturing))
        return step(session)

    monkeypatch.setattr(RenderSession, "step", calm_step)

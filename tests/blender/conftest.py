# SPDX-License-Identifier: GPL-3.0-or-later
"""The Blender tier: runs in bpy as a module and inside a real Blender (see runner.py)."""

import os
import sys
import tempfile

import pytest

if "bpy" not in sys.modules:
    # Before the first import of bpy: no test may read or write the person's own Blender settings.
    os.environ.setdefault("BLENDER_USER_RESOURCES", tempfile.mkdtemp(prefix="onmodel-blender-"))

exit_status = 0


def pytest_collection_modifyitems(items):
    for item in items:
        if "/blender/" in str(item.path).replace("\\", "/"):
            item.add_marker(pytest.mark.blender)


@pytest.fixture
def empty_scene():
    """The scene of a new, empty file."""
    import bpy

    bpy.ops.wm.read_factory_settings(use_empty=True)
    return bpy.context.scene


@pytest.fixture
def server(monkeypatch):
    """A server inside this process, which rests while Blender captures."""
    from tests.addon.fake_server import FakeServer
    from tests.blender import render_scene

    with FakeServer() as running:
        render_scene.calm(monkeypatch, running)
        yield running


@pytest.fixture
def scene():
    """The scene of a film of two shots (render_scene)."""
    from tests.blender import render_scene

    return render_scene.make_film()


@pytest.fixture
def make(scene, server, tmp_path):
    """Makes a session of the film, its files under "out"; closes it afterwards."""
    from addon.core.client import Client
    from addon.render.session import RenderSession
    from addon.render.settings import TakeSettings
    from tests.blender import render_scene

    made = []

    def make_one(shots=None, client=None, **settings):
        shots = shots or render_scene.read_shots(scene)
        client = client or Client(server.url, server.token)
        session = RenderSession(scene, shots, TakeSettings(**settings), client, tmp_path / "out")
        made.append(session)
        return session

    yield make_one
    for session in made:
        session.close()


def pytest_sessionfinish(session, exitstatus):
    global exit_status
    exit_status = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    # bpy 4.2 and 4.5 hang or crash at interpreter exit after Rigify has generated a rig.
    if "bpy" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_status)

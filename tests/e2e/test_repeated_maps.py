# SPDX-License-Identifier: GPL-3.0-or-later
"""The sample's maps are the same to the byte in every process, and a second run does nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from addon.commands import ExitCode
from tests.support.server import RunningServer

from .test_command_render import Command

root = Path(__file__).resolve().parents[2]
film = root / "samples" / "storyboard.blend"

pytestmark = [
    pytest.mark.blender,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("bpy") is None, reason="no bpy here"),
    pytest.mark.skipif(not film.exists(), reason="the sample is not built"),
]

capture_one = """
import hashlib, json, os, sys
import bpy, addon
addon.register()
bpy.ops.wm.open_mainfile(filepath=sys.argv[1])
from addon.capture.capture import capture_keyframe
from addon.scene import cast, shots
scene = bpy.context.scene
shot = next(s for s in shots.read_shots(scene) if s.name == "030")
camera = scene.objects[shot.camera]
found = capture_keyframe(
    scene, camera, shot.keyframes[0], cast.read_cast(scene), 384 * 384, 64, shot.frame_size
)
named = {**found.maps, **found.masks}
hashes = {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in named.items()}
print("maps " + json.dumps(hashes, sort_keys=True), flush=True)
os._exit(0)
"""

switch_all_maps_on = """
import os, sys
import bpy, addon
addon.register()
bpy.ops.wm.open_mainfile(filepath=sys.argv[1])
for kind in ("pose", "depth", "normal", "lineart"):
    getattr(bpy.context.scene.onmodel, kind).use = True
bpy.ops.wm.save_as_mainfile(filepath=sys.argv[2])
os._exit(0)
"""


def run_script(script: str, folder: Path, *arguments: Path, seed: int = 0) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "PYTHONHASHSEED": str(seed),
        "BLENDER_USER_RESOURCES": str(folder / "blender"),
    }
    line = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(
        line, cwd=root, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_six_processes_capture_the_same_maps(tmp_path):
    def capture(number: int) -> str:
        said = run_script(capture_one, tmp_path, film, seed=number)
        return next(line for line in said.splitlines() if line.startswith("maps "))

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(capture, range(6)))
    assert set(json.loads(found[0][5:])) >= {"pose", "depth", "normal", "lineart"}
    assert len(set(found)) == 1, "\n".join(found)


def test_a_second_run_with_all_maps_draws_nothing_with_and_without_planes(tmp_path):
    every = tmp_path / "every.blend"
    run_script(switch_all_maps_on, tmp_path, film, every)
    with RunningServer(tmp_path, {}) as server:
        command = Command(tmp_path, server)

        def render(path: Path, *options: str) -> dict:
            code, out, err = command.run("render", str(path), "--json", *options)
            assert code == ExitCode.ok, err
            return json.loads(out)

        planes = tmp_path / "planes.blend"
        shots = ("--shots", "010,030,060")
        first = render(every, *shots, "--save", str(planes))
        assert {k["state"] for k in first["keyframes"]} == {"done"}
        keys = [k["request_key"] for k in first["keyframes"]]
        for path in (every, planes):
            again = render(path, *shots)
            assert {k["state"] for k in again["keyframes"]} == {"kept"}, path.name
            assert [k["request_key"] for k in again["keyframes"]] == keys
            assert again["image_bytes_sent"] == 0

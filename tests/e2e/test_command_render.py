# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole way: the sample storyboard through `python -m addon render` and a real server.

Each command runs in a process of its own, as a person or a farm would run it. The artist behind
the server is the fake one, so these tests are about the way, not about the drawing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from addon.commands import ExitCode
from addon.core import png
from tests.support import keyframes
from tests.support.server import RunningServer, send_images, wait_for, wait_job

root = Path(__file__).resolve().parents[2]
film = root / "samples" / "storyboard.blend"

pytestmark = [
    pytest.mark.blender,
    pytest.mark.skipif(importlib.util.find_spec("bpy") is None, reason="no bpy here"),
    pytest.mark.skipif(not film.exists(), reason="the sample is not built"),
]


patience = 600.0
"""Seconds until a test gives up. Nothing waits for so long unless it hangs."""


class Command:
    """Runs `python -m addon` with one folder of its own."""

    def __init__(self, folder: Path, server: RunningServer) -> None:
        self.folder = folder
        self.server = server
        self.out = folder / "out"

    def begin(self, *arguments: str, server: bool = True) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(root), str(root / "server")]),
            "BLENDER_USER_RESOURCES": str(self.folder / "blender"),
            "OMP_NUM_THREADS": "1",
        }
        line = [sys.executable, "-m", "addon", *arguments]
        if arguments[0] == "render":
            line += ["--out", str(self.out)]
            if server:
                ready = self.server.ready
                line += ["--server", ready["url"], "--token", ready["token"]]
        return subprocess.Popen(
            line,
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, server: bool = True) -> tuple[int, str, str]:
        process = self.begin(*arguments, server=server)
        out, err = process.communicate(timeout=patience)
        return process.returncode, out, err

    def render(self, *arguments: str) -> tuple[int, dict, str]:
        code, out, err = self.run("render", str(film), "--json", *arguments)
        assert out, err
        return code, json.loads(out), err


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A real server with the fake artist."""
    with RunningServer(tmp_path_factory.mktemp("server"), {}) as running:
        yield running


@pytest.fixture
def command(tmp_path, server):
    return Command(tmp_path, server)


def held_server(folder, **knobs):
    """A server that draws two keyframes, and no third before `open_gate`: however slowly a render
    goes on, work is left when it is interrupted."""
    gate = {"FAKE_BATCH": "1", "FAKE_DRAWS": "2", "FAKE_GATE": str(folder / "gate")}
    return RunningServer(folder, {**gate, **knobs})


def open_gate(folder):
    (folder / "gate").touch()


def wait_for_a_drawing(command, process):
    """Waits for the first keyframe's file; says what the program said where it ended before."""

    def drawn_or_ended():
        return process.poll() is not None or list(command.out.rglob("take_*/*.png"))

    wait_for(drawn_or_ended, "no keyframe was drawn", patience)
    if process.poll() is not None:
        raise AssertionError(f"ended with {process.returncode}: {process.communicate()[1][-3000:]}")


def test_the_whole_sample_is_drawn_and_a_second_run_sends_and_draws_nothing(command):
    code, data, err = command.render("--maps", "--save", str(command.folder / "demo.blend"))
    assert code == ExitCode.ok, err
    keyframes = data["keyframes"]
    assert len({k["shot"] for k in keyframes}) >= 4 and len(keyframes) >= 8
    assert {k["state"] for k in keyframes} == {"done"}
    for k in keyframes:
        path = Path(k["file"])
        sidecar = json.loads(path.with_suffix(".json").read_text())
        size = sidecar["request"]["frame_size"]
        height, width = png.decode(path.read_bytes()).shape[:2]
        assert abs(width / height - size["width"] / size["height"]) < 0.05
        assert k["timings"]["click_to_plane"] > 0 and k["server_timings"]
        depth = path.parents[1] / "maps" / f"{path.stem}_depth.png"
        assert png.decode(depth.read_bytes()).ndim == 2
    assert data["image_bytes_sent"] > 0
    assert (command.folder / "demo.blend").stat().st_size > 1_000_000
    assert "keyframes drawn" in err

    code, again, err = command.render("--no-planes")
    assert code == ExitCode.ok, err
    assert {k["state"] for k in again["keyframes"]} == {"kept"}
    assert again["image_bytes_sent"] == 0

    # The files are gone but the server knows what it drew: nothing is sent, nothing drawn twice.
    for k in keyframes:
        Path(k["file"]).unlink()
    code, fetched, err = command.render("--no-planes", "--shots", "10")
    assert code == ExitCode.ok, err
    assert {k["state"] for k in fetched["keyframes"]} == {"done"}
    assert fetched["image_bytes_sent"] == 0
    with command.server.client() as client:
        reused = [k["reused"] for k in client.job(client.jobs()[-1]["id"])["keyframes"]]
    assert reused and all(reused)


def test_ctrl_c_cancels_exactly_this_render(tmp_path):
    with held_server(tmp_path) as server, server.client() as client:
        command = Command(tmp_path, server)
        process = command.begin(
            "render", str(film), "--json", "--no-planes", "--shots", "010", "--takes", "3"
        )
        wait_for_a_drawing(command, process)
        (own,) = client.jobs()
        send_images(client)
        other = client.submit(keyframes.job(*keyframes.unique(2)))["id"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=patience)
        assert process.returncode == ExitCode.cancelled, err
        data = json.loads(out)
        states = [k["state"] for k in data["keyframes"]]
        assert set(states) == {"done", "cancelled"} and states.count("done") <= 2
        assert {j["id"]: j["state"] == "cancelled" for j in client.jobs()} == {
            own["id"]: True,
            other: False,
        }
        drawn = {k["file"] for k in data["keyframes"] if k["state"] == "done"}
        assert drawn == {str(p) for p in command.out.rglob("take_*/*.png")}
        assert all(png.decode(Path(p).read_bytes()).any() for p in drawn)
        # The next run draws the rest; what is there stays.
        open_gate(tmp_path)
        code, again, err = command.render("--no-planes", "--shots", "010", "--takes", "3")
        assert code == ExitCode.ok, err
        assert {k["file"] for k in again["keyframes"] if k["state"] == "kept"} == drawn
        wait_job(client, other)


def test_a_killed_server_that_returns_finishes_the_render(tmp_path):
    log = tmp_path / "draws"
    # The same address again, as the local server's owner would see to; here by hand.
    with held_server(tmp_path, FAKE_LOG=str(log)) as server:
        port, token = str(server.port), server.ready["token"]
        command = Command(tmp_path, server)
        options = ["--shots", "010", "--takes", "4", "--wait", str(patience)]
        process = command.begin("render", str(film), "--json", "--no-planes", *options)
        wait_for_a_drawing(command, process)
        server.kill()
        open_gate(tmp_path)
        server.arguments = ["--port", port, "--token", token]
        server.start()
        out, err = process.communicate(timeout=patience)
    assert process.returncode == ExitCode.ok, err
    data = json.loads(out)
    assert {k["state"] for k in data["keyframes"]} == {"done"} and len(data["keyframes"]) == 12
    finished = [line.split()[3] for line in log.read_text().splitlines() if line.startswith("end")]
    files = [Path(k["file"]) for k in data["keyframes"]]
    assert all(png.decode(f.read_bytes()).any() for f in files)
    # Whatever was whole when the server died was not drawn again; at most the one in hand was.
    assert len(set(finished)) == 12 and len(finished) <= 13


def test_a_server_gone_for_good_keeps_what_is_drawn_and_says_so(tmp_path):
    with held_server(tmp_path) as server:
        command = Command(tmp_path, server)
        options = ["--shots", "010", "--takes", "3", "--wait", "2"]
        process = command.begin("render", str(film), "--json", "--no-planes", *options)
        wait_for_a_drawing(command, process)
        server.kill()
        out, err = process.communicate(timeout=patience)
    assert process.returncode == ExitCode.no_server, err
    assert "does not answer" in err
    data = json.loads(out)
    done = [k for k in data["keyframes"] if k["state"] == "done"]
    assert 1 <= len(done) <= 2
    assert all(png.decode(Path(k["file"]).read_bytes()).any() for k in done)


def test_a_dry_run_needs_no_server_and_writes_nothing(command):
    code, out, err = command.run("render", str(film), "--dry-run", "--json", server=False)
    assert code == ExitCode.ok, err
    assert len(json.loads(out)["keyframes"]) >= 8
    assert not command.out.exists()


def test_shots_and_check_answer_as_data(command):
    code, out, err = command.run("shots", str(film), "--json")
    assert code == ExitCode.ok, err
    assert all(s["keyframes"] for s in json.loads(out))
    code, out, err = command.run("check", str(film), "--json")
    assert code == ExitCode.ok, err
    assert not [p for p in json.loads(out) if p["level"] == "error"]

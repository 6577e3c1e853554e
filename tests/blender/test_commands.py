# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands inside one Blender: their words, their exit codes, what lands on stdout."""

import errno
import json
import os
import signal
import threading
import time
from pathlib import Path

import bpy
import pytest

from addon import commands
from addon.commands import ExitCode
from tests.addon.fake_server import FakeServer, wait_for
from tests.blender.scored_heads import by_take


@pytest.fixture
def call(scene, server, tmp_path, capfd):
    """Runs a command; returns its exit code, stdout and stderr."""

    def call_one(*arguments, on_server=True):
        line = list(arguments)
        if line[:1] == ["render"]:
            line += ["--out", str(tmp_path / "out")]
            if on_server:
                line += ["--server", server.url, "--token", server.token, "--wait", "0.3"]
        code = commands.main(line)
        out, err = capfd.readouterr()
        return code, out, err

    return call_one


def test_a_render_prints_its_files_and_nothing_else(call):
    code, out, err = call("render")
    assert code == ExitCode.ok, err
    lines = out.splitlines()
    assert len(lines) == 5 and all(Path(line).is_file() for line in lines)
    assert "5 keyframes drawn." in err
    assert len(bpy.data.collections["Onmodel Keyframes"].all_objects) == 5


def test_json_is_all_there_is_on_stdout(call):
    code, out, err = call("render", "--shots", "020", "--json", "--no-planes", "--maps")
    assert code == ExitCode.ok, err
    data = json.loads(out)
    assert data["exit_code"] == 0 and data["state"] == "done"
    assert {k["shot"] for k in data["keyframes"]} == {"020"}
    assert data["image_bytes_sent"] > 0
    assert "Onmodel Keyframes" not in bpy.data.collections


def test_save_writes_a_copy_with_the_planes(call, tmp_path):
    path = tmp_path / "with planes.blend"
    code, _, err = call("render", "--shots", "020", "--save", str(path))
    assert code == ExitCode.ok, err
    assert bpy.data.filepath == ""
    bpy.ops.wm.open_mainfile(filepath=str(path))
    assert len(bpy.data.collections["Onmodel Keyframes"].all_objects) == 2


def test_retakes_and_the_face_pass_by_flags(call, server):
    server.heads = by_take({(21, 1): (0.2, 0.9), (21, 2): (0.3, 0.9)})
    flags = ("--retake-until", "0.5", "--at-most", "2", "--no-face-pass")
    code, out, err = call("render", "--shots", "020", "--json", "--no-planes", *flags)
    assert code == ExitCode.ok, err
    data = json.loads(out)
    assert data["draws"] == 3 and data["retakes"]["draws"] == 1
    assert [(k["frame"], k["take"], k["score"]) for k in data["keyframes"]] == [
        (21, 1, 0.2),
        (40, 1, 0.9),
        (21, 2, 0.3),
    ]
    assert "1 retake drawn; 1 keyframe stays under a score of 0.50." in err
    asked = [k for r in server.requests.values() for k in r["keyframes"]]
    assert not any(k["face_pass"]["enabled"] for k in asked)
    code, out, err = call("render", "--shots", "020", "--json", "--no-planes", "--at-most", "2")
    assert code == ExitCode.usage and "--retake-until" in err


def test_a_dry_run_writes_and_sends_nothing(call, server, tmp_path):
    code, out, err = call("render", "--dry-run", "--takes", "2")
    assert code == ExitCode.ok, err
    assert len(out.splitlines()) == 10 and "020 frame 21 take 2" in out
    assert not (tmp_path / "out").exists() and server.calls == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], ExitCode.usage, "A command is missing"),
        (["paint"], ExitCode.usage, "invalid choice"),
        (["render", "--takes", "0"], ExitCode.usage, "1 to 99"),
        (["render", "--shots", "999"], ExitCode.usage, "There is no shot named 999"),
        (["render", "--shots", ","], ExitCode.usage, "No shot was named"),
        (["render", "--scene", "Nonesuch"], ExitCode.usage, "There is no scene Nonesuch"),
        (["render", "--model", "none"], ExitCode.nothing_to_draw, "no model named none"),
    ],
)
def test_wrong_words_are_answered_with_a_sentence(call, arguments, code, words):
    found, out, err = call(*arguments)
    assert (found, out) == (code, "")
    assert words in err


def test_help_tells_the_exit_codes(call):
    code, out, _ = call("--help")
    assert code == 0
    assert "4 no server" in out and "6 cancelled" in out


def test_a_file_that_is_not_there_is_said(scene, capfd):
    assert commands.main(["shots", "nonesuch.blend"], open_file=True) == ExitCode.usage
    assert "There is no file nonesuch.blend." in capfd.readouterr().err


def test_a_film_without_cameras_is_said(call, scene):
    for marker in list(scene.timeline_markers):
        scene.timeline_markers.remove(marker)
    for command in ("render", "shots", "check"):
        code, out, err = call(command)
        assert code == ExitCode.nothing_to_draw
        assert "marker" in out + err


def test_a_character_without_a_rig_is_said(call, scene):
    scene.onmodel.cast[0].armature = None
    code, _, err = call("render")
    assert code == ExitCode.nothing_to_draw
    assert "Ada has no armature" in err


def test_a_wrong_token_and_a_wrong_version_are_said(call, server):
    server.token, right = "another", server.token
    line = ["render", "--server", server.url, "--token", "wrong"]
    code, _, err = call(*line, on_server=False)
    assert code == ExitCode.no_server and "token" in err
    server.token = right
    server.info["api"] = 2
    code, _, err = call("render")
    assert code == ExitCode.no_server and "Update the Onmodel add-on" in err


def test_a_bad_address_and_no_server_are_said(call, server):
    code, _, err = call("render", "--server", "file:///etc", on_server=False)
    assert code == ExitCode.usage and "not a server address" in err
    server.stop()
    code, _, err = call("render")
    assert code == ExitCode.no_server and "does not answer" in err


def test_no_server_installed_is_said(call, monkeypatch):
    monkeypatch.setenv("ONMODEL_SERVER", "/nonesuch/onmodel")
    code, _, err = call("render", on_server=False)
    assert code == ExitCode.no_server and "No Onmodel server is installed" in err


def test_failed_keyframes_are_listed_and_the_others_drawn(call, server, monkeypatch):
    server.fail_first = {10}
    monkeypatch.setattr(FakeServer, "retry", lambda self, job: self.draw_failed_again(job))
    monkeypatch.setattr(FakeServer, "draw_failed_again", fail_again, raising=False)
    code, out, err = call("render", "--json", "--no-planes")
    assert code == ExitCode.some_failed
    assert "Shot 010 frame 10: The artist broke a pencil. Try again." in err
    assert [k["state"] for k in json.loads(out)["keyframes"]].count("done") == 4


def fail_again(server, job_id):
    server.fail_first = {10}
    for keyframe in server.jobs[job_id]["keyframes"]:
        if keyframe["state"] == "failed":
            keyframe["state"] = "queued"
    threading.Thread(target=server.draw, args=(job_id,), daemon=True).start()


def test_a_full_disk_is_said(call, monkeypatch):
    from addon.render import results

    def full(path, data, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(results, "write_atomic", full)
    code, _, err = call("render", "--no-planes")
    assert code == ExitCode.disk
    assert "is full" in err and "not drawn twice" in err


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_cancels_and_puts_the_handler_back(call, server, number):
    before = signal.getsignal(number)
    server.hold()

    def press():
        wait_for(lambda: server.jobs, 20)
        time.sleep(0.1)
        os.kill(os.getpid(), number)

    threading.Thread(target=press, daemon=True).start()
    code, out, err = call("render", "--no-planes", "--json")
    assert code == ExitCode.cancelled, err
    assert {k["state"] for k in json.loads(out)["keyframes"]} == {"cancelled"}
    assert {j["state"] for j in server.jobs.values()} == {"cancelled"}
    assert signal.getsignal(number) is before


def test_shots_and_check_speak_plainly_and_as_data(call):
    code, out, _ = call("shots")
    assert code == ExitCode.ok
    assert "010" in out.splitlines()[0] and "keyframes 1, 10, 20" in out
    code, out, _ = call("shots", "--json")
    assert [s["camera"] for s in json.loads(out)] == ["Camera 010", "Camera 020"]
    code, out, _ = call("check", "--json")
    assert isinstance(json.loads(out), list)


def test_blender_knows_the_command():
    commands.register()
    try:
        assert len(commands._registered) == 1
    finally:
        commands.unregister()
    assert commands._registered == []

# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding, starting, sharing and stopping the local server, with a program that plays it."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from pathlib import Path

import pytest

from addon.core.server_process import (
    ReadyFileError,
    ServerProcess,
    ServerState,
    command_of,
    data_folder,
    find_server,
    is_alive,
    read_ready_file,
)

from .fake_server import wait_for

actor = """
    import argparse, json, os, signal, sys, time
    parser = argparse.ArgumentParser()
    parser.add_argument("job")
    for name in ("host", "port", "data", "parent-pid", "ready-file", "play"):
        parser.add_argument("--" + name)
    options = parser.parse_args()
    assert (options.job, options.host, options.port) == ("serve", "127.0.0.1", "0")
    assert int(options.parent_pid) == os.getppid()
    if options.play == "crash":
        sys.exit("ModuleNotFoundError: No module named 'torch'")
    if options.play == "riddle":
        sys.exit(7)
    if options.play == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    data = {"url": "http://127.0.0.1:9", "token": "t" * 8, "pid": os.getpid()}
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with open(os.open(options.ready_file, flags, 0o600), "w") as file:
        json.dump(data, file)
    time.sleep(60)
"""


@pytest.fixture
def make(tmp_path):
    """Makes ServerProcess objects on one data folder whose program plays what is asked."""
    script = tmp_path / "actor.py"
    script.write_text(textwrap.dedent(actor))
    made = []

    def make_one(play: str = "well") -> ServerProcess:
        command = [sys.executable, str(script)]
        one = ServerProcess(command, tmp_path / "data", extra=("--play", play))
        made.append(one)
        return one

    yield make_one
    for one in made:
        one.stop(wait=0.2)


def until(process: ServerProcess, state: ServerState) -> None:
    wait_for(lambda: process.poll() is state, 10)


def test_a_server_starts_runs_and_stops(make):
    process = make()
    assert process.start() is ServerState.starting
    until(process, ServerState.running)
    assert process.address.url == "http://127.0.0.1:9"
    pid = process.address.pid
    assert is_alive(pid)
    assert process.stop() is ServerState.stopping
    until(process, ServerState.stopped)
    assert not is_alive(pid)
    assert not process.ready_file.exists()


def test_one_that_will_not_stop_is_ended_by_force(make):
    process = make("deaf")
    process.start()
    until(process, ServerState.running)
    pid = process.address.pid
    assert process.stop(wait=0.3) is ServerState.stopped
    assert not is_alive(pid)


def test_a_second_blender_uses_the_running_one_and_leaves_it_running(make):
    first, second = make(), make()
    first.start()
    until(first, ServerState.running)
    assert second.start() is ServerState.running
    assert second.address == first.address
    assert not second.started_here
    assert second.stop() is ServerState.stopped
    assert first.poll() is ServerState.running
    second.start()
    first.stop(wait=2)
    assert second.poll() is ServerState.stopped


def test_a_failure_is_explained_and_not_repeated_for_ever(make):
    process = make("crash")
    for _ in range(3):
        process.start()
        until(process, ServerState.failed)
        assert process.message == "The server's Python packages are incomplete."
        assert "run.py setup" in process.fix
    assert "No module named 'torch'" in process.log_tail()
    assert process.tripped
    assert process.start() is ServerState.failed
    assert "3 times in a row" in process.message
    assert not process.started_here
    process.reset()
    assert process.start() is ServerState.starting


def test_an_unknown_failure_names_the_exit_code_and_the_log(make):
    process = make("riddle")
    process.start()
    until(process, ServerState.failed)
    assert "exit code 7" in process.message
    assert str(process.log_file) in process.fix


def test_a_server_killed_while_it_runs_is_noticed(make):
    process = make()
    process.start()
    until(process, ServerState.running)
    process._process.kill()
    until(process, ServerState.failed)
    assert process.address is None


def test_no_program_there_is_said(tmp_path):
    process = ServerProcess([str(tmp_path / "nonesuch")], tmp_path)
    assert process.start() is ServerState.failed
    assert "could not be started" in process.message
    assert ServerProcess(None, tmp_path).start() is ServerState.not_installed


def test_a_ready_file_of_a_dead_server_is_not_believed(make, tmp_path):
    process = make()
    process.folder.mkdir()
    data = {"url": "http://127.0.0.1:9", "token": "t", "pid": 2**22 + 5}
    process.ready_file.write_text(json.dumps(data))
    process.ready_file.chmod(0o600)
    assert not process.adopt()


@pytest.mark.skipif(os.name != "posix", reason="rights of POSIX files")
def test_a_ready_file_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "server.json"
    path.write_text('{"url": "http://127.0.0.1:9", "token": "t", "pid": 1}')
    path.chmod(0o644)
    with pytest.raises(ReadyFileError, match="Other users"):
        read_ready_file(path)
    path.chmod(0o600)
    assert read_ready_file(path).token == "t"
    path.write_text('{"url": "ht')
    assert read_ready_file(path) is None
    path.write_text("{}")
    with pytest.raises(ReadyFileError, match="not a ready file"):
        read_ready_file(path)
    assert read_ready_file(tmp_path / "none") is None


def test_where_the_server_is_looked_for(tmp_path):
    checkout = tmp_path / "checkout"
    python = checkout / ".venv" / "bin" / "python"
    program = tmp_path / "bin" / "onmodel"
    for path in (python, program, checkout / "server" / "onmodel" / "cli.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        path.chmod(0o755)
    inside = checkout / "addon" / "core" / "x.py"
    outside = tmp_path / "elsewhere" / "x.py"
    path_only = {"PATH": str(program.parent)}
    as_module = [str(python), "-m", "onmodel.cli"]
    assert find_server("", {"PATH": ""}, outside) is None
    assert find_server("", path_only, outside) == [str(program)]
    assert find_server("", path_only, inside) == as_module
    assert find_server("", {"ONMODEL_SERVER": str(program)}, inside) == [str(program)]
    assert find_server(str(checkout), {"ONMODEL_SERVER": str(program)}, outside) == as_module
    assert find_server(str(tmp_path / "nonesuch"), path_only, inside) is None
    assert command_of(Path(sys.executable)) == [sys.executable, "-m", "onmodel.cli"]


def test_the_data_folder_is_the_servers_own():
    from onmodel.jobs.folders import default_data_folder

    assert data_folder() == default_data_folder()
    assert data_folder({"ONMODEL_HOME": "/x/y"}) == Path("/x/y")

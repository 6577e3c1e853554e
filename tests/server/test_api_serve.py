# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of `onmodel serve`: start, one per folder, parents, crashes, ends; the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests
from onmodel import cli
from onmodel.jobs.supervisor import breaker_deaths

from addon.core.client import Client, Refused, WrongToken
from tests.support.keyframes import job, keyframe, unique
from tests.support.server import (
    RunningServer,
    is_running,
    root,
    send_images,
    wait_for,
    wait_job,
)

environment = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(root), str(root / "server")]),
    "OMP_NUM_THREADS": "1",
}


def onmodel(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "onmodel.cli", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_api_process_knows_no_torch() -> None:
    code = (
        "import sys, onmodel.api.serve, onmodel.jobs.supervisor, onmodel.cli;"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_the_running_server_has_no_torch_loaded(tmp_path: Path) -> None:
    with RunningServer(tmp_path) as server:
        server.client().info()
        assert server.process is not None
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert "torch" not in maps


def test_one_server_for_a_folder(tmp_path: Path) -> None:
    with RunningServer(tmp_path) as server:
        second = onmodel("serve", "--data", str(server.data))
        assert second.returncode == 3
        assert "Another Onmodel server is using" in second.stderr
        server.kill()
        server.start()
        assert server.client().info()["product"] == "onmodel"


def test_stop_ends_streams_and_worker_and_removes_the_ready_file(tmp_path: Path) -> None:
    with RunningServer(tmp_path, {"FAKE_STEP_SECONDS": "1", "FAKE_STEPS": "60"}) as server:
        client = server.client()
        send_images(client)
        made = client.submit(job(*unique(1)))
        worker = wait_for(server.worker_pid, "no worker")
        wait_for(lambda: client.job(made["id"])["state"] == "running", "never began")
        headers = {"Authorization": f"Bearer {server.ready['token']}"}
        url = f"{server.ready['url']}/v1/jobs/{made['id']}/events"
        with requests.get(url, headers=headers, stream=True, timeout=20) as stream:
            lines = stream.iter_lines()
            assert next(lines)
            begun = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - begun < 6
        assert not is_running(worker) and not server.ready_file.exists()
        server.environment = {}
        server.start()
        assert wait_job(server.client(), made["id"])["state"] == "done"


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_the_worker_is_replaced_and_the_api_stays(tmp_path: Path) -> None:
    with RunningServer(tmp_path) as server:
        client = server.client()
        first = wait_for(server.worker_pid, "no worker")
        psutil.Process(first).kill()
        send_images(client)
        second = wait_for(lambda: server.worker_pid() not in (None, first), "no new worker")
        assert second
        made = client.submit(job(*unique(2)))
        assert wait_job(client, made["id"])["state"] == "done"


def test_a_worker_that_keeps_dying_is_given_a_rest_and_a_sentence(tmp_path: Path) -> None:
    class Broken(RunningServer):
        def command(self) -> list[str]:
            return [*super().command(), "--artist", "tests.support.nowhere:Artist"]

    with Broken(tmp_path) as server:
        client = server.client()
        info = wait_for(
            lambda: (i := client.info())["worker"]["state"] == "broken" and i, "never broken"
        )
        assert info["models"] == []
        assert "cannot be loaded" in info["worker"]["message"]
        assert "worker.log" in info["worker"]["fix"]
        with pytest.raises(Refused, match="cannot be loaded") as refusal:
            client.submit(job(keyframe(maps=[], characters=[])))
        assert refusal.value.status == 503
    assert breaker_deaths > 3  # a keyframe that crashes fails before the supervisor gives up


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    class Child(RunningServer):
        def command(self) -> list[str]:
            return [*super().command(), "--parent-pid", str(parent.pid)]

    with Child(tmp_path) as server:
        assert server.process is not None and server.client().info()
        parent.kill()
        parent.wait()
        assert server.process.wait(timeout=10) == 0
        assert not server.ready_file.exists()


def test_it_ends_when_nobody_calls(tmp_path: Path) -> None:
    with RunningServer(tmp_path, arguments=["--idle-exit", "1.5"]) as server:
        assert server.process is not None
        client = server.client()
        for _ in range(4):
            time.sleep(0.6)
            client.info()
        assert server.process.wait(timeout=10) == 0


def test_a_new_session_has_a_new_token(tmp_path: Path) -> None:
    with RunningServer(tmp_path) as server:
        old = server.ready["token"]
        server.stop()
        server.start()
        assert server.ready["token"] != old and len(old) >= 32
        with pytest.raises(WrongToken):
            Client(server.ready["url"], old).info()


def test_a_made_token_can_follow_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onmodel.api.serve import ServeOptions, check_options

    # What urlsafe tokens are made of; these bytes would begin with a dash there.
    monkeypatch.setattr("secrets.token_bytes", lambda count: b"\xfb" * count)
    token = check_options(ServeOptions(data=tmp_path))
    assert len(token) == 64 and not token.startswith("-")


def test_other_machines_need_an_explicit_token_and_name(tmp_path: Path) -> None:
    refused = onmodel("serve", "--data", str(tmp_path), "--host", "0.0.0.0")
    assert refused.returncode == 2 and "--token" in refused.stderr and "SSH" in refused.stderr
    refused = onmodel("serve", "--data", str(tmp_path), "--token", "short")
    assert refused.returncode == 2 and "16" in refused.stderr
    arguments = ["--host", "0.0.0.0", "--allow-host", "studio.test", "--token", "t" * 20]
    with RunningServer(tmp_path, arguments=arguments) as server:
        for host, status in (("studio.test:80", 200), ("other.test", 421), ("0.0.0.0", 200)):
            headers = {"Authorization": f"Bearer {'t' * 20}", "Host": host}
            url = f"http://127.0.0.1:{server.port}/v1/info"
            assert requests.get(url, headers=headers, timeout=10).status_code == status


def test_bad_places_are_sentences(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("x")
    done = onmodel("serve", "--data", str(blocked))
    assert done.returncode == 5 and "cannot be used" in done.stderr
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "queue.db").write_bytes(b"x" * 5000)
    done = onmodel("serve", "--data", str(broken))
    assert done.returncode == 5 and "damaged" in done.stderr
    with RunningServer(tmp_path) as server:
        done = onmodel("serve", "--data", str(tmp_path / "two"), "--port", str(server.port))
        assert done.returncode == 4 and "--port" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_is_a_sentence_and_nothing_is_lost(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the queue can still be read."""

    class Limited(RunningServer):
        limit = ""

        def command(self) -> list[str]:
            if not self.limit:
                return super().command()
            code = (
                "import resource, runpy, signal, sys;"
                "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
                f"resource.setrlimit(resource.RLIMIT_FSIZE, ({self.limit}, {self.limit}));"
                "sys.argv[0] = 'onmodel';"
                "runpy.run_module('onmodel.cli', run_name='__main__')"
            )
            return [sys.executable, "-c", code, *super().command()[3:]]

    from tests.support.keyframes import png

    server = Limited(tmp_path)
    with server:
        client = server.client()
        send_images(client)
        made = client.submit(job(*unique(1)))
        drawn = wait_job(client, made["id"])
        server.stop()
        server.limit = str(400_000)
        server.start()
        client = server.client()
        large = png(600, 1000, 1000)
        answer = requests.put(
            f"{server.ready['url']}/v1/blobs/{large.hash}",
            data=large.data,
            headers={"Authorization": f"Bearer {server.ready['token']}"},
            timeout=20,
        )
        assert answer.status_code == 507
        assert "disk" in answer.json()["error"]["message"]
        assert client.job(made["id"])["keyframes"] == drawn["keyframes"]
        assert client.blob(drawn["keyframes"][0]["result"])


def test_the_command_is_quick_and_helpful() -> None:
    code = "import sys, onmodel.cli; sys.exit('fastapi' in sys.modules or 'torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    )
    done = onmodel("--help")
    assert done.returncode == 0
    for word in ("serve", "models", "loras", "jobs", "rehearsal"):
        assert word in done.stdout


def test_models_and_jobs_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artist = ["--artist", "tests.support.fake_artist:FakeArtist"]
    assert cli.main(["models", *artist, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "rehearsal"
    assert cli.main(["loras", "list", *artist]) == 0
    assert "ink" in capsys.readouterr().out
    assert cli.main(["models", "--artist", "nowhere:Nobody"]) == 1
    assert "cannot be loaded" in capsys.readouterr().err
    assert cli.main(["jobs", "--data", str(tmp_path)]) == 1
    assert "no queue" in capsys.readouterr().err
    with RunningServer(tmp_path) as server:
        client = server.client()
        send_images(client)
        made = client.submit(job(*unique(2), title="Reel 1"))
        wait_job(client, made["id"])
        assert cli.main(["jobs", "--data", str(server.data)]) == 0
        line = capsys.readouterr().out
        assert made["id"][:8] in line and "2 done" in line and "Reel 1" in line


def test_a_lora_file_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = tmp_path / "ink.safetensors"
    hostile.write_bytes(b"\xff" * 8 + b"{}")
    assert cli.main(["loras", "check", str(hostile)]) == 1
    assert "ink.safetensors" in capsys.readouterr().err
    assert cli.main(["loras", "check", str(tmp_path / "none.safetensors")]) == 1
    assert cli.main(["loras", "check"]) == 2

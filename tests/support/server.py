# SPDX-License-Identifier: GPL-3.0-or-later
"""A real `onmodel serve` with the fake artist, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from addon.core.client import Client, patience
from tests.support import keyframes

root = Path(__file__).resolve().parents[2]
fake_artist = "tests.support.fake_artist:FakeArtist"


class RunningServer:
    """`with RunningServer(folder) as server:`; start, kill and start again at will.

    environment: knobs of the fake artist. arguments: more of the command line.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.ready_file = folder / "ready.json"
        self.environment = dict(environment or {})
        self.arguments = list(arguments)
        self.process: subprocess.Popen[bytes] | None = None
        self.ready: dict[str, Any] = {}

    def command(self) -> list[str]:
        """The command line."""
        given = ["--data", str(self.data), "--ready-file", str(self.ready_file)]
        given += ["--artist", fake_artist, "--parent-pid", str(os.getpid()), *self.arguments]
        return [sys.executable, "-m", "onmodel.cli", "serve", *given]

    def start(self, timeout: float = 600.0) -> RunningServer:
        """Starts it and waits for the ready file."""
        self.ready_file.unlink(missing_ok=True)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(root), str(root / "server")]),
            "OMP_NUM_THREADS": "1",
            **self.environment,
        }
        output = (self.folder / "output.txt").open("ab")
        with output:
            self.process = subprocess.Popen(
                self.command(), env=environment, cwd=self.folder, stdout=output, stderr=output
            )
        deadline = time.monotonic() + timeout
        while not self.ready_file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "output.txt").read_text())
            time.sleep(0.02)
        self.ready = json.loads(self.ready_file.read_text())
        return self

    def client(self, timeout: float = patience) -> Client:
        """A client of the add-on's own kind."""
        return Client(self.ready["url"], self.ready["token"], timeout)

    @property
    def port(self) -> int:
        return int(self.ready["url"].rsplit(":", 1)[1])

    def worker_pid(self) -> int | None:
        """The worker's process id, from the process table."""
        assert self.process is not None
        found = psutil.Process(self.process.pid).children()
        return found[0].pid if found else None

    def kill(self) -> None:
        """SIGKILL to the server; waits for its end and for the worker's."""
        assert self.process is not None
        worker = self.worker_pid()
        self.process.kill()
        self.process.wait()
        if worker is not None:
            wait_for(lambda: not is_running(worker), "the worker outlived its server")

    def stop(self) -> int:
        """Asks it to end; its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=60)

    def __enter__(self) -> RunningServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()


def is_running(pid: int) -> bool:
    """Whether a process runs and is not only waiting to be reaped."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Any, what: str, timeout: float = 120.0) -> Any:
    """Waits until `condition()` is true and returns it; AssertionError says `what` if never."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(what)


def send_images(client: Client) -> None:
    """Sends the images that tests.support.keyframes names."""
    client.send_blobs([keyframes.depth, keyframes.mask])


def wait_job(client: Client, job_id: str, timeout: float = 120.0) -> dict[str, Any]:
    """The job once all its keyframes have ended."""
    final = ("done", "failed", "cancelled")

    def ended() -> dict[str, Any] | None:
        found = client.job(job_id)
        return found if all(k["state"] in final for k in found["keyframes"]) else None

    found: dict[str, Any] = wait_for(ended, f"job {job_id} did not end", timeout)
    return found

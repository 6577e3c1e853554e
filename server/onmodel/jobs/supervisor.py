# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps one worker process alive from a thread of the API process.

A worker that dies is started again after a pause that doubles; after `breaker_deaths` short lives
in a row that finished nothing the supervisor rests for `breaker_seconds`, or until somebody submits
or retries, and says so, instead of burning the machine.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import onmodel
from onmodel.jobs.folders import DataFolder
from onmodel.jobs.kinds import Holdings
from onmodel.jobs.worker import default_artist, exit_no_artist, exit_taken

log = logging.getLogger(__name__)

short_life = 10.0
first_pause, longest_pause = 0.2, 10.0
breaker_deaths, breaker_seconds = 5, 60.0
stop_seconds = 3.0
max_log_bytes = 8 * 1024 * 1024


class Supervisor:
    """The keeper of the worker named `holdings.worker`.

    arguments: more of the worker's command line.

    state: "stopped", "starting" (no worker yet or any more, one will come), "running", "broken"
    (it keeps dying; `message` and `fix` say what to do).
    """

    def __init__(
        self,
        folder: DataFolder,
        holdings: Holdings,
        artist: str = default_artist,
        arguments: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.holdings = holdings
        self.artist = artist
        self.arguments = tuple(arguments)
        self.state = "stopped"
        self.message = ""
        self.fix = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe_lock = threading.Lock()
        self._stop = threading.Event()
        self._kick = threading.Event()
        # The worker's lifeline on Linux is this thread, so it lives as long as the supervisor.
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Starts the worker and returns at once."""
        self.state = "starting"
        self._thread.start()

    def wake(self) -> None:
        """There is something new in the queue."""
        self._kick.set()
        self._send(b"\n")

    def stop(self) -> None:
        """Ends the worker, whatever it does (its work stays queued), and returns."""
        self._stop.set()
        self._kick.set()
        self._send(b"stop\n", close=True)
        if self._thread.is_alive():
            self._thread.join(stop_seconds + 5.0)

    @property
    def pid(self) -> int | None:
        """The worker's process id, if one runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def _send(self, line: bytes, close: bool = False) -> None:
        with self._pipe_lock:
            pipe = self._process.stdin if self._process is not None else None
            if pipe is None or pipe.closed:
                return
            try:
                pipe.write(line)
                pipe.flush()
                if close:
                    pipe.close()
            except OSError:
                log.debug("The worker's pipe is closed; its end will be noticed.")

    def _run(self) -> None:
        deaths = 0
        while not self._stop.is_set():
            begun = time.time()
            code = self._live()
            if self._stop.is_set():
                break
            self.state = "starting"
            lost = self.holdings.recover(crashed=code != exit_taken)
            log.warning("The worker ended with code %s; %d pieces of work go on.", code, lost)
            fruitful = self.holdings.finished_since(begun) or time.time() - begun > short_life
            deaths = 0 if fruitful else deaths + 1
            if deaths >= breaker_deaths or code == exit_no_artist:
                self._rest(code)
                deaths = 0
            else:
                self._stop.wait(min(first_pause * 2 ** max(0, deaths - 1), longest_pause))
        self.holdings.recover(crashed=False)
        self.state = "stopped"

    def _live(self) -> int:
        """One worker's life; its exit code."""
        package = Path(onmodel.__file__).parents[1]
        paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-m", "onmodel.jobs.worker"]
        command += ["--data", str(self.folder.root), "--artist", self.artist]
        command += ["--name", self.holdings.worker, "--parent", str(os.getpid())]
        command += self.arguments
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUTF8": "1",
            "ONMODEL_HOME": str(self.folder.root),  # models and LoRAs lie there too
        }
        with self._log() as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment,
                # Windows only: no console window of its own.
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        with self._pipe_lock:
            self._process = process
        self.state, self.message, self.fix = "running", "", ""
        if self._stop.is_set():
            self._send(b"stop\n", close=True)
        while True:
            try:
                return process.wait(timeout=stop_seconds if self._stop.is_set() else 1.0)
            except subprocess.TimeoutExpired:
                if self._stop.is_set():
                    process.kill()
                self.holdings.expire()

    def _rest(self, code: int) -> None:
        self.state = "broken"
        if code == exit_no_artist:
            self.message = "The drawing part of the server cannot be loaded."
            self.fix = f"Its reason is at the end of {self.folder.logs / 'worker.log'}."
        else:
            self.message = f"The drawing process died {breaker_deaths} times in a row."
            self.fix = (
                f"Its reason is at the end of {self.folder.logs / 'worker.log'}; "
                "submit or retry a job to start it again."
            )
        log.error("%s %s", self.message, self.fix)
        self._kick.clear()
        self._kick.wait(breaker_seconds)

    def _log(self) -> IO[bytes]:
        path = self.folder.logs / "worker.log"
        if path.exists() and path.stat().st_size > max_log_bytes:
            path.replace(path.with_suffix(".old.log"))
        return path.open("ab")

# SPDX-License-Identifier: GPL-3.0-or-later
"""The local server as a child process: find it, start it, know how it is, stop it. No bpy.

Nothing here blocks: `start` and `stop` only begin, `poll` moves on and is called from a timer or
a loop. One server serves all Blenders of a person: who finds a running one in the data folder
uses it, and who loses it (it ends with the Blender that started it) starts the next, whose queue
is the same.
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

log = logging.getLogger(__name__)

crash_limit, crash_window = 3, 120.0
"""After so many failed starts within so many seconds no further one is tried until `reset`."""

start_limit = 120.0
"""Seconds that a server may take from start to ready (a first import of torch is slow)."""

stop_grace = 5.0
"""Seconds between the polite request to end and the end by force."""

log_limit = 1_000_000
"""Bytes of server log kept; a longer one is begun anew at the next start."""


class ServerState(enum.Enum):
    """How the local server is."""

    not_installed = "not installed"
    stopped = "stopped"
    starting = "starting"
    running = "running"
    stopping = "stopping"
    failed = "failed"
    update_required = "update required"


class ReadyFileError(ValueError):
    """The ready file is not what our server writes, or others could have written it."""


@dataclass(frozen=True)
class Address:
    """Where a running server is. pid: of the server; 0 for one that is not on this machine."""

    url: str
    token: str
    pid: int = 0


complaints: tuple[tuple[str, str, str], ...] = (
    (
        "No module named",
        "The server's Python packages are incomplete.",
        "Run `python3 run.py setup` in Onmodel's folder again.",
    ),
    (
        "No space left on device",
        "The disk is full, so the server cannot keep its queue.",
        "Free some space and start the server again.",
    ),
    (
        "Permission denied",
        "The server may not write its data folder.",
        "Give yourself the rights to it, or name another folder in ONMODEL_HOME.",
    ),
    (
        "is using the data folder",
        "Another Onmodel server is running on the same data folder.",
        "Stop it, or connect to it by its address and token.",
    ),
    (
        "out of memory",
        "The server ran out of memory.",
        "Close other programs and start it again.",
    ),
    (
        "error while loading shared libraries",
        "A library that the server needs is missing on this system.",
        "The server's log names it; install it and start the server again.",
    ),
)
"""What a server that fails writes, what that means to a person, and what they can do."""


def data_folder(environment: Mapping[str, str] | None = None) -> Path:
    """The server's data folder: ONMODEL_HOME or the platform's place for a user's data.

    The same rule as the server's own (server/onmodel/jobs/folders.py).
    """
    values = os.environ if environment is None else environment
    if values.get("ONMODEL_HOME"):
        return Path(values["ONMODEL_HOME"]).expanduser()
    if sys.platform == "win32":
        base = values.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "Onmodel"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "Onmodel"
    base = values.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "onmodel"


def find_server(
    preference: str = "",
    environment: Mapping[str, str] | None = None,
    beside: Path | None = None,
) -> list[str] | None:
    """The command that runs the server, without its arguments; None where none is installed.

    Looked for in this order: `preference` (a path from the add-on's preferences), ONMODEL_SERVER,
    the .venv of the source checkout around `beside` (this file, when not given), PATH.
    A path may be the `onmodel` program, a Python that has the package, or a folder with a .venv.
    """
    values = os.environ if environment is None else environment
    for named in (preference, values.get("ONMODEL_SERVER", "")):
        if named:
            return command_of(Path(named).expanduser())
    for folder in (beside or Path(__file__).resolve()).parents:
        if (folder / "server" / "onmodel" / "cli.py").is_file():
            found = command_of(folder)
            if found:
                return found
    program = shutil.which("onmodel", path=values.get("PATH"))
    return [program] if program else None


def command_of(path: Path) -> list[str] | None:
    """The command at a path that a person named; None where nothing runnable is there."""
    if path.is_dir():
        for inner in (".venv/bin/python", ".venv/Scripts/python.exe", "bin/python", "python.exe"):
            if (path / inner).is_file():
                return [str(path / inner), "-m", "onmodel.cli"]
        return None
    if not path.is_file():
        return None
    if path.stem.lower().startswith("python"):
        return [str(path), "-m", "onmodel.cli"]
    return [str(path)]


def read_ready_file(path: Path) -> Address | None:
    """The address in a ready file; None where the file is not there or not yet complete.

    Raises ReadyFileError where others than its owner could read or write it, since it holds the
    token, or where it is no ready file.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            text = file.read(65536)
    except FileNotFoundError:
        return None
    if os.name == "posix" and (
        stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid != os.getuid()
    ):
        raise ReadyFileError(f"Other users may read or write {path}, which holds the token.")
    if not text.rstrip().endswith(b"}"):
        return None
    try:
        data = json.loads(text)
        return Address(str(data["url"]), str(data["token"]), int(data["pid"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ReadyFileError(f"{path} is not a ready file of the server ({error}).") from None


def is_alive(pid: int) -> bool:
    """Whether a process of this number exists."""
    if pid <= 0:
        return False
    if sys.platform == "win32":
        import ctypes

        query_limited_information, still_active = 0x1000, 259
        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(query_limited_information, False, pid)
        if not handle:
            return False
        code = ctypes.c_ulong()
        known = kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel.CloseHandle(handle)
        return bool(known) and code.value == still_active
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class ServerProcess:
    """One local server, seen from one Blender.

    folder: the server's data folder; the ready file and the log of a server that an add-on
    started lie in it. `state`, `message` and `fix` are for the panel; `address` is where a running
    server is, else None. `started_here` is True where this object started it, and may stop it.
    """

    def __init__(
        self,
        command: list[str] | None = None,
        folder: Path | None = None,
        extra: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.command = command
        self.folder = folder or data_folder()
        self.extra = extra
        self.environment = environment
        self.ready_file = self.folder / "server.json"
        self.log_file = self.folder / "logs" / "server.log"
        self.state = ServerState.stopped if command else ServerState.not_installed
        self.message = "" if command else "No Onmodel server is installed on this machine."
        self.fix = "" if command else "Run `python3 run.py setup` in a checkout of Onmodel."
        self.address: Address | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._kill_at = 0.0
        self._log_from = 0
        self._crashes: list[float] = []

    @property
    def started_here(self) -> bool:
        return self._process is not None

    @property
    def tripped(self) -> bool:
        """Whether the server failed so often lately that starting it again is not tried."""
        recent = time.monotonic() - crash_window
        self._crashes = [at for at in self._crashes if at > recent]
        return len(self._crashes) >= crash_limit

    def reset(self) -> None:
        """The person wants another try: forget the crashes."""
        self._crashes.clear()

    def adopt(self) -> bool:
        """Uses a server that already runs on the same data folder, if there is one."""
        try:
            found = read_ready_file(self.ready_file)
        except ReadyFileError as error:
            log.warning("%s", error)
            return False
        if found is None or not is_alive(found.pid):
            return False
        self._running(found)
        return True

    def start(self) -> ServerState:
        """Begins to start a server, unless one runs; `poll` tells when it is ready."""
        if self.state in (ServerState.starting, ServerState.running, ServerState.stopping):
            return self.poll()
        if self.adopt():
            return self.state
        if self.command is None:
            return self.state
        if self.tripped:
            return self._fail(
                f"The server failed {crash_limit} times in a row and is not started again by "
                f"itself. {self.message}".strip(),
                self.fix or f"Its log is {self.log_file}.",
            )
        try:
            self._spawn(self.command)
        except OSError as error:
            self._crashes.append(time.monotonic())
            return self._fail(
                f"The server could not be started: {error.strerror or error}.",
                "Check the server's path in Onmodel's preferences.",
            )
        self._began = time.monotonic()
        self.state, self.message, self.fix = ServerState.starting, "The server starts.", ""
        return self.state

    def poll(self) -> ServerState:
        """Looks how the server is now, without waiting. Call it often while it starts or stops."""
        if self._process is not None:
            code = self._process.poll()
            if code is not None:
                return self._ended(code)
        if self.state is ServerState.starting:
            return self._poll_start()
        if self.state is ServerState.stopping and self._process is not None:
            if time.monotonic() > self._kill_at:
                self._process.kill()
        elif self._adopted_one_died():
            self.address = None
            self.state, self.message = ServerState.stopped, "The server has ended."
        return self.state

    def stop(self, wait: float = 0.0) -> ServerState:
        """Asks a server started here to end; `poll` ends it by force when it does not.

        wait: seconds to wait for the end (Blender quits), by force after that. A server that
        another Blender started is left running.
        """
        if self._process is None:
            self.address = None
            if self.state is not ServerState.not_installed:
                self.state, self.message, self.fix = ServerState.stopped, "", ""
            return self.state
        if self.state is not ServerState.stopping:
            self.state, self.message = ServerState.stopping, "The server stops."
            self._kill_at = time.monotonic() + (wait or stop_grace)
            self._process.terminate()
        if wait:
            try:
                self._process.wait(wait)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return self.poll()

    def mismatch(self, message: str, fix: str) -> None:
        """The handshake failed: remember that one side has to be updated."""
        self.state, self.message, self.fix = ServerState.update_required, message, fix

    def log_tail(self, limit: int = 4000) -> str:
        """The last characters that the server wrote since it was last started here."""
        try:
            with self.log_file.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_from if self._log_from <= size else 0, size - limit))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def _spawn(self, command: list[str]) -> None:
        self.log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.ready_file.unlink(missing_ok=True)
        arguments = [
            *command,
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--data",
            str(self.folder),
            "--parent-pid",
            str(os.getpid()),
            "--ready-file",
            str(self.ready_file),
            *self.extra,
        ]
        environment = dict(os.environ if self.environment is None else self.environment)
        # Blender's own Python settings would lead the server's Python to Blender's packages.
        for name in ("PYTHONHOME", "PYTHONSTARTUP"):
            environment.pop(name, None)
        with self._open_log() as output:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self.folder,
                **detached(),
            )
        log.info("started the server as process %d", self._process.pid)

    def _open_log(self) -> IO[bytes]:
        """The log, open for appending, for its owner only."""
        fresh = self.log_file.exists() and self.log_file.stat().st_size > log_limit
        file = self.log_file.open("wb" if fresh else "ab")
        if os.name == "posix":
            self.log_file.chmod(0o600)
        self._log_from = file.seek(0, os.SEEK_END)
        return file

    def _poll_start(self) -> ServerState:
        try:
            found = read_ready_file(self.ready_file)
        except ReadyFileError as error:
            self.stop()
            return self._fail(str(error), "Check the rights of Onmodel's data folder.")
        if found is not None:
            self._running(found)
        elif time.monotonic() - self._began > start_limit:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                self._process = None
            self._crashes.append(time.monotonic())
            self._fail(
                f"The server was not ready after {start_limit:g} seconds.",
                f"Its log is {self.log_file}.",
            )
        return self.state

    def _running(self, address: Address) -> None:
        self.address = address
        self.state, self.message, self.fix = ServerState.running, "The server runs.", ""

    def _ended(self, code: int) -> ServerState:
        """The process that was started here has ended with this exit code."""
        self._process = None
        self.address = None
        if self.state is ServerState.stopping:
            self._forget_ready_file()
            self.state, self.message, self.fix = ServerState.stopped, "", ""
            return self.state
        if self.adopt():
            return self.state  # another Blender's server was faster to take the data folder
        self._forget_ready_file()
        self._crashes.append(time.monotonic())
        tail = self.log_tail()
        log.warning("the server ended with exit code %d: %s", code, tail[-500:])
        for pattern, message, fix in complaints:
            if pattern.lower() in tail.lower():
                return self._fail(message, fix)
        return self._fail(
            f"The server ended by itself (exit code {code}).", f"Its log is {self.log_file}."
        )

    def _adopted_one_died(self) -> bool:
        """Whether the running server, which another Blender started, is no more."""
        if self.state is not ServerState.running or self.started_here or self.address is None:
            return False
        return not is_alive(self.address.pid)

    def _forget_ready_file(self) -> None:
        """Removes the ready file of a server that is no more; that of a living one stays."""
        with contextlib.suppress(OSError, ReadyFileError):
            found = read_ready_file(self.ready_file)
            if found is None or not is_alive(found.pid):
                self.ready_file.unlink(missing_ok=True)

    def _fail(self, message: str, fix: str) -> ServerState:
        self.state, self.message, self.fix = ServerState.failed, message, fix
        return self.state


def detached() -> dict[str, Any]:
    """Popen arguments for a child that shares no console window and no Ctrl-C with Blender."""
    if sys.platform == "win32":
        flags = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
        return {"creationflags": flags}
    return {"start_new_session": True}

# SPDX-License-Identifier: GPL-3.0-or-later
"""`onmodel serve`: one server for one data folder, from lock to last answer.

Exit codes
    0  asked to stop, its parent ended, or it was idle for as long as --idle-exit says
    2  the command line is wrong
    3  another server uses this data folder
    4  the address cannot be used (taken, or not this machine's)
    5  the data folder cannot be used (no room, no rights, damaged queue)
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import logging.handlers
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil
import uvicorn

from onmodel.api.app import create_app
from onmodel.api.state import ServerState
from onmodel.jobs.blobs import BlobStore
from onmodel.jobs.database import Database, DatabaseError
from onmodel.jobs.folders import DataFolder
from onmodel.jobs.kinds import Holdings
from onmodel.jobs.leases import Leases
from onmodel.jobs.locks import FileLock, LockTaken
from onmodel.jobs.queue import Queue
from onmodel.jobs.roots import Roots
from onmodel.jobs.supervisor import Supervisor
from onmodel.jobs.training_leases import TrainingLeases
from onmodel.jobs.worker import default_artist, default_trainer

log = logging.getLogger(__name__)

exit_ok, exit_usage, exit_in_use, exit_address, exit_data = 0, 2, 3, 4, 5
prune_interval = 3600.0
min_token = 16


@dataclass(frozen=True)
class ServeOptions:
    """The command line of `onmodel serve`.

    keep_days: how long finished jobs are remembered. train_roots: folders that training plans may
    name folders in; none given: the home folder.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = None
    allow_hosts: tuple[str, ...] = ()
    parent_pid: int | None = None
    ready_file: Path | None = None
    artist: str = default_artist
    trainer: str = default_trainer
    train_roots: tuple[Path, ...] = ()
    idle_exit: float | None = None
    keep_days: float = 30.0
    max_crashes: int = 3


class ServeError(Exception):
    """The server cannot start: an exit code, a sentence, what to do."""

    def __init__(self, code: int, message: str, fix: str) -> None:
        super().__init__(f"{message} {fix}".strip())
        self.code = code


class HttpServer(uvicorn.Server):
    """uvicorn that ends its streams, says when it listens, and returns instead of re-raising."""

    def __init__(
        self, config: uvicorn.Config, state: ServerState, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._state = state
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    def stop(self) -> None:
        """Asks the server to end; from any thread."""
        self._state.stopping.set()
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        def on_signal(number: int, _: FrameType | None) -> None:
            log.info("Signal %d: stopping.", number)
            self.stop()

        kinds = [signal.SIGINT, signal.SIGTERM]
        before = {kind: signal.signal(kind, on_signal) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)


def serve(options: ServeOptions) -> int:
    """Runs the server until it is asked to end. Raises ServeError where it cannot start."""
    token = check_options(options)
    folder = make_folder(options.data)
    lock = FileLock(folder.server_lock)
    try:
        # A server that was just killed may take a moment to let go.
        lock.acquire(timeout=1.0)
    except LockTaken as error:
        raise ServeError(
            exit_in_use,
            f"Another Onmodel server is using {folder.root}.",
            "Use that one, stop it first, or choose another folder with --data.",
        ) from error
    try:
        set_up_log(folder)
        return run(options, folder, token)
    finally:
        lock.release()


def check_options(options: ServeOptions) -> str:
    """The session's token; ServeError where the server would be open to others by mistake."""
    if not is_loopback(options.host) and not (options.token and options.allow_hosts):
        raise ServeError(
            exit_usage,
            f"{options.host} can be reached from other machines.",
            "Give it a --token of your own and an --allow-host with each name or address that "
            "people will use for it; better, leave it on 127.0.0.1 and use an SSH tunnel.",
        )
    # Hexadecimal: a token that begins with a dash reads as an option on a command line.
    token = options.token or secrets.token_hex(32)
    if len(token) < min_token or not token.isascii() or not token.isprintable() or " " in token:
        raise ServeError(
            exit_usage,
            f"The token must be at least {min_token} printable ASCII characters, no spaces.",
            "Leave --token out and one is made.",
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_folder(data: Path) -> DataFolder:
    """The data folder, made. Raises ServeError."""
    folder = DataFolder(data.expanduser().absolute())
    try:
        folder.make()
    except OSError as error:
        raise ServeError(
            exit_data,
            f"The data folder {folder.root} cannot be used: {error.strerror}.",
            "Choose another with --data or the environment variable ONMODEL_HOME.",
        ) from error
    return folder


def set_up_log(folder: DataFolder) -> None:
    """Logs into logs/server.log and to the standard error stream. Tokens are never logged."""
    handler = logging.handlers.RotatingFileHandler(
        folder.logs / "server.log", maxBytes=4 << 20, backupCount=2, encoding="utf-8"
    )
    handlers: list[logging.Handler] = [handler, logging.StreamHandler()]
    form = "%(asctime)s server %(levelname)s %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, handlers=handlers, force=True)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ServeError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        kind, _, protocol, _, address = found[0]
        # asyncio turns Nagle's delay (40 ms an answer) off only where the protocol is stated.
        listening = socket.socket(kind, socket.SOCK_STREAM, protocol)
        if os.name == "posix":
            # On Windows the same option would let another program take the port over.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        raise ServeError(
            exit_address,
            f"The server cannot listen on {host}, port {port}: {error.strerror}.",
            "Leave --port out and the system gives a free one.",
        ) from error
    return listening


def run(options: ServeOptions, folder: DataFolder, token: str) -> int:
    """Everything after the lock."""
    try:
        blobs = BlobStore(folder.blobs)
        database = Database(folder.database)
    except DatabaseError as error:
        raise ServeError(exit_data, error.message, error.fix) from error
    except OSError as error:
        raise ServeError(
            exit_data, f"{folder.root} cannot be used: {error.strerror}.", "Choose another folder."
        ) from error
    name, crashes = "local", options.max_crashes
    leases = Leases(database, blobs, name, crashes), TrainingLeases(database, name, crashes)
    roots = Roots(options.train_roots or [Path.home()])
    arguments = ["--trainer", options.trainer]
    for root in roots.folders:
        arguments += ["--train-root", str(root)]
    supervisor = Supervisor(folder, Holdings(name, leases), options.artist, arguments)
    state = ServerState(Queue(database, blobs), blobs, supervisor, roots)
    listening = listen(options.host, options.port)
    url = url_of(options.host, listening.getsockname()[1])
    config = uvicorn.Config(
        create_app(state, token, [options.host, *options.allow_hosts]),
        access_log=False,
        log_config=None,
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=2,
        limit_concurrency=512,
    )
    server = HttpServer(config, state, lambda: say_ready(options, url, token))
    watch = threading.Thread(
        target=watch_over, args=(options, state, server), name="watch", daemon=True
    )
    supervisor.start()
    watch.start()
    try:
        server.run(sockets=[listening])
    finally:
        state.stopping.set()
        supervisor.stop()
        if options.ready_file is not None:
            options.ready_file.unlink(missing_ok=True)
    log.info("The server has stopped.")
    return exit_ok


def url_of(host: str, port: int) -> str:
    """The address to print; what listens everywhere is reached here by 127.0.0.1."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


def say_ready(options: ServeOptions, url: str, token: str) -> None:
    """Tells whoever started the server where it is: by the ready file, or else in words."""
    log.info("Listening at %s; data in %s.", url, options.data)
    if options.ready_file is not None:
        write_private(
            options.ready_file, json.dumps({"url": url, "token": token, "pid": os.getpid()})
        )
        return
    given = "" if options.token else f"Token: {token}\n"
    sys.stdout.write(f"Onmodel is at {url}\n{given}Stop it with Ctrl+C.\n")
    sys.stdout.flush()


def write_private(path: Path, text: str) -> None:
    """Writes a file that only this user can read; it appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def watch_over(options: ServeOptions, state: ServerState, server: HttpServer) -> None:
    """Ends the server with its parent or when nobody wants it; tidies up now and then."""
    parent = None
    if options.parent_pid is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            # psutil also compares start times, so a reused process id is not taken for it.
            parent = psutil.Process(options.parent_pid)
    prune_at = time.monotonic() + 60.0
    while not state.stopping.wait(1.0):
        if options.parent_pid is not None and not is_alive(parent):
            log.info("The process that started this server has ended.")
            server.stop()
        elif (
            options.idle_exit is not None
            and time.monotonic() - state.last_call > options.idle_exit
            and not state.unfinished()
        ):
            log.info("Nobody called for %g seconds.", options.idle_exit)
            server.stop()
        elif time.monotonic() > prune_at:
            prune_at = time.monotonic() + prune_interval
            jobs, gone = state.queue.prune(options.keep_days)
            runs = state.trainings.prune(state.folder.trainings)
            log.info(
                "Tidied up: %d old jobs, %d blobs, files of %d trainings removed.", jobs, gone, runs
            )


def is_alive(process: psutil.Process | None) -> bool:
    """Whether a process still runs; one that waits to be reaped does not."""
    try:
        return (
            process is not None
            and process.is_running()
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False

# SPDX-License-Identifier: GPL-3.0-or-later
"""The worker process: takes keyframes from the queue, has the artist draw them, hands them in.

    python -m onmodel.jobs.worker --data DIR --artist MODULE:CLASS

It is apart from the API so that a crash while drawing (out of memory, a driver fault) stops
nothing else. Its standard input is a pipe from its supervisor: a line means "look into the queue",
its end means that the supervisor is gone, and then the worker ends at once.

Exit codes: 0 asked to stop, 3 another worker holds this name, 4 the artist cannot be made,
5 the disk is full even for the queue, 6 the supervisor is gone.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onmodel.jobs.artist import Artist, DrawError
from onmodel.jobs.blobs import BlobError, BlobStore, disk_full_error, is_disk_full
from onmodel.jobs.database import Database, is_full
from onmodel.jobs.folders import DataFolder
from onmodel.jobs.leases import Leased, Leases
from onmodel.jobs.locks import FileLock, LockTaken, die_with_parent
from onmodel.jobs.queue import Queue

log = logging.getLogger(__name__)

exit_ok, exit_taken, exit_no_artist, exit_disk_full, exit_orphan = 0, 3, 4, 5, 6
default_artist = "onmodel.generate.artist:Artist"
report_interval = 0.1
"""Seconds between two progress events of one keyframe; more would only be noise."""
heartbeat_interval = 5.0
idle_interval = 1.0
"""Seconds between looks into the queue when no line came."""
tell_interval = 5.0
"""Seconds between looks at the model folders while nothing is drawn."""
min_free_bytes = 64 * 1024 * 1024
"""Below so little room on the disk nothing new is begun."""


class WorkerStop(Exception):
    """Ends the worker with an exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def load_artist(name: str) -> Artist:
    """The artist class named "module:Class", made. Raises WorkerStop with the reason logged."""
    module, _, attribute = name.partition(":")
    try:
        made: Artist = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        log.critical("The artist %s cannot be loaded: %s", name, error, exc_info=True)
        raise WorkerStop(exit_no_artist) from error
    return made


class Worker:
    """Draws what is queued in a data folder until `stop` is set."""

    def __init__(self, folder: DataFolder, artist: Artist, name: str) -> None:
        self.folder = folder
        self.artist = artist
        self.blobs = BlobStore(folder.blobs)
        database = Database(folder.database)
        self.queue = Queue(database, self.blobs)
        self.leases = Leases(database, self.blobs, name)
        self.wake = threading.Event()
        self.stop = threading.Event()
        self._told: dict[str, Any] = {}
        self._reported: dict[str, float] = {}

    def run(self) -> None:
        """The loop: until `stop`. Raises WorkerStop where it cannot go on."""
        # Whatever a former worker of this name held is free: its lock is ours now.
        self.leases.recover(crashed=False)
        self.tell()
        threading.Thread(target=self._heartbeat, name="heartbeat", daemon=True).start()
        told_at = time.monotonic()
        while not self.stop.is_set():
            self.wake.clear()
            if self.draw_next():
                continue
            self.wake.wait(idle_interval)
            if time.monotonic() - told_at > tell_interval:
                told_at = time.monotonic()
                self.tell(self._told["notice"])

    def tell(self, notice: str = "") -> None:
        """Leaves word for the API: models, LoRAs, device, and why nothing is drawn, if so."""
        told = {
            "pid": os.getpid(),
            "models": self.artist.models(),
            "loras": self.artist.loras(),
            "device": self._told.get("device", ""),
            "notice": notice,
        }
        if not told["device"]:
            # The models first: asking for the device may import torch, which takes seconds.
            self.queue.set_setting("worker", told)
            told["device"] = self.artist.device()
        if told != self._told:
            self._told = told
            self.queue.set_setting("worker", told)

    def draw_next(self) -> bool:
        """Draws the next batch; False if nothing waits or there is no room for a result."""
        if shutil.disk_usage(self.folder.root).free < min_free_bytes:
            if self.queue.unfinished():
                error = disk_full_error()
                self.tell(f"{error.message} {error.fix}")
            return False
        if self._told.get("notice"):
            self.tell()
        batch = self.leases.claim(self.artist.batch_key, self.artist.max_batch)
        if batch:
            self._draw(batch)
        return bool(batch)

    def _draw(self, batch: list[Leased]) -> None:
        open_tasks = {leased.task.id: leased for leased in batch}

        def report(task_id: str, kind: str, data: dict[str, Any]) -> None:
            leased = open_tasks.get(task_id)
            if leased is not None:
                self._report(leased, kind, data)

        def cancelled(task_id: str) -> bool:
            leased = open_tasks.get(task_id)
            return leased is None or not self.leases.holds(leased)

        try:
            tasks = [leased.task for leased in batch]
            for task_id, drawn in self.artist.draw(tasks, self.blobs, report, cancelled):
                leased = open_tasks.pop(task_id)
                self._hand_in(leased, drawn.png, drawn.record)
        except DrawError as error:
            for task_id in error.task_ids or list(open_tasks):
                failed = open_tasks.pop(task_id, None)
                if failed is not None:
                    self.leases.fail(failed, error.message, error.fix)
        except BlobError as error:
            self._fail_or_split(open_tasks, error.message, error.fix)
        except sqlite3.OperationalError:
            raise
        except Exception as error:
            # The one door for an artist's bugs: each becomes a sentence at its keyframe, and the
            # queue goes on.
            log.exception("The artist failed.")
            message = f"Drawing failed: {type(error).__name__}: {error}"
            self._fail_or_split(
                open_tasks, message[:500], "Retry it; if it fails again, see the server's log."
            )
        else:
            self._fail_or_split(
                open_tasks if len(batch) == 1 else {},
                "The artist ended without a drawing.",
                "Retry it; if it fails again, see the server's log.",
            )
        self._reported.clear()
        for leased in open_tasks.values():
            if self.leases.give_back(leased, alone=True):
                log.warning("Keyframe %s came back undrawn; it is queued alone.", leased.task.id)

    def _fail_or_split(self, open_tasks: dict[str, Leased], message: str, fix: str) -> None:
        """Fails the task that was drawn alone; of a batch, nobody knows whose fault it was."""
        if len(open_tasks) == 1:
            _, leased = open_tasks.popitem()
            self.leases.fail(leased, message, fix)

    def _report(self, leased: Leased, kind: str, data: dict[str, Any]) -> None:
        step, steps = data.get("step"), data.get("steps")
        if kind == "loading":
            self.leases.report(leased, kind, message=data.get("message"))
            return
        now = time.monotonic()
        if kind == "preview":
            self.leases.report(
                leased, kind, step=step, steps=steps, blob=self.blobs.put(data["png"])
            )
        elif now - self._reported.get(leased.task.id, 0.0) >= report_interval or step == steps:
            self._reported[leased.task.id] = now
            self.leases.report(leased, kind, step=step, steps=steps)

    def _hand_in(self, leased: Leased, png: bytes, record: dict[str, Any]) -> None:
        if not self.leases.holds(leased):
            return
        try:
            blob = self.blobs.put(png)
            self.leases.commit(leased, blob, record)
        except (OSError, sqlite3.OperationalError, BlobError) as error:
            full = (
                (isinstance(error, OSError) and is_disk_full(error))
                or (isinstance(error, sqlite3.OperationalError) and is_full(error))
                or (isinstance(error, BlobError) and error.code == "disk_full")
            )
            if full:
                sentence = disk_full_error()
                self.leases.fail(leased, sentence.message, "Free some space on it, then retry.")
            elif isinstance(error, BlobError):
                self.leases.fail(leased, error.message, error.fix)
            else:
                raise

    def _heartbeat(self) -> None:
        while not self.stop.wait(heartbeat_interval):
            try:
                self.leases.renew()
            except sqlite3.OperationalError as error:
                log.warning("The heartbeat could not be written: %s", error)


def _listen(worker: Worker) -> None:
    """Reads the supervisor's pipe until it ends, then ends the process, whatever it is doing."""
    for line in sys.stdin:
        if line.strip() == "stop":
            worker.stop.set()
        worker.wake.set()
    os._exit(exit_ok if worker.stop.is_set() else exit_orphan)


def main(argv: Sequence[str] | None = None) -> int:
    """The process; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m onmodel.jobs.worker")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--artist", default=default_artist, metavar="MODULE:CLASS")
    parser.add_argument("--name", default="local")
    parser.add_argument("--parent", type=int, required=True, help="process id of the supervisor")
    options = parser.parse_args(argv)
    die_with_parent(options.parent)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker %(levelname)s %(message)s")
    folder = DataFolder(options.data)
    lock = FileLock(folder.worker_lock(options.name))
    try:
        lock.acquire(timeout=10.0)
        worker = Worker(folder, load_artist(options.artist), options.name)
        threading.Thread(target=_listen, args=(worker,), name="pipe", daemon=True).start()
        worker.run()
    except LockTaken:
        log.critical("Another worker named %s is at work in %s.", options.name, folder.root)
        return exit_taken
    except WorkerStop as stop:
        return stop.code
    except sqlite3.OperationalError as error:
        if not is_full(error):
            raise
        log.critical("The disk is full; even the queue cannot be written.")
        return exit_disk_full
    return exit_ok


if __name__ == "__main__":
    code = main()
    # Not sys.exit: threads of drawing libraries have kept processes alive here.
    logging.shutdown()
    os._exit(code)

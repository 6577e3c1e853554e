# SPDX-License-Identifier: GPL-3.0-or-later
"""The worker process: does what the queue holds, one thing after the other, draws or trains.

    python -m onmodel.jobs.worker --data DIR --artist MODULE:CLASS --trainer MODULE:CLASS

It is apart from the API so that a crash while drawing (out of memory, a driver fault) stops
nothing else. Its standard input is a pipe from its supervisor: a line means "look into the queue",
its end means that the supervisor is gone, and then the worker ends at once.

Exit codes: 0 asked to stop, 3 another worker holds this name, 4 artist or trainer cannot be
made, 5 the disk is full even for the queue, 6 the supervisor is gone.
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

from onmodel.jobs.artist import Artist
from onmodel.jobs.blobs import BlobStore, disk_full_error
from onmodel.jobs.database import Database, is_full
from onmodel.jobs.drawing import DrawingRunner
from onmodel.jobs.folders import DataFolder
from onmodel.jobs.kinds import Holding, Holdings, Runner
from onmodel.jobs.leases import Leases
from onmodel.jobs.locks import FileLock, LockTaken, die_with_parent
from onmodel.jobs.queue import Queue
from onmodel.jobs.trainer import Trainer
from onmodel.jobs.training import TrainingRunner
from onmodel.jobs.training_leases import TrainingLeases

log = logging.getLogger(__name__)

exit_ok, exit_taken, exit_no_artist, exit_disk_full, exit_orphan = 0, 3, 4, 5, 6
default_artist = "onmodel.generate.artist:Artist"
default_trainer = "onmodel.train.job:Trainer"
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


def make(name: str, *arguments: Any) -> Any:
    """An object of the class named "module:Class". Raises WorkerStop with the reason logged."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)(*arguments)
    except (ImportError, AttributeError) as error:
        log.critical("%s cannot be loaded: %s", name, error, exc_info=True)
        raise WorkerStop(exit_no_artist) from error


class Worker:
    """Does what is queued in a data folder until `stop` is set.

    Drawings and trainings take turns by priority and age, whatever their kind; one thread does
    them all, so the device never has two of them.
    """

    def __init__(self, folder: DataFolder, artist: Artist, trainer: Trainer, name: str) -> None:
        self.folder = folder
        self.artist = artist
        self.blobs = BlobStore(folder.blobs)
        database = Database(folder.database)
        self.queue = Queue(database, self.blobs)
        self.wake = threading.Event()
        self.stop = threading.Event()
        self._told: dict[str, Any] = {}
        drawings = Leases(database, self.blobs, name)
        trainings = TrainingLeases(database, name)
        self._kinds: list[tuple[Holding, Runner]] = [
            (drawings, DrawingRunner(artist, drawings, self.blobs)),
            (
                trainings,
                TrainingRunner(
                    trainer, trainings, self.blobs, folder, artist.release, self.tell, self.stop
                ),
            ),
        ]
        self.holdings = Holdings(name, [drawings, trainings])

    def run(self) -> None:
        """The loop: until `stop`. Raises WorkerStop where it cannot go on."""
        # Whatever a former worker of this name held is free: its lock is ours now.
        self.holdings.recover(crashed=False)
        self.tell()
        threading.Thread(target=self._heartbeat, name="heartbeat", daemon=True).start()
        told_at = time.monotonic()
        while not self.stop.is_set():
            self.wake.clear()
            if self.do_next():
                continue
            self.wake.wait(idle_interval)
            if time.monotonic() - told_at > tell_interval:
                told_at = time.monotonic()
                self.tell(self._told["notice"])

    def tell(self, notice: str = "") -> None:
        """Leaves word for the API: models, LoRAs, IP-Adapters, device, and why nothing is drawn."""
        told = {
            "pid": os.getpid(),
            "models": self.artist.models(),
            "loras": self.artist.loras(),
            "ip_adapters": self.artist.ip_adapters(),
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

    def do_next(self) -> bool:
        """Does what is next; False if nothing waits or there is no room for a result."""
        waiting = [
            (turn, runner) for held, runner in self._kinds if (turn := held.turn()) is not None
        ]
        if shutil.disk_usage(self.folder.root).free < min_free_bytes:
            if waiting:
                error = disk_full_error()
                self.tell(f"{error.message} {error.fix}")
            return False
        if self._told.get("notice"):
            self.tell()
        # `any` stops at the first that had something to do.
        return any(runner.run_next() for _, runner in sorted(waiting, key=lambda pair: pair[0]))

    def _heartbeat(self) -> None:
        while not self.stop.wait(heartbeat_interval):
            try:
                self.holdings.renew()
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
    parser.add_argument("--trainer", default=default_trainer, metavar="MODULE:CLASS")
    parser.add_argument("--train-root", type=Path, action="append", default=[], metavar="DIR")
    parser.add_argument("--name", default="local")
    parser.add_argument("--parent", type=int, required=True, help="process id of the supervisor")
    options = parser.parse_args(argv)
    die_with_parent(options.parent)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker %(levelname)s %(message)s")
    folder = DataFolder(options.data)
    lock = FileLock(folder.worker_lock(options.name))
    try:
        lock.acquire(timeout=10.0)
        artist: Artist = make(options.artist)
        trainer: Trainer = make(options.trainer, options.train_root)
        worker = Worker(folder, artist, trainer, options.name)
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

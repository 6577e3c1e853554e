# SPDX-License-Identifier: GPL-3.0-or-later
"""The runner of trainings: has the trainer train, tells of it, puts the LoRA into its folder.

The file lands in two moves, so that a stop at any moment leaves one LoRA and never a torn one: its
hash is noted in the queue, then the whole file takes its name at once. A later start that finds the
noted file in place has nothing left to do. A file of that name that is not ours is never replaced.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onmodel.jobs.blobs import BlobError, BlobStore, disk_full_error, is_disk_full
from onmodel.jobs.folders import DataFolder
from onmodel.jobs.trainer import Trained, Trainer, TrainError, TrainingTask
from onmodel.jobs.training_leases import HeldTraining, TrainingLeases

log = logging.getLogger(__name__)

step_interval = 0.5
"""Seconds between two step events, and between two caching events."""


class TrainingRunner:
    """Runs the trainings of a queue.

    make_room: called before a training; lets go of what the artist holds on the device.
    tell: leaves word for the API, with a notice; it looks at the LoRA folder on the way.
    stop: set where the worker shall end; the training is then queued again, its state saved.
    """

    def __init__(
        self,
        trainer: Trainer,
        leases: TrainingLeases,
        blobs: BlobStore,
        folder: DataFolder,
        make_room: Callable[[], None],
        tell: Callable[[str], None],
        stop: threading.Event,
    ) -> None:
        self.trainer = trainer
        self.leases = leases
        self.blobs = blobs
        self.folder = folder
        self._make_room = make_room
        self._tell = tell
        self._stop = stop

    def run_next(self) -> bool:
        """Runs the next training to its end, its cancel or its failure; False if none waits."""
        held = self.leases.claim()
        if held is None:
            return False
        self._tell(f"“{held.name}” is being trained; drawings wait until it ends.")
        self._run(held)
        self._tell("")
        return True

    def _run(self, held: HeldTraining) -> None:
        """One start of one training. Every failure becomes a sentence at the training."""
        try:
            self._train(held)
        except TrainError as error:
            self.leases.fail(held, error.message, error.fix)
        except BlobError as error:
            self.leases.fail(held, error.message, error.fix)
        except sqlite3.OperationalError:
            raise
        except OSError as error:
            if not is_disk_full(error):
                log.exception("The training %s failed.", held.id)
            sentence = disk_full_error().message if is_disk_full(error) else f"{error}."
            self.leases.fail(held, sentence, "Put that right, then retry; what was saved is kept.")
        except Exception as error:
            # The one door for a trainer's bugs, as for an artist's: the queue goes on.
            log.exception("The training %s failed.", held.id)
            message = f"Training failed: {type(error).__name__}: {error}"
            self.leases.fail(
                held, message[:500], "Retry it; if it fails again, see the server's log."
            )

    def _train(self, held: HeldTraining) -> None:
        landed = self._place_of(held)
        if held.lora_hash is not None and _hash_of(landed) == held.lora_hash:
            self._commit(held, held.lora_hash, {})
            return
        self._make_room()
        task = TrainingTask(held.id, held.plan, held.model_hash, self.folder.trainings / held.id)
        task.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        telling = _Telling(held, self.leases, self.blobs)
        trained = self.trainer.train(task, telling.report, lambda: self._unwanted(held))
        if trained is None:
            if self.leases.give_back(held):
                log.info("The training %s goes on later.", held.id)
            return
        self._land(held, trained)

    def _unwanted(self, held: HeldTraining) -> bool:
        return self._stop.is_set() or not self.leases.holds(held)

    def _place_of(self, held: HeldTraining) -> Path:
        return self.folder.loras / f"{held.name}.safetensors"

    def _land(self, held: HeldTraining, trained: Trained) -> None:
        """The finished file into the LoRA folder. Raises TrainError, OSError."""
        target = self._place_of(held)
        digest = _hash_of(trained.lora)
        if digest is None:
            raise TrainError("The training ended without a LoRA.", "Retry it.")
        if target.exists() or target.is_symlink():
            raise TrainError(
                f"The LoRA is finished, but there is another {target.name} in the LoRA folder.",
                "Move that one away, then retry: it goes into its place at once.",
            )
        if not self.leases.landing(held, digest):
            return
        target.parent.mkdir(mode=0o700, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        try:
            with trained.lora.open("rb") as source, part.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
                copy.flush()
                os.fsync(copy.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        self._commit(held, digest, trained.record)

    def _commit(self, held: HeldTraining, digest: str, record: dict[str, Any]) -> None:
        # The artist's list first: who hears of the end finds the LoRA in it.
        self._tell("")
        lora = {"name": held.name, "hash": digest}
        self.leases.commit(held, {**record, "lora": lora})


class _Telling:
    """Between the trainer, which reports every step, and the queue, which needs fewer."""

    def __init__(self, held: HeldTraining, leases: TrainingLeases, blobs: BlobStore) -> None:
        self.held, self.leases, self.blobs = held, leases, blobs
        self._told = 0.0

    def report(self, kind: str, data: dict[str, Any]) -> None:
        """A `TrainReport`; what comes after the lease is lost goes nowhere."""
        if kind == "preparing":
            masks = data.get("masks")
            blob = None if masks is None else self.blobs.put(masks)
            self.leases.preparing(self.held, str(data["message"]), blob)
        elif kind == "caching" and self._due(data["done"] == data["of"]):
            self.leases.caching(self.held, data["done"], data["of"])
        elif kind == "step" and self._due(data["step"] == data["of"] or data["step"] == 1):
            self.leases.stepped(self.held, data["step"], data["of"], data["loss"], data["seconds"])
        elif kind == "saved":
            self.leases.saved(self.held, data["step"])
        elif kind == "validation":
            blobs = [self.blobs.put(Path(file).read_bytes()) for file in data["files"]]
            self.leases.validation(self.held, data["step"], blobs)
        elif kind == "chosen":
            self.leases.chosen(self.held, data["step"], data["sentence"])

    def _due(self, edge: bool) -> bool:
        """Whether to tell of it now. edge: it is a first or a last one."""
        now = time.monotonic()
        if not edge and now - self._told < step_interval:
            return False
        self._told = now
        return True


def _hash_of(path: Path) -> str | None:
    """SHA-256 of a file, None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the queue asks of whoever trains: the `Trainer` protocol and the values that pass through.

The worker process makes one trainer beside its artist. Nothing here imports torch; a trainer
imports it when it first trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class TrainingTask:
    """A training to begin or to go on with.

    id: of the training in the queue. plan: the whole TrainingPlan as nested tables. model_hash:
    of the base model at submit. folder: the run's own; what an earlier start saved is in it.
    """

    id: str
    plan: dict[str, Any]
    model_hash: str
    folder: Path


@dataclass(frozen=True)
class Trained:
    """A finished training. lora: the file. record: plain JSON data to keep beside it."""

    lora: Path
    record: dict[str, Any] = field(default_factory=dict)


class TrainError(Exception):
    """A failure that a person can understand: what is wrong, and what to do."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


TrainReport = Callable[[str, dict[str, Any]], None]
"""report(type, data), cheap enough to call at every step. Types and their data:
    "preparing"   {"message": str} and, once the pictures were looked at, {"masks": PNG bytes}
    "caching"     {"done": int, "of": int}
    "step"        {"step": int, "of": int, "loss": float, "seconds": float}
    "saved"       {"step": int}: a stop from here on goes on from this step
    "validation"  {"step": int, "files": [str]}: PNG files
    "chosen"      {"step": int, "sentence": str, "zero_effect": bool}: the checkpoint that the
                  LoRA is made of, and why
"""


class Trainer(Protocol):
    """Trains LoRAs. Made once per worker process, by the worker's thread.

    roots: the folders that plans may name folders in; see `onmodel.jobs.roots`.
    """

    def __init__(self, roots: Iterable[Path]) -> None: ...

    def train(
        self, task: TrainingTask, report: TrainReport, cancelled: Callable[[], bool]
    ) -> Trained | None:
        """Trains to the end, or None where it was cancelled, with its state saved in the folder.

        cancelled: asked at every step. Goes on from the folder's last save where there is one.
        Raises TrainError.
        """

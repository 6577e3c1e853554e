# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole training run: from a plan to LoRA files, cancelled and resumed at any step.

Knows nothing of HTTP and of jobs; both the command line and the server's worker call `train`.
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from onmodel.models.errors import ModelError
from onmodel.models.registry import ModelEntry, Registry
from onmodel.train.estimates import model_path
from onmodel.train.folder import RunFolder
from onmodel.train.loop import Loop, Report, Run, TrainResult, timed
from onmodel.train.plan import BasePlan, TrainingPlan, check
from onmodel.train.preflight import Measurement
from onmodel.train.trainer import Trainer, repeatable

log = logging.getLogger(__name__)


def quiet(kind: str, data: dict[str, Any]) -> None:
    """A report to nobody."""


def never() -> bool:
    """A run that nobody cancels."""
    return False


def find_entry(base: BasePlan) -> ModelEntry:
    """The model that a plan names: of the registry, or a path. Raises ModelError."""
    path = model_path(base)
    if path is None:
        return Registry().find(base.model)
    registry = Registry(extra=[path.resolve().parent])
    for entry in registry.models():
        if entry.found.path.resolve() == path.resolve():
            return entry
    reason = next((r for n, r in registry.problems.items() if n in (path.name, path.stem)), "")
    raise ModelError(f"“{path}” is not a model that can be trained. {reason}".strip())


def train(
    plan: TrainingPlan,
    out: Path,
    report: Report = quiet,
    cancelled: Callable[[], bool] = never,
    *,
    resume: bool = False,
    cache: Path | None = None,
) -> TrainResult:
    """Train a LoRA into the folder `out`.

    report: told ("preparing", {}), ("caching", {done, of}), ("step", {step, of, loss, rate,
    grad_norm, seconds}), ("saved", {step, file}), ("validation", {step, files}), ("chosen", {step,
    sentence, zero_effect}), ("done", {…}).
    cancelled: asked at every step; the state is saved and the run can be resumed.
    resume: go on with the run in `out`, from its last save, or start it where there was none.
    cache: folder of encoded pictures; None: in the data folder.
    Raises PlanError, ModelError, OSError (disk full).
    """
    begun = time.time()
    run = Run(check(plan), find_entry(plan.base), cache)
    folder = RunFolder(out, plan, run.data, run.entry.hash)
    state = folder.open(resume)
    with repeatable(run.place.device, plan.run.threads):
        report("preparing", {"model": run.entry.name, "device": run.place.title})
        trainer = run.trainer()
        if state is not None:
            trainer.load_state(state)
            begun = float(state["started"])
        loop = Loop(run, trainer, folder, report, begun)
        cached = run.samples.fill(
            lambda done, of: report("caching", {"done": done, "of": of}), cancelled
        )
        return loop.go(cancelled) if cached else loop.result()


def measure(plan: TrainingPlan, steps: int = 3, cache: Path | None = None) -> Measurement:
    """Make a few real steps and throw them away; the first one is not counted.

    Raises PlanError, ModelError. Only the pictures of these steps are encoded, into the cache.
    """
    run = Run(check(plan), find_entry(plan.base), cache)
    cuda = torch.device(run.place.device).type == "cuda"
    with repeatable(run.place.device, plan.run.threads):
        trainer = run.trainer()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        taken = []
        for number in range(min(steps + 1, trainer.steps)):
            for part, showings in enumerate(run.samples.order.batch_at(number)):
                run.samples.batch(showings, number, part)  # encoding is no part of a step
            taken.append(timed(trainer, run.place)[0])
        peak = torch.cuda.max_memory_allocated() if cuda else _peak_memory()
        counted = taken[1:] or taken
        return Measurement(statistics.median(counted), peak, run.place.title, len(counted))


def prepared(plan: TrainingPlan, cache: Path | None = None) -> Trainer:
    """The model of a plan with its adapters, ready for the first step; nothing is cached yet.

    Raises PlanError, ModelError.
    """
    return Run(check(plan), find_entry(plan.base), cache).trainer()


def _peak_memory() -> int:
    """The most main memory that this process ever had, bytes; 0 where it cannot be told."""
    if sys.platform == "win32":
        return 0
    import resource

    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

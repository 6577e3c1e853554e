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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onmodel.jobs.folders import default_data_folder
from onmodel.lora import layouts, metadata
from onmodel.lora.save import save_lora
from onmodel.models import libraries
from onmodel.models.errors import ModelError
from onmodel.models.memory import Place, choose_place, synchronize
from onmodel.models.registry import ModelEntry, Registry
from onmodel.train import dataset, family, record, validation
from onmodel.train.buckets import Order
from onmodel.train.cache import Cache
from onmodel.train.estimates import model_path
from onmodel.train.folder import RunFolder
from onmodel.train.plan import BasePlan, TrainingPlan, check
from onmodel.train.preflight import Measurement
from onmodel.train.samples import Samples
from onmodel.train.trainer import Trainer, repeatable

log = logging.getLogger(__name__)

Report = Callable[[str, dict[str, Any]], None]
_dtypes = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. lora: the finished file, None where it was cancelled. steps: done in all.
    loss: mean of the last hundred steps of this start. seconds: of this start."""

    lora: Path | None
    steps: int
    loss: float | None
    seconds: float
    checkpoints: tuple[Path, ...]

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.lora is not None


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
    grad_norm, seconds}), ("saved", {step, file}), ("validation", {step, files}), ("done", {…}).
    cancelled: asked at every step; the state is saved and the run can be resumed.
    resume: go on with the run in `out`, from its last save, or start it where there was none.
    cache: folder of encoded pictures; None: in the data folder.
    Raises PlanError, ModelError, OSError (disk full).
    """
    begun = time.time()
    run = _Run(check(plan), cache)
    folder = RunFolder(out, plan, run.data, run.entry.hash)
    state = folder.open(resume)
    with repeatable(run.place.device, plan.run.threads):
        report("preparing", {"model": run.entry.name, "device": run.place.title})
        trainer = run.trainer()
        if state is not None:
            trainer.load_state(state)
            begun = float(state["started"])
        loop = _Loop(run, trainer, folder, report, begun)
        cached = run.samples.fill(
            lambda done, of: report("caching", {"done": done, "of": of}), cancelled
        )
        return loop.go(cancelled) if cached else loop.result(None)


def measure(plan: TrainingPlan, steps: int = 3, cache: Path | None = None) -> Measurement:
    """Make a few real steps and throw them away; the first one is not counted.

    Raises PlanError, ModelError. Only the pictures of these steps are encoded, into the cache.
    """
    run = _Run(check(plan), cache)
    cuda = torch.device(run.place.device).type == "cuda"
    with repeatable(run.place.device, plan.run.threads):
        trainer = run.trainer()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        taken = []
        for number in range(min(steps + 1, trainer.steps)):
            for part, showings in enumerate(run.samples.order.batch_at(number)):
                run.samples.batch(showings, number, part)  # encoding is no part of a step
            taken.append(_timed(trainer, run.place)[0])
        peak = torch.cuda.max_memory_allocated() if cuda else _peak_memory()
        counted = taken[1:] or taken
        return Measurement(statistics.median(counted), peak, run.place.title, len(counted))


def prepared(plan: TrainingPlan, cache: Path | None = None) -> Trainer:
    """The model of a plan with its adapters, ready for the first step; nothing is cached yet.

    Raises PlanError, ModelError.
    """
    return _Run(check(plan), cache).trainer()


def _peak_memory() -> int:
    """The most main memory that this process ever had, bytes; 0 where it cannot be told."""
    if sys.platform == "win32":
        return 0
    import resource

    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _timed(trainer: Trainer, place: Place) -> tuple[float, Any]:
    start = time.perf_counter()
    taken = trainer.take()
    synchronize(place)
    return time.perf_counter() - start, taken


class _Run:
    """What a plan names, found: pictures, order, model and device."""

    def __init__(self, plan: TrainingPlan, cache: Path | None) -> None:
        libraries.prepare()
        self.plan = plan
        self.data = dataset.scan(plan.data)
        self.order = Order(self.data.pictures, plan)
        self.entry = find_entry(plan.base)
        weights = sum(f.stat().st_size for f in self.entry.found.weights)
        self.place = Place(
            device=(chosen := choose_place(weights)).device,
            dtype=_dtypes[plan.base.dtype],
            title=chosen.title,
            total=chosen.total,
        )
        self.cache = Cache(cache or default_data_folder() / "cache" / "train")
        self.samples: Samples

    def trainer(self) -> Trainer:
        """Load the model, put the adapters on."""
        model = family.load(self.entry, self.place, self.plan)
        self.samples = Samples(self.plan, self.data.pictures, self.order, model, self.cache)
        return Trainer(self.plan, model, self.samples, self.order.steps)


class _Loop:
    """The steps of one start."""

    def __init__(
        self, run: _Run, trainer: Trainer, folder: RunFolder, report: Report, started: float
    ) -> None:
        self.run, self.trainer, self.folder = run, trainer, folder
        self.report, self.started = report, started
        self.plan = run.plan
        self.losses: list[float] = []
        self._saved = -1
        self._start = time.perf_counter()
        self._drawings: list[validation.Drawing] = []

    def go(self, cancelled: Callable[[], bool]) -> TrainResult:
        """To the end, or to the cancel."""
        if self.plan.validation.every:
            self._drawings = validation.drawings(self.plan, self.run.order, self.run.data.pictures)
            if self.trainer.step == 0:
                self._validate()
        while self.trainer.step < self.trainer.steps:
            if cancelled():
                self._save()
                return self.result(None)
            seconds, taken = _timed(self.trainer, self.run.place)
            self.losses.append(taken.loss)
            row = {
                "step": self.trainer.step,
                "loss": taken.loss,
                "rate": taken.rate,
                "grad_norm": taken.grad_norm,
                "seconds": round(seconds, 4),
            }
            self.folder.note(row)
            self.report("step", {**row, "of": self.trainer.steps})
            last = self.trainer.step == self.trainer.steps
            if self.trainer.step % self.plan.run.save_every == 0 or last:
                self._save()
            every = self.plan.validation.every
            if every and (self.trainer.step % every == 0 or last):
                self._validate()
        return self._finish()

    def _save(self) -> None:
        """A checkpoint and then the state: a stop in between repeats the same checkpoint."""
        step = self.trainer.step
        if step in (self._saved, 0):
            return
        path = self.folder.checkpoint(step)
        self._write(path, layouts_of(self.plan)[0])
        self.folder.save_state({**self.trainer.state(), "started": self.started})
        self.folder.prune()
        self._saved = step
        self.report("saved", {"step": step, "file": str(path)})

    def _write(self, path: Path, layout: layouts.Layout) -> None:
        run = self.run
        deltas = self.trainer.deltas()
        about = record.make(
            self.plan,
            run.entry,
            self.trainer.family,
            run.data.pictures,
            run.order,
            self.trainer.step,
            self.started,
            self._loss(),
        )
        save_lora(path, deltas, metadata.describe(about), layout, layouts.small_dtype(deltas))

    def _loss(self) -> float | None:
        return statistics.fmean(self.losses[-100:]) if self.losses else None

    def _validate(self) -> None:
        with self.trainer.averaged():
            files = validation.draw_all(
                self.trainer.family, self._drawings, self.folder.drawings(self.trainer.step)
            )
        self.report("validation", {"step": self.trainer.step, "files": [str(f) for f in files]})

    def _finish(self) -> TrainResult:
        for number, layout in enumerate(layouts_of(self.plan)):
            path = self.folder.finished
            self._write(path if number == 0 else path.with_stem(f"{path.stem}.{layout}"), layout)
        result = self.result(self.folder.finished)
        self.report("done", {"file": str(result.lora), "steps": result.steps, "loss": result.loss})
        return result

    def result(self, lora: Path | None) -> TrainResult:
        """The run as it is now."""
        seconds = time.perf_counter() - self._start
        checkpoints = self.folder.checkpoints()
        return TrainResult(lora, self.trainer.step, self._loss(), seconds, checkpoints)


def layouts_of(plan: TrainingPlan) -> tuple[layouts.Layout, ...]:
    """The layouts of a run's files; checkpoints have the first.

    SDXL: kohya's names, which every program reads, and diffusers' beside them. Flux: diffusers',
    since kohya's fuse modules that a plan may not train.
    """
    return ("kohya", "diffusers") if plan.base.family == "sdxl" else ("diffusers",)

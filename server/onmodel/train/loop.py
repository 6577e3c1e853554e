# SPDX-License-Identifier: GPL-3.0-or-later
"""One start of a run: what its plan names, its steps, its saves, and which checkpoint it gives."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onmodel.jobs.folders import default_data_folder
from onmodel.lora import layouts, metadata
from onmodel.lora.save import save_lora, write_atomically
from onmodel.models import libraries, lora_file, lora_names
from onmodel.models.memory import Place, choose_place, synchronize
from onmodel.models.registry import ModelEntry
from onmodel.train import choose, dataset, family, record, validation
from onmodel.train.buckets import Order
from onmodel.train.cache import Cache
from onmodel.train.family import Drawing
from onmodel.train.folder import RunFolder
from onmodel.train.plan import PlanError, TrainingPlan
from onmodel.train.samples import Samples
from onmodel.train.trainer import Taken, Trainer

log = logging.getLogger(__name__)

Report = Callable[[str, dict[str, Any]], None]
_dtypes = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. lora: the finished file, None where it was cancelled. steps: done in all.
    loss: mean of the last hundred steps of this start. seconds: of this start. chosen: the step
    whose weights the file has. choice: what was found about the checkpoints, None where nothing
    was drawn."""

    lora: Path | None
    steps: int
    loss: float | None
    seconds: float
    checkpoints: tuple[Path, ...]
    chosen: int | None = None
    choice: choose.Choice | None = None

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.lora is not None


def timed(trainer: Trainer, place: Place) -> tuple[float, Taken]:
    """The next step, and its seconds."""
    start = time.perf_counter()
    taken = trainer.take()
    synchronize(place)
    return time.perf_counter() - start, taken


class Run:
    """What a plan names, found: pictures, order, model and device."""

    def __init__(self, plan: TrainingPlan, entry: ModelEntry, cache: Path | None) -> None:
        libraries.prepare()
        self.plan = plan
        self.data = dataset.scan(plan.data)
        self.order = Order(self.data.pictures, plan)
        self.entry = entry
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


class Loop:
    """The steps of one start."""

    def __init__(
        self, run: Run, trainer: Trainer, folder: RunFolder, report: Report, started: float
    ) -> None:
        self.run, self.trainer, self.folder = run, trainer, folder
        self.report, self.started = report, started
        self.plan = run.plan
        self.losses: list[float] = []
        self._saved = trainer.step if folder.checkpoint(trainer.step).is_file() else -1
        self._start = time.perf_counter()
        self._drawings: list[Drawing] = []
        if self.plan.validation.every:
            self._drawings = validation.drawings(self.plan, run.order, run.data.pictures)
            self._check_maps()

    def _check_maps(self) -> None:
        wanted = {kind for drawing in self._drawings for kind in drawing.maps}
        unknown = sorted(wanted - set(self.run.entry.map_kinds))
        if unknown:
            raise PlanError(
                f"The model “{self.run.entry.name}” takes no {', '.join(unknown)} maps.",
                "Take them out of the folder validation.maps.",
            )

    def go(self, cancelled: Callable[[], bool]) -> TrainResult:
        """To the end, or to the cancel."""
        if self._drawings:
            # What every checkpoint is compared with, also where drawings are wanted only now.
            with self.trainer.unlearned():
                self._draw(0)
        self._validate()
        while self.trainer.step < self.trainer.steps:
            if cancelled():
                self._save()
                return self.result()
            seconds, taken = timed(self.trainer, self.run.place)
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
            # What is drawn is saved, so that it can be chosen.
            if self.trainer.step % self.plan.run.save_every == 0 or self._drawn_at_this_step:
                self._save()
            self._validate()
        self._save()
        return self._finish()

    @property
    def _drawn_at_this_step(self) -> bool:
        step, every = self.trainer.step, self.plan.validation.every
        return bool(every) and (step % every == 0 or step == self.trainer.steps)

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
        """The drawings of this step, where the plan wants some."""
        if self._drawn_at_this_step:
            with self.trainer.averaged():
                self._draw(self.trainer.step)

    def _draw(self, step: int) -> None:
        """The drawings of a step, unless they are all there: a run may have been stopped while it
        drew them."""
        if self.folder.has_drawings(step, len(self._drawings)):
            return
        place = self.folder.drawings(step)
        files = validation.draw_all(self.trainer.family, self._drawings, place)
        self.report("validation", {"step": step, "files": [str(f) for f in files]})

    def _finish(self) -> TrainResult:
        """The finished files: of the checkpoint that is chosen, else of the last."""
        choice = self._choose()
        step = self.trainer.step if choice is None or choice.best is None else choice.best
        self._take_from(step)
        result = self.result(self.folder.finished, step, choice)
        self.report("done", {"file": str(result.lora), "steps": result.steps, "loss": result.loss})
        return result

    def _choose(self) -> choose.Choice | None:
        """Which checkpoint; None where nothing was drawn."""
        if not self._drawings:
            idle = not any(bool(delta.up.any()) for delta in self.trainer.deltas().values())
            if not idle:
                return None
            choice = choose.Choice(None, None, (), choose.idle)
            told = {"step": self.trainer.step, "sentence": choice.sentence, "zero_effect": True}
            self.report("chosen", told)
            return choice
        steps = {self.folder.step_of(path) for path in self.folder.checkpoints()}
        references = self.plan.validation.references
        choice = choose.choose_in(
            self.folder.path,
            steps,
            [p.path for p in self.run.data.own],
            choose.judge_for(self.run.entry.embedded),
            [drawing.head for drawing in self._drawings],
            choose.pictures_in(Path(references).expanduser()) if references else None,
        )
        taken = choice.best or self.trainer.step
        sentence = choice.sentence
        if choice.best is None:
            sentence += f" The last checkpoint, step {taken}, is taken."
        log.info(sentence)
        told = {"step": taken, "sentence": sentence, "zero_effect": choice.zero_effect}
        self.report("chosen", told)
        return choice

    def _take_from(self, step: int) -> None:
        """Write the finished files from a checkpoint, in each layout."""
        source = self.folder.checkpoint(step)
        others = layouts_of(self.plan)[1:]
        write_atomically(self.folder.finished, source.read_bytes())
        if not others:
            return
        about = lora_file.check(source).metadata
        deltas = layouts.read(source, self._sites())
        for layout in others:
            path = self.folder.finished
            path = path.with_stem(f"{path.stem}.{layout}")
            save_lora(path, deltas, about, layout, next(iter(deltas.values())).down.dtype)

    def _sites(self) -> dict[str, lora_names.Site]:
        """The adapted layers under the names that kohya's layout gives them."""
        sites = {}
        for component, module in self.trainer.deltas():
            for name in (module, f"text_model.{module}"):
                site = lora_names.Site(component, module)
                sites[f"{component}.{name.replace('.', '_')}"] = site
        return sites

    def result(
        self,
        lora: Path | None = None,
        chosen: int | None = None,
        choice: choose.Choice | None = None,
    ) -> TrainResult:
        """The run as it is now."""
        seconds = time.perf_counter() - self._start
        checkpoints = self.folder.checkpoints()
        return TrainResult(
            lora, self.trainer.step, self._loss(), seconds, checkpoints, chosen, choice
        )


def layouts_of(plan: TrainingPlan) -> tuple[layouts.Layout, ...]:
    """The layouts of a run's files; checkpoints have the first.

    SDXL: kohya's names, which every program reads, and diffusers' beside them. Flux: diffusers',
    since kohya's fuse modules that a plan may not train.
    """
    return ("kohya", "diffusers") if plan.base.family == "sdxl" else ("diffusers",)

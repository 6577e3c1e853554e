# SPDX-License-Identifier: GPL-3.0-or-later
"""Trainings of the server's queue: the plan of a job through preflight and engine."""

from __future__ import annotations

import dataclasses
import gc
import io
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onmodel.jobs.blobs import is_disk_full
from onmodel.jobs.images import max_side
from onmodel.jobs.roots import RootError, Roots
from onmodel.jobs.trainer import Trained, TrainError, TrainingTask, TrainReport
from onmodel.models.errors import ModelError
from onmodel.models.registry import ModelEntry, Registry
from onmodel.train import plan_file
from onmodel.train.plan import PlanError, TrainingPlan

if TYPE_CHECKING:
    from onmodel.train.preflight import Report

log = logging.getLogger(__name__)


class Trainer:
    """Trains with the models of a registry; see `onmodel.jobs.trainer`. Keeps nothing warm."""

    def __init__(self, roots: Iterable[Path]) -> None:
        self.roots = Roots(roots)

    def train(
        self, task: TrainingTask, report: TrainReport, cancelled: Callable[[], bool]
    ) -> Trained | None:
        """Train, or go on with what the task's folder holds. Raises TrainError."""
        from onmodel.models import memory

        try:
            return self._train(task, report, cancelled)
        except (PlanError, ModelError, RootError) as error:
            raise TrainError(error.message, error.fix) from error
        except (RuntimeError, MemoryError) as error:
            if not memory.out_of_memory(error):
                raise
            log.warning("Out of memory while training: %s", error)
            raise TrainError(
                "There is not enough memory to train this.",
                "Set run.gradient_checkpointing, or make schedule.batch or data.resolution "
                "smaller; other programs may use the memory too.",
            ) from error
        except OSError as error:
            if is_disk_full(error):
                raise TrainError(
                    "The disk became full while training.",
                    "Free some space on it, then retry: it goes on from the last save.",
                ) from error
            raise
        finally:
            # What was drawn and trained with is gone from the device before the next drawing.
            gc.collect()
            memory.free_cache(memory.choose_place(0))

    def _train(
        self, task: TrainingTask, report: TrainReport, cancelled: Callable[[], bool]
    ) -> Trained | None:
        from onmodel.train import engine
        from onmodel.train.preflight import preflight
        from onmodel.train.report_text import text

        report("preparing", {"message": "Looking at the pictures"})
        plan = self.checked(plan_file.from_table(task.plan))
        entry = find(plan, task.model_hash)
        plan = dataclasses.replace(plan, base=dataclasses.replace(plan.base, model=path_of(entry)))
        found = preflight(plan, out=task.folder)
        (task.folder / "preflight.txt").write_text(text(found) + "\n", "utf-8")
        if not found.ok:
            first, *more = found.problems
            message = " ".join([first.message, *(p.message for p in more)])
            raise TrainError(message, " ".join(filter(None, [first.fix, *(p.fix for p in more)])))
        kept, refused = len(found.data.pictures), len(found.data.refused)
        message = f"{kept} pictures kept, {refused} refused, {found.steps} steps"
        report("preparing", {"message": message, "masks": masks_sheet(found)})
        del found

        def tell(kind: str, data: dict[str, Any]) -> None:
            if kind == "preparing":
                report(kind, {"message": f"Loading {data['model']} on {data['device']}"})
            elif kind != "done":  # the queue tells of the end, once the file is in its place
                report(kind, data)

        result = engine.train(plan, task.folder, tell, cancelled, resume=True)
        if result.lora is None:
            return None
        record: dict[str, Any] = {"steps": result.steps, "loss": result.loss, "step": result.chosen}
        if result.choice is not None:
            record |= {"choice": result.choice.sentence, "zero_effect": result.choice.zero_effect}
        return Trained(result.lora, record)

    def checked(self, plan: TrainingPlan) -> TrainingPlan:
        """The plan with its folders as they really lie. Raises RootError."""
        return plan_file.with_folders(plan, lambda folder: str(self.roots.folder(folder)))


def find(plan: TrainingPlan, model_hash: str) -> ModelEntry:
    """The plan's base model, of the registry, with the weights it had at submit. ModelError."""
    entry = Registry().find(plan.base.model)
    if entry.hash != model_hash:
        raise ModelError(
            f"The weights of “{plan.base.model}” are no longer those that this training was "
            "submitted for.",
            "Put the old files back, or submit the training again.",
        )
    return entry


def path_of(entry: ModelEntry) -> str:
    """How a plan names the model so that no folder of the same name is taken for it."""
    return entry.name if entry.embedded else str(entry.found.path)


def masks_sheet(report: Report) -> bytes | None:
    """The sheet of pictures and masks as a PNG that the blob store takes."""
    from onmodel.train.report_text import overlay_sheet

    sheet = overlay_sheet(report)
    if sheet is None:
        return None
    sheet.thumbnail((max_side, max_side))
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()

# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks of the queue made ready to draw, and what was drawn made ready for the queue."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onmodel.faces.face_pass import Canvas
from onmodel.faces.keyframe_heads import HeadWatcher, KeyframeHeads
from onmodel.faces.record import HeadScorer
from onmodel.generate import casting, conditioning, pictures, references
from onmodel.generate.casting import Bound
from onmodel.generate.errors import RequestProblem
from onmodel.generate.references import Portraits, Sight
from onmodel.generate.sampler import Settings
from onmodel.jobs.artist import BlobReader, Cancelled, DrawError, Drawn, Report, Task
from onmodel.models.errors import ModelError
from onmodel.models.family import Picture
from onmodel.models.registry import LoraEntry, ModelEntry, Registry


@dataclass(frozen=True)
class Job:
    """A task made ready to draw.

    cast: its characters' LoRAs. loras: all of its LoRAs, as the record has them. sight: how its
    characters are held by their portraits.
    """

    task: Task
    picture: Picture
    cast: list[Bound]
    loras: list[dict[str, Any]]
    sight: Sight
    heads: KeyframeHeads

    def canvas(self, pixels: np.ndarray) -> Canvas:
        """The picture as it was drawn, (H, W, 3) uint8 of canvas size."""
        return self.heads.canvas(self.task.id, self.picture, pixels)

    def finished(self, canvas: Canvas, record: dict[str, Any]) -> Drawn:
        """The keyframe for the queue, cut to the frame. record: of the drawing."""
        request = self.task.request
        left, top, right, bottom = conditioning.crop_box(request["canvas"])
        record = record | {
            "timings": {stage: round(taken, 4) for stage, taken in record["timings"].items()},
            "heads": self.heads.record(canvas),
            "request_key": pictures.request_key(request),
        }
        shown = canvas.pixels[top:bottom, left:right]
        return Drawn(pictures.encode_png(shown, record), record)


def prepare(
    tasks: Sequence[Task],
    blobs: BlobReader,
    registry: Registry,
    entry: ModelEntry,
    portraits: Portraits,
    scorer: HeadScorer,
) -> tuple[list[tuple[LoraEntry, float]], list[Job]]:
    """The LoRAs of the whole picture, which tasks of one batch key share, and the tasks' jobs.

    Raises DrawError for a task that cannot be drawn, ModelError where none of them can.
    """
    find = functools.cache(registry.find_lora)
    whole = casting.whole(tasks[0].request, find)
    casts = [_cast(task, find) for task in tasks]
    adapter = None
    if any(references.wanted(task.request) for task in tasks):
        adapter = references.adapter_of(registry, entry)
    jobs = []
    for task, cast in zip(tasks, casts, strict=True):
        request = task.request
        try:
            sight = portraits.sight(request, blobs, adapter)
            bound = [member.regional for member in cast]
            picture = conditioning.picture(request, blobs, entry, bound, sight.looks)
            heads = KeyframeHeads.of(request, blobs, entry, cast, sight.looks, scorer)
        except (ModelError, RequestProblem) as error:
            raise DrawError(error.message, error.fix, [task.id]) from error
        jobs.append(Job(task, picture, cast, casting.record(whole, cast), sight, heads))
    return whole, jobs


def _cast(task: Task, find: casting.Find) -> list[Bound]:
    try:
        return casting.characters(task.request, find)
    except ModelError as error:
        raise DrawError(error.message, error.fix, [task.id]) from error


class Watcher:
    """Between the sampler, which speaks of rows, and the queue, which speaks of tasks.

    The steps of a keyframe are those of its drawing, then those of its heads.
    """

    def __init__(
        self, jobs: Sequence[Job], settings: Settings, report: Report, cancelled: Cancelled
    ) -> None:
        self._ids = [job.task.id for job in jobs]
        self._more = {job.task.id: job.heads.steps(settings) for job in jobs}
        self._report = report
        self._cancelled = cancelled
        self.heads = HeadWatcher(settings.steps, self._more, report, cancelled)

    def step(self, row: int, step: int, steps: int) -> None:
        """See `sampler.Watcher`."""
        id = self._ids[row]
        self._report(id, "sampling", {"step": step, "steps": steps + self._more[id]})

    def preview(self, row: int, step: int, steps: int, image: np.ndarray) -> None:
        """See `sampler.Watcher`."""
        id = self._ids[row]
        png = pictures.encode_png(image)
        self._report(id, "preview", {"step": step, "steps": steps + self._more[id], "png": png})

    def cancelled(self, row: int) -> bool:
        """See `sampler.Watcher`."""
        return self._cancelled(self._ids[row])

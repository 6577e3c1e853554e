# SPDX-License-Identifier: GPL-3.0-or-later
"""The heads of the keyframes that the artist draws: planned, drawn again, scored, recorded.

The artist (`onmodel.generate.artist`) knows of the face pass what is here. `face_pass.run` draws
the heads, `keyframe.plan_keyframe` says which.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onmodel.faces import face_pass
from onmodel.faces.face_pass import Canvas
from onmodel.faces.keyframe import HeadPlan, plan_keyframe
from onmodel.faces.record import HeadScorer, HeadScores, heads_record
from onmodel.faces.settings import settings_of
from onmodel.generate.casting import Bound
from onmodel.generate.sampler import Settings
from onmodel.jobs.artist import BlobReader, Cancelled, Report
from onmodel.models import memory
from onmodel.models.family import Family, Look, Picture
from onmodel.models.registry import ModelEntry


@dataclass(frozen=True)
class KeyframeHeads:
    """A keyframe's heads, from its request to its record."""

    plan: HeadPlan
    scores: HeadScores

    @classmethod
    def of(
        cls,
        request: dict[str, Any],
        blobs: BlobReader,
        entry: ModelEntry,
        cast: Sequence[Bound],
        looks: Sequence[Look | None],
        scorer: HeadScorer,
    ) -> KeyframeHeads:
        """The heads of a KeyframeRequest. Raises RequestProblem; see `plan_keyframe`."""
        scores = HeadScores(request, blobs, scorer, settings_of(request))
        return cls(plan_keyframe(request, blobs, entry, cast, looks, scores.unfit), scores)

    def steps(self, settings: Settings) -> int:
        """Steps that they take on top of the drawing's."""
        return face_pass.plan_steps(self.plan, settings)

    def canvas(self, id: str, picture: Picture, pixels: np.ndarray) -> Canvas:
        """The drawn keyframe, (H, W, 3) uint8, for `repaired` or straight for `record`."""
        return Canvas(id, picture, self.plan, pixels, self.scores.judge)

    def record(self, canvas: Canvas) -> list[dict[str, Any]]:
        """record["heads"] of the finished keyframe."""
        return heads_record(self.scores, self.plan, canvas.outcomes, canvas.pixels)


@dataclass(frozen=True)
class HeadWatcher:
    """Between the face pass and the queue. The steps of a keyframe are those of its drawing, then
    those of its heads. drawn: of the drawing. heads: of the heads, by the task's id."""

    drawn: int
    heads: Mapping[str, int]
    report: Report
    ask: Cancelled

    def step(self, id: str, done: int) -> None:
        """See `face_pass.Watcher`."""
        steps = self.drawn + self.heads[id]
        self.report(id, "sampling", {"step": self.drawn + done, "steps": steps})

    def cancelled(self, id: str) -> bool:
        """See `face_pass.Watcher`."""
        return self.ask(id)


def repaired(
    family: Family,
    canvases: Sequence[Canvas],
    settings: Settings,
    weights: int,
    watcher: HeadWatcher,
) -> Iterator[tuple[Canvas, float]]:
    """The face pass over a batch of drawn keyframes, at least one.

    Each is yielded when it is through, with the seconds since the pass began. weights: bytes that
    the model takes of the device's memory.
    """
    started = time.perf_counter()
    side = canvases[0].plan.side
    limit = memory.batch_limit(family.place, side * side, weights)
    for canvas in face_pass.run(family, canvases, settings, limit, watcher):
        yield canvas, time.perf_counter() - started

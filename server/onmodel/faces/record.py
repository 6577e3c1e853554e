# SPDX-License-Identifier: GPL-3.0-or-later
"""Heads scored against their characters, repairs judged by that, and the record of both."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from onmodel.faces.face_pass import Choice, Outcome
from onmodel.faces.heads import HeadRegion, hidden
from onmodel.faces.keyframe import HeadPlan
from onmodel.faces.scores import HeadScore
from onmodel.faces.settings import FaceSettings
from onmodel.faces.skull import skull_box
from onmodel.generate.conditioning import crop_box
from onmodel.jobs.artist import BlobReader

Box = tuple[float, float, float, float]
"""left, top, width, height in pixels of a picture."""


class HeadScorer(Protocol):
    """What the pass asks of `onmodel.faces.scores.Scorer`."""

    def references_of(self, character: dict[str, Any], blobs: BlobReader) -> Any:
        """A character's references, or a sentence (str) why there are none."""

    def calibration_of(self, characters: Sequence[dict[str, Any]], blobs: BlobReader) -> Any:
        """The thresholds for a keyframe with these characters, or None."""

    def score(
        self,
        image: np.ndarray,
        box: Box,
        yaw: float | None,
        references: Any,
        calibration: Any = None,
    ) -> HeadScore:
        """The score of a head in a picture (H, W, 3) uint8 RGB."""

    def unfit(self, width: int, height: int, box: Box) -> str | None:
        """Why a head there could not be scored whatever it shows, or None."""


@dataclass
class HeadScores:
    """Scores the heads of one keyframe in its delivered (cropped) picture.

    settings: of the request's face pass. A head that is hidden more than they allow has no score
    either: what is seen of it is mostly something else.
    """

    request: dict[str, Any]
    blobs: BlobReader
    scorer: HeadScorer
    settings: FaceSettings
    _references: dict[int, Any] = field(default_factory=dict)

    @functools.cached_property
    def _calibration(self) -> Any:
        return self.scorer.calibration_of(self.request.get("characters", []), self.blobs)

    def judge(self, head: HeadRegion, before: np.ndarray, after: np.ndarray) -> Choice:
        """Whether a repaired head stays; see `onmodel.faces.face_pass.Judge`.

        A head in which no face is found any more is worse than one with a score. Where the old
        head has no score, there is nothing to compare and the new one stays.
        """
        old = self.of(head.index, before)
        if isinstance(old, str):
            return Choice(reason=f"It was not compared with the head before. {old}")
        new = self.of(head.index, after)
        if isinstance(new, str):
            reason = f"The repaired head has no score: {new}"
            return self._worse(old.value, None, reason)
        assert old.value is not None and new.value is not None
        if new.value < old.value:
            reason = (
                f"The head before is more like the references ({old.value:.3f}) than the repaired "
                f"one ({new.value:.3f})."
            )
            return self._worse(old.value, new.value, reason)
        return Choice(True, old.value, new.value)

    def _worse(self, before: float | None, after: float | None, reason: str) -> Choice:
        if self.settings.keep_if_better:
            return Choice(False, before, after, reason)
        return Choice(True, before, after, f"{reason} It is kept as the settings ask.")

    def unfit(self, index: int) -> str | None:
        """Why a character's head, for its place, could not be scored whatever is drawn there.

        None: it could, or nobody is to score it, for it has no portraits. How far it is turned is
        left to the settings: a profile is worth repairing also where nobody can compare it.
        """
        character = self.request["characters"][index]
        box = self._skull(character)
        if box is None or not character.get("references"):
            return None
        left, top, right, bottom = crop_box(self.request["canvas"])
        return self.scorer.unfit(right - left, bottom - top, box)

    def _skull(self, character: dict[str, Any]) -> Box | None:
        """What the scorer looks at, in the delivered picture: the head's box may hold hair that
        hangs far below it."""
        skull = skull_box(character)
        if skull is None:
            return None
        left, top, _, _ = crop_box(self.request["canvas"])
        return (skull[0] - left, skull[1] - top, skull[2], skull[3])

    def of(self, index: int, pixels: np.ndarray) -> HeadScore | str:
        """The score of a character's head on the canvas (H, W, 3) uint8, or why there is none."""
        character = self.request["characters"][index]
        head = character.get("head")
        if head is None:
            return "Its head is not in the picture."
        if head.get("mask") is None:
            return "Nothing of its head is seen."
        if head["visible"] < self.settings.min_visible:
            return hidden(head["visible"], self.settings.min_visible)
        if index not in self._references:
            self._references[index] = self.scorer.references_of(character, self.blobs)
        references = self._references[index]
        if isinstance(references, str):
            return references
        left, top, right, bottom = crop_box(self.request["canvas"])
        shown = np.ascontiguousarray(pixels[top:bottom, left:right])
        box = self._skull(character)
        assert box is not None
        yaw = float(head["yaw"])
        found = self.scorer.score(shown, box, yaw, references, self._calibration)
        if found.value is None:
            return found.reason or "The head has no score."
        return found


def delivered_box(request: dict[str, Any], index: int) -> Box | None:
    """The box of a character's head in the delivered picture, None without a head."""
    head = request["characters"][index].get("head")
    if head is None:
        return None
    left, top, _, _ = crop_box(request["canvas"])
    box = head["box"]
    return (
        float(box["x"]) - left,
        float(box["y"]) - top,
        float(box["width"]),
        float(box["height"]),
    )


def heads_record(
    scores: HeadScores, plan: HeadPlan, outcomes: Mapping[int, Outcome], pixels: np.ndarray
) -> list[dict[str, Any]]:
    """record["heads"] of a keyframe: an entry per character, in the request's order.

    pixels: (H, W, 3) uint8, the finished canvas. The entries are described in docs/faces.md.
    """
    entries = []
    for index, character in enumerate(scores.request.get("characters", [])):
        head = character.get("head")
        box = delivered_box(scores.request, index)
        found = scores.of(index, pixels)
        entries.append(
            {
                "character": character["name"],
                "box": None if box is None else [round(v, 2) for v in box],
                "yaw": None if head is None else float(head["yaw"]),
                "score": None if isinstance(found, str) else found.as_record(),
                "no_score": found if isinstance(found, str) else None,
                "face": _face(plan, outcomes, index) if plan.settings.enabled else None,
            }
        )
    return entries


def _face(plan: HeadPlan, outcomes: Mapping[int, Outcome], index: int) -> dict[str, Any]:
    """What the pass did with a character's head."""
    draft = next((d for rank in plan.ranks for d in rank if d.index == index), None)
    outcome = outcomes.get(index) or Outcome("skipped", plan.skips.get(index))
    square = None if draft is None else draft.repair.square
    return {
        "state": outcome.state,
        "reason": outcome.reason,
        "denoise": [plan.settings.first, plan.settings.second],
        "loras": [] if draft is None else [list(lora) for lora in draft.named],
        "square": None if square is None else [square.left, square.top, square.side],
        "before": _rounded(outcome.before),
        "after": _rounded(outcome.after),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The face pass: every head of a batch of keyframes drawn again, large, as its own character.

The paper's steps (III-D) for each head: the square around its mask, by Lanczos to the model's size,
the mask too; to latents; a first sampler under the mask; its latents straight into a second one at
low denoise without the mask; one decode; composited by the mask, in the frame's own pixels. The
conditioning maps go along: cut and enlarged, the pose drawn anew. docs/faces.md says where this
differs from the paper.

Heads go far to near, rank by rank (`keyframe.ranked`), each rank's heads of all keyframes in one
batch. The head's character is the only one whose LoRAs act in its square.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from onmodel.faces.crops import enlarge, enlarge_map, enlarge_mask, paste
from onmodel.faces.heads import HeadRegion
from onmodel.faces.keyframe import Draft, HeadPlan
from onmodel.generate.regional_settings import RegionalSettings
from onmodel.generate.sampler import Settings, Start, denoised, steps_of
from onmodel.models import memory
from onmodel.models.family import Family, Picture

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """Whether a repaired head stays. before, after: scores (cosine) or None without one.

    reason: why the old head stays, or why nobody could compare them; None where it was compared.
    """

    keep: bool = True
    before: float | None = None
    after: float | None = None
    reason: str | None = None


Judge = Callable[[HeadRegion, np.ndarray, np.ndarray], Choice]
"""judge(head, before, after): pictures of the canvas (H, W, 3) uint8 with the old and the new
head."""


@dataclass(frozen=True)
class Outcome:
    """What became of a head. state: "repaired", "kept" or "skipped", as in the record."""

    state: str
    reason: str | None = None
    before: float | None = None
    after: float | None = None


@dataclass
class Canvas:
    """A drawn keyframe on its way through the pass.

    picture: what it was drawn by: maps, negative prompt. pixels: (H, W, 3) uint8, replaced, never
    changed in place, as heads come. outcomes: by the character's place in the request. done: steps
    of the heads so far.
    """

    id: str
    picture: Picture
    plan: HeadPlan
    pixels: np.ndarray
    judge: Judge
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    done: int = 0


class Watcher(Protocol):
    """Told of progress, asked for cancels, by the canvas's id."""

    def step(self, id: str, done: int) -> None:
        """So many steps of this canvas's heads are done, of `plan_steps`."""

    def cancelled(self, id: str) -> bool:
        """Whether this canvas is no longer wanted."""


def plan_steps(plan: HeadPlan, settings: Settings) -> int:
    """Steps that the pass takes for a keyframe, all its heads and both samplers."""
    return plan.count * _head_steps(plan, settings)


def _head_steps(plan: HeadPlan, settings: Settings) -> int:
    strengths = [s for s in (plan.settings.first, plan.settings.second) if s > 0]
    return sum(steps_of(settings.steps, strength) for strength in strengths)


def run(
    family: Family,
    canvases: Sequence[Canvas],
    settings: Settings,
    limit: int,
    watcher: Watcher,
) -> Iterator[Canvas]:
    """Repair all heads; yields each canvas when it is through. Cancelled ones are not yielded.

    The canvases have equal face settings and maps of the same kinds and weights, as those of one
    batch key have. settings: of the drawing. limit: the most heads at once. A head for which memory
    does not suffice even alone is left as it is, and its outcome says so.
    """
    # In a square one character's LoRAs act everywhere: that needs no way of binding them.
    settings = replace(settings, regional=RegionalSettings("fast"))
    for rank in range(max((len(c.plan.ranks) for c in canvases), default=0)):
        wanted = [c for c in canvases if not watcher.cancelled(c.id)]
        work = [(c, d) for c in wanted for ds in c.plan.ranks[rank : rank + 1] for d in ds]
        for at in range(0, len(work), limit):
            _repair(family, work[at : at + limit], settings, watcher)
        for c in canvases:
            if rank + 1 == len(c.plan.ranks) and not watcher.cancelled(c.id):
                yield c


def _repair(
    family: Family, work: Sequence[tuple[Canvas, Draft]], settings: Settings, watcher: Watcher
) -> None:
    """Some heads at once; where memory runs out, halves, down to single heads."""
    before = [(c, c.done) for c, _ in work]
    try:
        found = _draw(family, work, settings, watcher)
    except (RuntimeError, MemoryError) as error:
        if not memory.out_of_memory(error):
            raise
        log.warning("Out of memory with %d heads at once: %s", len(work), error)
        memory.free_cache(family.place)
    else:
        for (canvas, draft), pixels in zip(work, found, strict=True):
            if pixels is not None:
                _settle(canvas, draft, pixels)
        return
    # Outside the except clause, which would keep the failed batch's tensors alive.
    for canvas, done in before:
        canvas.done = done
    if len(work) == 1:
        canvas, draft = work[0]
        reason = (
            f"There is not enough memory on {family.place.title} to draw it at "
            f"{canvas.plan.side} pixels; choose a smaller size for the face pass."
        )
        canvas.outcomes[draft.index] = Outcome("skipped", reason)
        return
    half = len(work) // 2
    for part in (work[:half], work[half:]):
        _repair(family, part, settings, watcher)


def _settle(canvas: Canvas, draft: Draft, pixels: np.ndarray) -> None:
    """Put a repaired head into its canvas, unless it is worse than the old one."""
    repair = draft.repair
    after = paste(canvas.pixels, pixels, repair.square, repair.alpha)
    choice = canvas.judge(repair.head, canvas.pixels, after)
    if choice.keep:
        canvas.pixels = after
    state = "repaired" if choice.keep else "kept"
    canvas.outcomes[draft.index] = Outcome(state, choice.reason, choice.before, choice.after)


def _draw(
    family: Family, work: Sequence[tuple[Canvas, Draft]], settings: Settings, watcher: Watcher
) -> list[np.ndarray | None]:
    """The heads drawn again, (side, side, 3) uint8 each; None for those of cancelled canvases."""
    side = work[0][0].plan.side
    face = work[0][0].plan.settings
    squares = [draft.repair.square for _, draft in work]
    pixels = np.stack([enlarge(c.pixels, q, side) for (c, _), q in zip(work, squares, strict=True)])
    masks = np.stack([enlarge_mask(d.repair.head.mask, d.repair.square, side) for _, d in work])
    pictures = [head_picture(c.picture, d, side) for c, d in work]
    rows = list(range(len(work)))
    start = Start(family.encode(pixels), face.first, family.cells(masks))
    rows, latents = denoised(family, pictures, settings, _Rows(work, rows, watcher), start)
    if face.second > 0 and rows:
        again = [replace(pictures[row], seed=work[row][1].seeds[1]) for row in rows]
        start = Start(latents, face.second)
        left, latents = denoised(family, again, settings, _Rows(work, rows, watcher), start)
        rows = [rows[place] for place in left]
    found: list[np.ndarray | None] = [None] * len(work)
    for place, row in enumerate(rows):
        found[row] = family.decode(latents[place : place + 1])[0]
    return found


def head_picture(whole: Picture, draft: Draft, side: int) -> Picture:
    """What the square of a head is drawn by: its own prompt, LoRAs, portraits, part of the maps."""
    square = draft.repair.square
    maps = []
    for m in whole.maps:
        image = draft.pose if m.kind == "pose" else None
        maps.append(
            replace(m, image=enlarge_map(m.image, square, side) if image is None else image)
        )
    return Picture(
        prompt=draft.prompt,
        negative=whole.negative,
        width=side,
        height=side,
        seed=draft.seeds[0],
        maps=maps,
        loras=draft.loras,
        look=draft.look,
    )


class _Rows:
    """Between the sampler, which speaks of rows, and the watcher, which speaks of canvases.

    rows: the places in `work` of the sampler's rows.
    """

    def __init__(
        self, work: Sequence[tuple[Canvas, Draft]], rows: Sequence[int], watcher: Watcher
    ) -> None:
        self._canvases = [work[row][0] for row in rows]
        self._watcher = watcher

    def step(self, row: int, step: int, steps: int) -> None:
        """One more step of the canvas; it may have other heads in the batch."""
        canvas = self._canvases[row]
        canvas.done += 1
        self._watcher.step(canvas.id, canvas.done)

    def preview(self, row: int, step: int, steps: int, image: np.ndarray) -> None:
        """A head's square is no preview of its keyframe."""

    def cancelled(self, row: int) -> bool:
        """Whether its canvas is."""
        return self._watcher.cancelled(self._canvases[row].id)

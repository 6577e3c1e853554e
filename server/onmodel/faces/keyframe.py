# SPDX-License-Identifier: GPL-3.0-or-later
"""A keyframe's heads, worked out of its request before anything is drawn. Without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onmodel.faces import pose_map
from onmodel.faces.heads import Repair, head_regions, plan_repairs
from onmodel.faces.prompts import head_prompt
from onmodel.faces.settings import FaceSettings, settings_of, work_side
from onmodel.generate.casting import Bound
from onmodel.generate.conditioning import decode
from onmodel.jobs.artist import BlobReader
from onmodel.models.family import Look
from onmodel.models.registry import ModelEntry


@dataclass(frozen=True)
class Draft:
    """A head to draw again, with all that is its character's own.

    loras: (adapter, weight) that act in its square, on top of the whole picture's. named: the
    character's LoRAs with the weights that the request gives, for the record. seeds: of the first
    and of the second sampler. pose: the square's pose map (side, side, 3) uint8, drawn of the
    joints; None: it is cut out of the keyframe's. look: portraits that hold it.
    """

    repair: Repair
    prompt: str
    loras: tuple[tuple[str, float], ...]
    named: tuple[tuple[str, float], ...]
    seeds: tuple[int, int]
    pose: np.ndarray | None = None
    look: Look | None = None

    @property
    def index(self) -> int:
        """The character's place in the request."""
        return self.repair.head.index


@dataclass(frozen=True)
class HeadPlan:
    """What the face pass does with a keyframe.

    side: pixels of the enlarged squares. ranks: heads that may be drawn at once, rank after rank.
    skips: the reason for each character whose head is left as it is.
    """

    settings: FaceSettings
    side: int
    ranks: tuple[tuple[Draft, ...], ...] = ()
    skips: dict[int, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many heads are drawn again."""
        return sum(len(rank) for rank in self.ranks)


def plan_keyframe(
    request: dict[str, Any],
    blobs: BlobReader,
    entry: ModelEntry,
    cast: Sequence[Bound],
    looks: Sequence[Look | None] = (),
    unfit: Callable[[int], str | None] = lambda index: None,
) -> HeadPlan:
    """The plan of a KeyframeRequest. cast: its characters' LoRAs, in its order. looks: the
    portraits that hold them; none given: nobody is held. unfit: by a character's place, why its
    head could not be scored (`HeadScores.unfit`): such a repair could not be compared.

    Raises RequestProblem for head masks that are no masks, or a size that cannot be drawn.
    """
    settings = settings_of(request)
    side = work_side(settings.size, entry)
    if not settings.enabled:
        return HeadPlan(settings, side)
    width, height = int(request["canvas"]["width"]), int(request["canvas"]["height"])

    def read_mask(sha256: str, name: str) -> np.ndarray:
        what = f"the head mask of “{name}”"
        shown: np.ndarray = decode(blobs.read(sha256), width, height, what, "L") >= 128
        return shown

    heads, absent = head_regions(request, read_mask)
    skips = {skip.index: skip.reason for skip in absent}
    wanted, left = plan_repairs(heads, settings.rules(side))
    skips |= {skip.index: skip.reason for skip in left}
    repairs = []
    for repair in wanted:
        if (reason := unfit(repair.head.index)) is None:
            repairs.append(repair)
        else:
            skips[repair.head.index] = f"It could not be scored afterwards: {reason}"
    posed = any(m["kind"] == "pose" for m in request.get("maps", []))
    drafts = [
        Draft(
            repair,
            head_prompt(request["characters"][repair.head.index], request["prompt"]),
            cast[repair.head.index].regional,
            tuple((e.name, w) for e, w in cast[repair.head.index].loras if w),
            head_seeds(int(request["seed"]), repair.head.index),
            pose_map.draw(request["characters"], repair.square, side) if posed else None,
            looks[repair.head.index] if looks else None,
        )
        for repair in repairs
    ]
    return HeadPlan(settings, side, ranked(drafts), skips)


def head_seeds(seed: int, index: int) -> tuple[int, int]:
    """Seeds of a head's two samplers, 0..2**63-1, by the keyframe's seed and the character's place
    in the request alone: the same in every batch."""
    digest = hashlib.sha256(f"head {index} of {seed}".encode()).digest()
    first, second = (int.from_bytes(digest[i : i + 8], "big") >> 1 for i in (0, 8))
    return first, second


def ranked(drafts: Sequence[Draft]) -> tuple[tuple[Draft, ...], ...]:
    """Heads in ranks that may each be drawn at once. drafts: far ones first.

    A head comes after every farther one that its square sees a part of, so that it is drawn beside
    the repaired one; heads that do not see each other go together.
    """
    ranks: list[list[Draft]] = []
    for draft in drafts:
        view = draft.repair.square.rows_columns
        last = -1
        for number, rank in enumerate(ranks):
            if any(bool((other.repair.alpha[view] > 0).any()) for other in rank):
                last = number
        if last + 1 == len(ranks):
            ranks.append([])
        ranks[last + 1].append(draft)
    return tuple(tuple(rank) for rank in ranks)

# SPDX-License-Identifier: GPL-3.0-or-later
"""One keyframe's way from waiting to placed, and how far all of them are. No bpy."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.request import KeyframeRequest
from ..core.scores import lowest, read_heads


class ItemState(enum.Enum):
    """Where a keyframe is. done: drawn and on disk now; kept: it was there already.

    changed: a check found that it is not drawn as it is now.
    """

    waiting = "waiting"
    capturing = "capturing"
    sending = "sending"
    queued = "queued"
    drawing = "drawing"
    done = "done"
    kept = "kept"
    changed = "changed"
    failed = "failed"
    cancelled = "cancelled"


final_states = (
    ItemState.done,
    ItemState.kept,
    ItemState.changed,
    ItemState.failed,
    ItemState.cancelled,
)

_reached = {
    ItemState.waiting: 0.0,
    ItemState.capturing: 0.05,
    ItemState.sending: 0.25,
    ItemState.queued: 0.3,
    ItemState.drawing: 0.3,
}
"""The share of a keyframe's way behind it in each state; drawing goes on from there to 1."""


@dataclass
class Item:
    """One take of one keyframe. path: where its PNG goes. progress: of the drawing, 0..1.

    former: the file that the scene shows for it, which lies elsewhere when the shot was renamed.
    timings: seconds by stage, see RenderSession. heads: the record of the drawn heads, see
    core.scores.
    """

    number: int
    shot: str
    frame: int
    take: int
    path: Path
    former: Path | None = None
    state: ItemState = ItemState.waiting
    progress: float = 0.0
    message: str = ""
    fix: str = ""
    request: KeyframeRequest | None = None
    timings: dict[str, float] = field(default_factory=dict)
    server_timings: dict[str, Any] = field(default_factory=dict)
    preview: bytes | None = None
    heads: list[dict[str, Any]] = field(default_factory=list)

    @property
    def score(self) -> float | None:
        """The lowest score of its heads; None where none has one, or it is not drawn."""
        return lowest(read_heads(self.heads))

    @property
    def share(self) -> float:
        """How much of its way is behind it, 0..1."""
        if self.state in final_states:
            return 1.0
        start = _reached[self.state]
        return start + (1.0 - start) * min(max(self.progress, 0.0), 0.98)

    def to_data(self) -> dict[str, Any]:
        """For the run's record and --json."""
        return {
            "shot": self.shot,
            "frame": self.frame,
            "take": self.take,
            "file": str(self.path),
            "state": self.state.value,
            "message": self.message,
            "fix": self.fix,
            "request_key": self.request.key() if self.request else None,
            "timings": {k: round(v, 4) for k, v in self.timings.items()},
            "server_timings": self.server_timings,
            "score": self.score,
        }


@dataclass(frozen=True)
class ShotStatus:
    """How a shot stands: how many of its keyframes are through, and the worst of what happened."""

    shot: str
    state: ItemState
    through: int
    total: int
    share: float
    message: str = ""
    fix: str = ""


_order = (
    ItemState.capturing,
    ItemState.drawing,
    ItemState.sending,
    ItemState.queued,
    ItemState.waiting,
    ItemState.failed,
    ItemState.cancelled,
    ItemState.changed,
    ItemState.done,
    ItemState.kept,
)
"""A shot is in the first of these states that any of its keyframes is in."""


def shot_statuses(items: Sequence[Item]) -> list[ShotStatus]:
    """The status of each shot, in order."""
    by_shot: dict[str, list[Item]] = {}
    for item in items:
        by_shot.setdefault(item.shot, []).append(item)
    found = []
    for shot, own in by_shot.items():
        state = next(s for s in _order if any(i.state is s for i in own))
        worst = next((i for i in own if i.state is ItemState.failed), None)
        found.append(
            ShotStatus(
                shot,
                state,
                sum(i.state in final_states for i in own),
                len(own),
                overall(own),
                worst.message if worst else "",
                worst.fix if worst else "",
            )
        )
    return found


def overall(items: Sequence[Item]) -> float:
    """How much of the way of all of them is behind, 0..1."""
    return sum(i.share for i in items) / len(items) if items else 1.0

# SPDX-License-Identifier: GPL-3.0-or-later
"""The rule of retakes over the keyframes of one session. No bpy.

What is on disk counts like what was drawn just now: a take that is there already is an item that
is `kept`, with the heads of its sidecar. So a run after a stop goes on where the last one ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..core.retakes import Judged, RetakeRule, best_score, best_take, judge, next_take
from ..core.scores import read_heads
from .items import Item, ItemState, final_states

_drawn = (ItemState.done, ItemState.kept)


class Retakes:
    """Decides which keyframes are drawn again. rule: None for no retakes."""

    def __init__(self, rule: RetakeRule | None) -> None:
        self.rule = rule
        self._ordered: set[int] = set()
        self._looked_at = -1

    def due(self, items: Sequence[Item], pinned: Callable[[Item], bool]) -> list[tuple[Item, int]]:
        """The keyframes to be drawn again now, each by one of its items, with the take's number.

        pinned: whether the artist has picked a take of the item's keyframe, which is then left
        alone. Each is named once; the caller adds the new takes to the items.
        """
        through = sum(i.state in final_states for i in items)
        if self.rule is None or through == self._looked_at:
            return []
        self._looked_at = through
        found = []
        for own in _keyframes(items):
            if any(i.state not in _drawn for i in own):
                continue
            take = next_take(self.rule, _judged(own))
            if take is not None and not pinned(own[0]):
                found.append((own[0], take))
                self._ordered.add(len(items) + len(found) - 1)
        return found

    def drawn(self, items: Sequence[Item]) -> int:
        """How many retakes this session has drawn."""
        return sum(items[n].state is ItemState.done for n in self._ordered)

    def notes(self, items: Sequence[Item]) -> list[str]:
        """What came of it, in at most one sentence."""
        if self.rule is None:
            return []
        judged = [own for own in map(_judged, _keyframes(items)) if own]
        if not judged:
            return []
        scores = [best for best in map(best_score, judged) if best is not None]
        if not scores:
            return [
                "No drawing has a score, so none was drawn again: give the characters portraits to"
                " be compared with (Cast > Portraits)."
            ]
        under = sum(s < self.rule.score for s in scores)
        words = f"{_counted(self.drawn(items), 'retake')} drawn; "
        if under:
            words += f"{_counted(under, 'keyframe')} stay{'s' * (under == 1)} under"
        else:
            words += f"{_counted(len(scores), 'keyframe')} reach{'es' * (len(scores) == 1)}"
        return [f"{words} a score of {self.rule.score:.2f}."]

    def to_data(self, items: Sequence[Item]) -> dict[str, Any] | None:
        """For the run's record and --json: the rule, the draws, each keyframe's best take."""
        if self.rule is None:
            return None
        return {
            "until": self.rule.score,
            "at_most": self.rule.most,
            "draws": self.drawn(items),
            "keyframes": [
                {
                    "shot": own[0].shot,
                    "frame": own[0].frame,
                    "takes": [i.take for i in own if i.state in _drawn],
                    "best_take": best_take(_judged(own)),
                    "score": best_score(_judged(own)),
                }
                for own in _keyframes(items)
            ],
        }


def _keyframes(items: Iterable[Item]) -> list[list[Item]]:
    """The items by keyframe."""
    found: dict[tuple[str, int], list[Item]] = {}
    for item in items:
        found.setdefault((item.shot, item.frame), []).append(item)
    return list(found.values())


def _judged(own: Iterable[Item]) -> list[Judged]:
    return [judge(i.take, read_heads(i.heads)) for i in own if i.state in _drawn]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

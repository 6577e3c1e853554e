# SPDX-License-Identifier: GPL-3.0-or-later
"""Retake until the score is good enough: when to draw another take, and which one to show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .scores import HeadScore, least

default_score = 0.45
default_takes = 4


@dataclass(frozen=True)
class RetakeRule:
    """Draw further takes of a keyframe until one's score is at least `score`.

    score: cosine, -1..1, of the character of the drawing that is least itself. most: takes of a
    keyframe in all, the first ones included, counted with those that are on disk.
    """

    score: float = default_score
    most: int = default_takes


never = RetakeRule(most=0)
"""No retakes, whatever the film says."""


@dataclass(frozen=True)
class Judged:
    """A drawn take with the lowest score of its heads; None where no head has one.

    embedder: what the score is by.
    """

    take: int
    score: float | None
    embedder: str = ""


def judge(take: int, heads: Iterable[HeadScore]) -> Judged:
    """A take by its heads."""
    found = least(heads)
    return Judged(take, found[0], found[1].embedder) if found else Judged(take, None)


def _comparable(takes: Iterable[Judged]) -> list[tuple[float, Judged]]:
    """The takes with a score by the embedder that scored the latest of them, with the scores.

    Numbers of two embedders are not to be compared; an older one is what was used before.
    """
    scored = [(t.score, t) for t in takes if t.score is not None]
    if not scored:
        return []
    embedder = max(scored, key=lambda pair: pair[1].take)[1].embedder
    return [(score, t) for score, t in scored if t.embedder == embedder]


def next_take(rule: RetakeRule, takes: Sequence[Judged]) -> int | None:
    """The number of the take to draw now, None where it is enough.

    Enough are: a take that reaches the score, as many takes as the rule allows, and takes of which
    none has a score, for another one would have none either.
    """
    scores = [score for score, _ in _comparable(takes)]
    if not scores or max(scores) >= rule.score or len(takes) >= rule.most:
        return None
    return max(t.take for t in takes) + 1


def best_take(takes: Iterable[Judged]) -> int | None:
    """The take with the highest score, of equal ones the earliest; None where none has a score."""
    scored = [(score, -t.take) for score, t in _comparable(takes)]
    return -max(scored)[1] if scored else None


def best_score(takes: Iterable[Judged]) -> float | None:
    """The highest score, None where there is none."""
    return max((score for score, _ in _comparable(takes)), default=None)


_of_the_take = ("take", "seed", "film", "shot")
"""What of a request may differ between takes of one keyframe. Names change no drawing."""


def same_but_for_take(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two requests (plain data) are takes of one and the same keyframe."""
    return {k: v for k, v in one.items() if k not in _of_the_take} == {
        k: v for k, v in other.items() if k not in _of_the_take
    }

# SPDX-License-Identifier: GPL-3.0-or-later
"""Retake until the score is good enough: when to draw another take, and which one to show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """A drawn take with the lowest score of its heads; None where no head has one."""

    take: int
    score: float | None


def next_take(rule: RetakeRule, takes: Sequence[Judged]) -> int | None:
    """The number of the take to draw now, None where it is enough.

    Enough are: a take that reaches the score, as many takes as the rule allows, and takes of which
    none has a score, for another one would have none either.
    """
    scores = [t.score for t in takes if t.score is not None]
    if not scores or max(scores) >= rule.score or len(takes) >= rule.most:
        return None
    return max(t.take for t in takes) + 1


def best_take(takes: Iterable[Judged]) -> int | None:
    """The take with the highest score, of equal ones the earliest; None where none has a score."""
    scored = [(t.score, -t.take) for t in takes if t.score is not None]
    return -max(scored)[1] if scored else None


_of_the_take = ("take", "seed", "film", "shot")
"""What of a request may differ between takes of one keyframe. Names change no drawing."""


def same_but_for_take(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two requests (plain data) are takes of one and the same keyframe."""
    return {k: v for k, v in one.items() if k not in _of_the_take} == {
        k: v for k, v in other.items() if k not in _of_the_take
    }

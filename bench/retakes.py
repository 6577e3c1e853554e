# SPDX-License-Identifier: GPL-3.0-or-later
"""What retakes do for the sample film's worst frames, and how many drawings they cost.

Every keyframe of the sample is drawn as the add-on would send it (its two people by their LoRAs,
with the face pass), then again by the add-on's own rule (`addon.core.retakes`, its default score
and most takes) until it says enough; of each keyframe the best take is shown. For each character
its worst frame counts, and of these the mean over the cast: before, with the first takes alone, and
after. ONMODEL_CAST_KEYFRAMES: only so many keyframes, spread over the film.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from addon.core import retakes
from addon.core.request import KeyframeRequest, from_data
from addon.core.retakes import Judged, RetakeRule
from addon.core.scores import CharacterRow, Frame, lowest, read_heads, table
from addon.core.shots import seed_for
from bench import cast_film
from bench.cast_drawing import Draughtsman, Drawing, draughtsman
from bench.harness import Figure

name = "retakes: worst frame, mean over the cast, gain"


def run() -> list[Figure]:
    """All figures of the sample film."""
    rows, blobs = cast_film.read()
    wanted = int(os.environ.get("ONMODEL_CAST_KEYFRAMES") or len(rows))
    rows = [rows[int(place)] for place in np.linspace(0, len(rows) - 1, wanted).round()]
    requests = [from_data(KeyframeRequest, row["request"]) for row in rows]
    seeds = [int(row["shot_seed"]) for row in rows]
    with draughtsman([]) as hand:
        hand.blobs.data |= blobs.data
        takes = drawn_by_rule(hand, requests, seeds, RetakeRule())
    return report(requests, takes)


def drawn_by_rule(
    hand: Draughtsman,
    requests: Sequence[KeyframeRequest],
    seeds: Sequence[int],
    rule: RetakeRule,
) -> list[dict[int, Drawing]]:
    """Each keyframe's takes by number. requests: their first takes. seeds: the shots'."""
    takes = [{1: drawing} for drawing in hand.draw(requests)]
    while True:
        due = []
        for place, own in enumerate(takes):
            number = retakes.next_take(rule, judged(own))
            if number is not None:
                seed = seed_for(seeds[place], requests[place].frame, number)
                due.append((place, replace(requests[place], take=number, seed=seed)))
        if not due:
            return takes
        drawn = hand.draw([request for _, request in due])
        for (place, request), drawing in zip(due, drawn, strict=True):
            takes[place][request.take] = drawing


def judged(takes: dict[int, Drawing]) -> list[Judged]:
    """Takes with their lowest scores, as the add-on reads them."""
    return [Judged(n, lowest(read_heads(one.heads))) for n, one in sorted(takes.items())]


def film(
    requests: Sequence[KeyframeRequest],
    takes: Sequence[dict[int, Drawing]],
    shown: Sequence[int],
) -> list[CharacterRow]:
    """The add-on's table of the film that shows these takes."""
    frames = [
        Frame(request.shot, request.frame, take, read_heads(own[take].heads))
        for request, own, take in zip(requests, takes, shown, strict=True)
    ]
    return table(frames)


def worst(rows: Sequence[CharacterRow]) -> float | None:
    """The mean over characters of their worst frames' scores; None where nobody has one."""
    found = [row.lowest for row in rows if row.lowest is not None]
    return sum(found) / len(found) if found else None


def report(
    requests: Sequence[KeyframeRequest], takes: Sequence[dict[int, Drawing]]
) -> list[Figure]:
    """The figures of a film that was drawn by the rule."""
    best = [retakes.best_take(judged(own)) or 1 for own in takes]
    first, after = (film(requests, takes, shown) for shown in ([1] * len(takes), best))
    low, high = worst(first), worst(after)
    if low is None or high is None:
        return [Figure(name, None, "cosine", 0.0, ">", "no head of the film has a score")]
    extra = sum(len(own) - 1 for own in takes)
    rule = RetakeRule()
    note = f"{_words(first)} to {_words(after)}"
    drawn = f"{len(takes)} keyframes, until {rule.score:.2f}, at most {rule.most} takes of one"
    return [
        Figure(name, high - low, "cosine", 0.0, ">", note),
        Figure("retakes: worst frame, first takes", low, "cosine"),
        Figure("retakes: worst frame, best takes", high, "cosine"),
        Figure(
            "retakes: drawings beyond the first takes",
            float(extra),
            note=f"{drawn}; {_reached(takes, rule)} reach it",
        ),
    ]


def _words(rows: Sequence[CharacterRow]) -> str:
    return ", ".join(
        f"{row.character} {row.lowest:.3f} (mean {row.mean:.3f})"
        for row in rows
        if row.lowest is not None and row.mean is not None
    )


def _reached(takes: Sequence[dict[int, Any]], rule: RetakeRule) -> int:
    best = [max((j.score for j in judged(own) if j.score is not None), default=-1) for own in takes]
    return sum(score >= rule.score for score in best)

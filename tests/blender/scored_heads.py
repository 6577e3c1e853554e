# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of heads, as a server would give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def head(name: str, value: float | None, box: list[float] | None = None) -> dict[str, Any]:
    """An entry of "heads": the score of a character, or none."""
    verdict = None if value is None else "same" if value >= 0.5 else "other"
    score = {"value": value, "probability": 0.5, "verdict": verdict, "embedder": "rehearsal"}
    face = {"state": "repaired", "reason": None, "denoise": [0.6, 0.4], "loras": []}
    return {
        "character": name,
        "box": box or [10, 20, 60, 40],
        "yaw": 12.0,
        "score": None if value is None else score,
        "no_score": "It has no portraits." if value is None else None,
        "face": None if value is None else {**face, "square": None, "before": 0.1, "after": value},
    }


def by_take(
    scores: Mapping[tuple[int, int], tuple[float | None, ...]],
    otherwise: tuple[float | None, ...] = (0.9, 0.9),
) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """What a server answers whose drawings have these scores, by (frame, take), in cast order."""

    def heads(request: dict[str, Any]) -> list[dict[str, Any]]:
        values = scores.get((request["frame"], request["take"]), otherwise)
        names = [c["name"] for c in request["characters"]]
        return [head(name, value) for name, value in zip(names, values, strict=False)]

    return heads

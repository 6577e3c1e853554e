# SPDX-License-Identifier: GPL-3.0-or-later
"""What a request says of its face pass, and whether the model can do it. Without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from onmodel.faces.heads import FaceRules
from onmodel.generate.errors import RequestProblem
from onmodel.models.registry import ModelEntry

least_side = 64


@dataclass(frozen=True)
class FaceSettings:
    """FacePass of addon/core/request.py, with its units and defaults; see docs/faces.md."""

    enabled: bool = True
    first: float = 0.8
    second: float = 0.4
    size: int | None = None
    min_height: float = 24.0
    min_visible: float = 0.25
    max_yaw: float = 100.0
    feather: float = 0.04
    keep_if_better: bool = True

    def rules(self, side: int) -> FaceRules:
        """Which heads are repaired, where squares are drawn `side` pixels wide."""
        return FaceRules(
            max_yaw=self.max_yaw,
            min_height=self.min_height,
            min_visible=self.min_visible,
            feather=self.feather,
            size=side,
        )


def settings_of(request: dict[str, Any]) -> FaceSettings:
    """Those of a KeyframeRequest. One queued by an older server names none: it has no face pass."""
    told = request.get("face_pass")
    if told is None:
        return FaceSettings(enabled=False)
    known = {f.name for f in fields(FaceSettings)}
    return FaceSettings(**{name: value for name, value in told.items() if name in known})


def work_side(size: int | None, entry: ModelEntry) -> int:
    """Pixels of the square that a head is drawn in.

    None: the square of about as many pixels as the model was trained on (1024 for SDXL), in the
    model's steps. Raises RequestProblem for a size that the model cannot draw.
    """
    step = entry.multiple
    if size is None:
        return max(step, round(math.sqrt(entry.native_pixels) / step) * step)
    title = f"The face pass cannot draw squares of {size} pixels with “{entry.name}”"
    if size % step:
        low = max(step, size // step * step)
        raise RequestProblem(
            f"{title}, which draws in steps of {step}.",
            f"Choose {low} or {low + step}, or the model's own size.",
        )
    if size < max(least_side, step) or size * size > 4 * entry.native_pixels:
        own = work_side(None, entry)
        raise RequestProblem(
            f"{title}: it was made for about {own}.",
            f"Choose a size nearer to {own}, or the model's own size.",
        )
    return size

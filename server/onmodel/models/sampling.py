# SPDX-License-Identifier: GPL-3.0-or-later
"""How a model denoises where a request leaves it to the model. Plain data, without torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onmodel.models import schedulers

if TYPE_CHECKING:
    from onmodel.models.registry import ModelEntry


@dataclass(frozen=True)
class Usual:
    """What a scheduler preset means for a model where a request says no more.

    method: equal where all else is that the model's own files say of its drawings beside its
    weights: its scheduler's configuration, its true_guidance and guided_loras, the
    sizes that it is made for.
    """

    steps: int
    guidance: float
    method: str


def usual(entry: ModelEntry, name: str) -> Usual:
    """The usual settings of a preset, which goes by its own name: "default" is the one without a
    change. Raises ModelError for a preset that does not fit the model."""
    preset = schedulers.get(name, entry.found.scheduler)
    facts = {
        "scheduler": preset.scheduler,
        "overrides": dict(preset.overrides),
        "config": entry.found.scheduler,
        "true_guidance": entry.true_guidance,
        "guided_loras": entry.guided_loras,
        "native_pixels": entry.native_pixels,
        "multiple": entry.multiple,
    }
    return Usual(
        preset.steps or entry.steps,
        entry.guidance if preset.guidance is None else preset.guidance,
        hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16],
    )

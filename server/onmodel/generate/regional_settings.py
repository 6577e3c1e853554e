# SPDX-License-Identifier: GPL-3.0-or-later
"""How characters' LoRAs are bound to their regions: the server's choice. Without torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from onmodel.models.errors import ModelError

ways = ("fast", "pass", "batch")
environment = "ONMODEL_REGIONS"


@dataclass(frozen=True)
class RegionalSettings:
    """How a batch's regional LoRAs are drawn.

    way: "fast": one pass; every adapter's delta is multiplied, token by token, by its character's
        share of the token. "pass": a pass per set of LoRAs, each acting on the whole picture, the
        model's outputs blended by the masks at latent resolution. "batch": the same in one batch
        that holds a picture once per set. The last two are the reference: exact at every step,
        and as many times as dear.
    soft: a token at the edge gets the part of the delta that the character covers of it; else all
        of it from half on, and nothing below.
    feather: edges blurred by a Gaussian of this sigma, in latent cells, first.
    grown: from and to which part of the steps, 0..1, masks are grown by one token into what no
        character covers. Equal numbers: never.
    own_keys: a character's tokens see keys and values of the shot's and the negative prompt that
        were made with its LoRAs too ("fast" only; the text keys are doubled for that). Else its
        LoRAs touch the keys of its own prompt alone.
    """

    way: str = "fast"
    soft: bool = True
    feather: float = 0.0
    grown: tuple[float, float] = (0.0, 0.0)
    own_keys: bool = True

    def __post_init__(self) -> None:
        if self.way not in ways:
            raise ModelError(
                f"“{self.way}” is no way to draw regional LoRAs.",
                f"Choose one of {', '.join(ways)} ({environment} of the server's environment).",
            )
        start, end = self.grown
        if self.feather < 0 or not 0 <= start <= end <= 1:
            raise ValueError("feather must not be negative; grown must be two parts of 0..1.")

    def grown_at(self, progress: float) -> bool:
        """Whether masks are grown at this part of the steps, 0..1."""
        return self.grown[0] <= progress < self.grown[1]


standard = RegionalSettings()


def from_environment() -> RegionalSettings:
    """The way that ONMODEL_REGIONS names, else the default. Raises ModelError for another word."""
    return RegionalSettings(os.environ.get(environment, "").strip() or standard.way)

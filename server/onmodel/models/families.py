# SPDX-License-Identifier: GPL-3.0-or-later
"""The families that can draw: the one door from a registry entry to a loaded model."""

from __future__ import annotations

from onmodel.models import libraries
from onmodel.models.errors import ModelError
from onmodel.models.family import Family
from onmodel.models.memory import Place
from onmodel.models.registry import ModelEntry


def load(entry: ModelEntry, place: Place) -> Family:
    """Load a model onto a device. Raises ModelError."""
    libraries.prepare()
    if entry.family == "sdxl":
        from onmodel.models.sdxl import SDXL

        return SDXL.load(entry, place)
    if entry.family == "flux":
        from onmodel.models.flux import Flux

        return Flux.load(entry, place)
    raise ModelError(
        f"“{entry.name}” is a {entry.family} model, which Onmodel cannot draw with.",
        "Choose an SDXL or a Flux model.",
    )

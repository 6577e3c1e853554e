# SPDX-License-Identifier: GPL-3.0-or-later
"""A batch of pictures with regions, as far as SDXL and Flux have it in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Generic, Protocol, Self, TypeVar

import torch

from onmodel.generate.regional_loras import Fields, Plan, RegionalLayers
from onmodel.generate.regional_settings import RegionalSettings
from onmodel.generate.regional_ways import Blend
from onmodel.models.family import Prepared


class PictureControl(Protocol):
    """One map of each picture."""

    def of(self, rows: torch.Tensor) -> Self:
        """The same map of these pictures alone. rows: (n,) integers."""


PictureT = TypeVar("PictureT")
ControlT = TypeVar("ControlT", bound=PictureControl)


class RegionalBatch(Prepared, Generic[PictureT, ControlT]):
    """Pictures made ready, regions and LoRAs' places with them.

    pictures: prompts and cast of each. shares: (B, R, h, w), the part of each latent cell that a
    region covers. controls: their maps. size: of what the family counts in. regional: its layers
    with regional LoRAs; settings: how these are bound. blend: where they act in passes that are
    blended. A subclass's `__init__` ends with `_assemble`.
    """

    blend: Blend | None
    _plan: Plan | None

    def __init__(
        self,
        pictures: list[PictureT],
        shares: torch.Tensor,
        controls: list[ControlT],
        size: tuple[int, int],
        settings: RegionalSettings,
        regional: RegionalLayers,
    ) -> None:
        self.pictures = pictures
        self.shares = shares
        self.controls = controls
        self.size = size
        self.settings = settings
        self.regional = regional

    @abstractmethod
    def _assemble(self) -> None:
        """Make the tensors that the modules take of the pictures that are left."""

    def keep(self, rows: Sequence[int]) -> None:
        index = torch.tensor(list(rows), device=self.shares.device)
        self.pictures = [self.pictures[row] for row in rows]
        self.shares = self.shares[index]
        self.controls = [control.of(index) for control in self.controls]
        self._assemble()

    def plan(self, progress: float) -> Plan | None:
        """What the regional LoRAs do at this part of the steps, where nothing is blended."""
        if isinstance(self._plan, Fields):
            self._plan.grown = self.settings.grown_at(progress)
        return self._plan

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engine asks of a family of models that LoRAs can be trained for.

A family owns the modules and knows its loss. The engine owns the loop, optimizer, caches, saving.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from onmodel.models import safe
from onmodel.models.memory import Place
from onmodel.models.registry import ModelEntry
from onmodel.train import accelerating
from onmodel.train.plan import PlanError, TrainingPlan

Text = dict[str, torch.Tensor]
"""A caption as the model takes it: named tensors without a batch axis."""


@dataclass(frozen=True)
class Sample:
    """One picture, encoded. latents: (C, h, w) float32; mask: (1, h, w) weights of the loss;
    maps: features of its maps by kind (C', h, w), as `TrainedFamily.encode_map` gives them."""

    latents: torch.Tensor
    mask: torch.Tensor | None
    maps: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Pictures of one size, on the device.

    latents: (B, C, h, w) float32. masks: (B, 1, h, w) or None where nothing is masked.
    maps: each picture's. text: named tensors (B, …). size: width, height in pixels.
    """

    latents: torch.Tensor
    masks: torch.Tensor | None
    maps: Sequence[dict[str, torch.Tensor]]
    text: Text
    size: tuple[int, int]


@dataclass(frozen=True)
class Drawing:
    """A validation drawing to make. maps: kind to (3, H, W) float 0..1; size: width, height.

    head: where its maps put the head, as `onmodel.identity.interface.HeadBox`, None: not known.
    """

    prompt: str
    seed: int
    size: tuple[int, int]
    maps: dict[str, torch.Tensor] = field(default_factory=dict)
    head: tuple[float, float, float, float] | None = None


class TrainedFamily(ABC):
    """A loaded model under training. Not safe for two threads.

    accelerator: of this run, see accelerating.py. components: the parts that LoRAs go onto.
    latent_scale: pixels of a latent cell's side. prediction: "epsilon", "v" or "flow".
    """

    entry: ModelEntry
    plan: TrainingPlan
    place: Place
    accelerator: Accelerator
    components: dict[str, Any]
    latent_scale: int
    prediction: str
    zero_terminal_snr = False

    @abstractmethod
    def encode_pictures(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w) float32 on the CPU, of pixels (B, 3, H, W) in -1..1: the mean of
        the VAE's distribution, so that the same picture is always the same latents."""

    @abstractmethod
    def encode_map(self, kind: str, pixels: torch.Tensor) -> torch.Tensor:
        """What the ControlNet sees of a map (C, h, w), of pixels (3, H, W) in 0..1.

        Raises PlanError where the model takes no such map."""

    @abstractmethod
    def encode_text(self, captions: Sequence[str]) -> Text:
        """Tensors (B, …) on the device; with gradients where the text encoders learn. "" is what
        the model takes for no prompt."""

    @abstractmethod
    def chunks(self, caption: str) -> int:
        """How many of the text encoders' lengths a caption fills; all texts of a run are padded
        to the longest, see `pad_text_to`."""

    @abstractmethod
    def pad_text_to(self, chunks: int) -> None:
        """From now on give every text this length at least."""

    @abstractmethod
    def losses(self, batch: Batch, rng: torch.Generator) -> torch.Tensor:
        """Each picture's loss (B,) float32, masks and noise level weights applied."""

    @abstractmethod
    def draw(self, drawing: Drawing) -> torch.Tensor:
        """A picture (H, W, 3) uint8 through diffusers' own pipeline of the loaded parts."""

    @abstractmethod
    def rest_encoders(self) -> None:
        """What is not needed while everything comes from caches leaves the device."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Products in the plan's format."""
        return self.accelerator.autocast()

    @property
    def trains_text(self) -> bool:
        """Whether the text encoders learn."""
        return self.plan.adapter.text_encoders

    def part_hash(self, *parts: str) -> str:
        """A hash of the weights of some parts, and of how they are computed with.

        A single file is one part: its hash stands for all."""
        path = self.entry.found.path
        files = [f for p in parts for f in sorted((path / p).glob("*.safetensors"))]
        whole = safe.fingerprint(files, path) if path.is_dir() else self.entry.hash
        return hashlib.sha256(f"{whole}/{parts}".encode()).hexdigest()


def load(entry: ModelEntry, place: Place, plan: TrainingPlan) -> TrainedFamily:
    """The model, ready for adapters. Raises ModelError or PlanError."""
    if entry.family != plan.base.family:
        raise PlanError(
            f"“{entry.name}” is a model of the family {entry.family}, the plan is for "
            f"{plan.base.family}.",
            "Set base.family, or choose a preset of that family.",
        )
    accelerator = accelerating.make(place, plan.base.dtype)
    loaded: TrainedFamily
    if entry.family == "flux":
        from onmodel.train.family_flux import FluxTraining

        loaded = FluxTraining.load(entry, place, plan)
    else:
        from onmodel.train.family_sdxl import SDXLTraining

        loaded = SDXLTraining.load(entry, place, plan)
    loaded.accelerator = accelerator
    return loaded

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the drawing code asks of a family of models (SDXL, Flux).

A family owns modules on a device. The sampler (`onmodel.generate.sampler`) owns the loop, the
schedulers, progress and cancel; it sees latents as one tensor whose first axis is the picture, and
never looks inside. For SDXL and Flux they are (B, C, h, w).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onmodel.generate import regional_settings
from onmodel.generate.regional_settings import RegionalSettings
from onmodel.models.errors import ModelError
from onmodel.models.memory import Place, synchronize
from onmodel.models.registry import ModelEntry

if TYPE_CHECKING:
    import numpy as np
    import torch

    from onmodel.generate.regional_loras import RegionalLayers
    from onmodel.models.ip_adapter_file import AdapterEntry


@dataclass(frozen=True)
class ControlMap:
    """A conditioning map. image: (H, W, 3) uint8 RGB of canvas size; others as in the request."""

    kind: str
    image: np.ndarray
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True, eq=False)
class Look:
    """Portraits that hold a character through the family's IP-Adapter (`Family.use_adapter`).

    key: equal for equal portraits. portraits: (H, W, 3) uint8 RGB each, at least one; for a FaceID
    adapter their faces' embeddings, (d,) float32. weight: of what they add, not 0.
    """

    key: tuple[str, ...]
    portraits: tuple[np.ndarray, ...]
    weight: float


@dataclass(frozen=True)
class RegionPrompt:
    """A character's prompt, where it holds, and the LoRAs and portraits that act there.

    mask: (H, W) bool of canvas size. loras: (adapter, weight), sorted by adapter; the adapters are
    on the model and bound to regions (`LoraShelf.use`).
    """

    prompt: str
    mask: np.ndarray
    loras: tuple[tuple[str, float], ...] = ()
    look: Look | None = None


@dataclass(frozen=True)
class Picture:
    """Everything a family needs to draw one picture, images decoded. Sizes in pixels.

    loras: (adapter, weight), sorted by adapter, that act on the whole of this picture and on its
    prompts, as if no other LoRA were bound; the adapters are bound to regions (`LoraShelf.use`).
    look: portraits that act on the whole of it. A picture has either these or regions.
    """

    prompt: str
    negative: str
    width: int
    height: int
    seed: int
    maps: Sequence[ControlMap] = ()
    regions: Sequence[RegionPrompt] = ()
    loras: tuple[tuple[str, float], ...] = ()
    look: Look | None = None

    def cast_regions(self) -> Sequence[RegionPrompt]:
        """The regions; for LoRAs or a look of all of the picture, one region that covers it."""
        if not self.loras and self.look is None:
            return self.regions
        if self.regions:
            raise ValueError("A picture has either LoRAs or a look of its own, or regions.")
        import numpy as np

        whole = np.ones((self.height, self.width), bool)
        return [RegionPrompt("", whole, self.loras, self.look)]


denoisers = ("unet", "transformer")
"""The components that denoise; the others encode text."""


@dataclass(frozen=True)
class Site:
    """A module that a LoRA may act on. component: "unet", "text_encoder"…; module: its path.

    fused: where a file has one name for several modules, these, in the order of their outputs.
    """

    component: str
    module: str
    fused: tuple[str, ...] = ()


@dataclass
class Clock:
    """Seconds spent in the model, by stage: "text", "denoise", "decode"."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, stage: str, place: Place) -> Iterator[None]:
        """Add what the block takes, the device's work included, to the stage."""
        synchronize(place)
        start = time.perf_counter()
        try:
            yield
        finally:
            synchronize(place)
            taken = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + taken

    def take(self) -> dict[str, float]:
        """What was added since the last call."""
        taken, self.seconds = self.seconds, {}
        return taken


class Prepared(ABC):
    """A batch made ready: embeddings, maps and regions on the device."""

    @abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Drop all pictures but these, when some were cancelled."""


class Family(ABC):
    """A loaded model. Not safe for two threads at once.

    components: modules that LoRAs may act on, by component name.
    regional: the layers whose LoRAs are bound to regions.
    """

    entry: ModelEntry
    place: Place
    components: dict[str, Any]
    clock: Clock
    regional: RegionalLayers

    @abstractmethod
    def prepare(
        self,
        pictures: Sequence[Picture],
        guidance: float,
        regional: RegionalSettings = regional_settings.standard,
    ) -> Prepared:
        """Encode prompts (cached), move maps and regions to the device. All of one size, with
        maps of the same kinds, weights, starts and ends. regional: how LoRAs are bound."""

    @abstractmethod
    def noise(self, generator: torch.Generator, width: int, height: int) -> torch.Tensor:
        """Standard normal noise (1, …) float32 for a picture, drawn from a CPU generator, so that
        a seed gives the same picture on every device and in every batch."""

    def set_steps(self, scheduler: Any, steps: int, width: int, height: int) -> None:
        """Tell a fresh scheduler how many steps a picture of that size is drawn in. Raises
        ValueError for a number that it cannot do."""
        scheduler.set_timesteps(steps, device=self.place.device)

    @abstractmethod
    def denoise(
        self, prepared: Prepared, latents: torch.Tensor, timestep: torch.Tensor, progress: float
    ) -> torch.Tensor:
        """The model's output for latents that the scheduler has scaled, guidance applied: float32
        of their shape. progress: the part of the steps already done, 0..1, for start and end."""

    @abstractmethod
    def encode(self, images: np.ndarray) -> torch.Tensor:
        """Latents (B, …) float32 of images (B, H, W, 3) uint8, to start from or to inpaint."""

    @abstractmethod
    def cells(self, masks: np.ndarray) -> torch.Tensor:
        """How much of each latent place the masks cover, 0..1, float32 on the device, of a shape
        that multiplies latents: (B, 1, h, w) for SDXL. masks: (B, H, W) float32, 0..1."""

    @abstractmethod
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Images (B, H, W, 3) uint8."""

    @abstractmethod
    def preview(self, latents: torch.Tensor) -> np.ndarray:
        """Small images (B, h, w, 3) uint8 by a linear map of clean latents, in a millisecond."""

    @abstractmethod
    def lora_sites(self) -> dict[str, Site]:
        """Every name by which LoRA files call a module, "component.name", and the module.

        Names with dots are diffusers', names with underscores kohya's.
        """

    def use_adapter(self, adapter: AdapterEntry | None) -> None:
        """Have this IP-Adapter loaded for pictures with looks; None lets it go.

        Raises ModelError for one that does not fit, or from a family that takes none.
        """
        if adapter is not None:
            raise ModelError(
                f"“{self.entry.name}” cannot hold characters by an IP-Adapter.",
                "Use a LoRA for them, or choose an SDXL model.",
            )

    @abstractmethod
    def forget_text(self) -> None:
        """Drop cached prompt embeddings: a LoRA of the text encoders changed."""

    @abstractmethod
    def unload(self) -> None:
        """Give the memory back; the family is not used afterwards."""

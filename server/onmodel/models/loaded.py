# SPDX-License-Identifier: GPL-3.0-or-later
"""What SDXL and Flux share once their modules are read: device, cached text, noise, pixels.

A family's own module says what its parts are, how they encode a prompt, and how they denoise.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from onmodel.generate.regional_loras import Cast, RegionalLayers, Rows
from onmodel.generate.regions import token_shares
from onmodel.models import memory
from onmodel.models.family import Clock, Family, RegionPrompt, Site
from onmodel.models.memory import Place
from onmodel.models.preview import LinearPreview
from onmodel.models.registry import ModelEntry


class HasVAE(Protocol):
    """The modules of a family, whatever else they are."""

    @property
    def vae(self) -> Any:
        """diffusers' AutoencoderKL."""


PartsT = TypeVar("PartsT", bound=HasVAE)
TextT = TypeVar("TextT")


class LoadedFamily(Family, Generic[PartsT, TextT]):
    """A family whose modules are in memory. PartsT: its modules. TextT: a prompt's embedding.

    text_cache_size: how many prompts' embeddings are kept. dtype: the denoiser's. latent_scale:
    pixels of a latent cell's side. A subclass's `__init__` ends with `_move_in`.
    """

    text_cache_size: ClassVar[int]
    parts: PartsT

    def __init__(
        self,
        entry: ModelEntry,
        place: Place,
        parts: PartsT,
        components: Mapping[str, Any],
        sites: dict[str, Site],
        denoiser: Any,
        latent_channels: int,
    ) -> None:
        self.entry = entry
        self.place = place
        self.parts = parts
        self.clock = Clock()
        self.components = dict(components)
        self.dtype: torch.dtype = denoiser.dtype
        self.latent_scale = 2 ** (len(parts.vae.config.block_out_channels) - 1)
        self.regional = RegionalLayers(self.components)
        self._latent_channels = latent_channels
        self._texts: OrderedDict[tuple[str, Cast], TextT] = OrderedDict()
        self._sites = sites

    def _move_in(self) -> None:
        """Bring the modules to the device and fit the preview."""
        if self.place.tile_vae:
            self.parts.vae.enable_tiling()
        if not self.place.offload:
            for module in self._modules():
                module.to(self.place.device)
        self._preview = LinearPreview.fit(self)

    @abstractmethod
    def _modules(self) -> list[nn.Module]:
        """All modules that take memory."""

    @contextmanager
    def _at_work(self, *modules: nn.Module | None) -> Iterator[None]:
        """With little memory: these modules on the device, all others off it."""
        if self.place.offload:
            wanted = [m for m in modules if m is not None]
            for module in self._modules():
                if not any(module is m for m in wanted):
                    module.to("cpu")
            for module in wanted:
                module.to(self.place.device)
        yield

    # Text

    @abstractmethod
    def _text_modules(self) -> Sequence[nn.Module]:
        """The modules that encode text."""

    @abstractmethod
    def _encode_text(self, text: str) -> TextT:
        """The embedding of a prompt, in the denoiser's format; the encoders are at work."""

    def forget_text(self) -> None:
        self._texts.clear()

    @torch.inference_mode()
    def embed(self, text: str, cast: Cast = ()) -> TextT:
        """The embedding of a prompt of any length, from the cache where it is known.

        cast: the regional LoRAs of the character whose own prompt it is.
        """
        cast = tuple(item for item in cast if item[0] in self.regional.text)
        key = (text, cast)
        if key not in self._texts:
            with (
                self._at_work(*self._text_modules()),
                self.clock.measure("text", self.place),
                self.regional.acting(Rows([(slice(None), cast)]) if cast else None),
            ):
                self._texts[key] = self._encode_text(text)
            if len(self._texts) > self.text_cache_size:
                self._texts.popitem(last=False)
        self._texts.move_to_end(key)
        return self._texts[key]

    # Latents and pixels

    def _latent_size(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of the latents of a picture."""
        return height // self.latent_scale, width // self.latent_scale

    def _shares(
        self, casts: Sequence[Sequence[RegionPrompt]], size: tuple[int, int]
    ) -> torch.Tensor:
        """(B, R, h, w) float32 on the device: the part of each latent cell that a region covers.

        casts: each picture's regions; a picture with fewer than R has zeros. size: of the latents.
        """
        shares = torch.zeros(len(casts), max(1, *(len(regions) for regions in casts)), *size)
        for row, regions in enumerate(casts):
            if regions:
                masks = torch.from_numpy(np.stack([r.mask for r in regions]))
                shares[row, : len(regions)] = token_shares(masks, size)
        return shares.to(self.place.device)

    def noise(self, generator: torch.Generator, width: int, height: int) -> torch.Tensor:
        size = (1, self._latent_channels, *self._latent_size(width, height))
        return torch.randn(size, generator=generator, dtype=torch.float32)

    @abstractmethod
    def _scaled(self, latents: torch.Tensor, back: bool) -> torch.Tensor:
        """The VAE's latents as the denoiser has them; back: the denoiser's as the VAE has them."""

    @torch.inference_mode()
    def encode(self, images: np.ndarray) -> torch.Tensor:
        vae = self.parts.vae
        with self._at_work(vae), self.clock.measure("encode", self.place):
            x = torch.from_numpy(images).to(self.place.device).permute(0, 3, 1, 2)
            x = (x.float() / 127.5 - 1.0).to(vae.dtype)
            return self._scaled(vae.encode(x).latent_dist.mode().float(), back=False)

    def cells(self, masks: np.ndarray) -> torch.Tensor:
        height, width = masks.shape[-2:]
        size = self._latent_size(width, height)
        return token_shares(torch.from_numpy(masks)[:, None], size).to(self.place.device)

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        vae = self.parts.vae
        with self._at_work(vae), self.clock.measure("decode", self.place):
            x = self._scaled(latents.float(), back=True).to(vae.dtype)
            pixels = vae.decode(x, return_dict=False)[0].float()
            pixels = ((pixels + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
            return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy())

    def preview(self, latents: torch.Tensor) -> np.ndarray:
        return self._preview.draw(latents)

    def lora_sites(self) -> dict[str, Site]:
        return self._sites

    def unload(self) -> None:
        self.regional.detach()
        self.components = {}
        self._texts.clear()
        del self.parts
        memory.free_cache(self.place)

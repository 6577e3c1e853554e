# SPDX-License-Identifier: GPL-3.0-or-later
"""FLUX.1 and models of its architecture: dev, which is told its guidance, and schnell.

Latents are (B, C, h, w), as the sampler, masks and previews see them; they are packed to tokens at
the transformer's door.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from onmodel.generate import regional_settings
from onmodel.generate.regional_loras import Cast, Plan, RegionalLayers, Rows
from onmodel.generate.regional_settings import RegionalSettings
from onmodel.generate.regions import token_shares
from onmodel.models import flux_control, flux_text, lora_names, memory
from onmodel.models.errors import ModelError
from onmodel.models.family import Clock, Family, Picture, Prepared, RegionPrompt, Site
from onmodel.models.flux_batch import Batch, PictureText
from onmodel.models.flux_control import Control
from onmodel.models.flux_parts import Parts, load_parts
from onmodel.models.flux_text import Embedding
from onmodel.models.flux_tokens import pack, token_places, unpack
from onmodel.models.memory import Place
from onmodel.models.preview import LinearPreview
from onmodel.models.registry import ModelEntry

log = logging.getLogger(__name__)

text_cache_size = 64
"""A prompt of dev takes 4 MiB in bfloat16."""


class Flux(Family):
    """A loaded Flux."""

    def __init__(self, entry: ModelEntry, place: Place, parts: Parts) -> None:
        self.entry = entry
        self.place = place
        self.parts = parts
        self.clock = Clock()
        self.components = {
            "transformer": parts.transformer,
            "text_encoder": parts.clip,
            "text_encoder_2": parts.t5,
        }
        self.dtype: torch.dtype = parts.transformer.dtype
        self.latent_scale = 2 ** (len(parts.vae.config.block_out_channels) - 1)
        self.told = bool(parts.transformer.config.guidance_embeds)
        # What the two models were trained with.
        self.text_length = 512 if self.told else 256
        self.regional = RegionalLayers(self.components)
        self._texts: OrderedDict[tuple[str, Cast], Embedding] = OrderedDict()
        self._sites = lora_names.flux_sites(self.components)
        if place.tile_vae:
            parts.vae.enable_tiling()
        if not place.offload:
            for module in self._modules():
                module.to(place.device)
        self._preview = LinearPreview.fit(self)

    @classmethod
    def load(cls, entry: ModelEntry, place: Place) -> Flux:
        """Read the model from disk. Raises ModelError."""
        kind = str(entry.found.scheduler.get("_class_name"))
        if kind != "FlowMatchEulerDiscreteScheduler":
            raise ModelError(
                f"The model “{entry.name}” asks for the scheduler {kind}; Flux is drawn with "
                "FlowMatchEulerDiscreteScheduler.",
                "Put Flux's own scheduler_config.json into its folder scheduler.",
            )
        return cls(entry, place, load_parts(entry, place))

    def _modules(self) -> list[nn.Module]:
        p = self.parts
        return [m for m in (p.transformer, p.vae, p.clip, p.t5, p.controlnet) if m is not None]

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

    def forget_text(self) -> None:
        self._texts.clear()

    @torch.inference_mode()
    def embed(self, text: str, cast: Cast = ()) -> Embedding:
        """The embedding of a prompt of any length, from the cache where it is known.

        cast: the regional LoRAs of the character whose own prompt it is.
        """
        cast = tuple(item for item in cast if item[0] in self.regional.text)
        key = (text, cast)
        if key not in self._texts:
            parts = self.parts
            with (
                self._at_work(parts.clip, parts.t5),
                self.clock.measure("text", self.place),
                self.regional.acting(Rows([(slice(None), cast)]) if cast else None),
            ):
                found = flux_text.encode(
                    parts.clip,
                    parts.t5,
                    parts.tokenizers,
                    text,
                    self.text_length,
                    self.place.device,
                )
            keys, pooled = found.keys.to(self.dtype), found.pooled.to(self.dtype)
            self._texts[key] = Embedding(keys, pooled, found.words)
            if len(self._texts) > text_cache_size:
                self._texts.popitem(last=False)
        self._texts.move_to_end(key)
        return self._texts[key]

    # Sampling

    @torch.inference_mode()
    def prepare(
        self,
        pictures: Sequence[Picture],
        guidance: float,
        regional: RegionalSettings = regional_settings.standard,
    ) -> Batch:
        first = pictures[0]
        scale = self.entry.true_guidance if self.told else guidance
        every = [p.cast_regions() for p in pictures]
        texts = [
            self._text_of(p, regions, scale) for p, regions in zip(pictures, every, strict=True)
        ]
        size = (first.height // self.latent_scale, first.width // self.latent_scale)
        shares = torch.zeros(len(pictures), max(1, *(len(r) for r in every)), *size)
        for row, regions in enumerate(every):
            if regions:
                masks = torch.from_numpy(np.stack([r.mask for r in regions]))
                shares[row, : len(regions)] = token_shares(masks, size)
        shares = shares.to(self.place.device)
        controls = self._controls(pictures)
        return Batch(texts, shares, controls, size, guidance, scale, regional, self.regional)

    def _text_of(
        self, picture: Picture, regions: Sequence[RegionPrompt], scale: float
    ) -> PictureText:
        shot = self.embed(picture.prompt, picture.loras)
        own = []
        for r in regions:
            # The shot's prompt keeps its padding, on which the model leans; once is enough.
            found = self.embed(r.prompt, r.loras) if r.prompt else shot
            own.append(found.keys[: found.words if r.prompt else 0])
        negative = None
        if picture.negative.strip() and scale > 1:
            negative = self.embed(picture.negative, picture.loras)
        elif picture.negative.strip():
            log.info("%s draws at this guidance without a negative prompt", self.entry.name)
        bound = [i for i, r in enumerate(regions) if r.loras]
        whole = bound[0] if len(bound) == 1 and regions[bound[0]].mask.all() else None
        return PictureText(shot, own, negative, [r.loras for r in regions], whole)

    def _controls(self, pictures: Sequence[Picture]) -> list[Control]:
        if pictures[0].maps and self.parts.controlnet is None:
            raise ModelError(
                f"The model “{self.entry.name}” has no ControlNet, so it cannot follow maps.",
                "Put a union ControlNet for Flux into the controlnet folder of Onmodel's data.",
            )
        return [
            Control(
                m.kind,
                pack(self.encode(np.stack([p.maps[i].image for p in pictures]))).to(self.dtype),
                m.weight,
                m.start,
                m.end,
            )
            for i, m in enumerate(pictures[0].maps)
        ]

    def noise(self, generator: torch.Generator, width: int, height: int) -> torch.Tensor:
        channels = self.parts.transformer.config.in_channels // 4
        size = (1, channels, height // self.latent_scale, width // self.latent_scale)
        return torch.randn(size, generator=generator, dtype=torch.float32)

    def set_steps(self, scheduler: Any, steps: int, width: int, height: int) -> None:
        """Equal steps from noise on, shifted the more towards noise the more tokens there are, as
        Black Forest Labs' `get_schedule` and diffusers' pipeline do it."""
        tokens = (height // self.latent_scale // 2) * (width // self.latent_scale // 2)
        config = scheduler.config
        least, most = config.base_image_seq_len, config.max_image_seq_len
        slope = (config.max_shift - config.base_shift) / (most - least)
        shift = tokens * slope + (config.base_shift - slope * least)
        sigmas = np.linspace(1.0, 1 / steps, steps)
        scheduler.set_timesteps(sigmas=sigmas, device=self.place.device, mu=shift)

    @torch.inference_mode()
    def denoise(
        self, prepared: Prepared, latents: torch.Tensor, timestep: torch.Tensor, progress: float
    ) -> torch.Tensor:
        assert isinstance(prepared, Batch)
        batch = prepared
        with (
            self._at_work(self.parts.transformer, self.parts.controlnet),
            self.clock.measure("denoise", self.place),
        ):
            x = pack(latents.to(self.dtype))[batch.order]
            added = self._control_residuals(batch, x, timestep, progress)
            if batch.blend is None:
                with self.regional.acting(batch.plan(progress)):
                    out = self._transformer(batch, x, timestep, added, None)
            else:

                def call(rows: list[int], plan: Plan) -> torch.Tensor:
                    with self.regional.acting(plan):
                        return self._transformer(batch, x, timestep, added, rows)

                out = batch.blend.draw(call, progress)
            count = len(batch.against)
            without, drawn = out[:count], out[count:]
            if count:
                drawn[batch.against] = without + batch.scale * (drawn[batch.against] - without)
            return drawn

    def _told(
        self,
        batch: Batch,
        x: torch.Tensor,
        timestep: torch.Tensor,
        keys: torch.Tensor,
        pooled: torch.Tensor,
    ) -> dict[str, Any]:
        """What the transformer and its ControlNet are told of tokens x (n, N, 4C)."""
        rows, columns = batch.size[0] // 2, batch.size[1] // 2
        return {
            "timestep": timestep.to(x.device, torch.float32).expand(len(x)) / 1000,
            "guidance": torch.full((len(x),), batch.guidance, device=x.device)
            if self.told
            else None,
            "pooled_projections": pooled,
            "encoder_hidden_states": keys,
            "txt_ids": torch.zeros(keys.shape[1], 3, device=x.device),
            "img_ids": token_places(rows, columns).to(x.device),
        }

    def _control_residuals(
        self, batch: Batch, x: torch.Tensor, timestep: torch.Tensor, progress: float
    ) -> dict[str, list[torch.Tensor]]:
        """What the ControlNet adds at this step; nothing where no map is active."""
        active = [c for c in batch.controls if c.weight > 0 and c.start <= progress < c.end]
        if not active:
            return {}
        keys = torch.stack([prompt[: self.text_length] for prompt in batch.prompts])
        told = self._told(batch, x, timestep, keys, batch.pooled)
        return flux_control.residuals(self.parts.controlnet, active, x, batch.order, told)

    def _transformer(
        self,
        batch: Batch,
        x: torch.Tensor,
        timestep: torch.Tensor,
        added: dict[str, list[torch.Tensor]],
        rows: list[int] | None,
    ) -> torch.Tensor:
        """The transformer's output (n, C, h, w), float32, for all rows of a batch or for these."""
        keys, pooled, mask = batch.keys, batch.pooled, batch.mask_of(rows)
        if rows is not None:
            x, keys, pooled = x[rows], keys[rows], pooled[rows]
            added = {name: [v[rows] for v in values] for name, values in added.items()}
        out: torch.Tensor = self.parts.transformer(
            hidden_states=x,
            joint_attention_kwargs=None if mask is None else {"attention_mask": mask},
            return_dict=False,
            **self._told(batch, x, timestep, keys, pooled),
            **added,
        )[0]
        return unpack(out.float(), *batch.size)

    # Pixels

    @torch.inference_mode()
    def encode(self, images: np.ndarray) -> torch.Tensor:
        vae = self.parts.vae
        with self._at_work(vae), self.clock.measure("encode", self.place):
            x = torch.from_numpy(images).to(self.place.device).permute(0, 3, 1, 2)
            x = (x.float() / 127.5 - 1.0).to(vae.dtype)
            z = vae.encode(x).latent_dist.mode().float()
            return (z - vae.config.shift_factor) * vae.config.scaling_factor

    def cells(self, masks: np.ndarray) -> torch.Tensor:
        height, width = masks.shape[-2:]
        size = (height // self.latent_scale, width // self.latent_scale)
        return token_shares(torch.from_numpy(masks)[:, None], size).to(self.place.device)

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        vae = self.parts.vae
        with self._at_work(vae), self.clock.measure("decode", self.place):
            z = latents.float() / vae.config.scaling_factor + vae.config.shift_factor
            pixels = vae.decode(z.to(vae.dtype), return_dict=False)[0].float()
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

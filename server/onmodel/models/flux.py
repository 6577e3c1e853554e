# SPDX-License-Identifier: GPL-3.0-or-later
"""FLUX.1 and models of its architecture: dev, which is told its guidance, and schnell.

Latents are (B, C, h, w), as the sampler, masks and previews see them; they are packed to tokens at
the transformer's door.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from onmodel.generate import regional_settings
from onmodel.generate.regional_loras import Plan
from onmodel.generate.regional_settings import RegionalSettings
from onmodel.models import flux_control, flux_text, lora_names
from onmodel.models.errors import ModelError
from onmodel.models.family import Picture, Prepared, RegionPrompt
from onmodel.models.flux_batch import Batch, PictureText
from onmodel.models.flux_control import Control
from onmodel.models.flux_parts import Parts, load_parts
from onmodel.models.flux_text import Embedding
from onmodel.models.flux_tokens import pack, token_places, unpack
from onmodel.models.loaded import LoadedFamily
from onmodel.models.memory import Place
from onmodel.models.registry import ModelEntry

log = logging.getLogger(__name__)


class Flux(LoadedFamily[Parts, Embedding]):
    """A loaded Flux."""

    # A prompt of dev takes 4 MiB in bfloat16.
    text_cache_size = 64

    def __init__(self, entry: ModelEntry, place: Place, parts: Parts) -> None:
        components = {
            "transformer": parts.transformer,
            "text_encoder": parts.clip,
            "text_encoder_2": parts.t5,
        }
        sites = lora_names.flux_sites(components)
        # Two by two latent cells are one token.
        channels = parts.transformer.config.in_channels // 4
        super().__init__(entry, place, parts, components, sites, parts.transformer, channels)
        self.told = bool(parts.transformer.config.guidance_embeds)
        # What the two models were trained with.
        self.text_length = 512 if self.told else 256
        self._move_in()

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

    # Text

    def _text_modules(self) -> Sequence[nn.Module]:
        return [self.parts.clip, self.parts.t5]

    def _encode_text(self, text: str) -> Embedding:
        parts = self.parts
        found = flux_text.encode(
            parts.clip, parts.t5, parts.tokenizers, text, self.text_length, self.place.device
        )
        return Embedding(found.keys.to(self.dtype), found.pooled.to(self.dtype), found.words)

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
        size = self._latent_size(first.width, first.height)
        shares = self._shares(every, size)
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

    def set_steps(self, scheduler: Any, steps: int, width: int, height: int) -> None:
        """Equal steps from noise on, shifted the more towards noise the more tokens there are, as
        Black Forest Labs' `get_schedule` and diffusers' pipeline do it."""
        rows, columns = self._latent_size(width, height)
        tokens = (rows // 2) * (columns // 2)
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

    def _scaled(self, latents: torch.Tensor, back: bool) -> torch.Tensor:
        config = self.parts.vae.config
        if back:
            scaled: torch.Tensor = latents / config.scaling_factor + config.shift_factor
        else:
            scaled = (latents - config.shift_factor) * config.scaling_factor
        return scaled

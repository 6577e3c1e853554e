# SPDX-License-Identifier: GPL-3.0-or-later
"""Stable Diffusion XL and models of its architecture, with a union ControlNet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from onmodel.generate import regional_settings
from onmodel.generate.regional_loras import Cast, Plan
from onmodel.generate.regional_settings import RegionalSettings
from onmodel.generate.regions import use_regions
from onmodel.models import lora_names, memory, sdxl_text
from onmodel.models.errors import ModelError
from onmodel.models.family import Look, Picture, Prepared
from onmodel.models.ip_adapter import IPAdapter, LookTokens
from onmodel.models.ip_adapter_file import AdapterEntry
from onmodel.models.loaded import LoadedFamily
from onmodel.models.memory import Place
from onmodel.models.once_embedded import embed_once
from onmodel.models.probe import union_modes
from onmodel.models.registry import ModelEntry
from onmodel.models.sdxl_batch import Batch, Control, Embedding, PictureText
from onmodel.models.sdxl_parts import Parts, load_parts

look_cache_size = 64


class SDXL(LoadedFamily[Parts, Embedding]):
    """A loaded SDXL."""

    text_cache_size = 256

    def __init__(self, entry: ModelEntry, place: Place, parts: Parts) -> None:
        components = {
            "unet": parts.unet,
            "text_encoder": parts.text_encoders[0],
            "text_encoder_2": parts.text_encoders[1],
        }
        sites = lora_names.sdxl_sites(components)
        channels = parts.unet.config.in_channels
        super().__init__(entry, place, parts, components, sites, parts.unet, channels)
        self.adapter: IPAdapter | None = None
        self._looks: OrderedDict[tuple[str, ...], LookTokens] = OrderedDict()
        use_regions(parts.unet)
        if parts.controlnet is not None:
            use_regions(parts.controlnet)
            embed_once(parts.controlnet)
        if place.device == "cpu":
            parts.vae.to(memory_format=torch.channels_last)
        self._move_in()

    @classmethod
    def load(cls, entry: ModelEntry, place: Place) -> SDXL:
        """Read the model from disk. Raises ModelError."""
        return cls(entry, place, load_parts(entry, place))

    def _modules(self) -> list[nn.Module]:
        p = self.parts
        held = self.adapter.modules if self.adapter else []
        return [m for m in (p.unet, p.vae, p.controlnet, *p.text_encoders, *held) if m is not None]

    # Text

    def _text_modules(self) -> Sequence[nn.Module]:
        return self.parts.text_encoders

    def _encode_text(self, text: str) -> Embedding:
        parts = self.parts
        keys, pooled = sdxl_text.encode(
            parts.text_encoders, parts.tokenizers, [text], self.place.device
        )
        return Embedding(keys[0].to(self.dtype), pooled[0].to(self.dtype))

    def _negative(self, text: str, like: Embedding, cast: Cast) -> Embedding:
        if not text.strip() and self.parts.zero_empty:
            first = like.keys[: self.parts.tokenizers[0].model_max_length]
            return Embedding(torch.zeros_like(first), torch.zeros_like(like.pooled))
        return self.embed(text, cast)

    # Portraits

    def use_adapter(self, adapter: AdapterEntry | None) -> None:
        if self.adapter is not None and adapter != self.adapter.entry:
            self.adapter = None
            self._looks.clear()
            memory.free_cache(self.place)
        if adapter is None or self.adapter is not None:
            return
        self.adapter = IPAdapter.load(adapter, self.parts.unet, self.dtype, self.entry.name)
        if not self.place.offload:
            for module in self.adapter.modules:
                module.to(self.place.device)

    @torch.inference_mode()
    def look_tokens(self, look: Look) -> LookTokens:
        """A character's image tokens, from the cache where its portraits are known."""
        if self.adapter is None:
            raise ValueError("A picture has looks, and no IP-Adapter is in use.")
        if look.key not in self._looks:
            with (
                self._at_work(*self.adapter.modules),
                self.clock.measure("portraits", self.place),
            ):
                self._looks[look.key] = self.adapter.look(look.portraits)
            if len(self._looks) > look_cache_size:
                self._looks.popitem(last=False)
        self._looks.move_to_end(look.key)
        return self._looks[look.key]

    # Sampling

    @torch.inference_mode()
    def prepare(
        self,
        pictures: Sequence[Picture],
        guidance: float,
        regional: RegionalSettings = regional_settings.standard,
    ) -> Batch:
        first = pictures[0]
        texts = []
        regions = [p.cast_regions() for p in pictures]
        for p, parts in zip(pictures, regions, strict=True):
            shot = self.embed(p.prompt, p.loras)
            own = [self.embed(r.prompt, r.loras).keys if r.prompt else shot.keys[:0] for r in parts]
            negative = self._negative(p.negative, shot, p.loras)
            casts = [r.loras for r in parts]
            bound = [r for r in parts if r.loras]
            whole = len(bound) == 1 and bool(bound[0].mask.all())
            looks = [
                (i, r.look.weight, self.look_tokens(r.look))
                for i, r in enumerate(parts)
                if r.look is not None
            ]
            texts.append(PictureText(shot, own, negative, casts, whole, looks))
        controls = self._controls(pictures)
        return Batch(
            texts,
            self._shares(regions, self._latent_size(first.width, first.height)),
            controls,
            (first.height, first.width),
            guidance,
            regional,
            self.regional,
            self.adapter,
            self.entry.guided_loras,
        )

    def _controls(self, pictures: Sequence[Picture]) -> list[Control]:
        net = self.parts.controlnet
        if not pictures[0].maps:
            return []
        if net is None:
            raise ModelError(
                f"The model “{self.entry.name}” has no union ControlNet, so it cannot follow maps.",
                "Put a union ControlNet for SDXL into the controlnet folder of Onmodel's data.",
            )
        controls = []
        with self._at_work(net, self.parts.unet), self.clock.measure("denoise", self.place):
            for i, m in enumerate(pictures[0].maps):
                images = np.stack([p.maps[i].image for p in pictures])
                x = torch.from_numpy(images).to(self.place.device).permute(0, 3, 1, 2)
                x = (x.float() / 255.0).to(self.dtype)
                features = net.controlnet_cond_embedding(x)
                controls.append(Control(union_modes[m.kind], features, m.weight, m.start, m.end))
        return controls

    @torch.inference_mode()
    def denoise(
        self, prepared: Prepared, latents: torch.Tensor, timestep: torch.Tensor, progress: float
    ) -> torch.Tensor:
        assert isinstance(prepared, Batch)
        with (
            self._at_work(
                self.parts.unet, self.parts.controlnet, self.adapter.body if self.adapter else None
            ),
            self.clock.measure("denoise", self.place),
        ):
            x = latents.to(self.dtype)
            if prepared.guided:
                x = torch.cat([x, x])
            residuals = self._control_residuals(prepared, x, timestep, progress)
            if prepared.blend is None:
                with self.regional.acting(prepared.plan(progress)):
                    out = self._unet(prepared, x, timestep, residuals, None, progress)
            else:

                def call(rows: list[int], plan: Plan) -> torch.Tensor:
                    with self.regional.acting(plan):
                        return self._unet(prepared, x, timestep, residuals, rows, progress)

                out = prepared.blend.draw(call, progress)
            if prepared.guided:
                without, with_text = out.chunk(2)
                out = without + prepared.guidance * (with_text - without)
            return out

    def _unet(
        self,
        batch: Batch,
        x: torch.Tensor,
        timestep: torch.Tensor,
        residuals: dict[str, Any],
        rows: list[int] | None,
        progress: float,
    ) -> torch.Tensor:
        """The UNet's output, float32, for all rows of a batch or for these."""
        keys, conditions, regions = batch.keys, batch.conditions, batch.regions
        if rows is not None:
            x, keys, regions = x[rows], keys[rows], batch.regions_of(rows)
            conditions = {name: value[rows] for name, value in conditions.items()}
            residuals = {
                name: value[rows] if torch.is_tensor(value) else [v[rows] for v in value]
                for name, value in residuals.items()
            }
        attention: dict[str, Any] = {"regions": regions}
        if (held := batch.image_tokens(progress, rows)) is not None:
            attention["image_tokens"] = held
        out: torch.Tensor = self.parts.unet(
            x,
            timestep,
            encoder_hidden_states=keys,
            added_cond_kwargs=conditions,
            cross_attention_kwargs=attention,
            return_dict=False,
            **residuals,
        )[0]
        return out.float()

    def _control_residuals(
        self, batch: Batch, x: torch.Tensor, timestep: torch.Tensor, progress: float
    ) -> dict[str, Any]:
        """What the ControlNet adds at this step; nothing where no map is active."""
        active = [
            (c, f)
            for c, f in zip(batch.controls, batch.features, strict=True)
            if c.weight > 0 and c.start <= progress < c.end
        ]
        if not active:
            return {}
        net: Any = self.parts.controlnet
        types = x.new_zeros(x.shape[0], net.config.num_control_type)
        types[:, [c.mode for c, _ in active]] = 1
        down, mid = net(
            x,
            timestep,
            encoder_hidden_states=batch.keys,
            controlnet_cond=[f for _, f in active],
            control_type=types,
            control_type_idx=[c.mode for c, _ in active],
            conditioning_scale=[c.weight for c, _ in active],
            added_cond_kwargs=batch.conditions,
            cross_attention_kwargs={"regions": batch.regions},
            return_dict=False,
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}

    def _scaled(self, latents: torch.Tensor, back: bool) -> torch.Tensor:
        config = self.parts.vae.config
        scale = config.scaling_factor
        mean = getattr(config, "latents_mean", None)
        std = getattr(config, "latents_std", None)
        if mean is None or std is None:
            return latents / scale if back else latents * scale
        m = latents.new_tensor(mean).view(1, -1, 1, 1)
        s = latents.new_tensor(std).view(1, -1, 1, 1)
        return latents * s / scale + m if back else (latents - m) * scale / s

    def unload(self) -> None:
        self._looks.clear()
        self.adapter = None
        super().unload()

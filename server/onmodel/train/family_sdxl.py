# SPDX-License-Identifier: GPL-3.0-or-later
"""Training LoRAs for SDXL and models of its architecture, the embedded one included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from onmodel.generate.regions import use_regions
from onmodel.models import schedulers, sdxl_text
from onmodel.models.memory import Place, free_cache
from onmodel.models.once_embedded import embed_once
from onmodel.models.probe import union_modes
from onmodel.models.registry import ModelEntry
from onmodel.models.sdxl_parts import Parts, load_parts
from onmodel.train import losses
from onmodel.train.family import Batch, Drawing, Text, TrainedFamily
from onmodel.train.plan import PlanError, TrainingPlan

dtypes = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


class SDXLTraining(TrainedFamily):
    """A loaded SDXL. VAE and frozen text encoders compute in float32, as caches are made once."""

    def __init__(self, entry: ModelEntry, place: Place, plan: TrainingPlan, parts: Parts) -> None:
        self.entry, self.place, self.plan, self.parts = entry, place, plan, parts
        self.components = {
            "unet": parts.unet,
            "text_encoder": parts.text_encoders[0],
            "text_encoder_2": parts.text_encoders[1],
        }
        try:
            self.noise = losses.NoiseSchedule(parts.scheduler)
        except ValueError as error:
            raise PlanError(f"“{entry.name}”: {error}", "Choose another base model.") from error
        self.prediction = self.noise.prediction
        self.zero_terminal_snr = self.noise.zero_terminal_snr
        self.latent_scale = 2 ** (len(parts.vae.config.block_out_channels) - 1)
        self._chunks = 1
        self._prepare_parts()

    @classmethod
    def load(cls, entry: ModelEntry, place: Place, plan: TrainingPlan) -> SDXLTraining:
        """Read the model. Raises ModelError; PlanError where maps are wanted and not taken."""
        if plan.draws_on_maps and entry.controlnet is None:
            raise PlanError(
                f"The model “{entry.name}” has no union ControlNet to show maps to.",
                "Set data.conditioning to false and leave validation.maps out, or put a union "
                "ControlNet for SDXL into the controlnet folder of Onmodel's data.",
            )
        if not plan.draws_on_maps:
            entry = replace(entry, controlnet=None)
        exact = ("vae",) if plan.adapter.text_encoders else ("vae", "text")
        return cls(entry, place, plan, load_parts(entry, place, exact))

    def _prepare_parts(self) -> None:
        p, device = self.parts, self.place.device
        # Convolutions of half and quarter precision are fastest in this order on CPU and GPU.
        p.unet.to(device, memory_format=torch.channels_last)
        # Fused also where gradients are wanted on a CPU: at a LoRA's batch sizes it was the fastest
        # when measured (bench/training.py's model: 0.33 s a step, step by step 0.37 s).
        use_regions(p.unet, plain=False)
        if p.controlnet is not None:
            p.controlnet.to(device, memory_format=torch.channels_last)
            use_regions(p.controlnet)
            embed_once(p.controlnet)
        if self.plan.adapter.unet:
            p.unet.train()
        if self.trains_text:
            for encoder in p.text_encoders:
                encoder.to(device).train()
        if self.plan.run.gradient_checkpointing:
            p.unet.enable_gradient_checkpointing()
            if self.trains_text:
                for encoder in p.text_encoders:
                    encoder.gradient_checkpointing_enable()

    # Encoding

    @torch.no_grad()
    def encode_pictures(self, pixels: torch.Tensor) -> torch.Tensor:
        vae = self.parts.vae.to(self.place.device)
        z = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode().float()
        mean, std = self._latent_statistics(z)
        return ((z - mean) * vae.config.scaling_factor / std).cpu()

    def _latent_statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.parts.vae.config
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        mean, std = mean or [0.0], std or [1.0]
        return like.new_tensor(mean).view(1, -1, 1, 1), like.new_tensor(std).view(1, -1, 1, 1)

    @torch.no_grad()
    def encode_map(self, kind: str, pixels: torch.Tensor) -> torch.Tensor:
        if kind not in self.entry.map_kinds:
            raise PlanError(
                f"The model “{self.entry.name}” takes no {kind} maps.",
                f"Take the files *.{kind}.png away from the pictures.",
            )
        net: Any = self.parts.controlnet
        x = pixels[None].to(self.place.device, net.dtype)
        return net.controlnet_cond_embedding(x)[0]

    def encode_text(self, captions: Sequence[str]) -> Text:
        p = self.parts
        for encoder in p.text_encoders:
            encoder.to(self.place.device)
        with self.autocast() if self.trains_text else torch.no_grad():
            keys, pooled = sdxl_text.encode(
                p.text_encoders, p.tokenizers, captions, self.place.device, self._chunks
            )
        if p.zero_empty and "" in captions:
            # This model was trained with zeros for no prompt, and is drawn with them.
            said = keys.new_tensor([float(c != "") for c in captions])
            keys, pooled = keys * said.view(-1, 1, 1), pooled * said.view(-1, 1)
        return {"keys": keys, "pooled": pooled}

    def chunks(self, caption: str) -> int:
        return sdxl_text.chunk_count(self.parts.tokenizers, caption)

    def pad_text_to(self, chunks: int) -> None:
        self._chunks = max(self._chunks, chunks)

    def rest_encoders(self) -> None:
        if self.place.device == "cpu":
            return
        self.parts.vae.to("cpu")
        if not self.trains_text:
            for encoder in self.parts.text_encoders:
                encoder.to("cpu")
        free_cache(self.place)

    # Learning

    def losses(self, batch: Batch, rng: torch.Generator) -> torch.Tensor:
        loss = self.plan.loss
        noise = torch.randn(batch.latents.shape, generator=rng)
        noise = losses.offset_noise(noise, loss.noise_offset, rng).to(batch.latents.device)
        times = self.noise.times(len(noise), rng)
        noisy, target = self.noise.mix(batch.latents, noise, times)
        said = self._predict(noisy, times.to(noise.device), batch)
        found = losses.per_picture((said.float() - target).square(), batch.masks)
        if loss.min_snr_gamma is not None:
            snr = self.noise.snr[times].to(found.device)
            found = found * losses.min_snr_weight(snr, loss.min_snr_gamma, self.noise.prediction)
        return found

    def _predict(self, noisy: torch.Tensor, times: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The U-Net's output (B, C, h, w); pictures with the same kinds of maps in one pass."""
        kinds = [tuple(sorted(m)) for m in batch.maps]
        groups = dict.fromkeys(kinds)
        if len(groups) == 1:
            return self._pass(noisy, times, batch.text, batch, range(len(kinds)))
        said = torch.empty_like(noisy)
        for group in groups:
            rows = [i for i, k in enumerate(kinds) if k == group]
            index = torch.tensor(rows, device=noisy.device)
            text = {name: t[index] for name, t in batch.text.items()}
            part = self._pass(noisy[index], times[index], text, batch, rows)
            said = said.index_copy(0, index, part.to(said.dtype))
        return said

    def _pass(
        self,
        noisy: torch.Tensor,
        times: torch.Tensor,
        text: Text,
        batch: Batch,
        rows: Sequence[int],
    ) -> torch.Tensor:
        width, height = batch.size
        # As the sampler asks: the picture is as large as the canvas and not cropped.
        ids = noisy.new_tensor([height, width, 0, 0, height, width]).expand(len(noisy), -1)
        added = {"text_embeds": text["pooled"], "time_ids": ids}
        x = noisy.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            extra = self._residuals(x, times, text["keys"], added, [batch.maps[i] for i in rows])
            out = self.parts.unet(
                x,
                times,
                encoder_hidden_states=text["keys"],
                added_cond_kwargs=added,
                return_dict=False,
                **extra,
            )
        return out[0]

    @torch.no_grad()
    def _residuals(
        self,
        x: torch.Tensor,
        times: torch.Tensor,
        keys: torch.Tensor,
        added: dict[str, torch.Tensor],
        maps: Sequence[dict[str, torch.Tensor]],
    ) -> dict[str, Any]:
        """What the frozen ControlNet adds for these maps; nothing learns through it."""
        kinds = sorted(maps[0], key=union_modes.__getitem__)
        if not kinds:
            return {}
        net: Any = self.parts.controlnet
        modes = [union_modes[k] for k in kinds]
        types = x.new_zeros(len(x), net.config.num_control_type)
        types[:, modes] = 1
        features = [torch.stack([m[k] for m in maps]).to(x.device, net.dtype) for k in kinds]
        down, middle = net(
            x,
            times,
            encoder_hidden_states=keys,
            controlnet_cond=features,
            control_type=types,
            control_type_idx=modes,
            added_cond_kwargs=added,
            return_dict=False,
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    # Drawing

    @torch.no_grad()
    def draw(self, drawing: Drawing) -> torch.Tensor:
        width, height = drawing.size
        inputs: dict[str, Any] = {
            "prompt": drawing.prompt,
            "width": width,
            "height": height,
            "num_inference_steps": self.plan.validation.steps,
            "guidance_scale": self.plan.validation.guidance,
            "generator": torch.Generator().manual_seed(drawing.seed),
            "output_type": "latent",
        }
        kinds = sorted(drawing.maps, key=union_modes.__getitem__)
        if kinds:
            inputs["control_image"] = [drawing.maps[k][None] for k in kinds]
            inputs["control_mode"] = [union_modes[k] for k in kinds]
        p = self.parts
        learning = [m for m in (p.unet, *p.text_encoders) if m.training]
        for module in (*learning, *p.text_encoders):
            module.to(self.place.device).eval()
        try:
            with self.autocast():
                latents = self._pipeline(bool(kinds))(**inputs).images
        finally:
            for module in learning:
                module.train()
        return self._decode(latents)

    def _pipeline(self, maps: bool) -> Any:
        from diffusers import StableDiffusionXLControlNetUnionPipeline, StableDiffusionXLPipeline

        p = self.parts
        pipeline: Any
        parts = {
            "vae": p.vae,
            "unet": p.unet,
            "text_encoder": p.text_encoders[0],
            "text_encoder_2": p.text_encoders[1],
            "tokenizer": p.tokenizers[0],
            "tokenizer_2": p.tokenizers[1],
            "scheduler": schedulers.make("default", p.scheduler),
            "force_zeros_for_empty_prompt": p.zero_empty,
            "add_watermarker": False,
        }
        if maps:
            pipeline = StableDiffusionXLControlNetUnionPipeline(controlnet=p.controlnet, **parts)
        else:
            pipeline = StableDiffusionXLPipeline(**parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.parts.vae.to(self.place.device)
        z = latents.to(vae.dtype)
        mean, std = self._latent_statistics(z)
        pixels = vae.decode(z * std / vae.config.scaling_factor + mean, return_dict=False)[0]
        whole = ((pixels.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return whole[0].permute(1, 2, 0).cpu()

# SPDX-License-Identifier: GPL-3.0-or-later
"""Training LoRAs for Flux.1: a rectified flow on packed latents.

A latent of 2 x 2 cells is one token. The transformer predicts the direction from picture to noise
(`losses.flow_mix`). A guidance-distilled model (Flux.1 dev) is trained at guidance 1, as kohya's
scripts and diffusers' example do. Of the text encoders only CLIP can learn; T5 stays frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from onmodel.models import libraries, safe
from onmodel.models.flux_tokens import pack, token_places, unpack
from onmodel.models.memory import Place, free_cache
from onmodel.models.registry import ModelEntry
from onmodel.models.sdxl_parts import readable_errors
from onmodel.train import losses
from onmodel.train.family import Batch, Drawing, Text, TrainedFamily
from onmodel.train.plan import PlanError, TrainingPlan


class FluxTraining(TrainedFamily):
    """A loaded Flux.1 under training."""

    prediction = "flow"

    def __init__(self, entry: ModelEntry, place: Place, plan: TrainingPlan, pipe: Any) -> None:
        self.entry, self.place, self.plan, self.pipe = entry, place, plan, pipe
        self.components = {"transformer": pipe.transformer, "text_encoder": pipe.text_encoder}
        self.latent_scale = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
        guided = bool(pipe.transformer.config.guidance_embeds)
        # What the two models were trained with: dev 512 tokens of T5, schnell 256.
        self._tokens = 512 if guided else 256
        self._guided = guided
        for part in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.transformer):
            part.eval().requires_grad_(False)
        pipe.transformer.to(place.device)
        pipe.set_progress_bar_config(disable=True)
        if plan.adapter.unet:
            pipe.transformer.train()
        if self.trains_text:
            pipe.text_encoder.to(place.device).train()
        if plan.run.gradient_checkpointing:
            pipe.transformer.enable_gradient_checkpointing()
            if self.trains_text:
                pipe.text_encoder.gradient_checkpointing_enable()

    @classmethod
    def load(cls, entry: ModelEntry, place: Place, plan: TrainingPlan) -> FluxTraining:
        """Read the model. Raises ModelError, PlanError."""
        if plan.draws_on_maps:
            raise PlanError(
                "Flux is trained without maps here.",
                "Set data.conditioning to false and leave validation.maps out.",
            )
        folder = entry.found.path
        if not folder.is_dir():
            raise PlanError(
                f"“{entry.name}” is a single file; Flux is trained from a folder in diffusers' "
                "layout, which has its text encoders and VAE as well.",
                "Set base.model to such a folder.",
            )
        libraries.quiet()
        for path in entry.found.weights:
            safe.read_header(path)
        from diffusers import AutoencoderKL, FluxPipeline

        options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
        with readable_errors(entry.name):
            vae = AutoencoderKL.from_pretrained(str(folder / "vae"), dtype=torch.float32, **options)
            dtype = getattr(torch, place.dtype)
            pipe = FluxPipeline.from_pretrained(str(folder), vae=vae, dtype=dtype, **options)
        return cls(entry, place, plan, pipe)

    @torch.no_grad()
    def encode_pictures(self, pixels: torch.Tensor) -> torch.Tensor:
        vae = self.pipe.vae.to(self.place.device)
        z = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode().float()
        return ((z - vae.config.shift_factor) * vae.config.scaling_factor).cpu()

    def encode_map(self, kind: str, pixels: torch.Tensor) -> torch.Tensor:
        raise PlanError(f"Flux takes no {kind} maps here.", "Set data.conditioning to false.")

    def encode_text(self, captions: Sequence[str]) -> Text:
        for encoder in (self.pipe.text_encoder, self.pipe.text_encoder_2):
            encoder.to(self.place.device)
        with self.autocast() if self.trains_text else torch.no_grad():
            keys, pooled, _ = self.pipe.encode_prompt(
                prompt=list(captions),
                prompt_2=None,
                device=torch.device(self.place.device),
                max_sequence_length=self._tokens,
            )
        return {"keys": keys, "pooled": pooled}

    def chunks(self, caption: str) -> int:
        return 1

    def pad_text_to(self, chunks: int) -> None:
        """Texts of Flux have one length as they are."""

    def rest_encoders(self) -> None:
        if self.place.device == "cpu":
            return
        self.pipe.vae.to("cpu")
        self.pipe.text_encoder_2.to("cpu")
        if not self.trains_text:
            self.pipe.text_encoder.to("cpu")
        free_cache(self.place)

    def losses(self, batch: Batch, rng: torch.Generator) -> torch.Tensor:
        clean = batch.latents
        count, _, height, width = clean.shape
        noise = torch.randn(clean.shape, generator=rng).to(clean.device)
        levels = losses.flow_levels(count, height // 2 * (width // 2), rng).to(clean.device)
        noisy, target = losses.flow_mix(clean, noise, levels)
        keys = batch.text["keys"]
        with self.autocast():
            said = self.pipe.transformer(
                hidden_states=pack(noisy).to(self.pipe.transformer.dtype),
                timestep=levels,
                guidance=torch.ones_like(levels) if self._guided else None,
                pooled_projections=batch.text["pooled"],
                encoder_hidden_states=keys,
                txt_ids=keys.new_zeros(keys.shape[1], 3),
                img_ids=token_places(height // 2, width // 2).to(keys),
                return_dict=False,
            )[0]
        squared = (unpack(said.float(), height, width) - target).square()
        return losses.per_picture(squared, batch.masks)

    @torch.no_grad()
    def draw(self, drawing: Drawing) -> torch.Tensor:
        width, height = drawing.size
        pipe = self.pipe
        learning = [m for m in (pipe.transformer, pipe.text_encoder) if m.training]
        for module in (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2):
            module.to(self.place.device).eval()
        try:
            with self.autocast():
                tokens = pipe(
                    prompt=drawing.prompt,
                    width=width,
                    height=height,
                    num_inference_steps=self.plan.validation.steps,
                    guidance_scale=self.plan.validation.guidance,
                    max_sequence_length=self._tokens,
                    generator=torch.Generator().manual_seed(drawing.seed),
                    output_type="latent",
                ).images
        finally:
            for module in learning:
                module.train()
        vae = pipe.vae.to(self.place.device)
        z = unpack(tokens, height // self.latent_scale, width // self.latent_scale).to(vae.dtype)
        z = z / vae.config.scaling_factor + vae.config.shift_factor
        pixels = vae.decode(z, return_dict=False)[0].float()
        whole = ((pixels + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return whole[0].permute(1, 2, 0).cpu()

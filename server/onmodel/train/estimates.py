# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan will need, told from the model's headers and configurations without loading it.

Counts of weights are exact for folders in diffusers' layout. Memory is a rough figure until a
measurement replaces it: what the activations take depends on the attention kernels of the machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onmodel.models import safe
from onmodel.models.probe import Found, configs_folder, probe_file, probe_folder, read_json
from onmodel.models.registry import Registry
from onmodel.train import targets
from onmodel.train.buckets import Order
from onmodel.train.plan import AdapterPlan, BasePlan, TrainingPlan

gib = 1 << 30
dtype_bytes = {"bf16": 2, "fp16": 2, "fp32": 4}

original_convolutions = ("in_layers.2", "out_layers.3", "skip_connection", "op", "conv")
original_flux = ("qkv", "attn.proj", "linear1", "linear2", "mlp.0", "mlp.2")
"""The same layers in the naming of single files; Flux's count as their merged whole."""

optimizer_floats = {"adamw": 2.0, "adamw8bit": 0.5, "prodigy": 4.0, "adafactor": 0.1}
"""State in float32 numbers per trained weight: Adam's two moments; the same in 8 bits; Prodigy's
two more for its distance estimate; Adafactor's row and column means, next to nothing."""

activation_gib = {"sdxl": (12.0, 3.0), "flux": (24.0, 6.0)}
"""GiB per million pixels at 2 bytes a number, without and with gradient checkpointing. Rough: from
reports of 8 to 10 GB (checkpointed) and about 20 GB for SDXL LoRAs at 1024 x 1024, batch 1."""

sdxl_width = 320 + 640 + 1280


@dataclass(frozen=True)
class ModelFacts:
    """What the estimates need of a model.

    layers: name to shape of the weights of U-Net or transformer. counts: weights of each
    component. text_widths: (hidden, feed-forward, layers) of each text encoder that can be
    trained. tokens: longest caption, start and end not counted. latent_scale: pixels per latent;
    latent_channels. context: numbers in the cached text of one caption.
    """

    found: Found
    layers: dict[str, tuple[int, ...]]
    counts: dict[str, int]
    text_widths: tuple[tuple[int, int, int], ...]
    tokens: int
    latent_scale: int
    latent_channels: int
    context: int


@dataclass(frozen=True)
class Estimate:
    """Bytes, and the number of weights that are trained. memory is of the device.

    checkpoint: one LoRA file, at most. state: what the run resumes from, kept once.
    """

    trained: int
    memory: int
    cache: int
    checkpoint: int
    checkpoints: int
    state: int

    @property
    def disk(self) -> int:
        """Bytes that the whole run writes, at most: while the state is saved there are two, and
        the finished LoRA is there in two layouts."""
        return self.cache + self.checkpoint * (self.checkpoints + 2) + 2 * self.state


def find_model(base: BasePlan) -> Found:
    """The model that a plan names. Raises ModelError where there is none, or it is no model."""
    path = model_path(base)
    if path is None:
        return Registry().find(base.model).found
    return probe_folder(path) if path.is_dir() else probe_file(path)


def model_path(base: BasePlan) -> Path | None:
    """The folder or file that a plan names, None where it is a name of the registry.

    A folder without model_index.json is not meant: somebody may stand beside one that happens
    to be called like a model.
    """
    path = Path(base.model).expanduser()
    if path.is_file() or (path / "model_index.json").is_file():
        return path
    return None


def facts(found: Found) -> ModelFacts:
    """Reads headers and configurations. Raises ModelError for damaged files."""
    layers: dict[str, tuple[int, ...]] = {}
    counts: dict[str, int] = {}
    for path in found.weights:
        component = path.parent.name if found.path.is_dir() else ""
        if component == "controlnet":
            continue
        for name, info in safe.read_header(path).tensors.items():
            part, bare = _component(component, name)
            counts[part] = counts.get(part, 0) + math.prod(info.shape)
            if part == "denoiser":
                layers[bare] = info.shape
    texts = _text_configs(found)
    vae = _config(found, "vae", "flux" if found.family == "flux" else "sdxl-base-1.0")
    width = 4096 if found.family == "flux" else found.context_width
    tokens = min((int(t["max_position_embeddings"]) for t in texts), default=77)
    pooled = int(texts[-1].get("projection_dim", 768)) if texts else 768
    length = 512 if found.family == "flux" else tokens
    return ModelFacts(
        found=found,
        layers=layers,
        counts=counts,
        text_widths=tuple(
            (int(t["hidden_size"]), int(t["intermediate_size"]), int(t["num_hidden_layers"]))
            for t in texts
        ),
        tokens=length - (1 if found.family == "flux" else 2),
        latent_scale=2 ** (len(vae.get("block_out_channels", (0, 0, 0, 0))) - 1),
        latent_channels=int(vae.get("latent_channels", 16 if found.family == "flux" else 4)),
        context=length * width + pooled,
    )


def _component(folder: str, name: str) -> tuple[str, str]:
    """Which part of the model a tensor belongs to, and its name there."""
    if folder:
        return ("denoiser" if folder in ("unet", "transformer") else folder), name
    for prefix, part in (
        ("model.diffusion_model.", "denoiser"),
        ("first_stage_model.", "vae"),
        ("conditioner.embedders.0.", "text_encoder"),
        ("conditioner.embedders.1.", "text_encoder_2"),
    ):
        if name.startswith(prefix):
            return part, name.removeprefix(prefix)
    return "denoiser", name


def _text_configs(found: Found) -> list[dict[str, Any]]:
    """CLIP's configurations. Flux's second text encoder is T5, which is not trained."""
    names = ("text_encoder",) if found.family == "flux" else ("text_encoder", "text_encoder_2")
    return [c for c in (_config(found, name, "") for name in names) if "hidden_size" in c]


def _config(found: Found, part: str, fallback: str) -> dict[str, Any]:
    for folder in (found.config, configs_folder / fallback):
        path = folder / part / "config.json"
        if path.is_file():
            return read_json(path)
    return {}


def target_layers(adapter: AdapterPlan, model: ModelFacts) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of every layer of the U-Net or transformer that gets a LoRA."""
    kind = "transformer" if model.found.family == "flux" else "unet"
    ends = targets.endings(kind, adapter)
    starts = targets.blocks[kind]
    if not any(name.startswith(starts) for name in model.layers):
        starts = ("",)
        if kind == "transformer":
            ends += original_flux
        elif adapter.convolutions:
            ends += original_convolutions
    return [
        (name.removesuffix(".weight"), shape)
        for name, shape in model.layers.items()
        if name.endswith(".weight")
        and len(shape) in (2, 4)
        and name.startswith(starts)
        and targets.ends_with(name.removesuffix(".weight"), ends)
    ]


def trained_weights(adapter: AdapterPlan, model: ModelFacts) -> int:
    """Numbers in A and B of every target: rank · (in + out), convolutions with their kernel."""
    total = 0
    if adapter.unet:
        for _, shape in target_layers(adapter, model):
            total += adapter.rank * (shape[0] + math.prod(shape[1:]))
    if adapter.text_encoders:
        for hidden, inner, layers in model.text_widths:
            total += layers * adapter.text_encoder_rank * (4 * 2 * hidden + 2 * (hidden + inner))
    return total


def estimate(plan: TrainingPlan, model: ModelFacts, order: Order, pictures: int) -> Estimate:
    """What the run needs. pictures: how many are cached, regularisation included."""
    trained = trained_weights(plan.adapter, model)
    number = dtype_bytes[plan.base.dtype]
    averaged = 1 if plan.schedule.ema is not None else 0
    state = optimizer_floats[plan.optimizer.name]
    sides = [fit.bucket for fit in order.fits]
    largest = max(w * h for w, h in sides)
    cells = sum(w * h for w, h in sides) // model.latent_scale**2
    shown = 2 if plan.data.flip else 1
    cache = 0
    if plan.run.cache_latents:
        cache += cells * model.latent_channels * 4 * shown
    if plan.run.cache_text:
        cache += pictures * model.context * number
    kept = order.steps // plan.run.save_every + 1
    return Estimate(
        trained=trained,
        memory=round(
            _resident(plan, model) * number
            + trained * 4 * (2 + state + averaged)
            + _activations(plan, model, largest) * number / 2
        ),
        cache=cache,
        checkpoint=trained * 4,
        checkpoints=min(kept, plan.run.keep + 1) if plan.run.keep else kept,
        state=round(trained * 4 * (1 + state + averaged)),
    )


def _resident(plan: TrainingPlan, model: ModelFacts) -> int:
    """Frozen weights on the device while steps are made."""
    parts = {"denoiser"}
    if not plan.run.cache_latents:
        parts.add("vae")
    if not plan.run.cache_text:
        parts |= {"text_encoder", "text_encoder_2"}
    return sum(count for part, count in model.counts.items() if part in parts)


def _activations(plan: TrainingPlan, model: ModelFacts, pixels: int) -> float:
    """Bytes at 2 bytes a number, scaled by the width of the U-Net."""
    plain, checkpointed = activation_gib[model.found.family]
    each = checkpointed if plan.run.gradient_checkpointing else plain
    width = 1.0
    if model.found.family == "sdxl":
        unet = _config(model.found, "unet", "sdxl-base-1.0")
        width = sum(unet.get("block_out_channels", (sdxl_width,))) / sdxl_width
    return each * gib * width * plan.schedule.batch * pixels / (1024 * 1024)


def readable(count: float) -> str:
    """Bytes for people."""
    for unit, size in (("GiB", gib), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def narrowest(layers: Sequence[tuple[str, tuple[int, ...]]]) -> tuple[str, int]:
    """The layer with the fewest inputs or outputs, and that number."""
    name, shape = min(layers, key=lambda item: min(item[1][:2]))
    return name, min(shape[:2])

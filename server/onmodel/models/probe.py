# SPDX-License-Identifier: GPL-3.0-or-later
"""What a folder or file is, told from configurations and safetensors headers, without loading."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onmodel.models import safe
from onmodel.models.errors import ModelError

configs_folder = Path(__file__).resolve().parent / "configs"

union_modes = {"pose": 0, "depth": 1, "lineart": 3, "normal": 4}
"""Control types of the union ControlNets for SDXL (xinsir's numbering, 6 or 8 types)."""

flux_kinds = ("depth", "pose")
"""Kinds of maps that ControlNets for Flux follow, of those that Onmodel makes."""


@dataclass(frozen=True)
class Found:
    """A model on disk.

    path: a folder in the hub's layout, or one checkpoint file, whose configuration is `config`.
    weights: the files that make up its hash. context_width: of the text embeddings.
    scheduler: the model's own scheduler configuration. native_pixels: area it was trained at.
    steps, guidance: usual for its kind; None where the registry's defaults do.
    """

    path: Path
    family: str
    config: Path
    weights: tuple[Path, ...]
    native_pixels: int
    multiple: int
    context_width: int
    scheduler: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    steps: int | None = None
    guidance: float | None = None


@dataclass(frozen=True)
class FoundControl:
    """A ControlNet on disk. width: of the text embeddings it takes. types: 6 or 8 for SDXL.

    map_kinds: kinds of maps it takes.
    """

    path: Path
    family: str
    width: int
    types: int
    map_kinds: tuple[str, ...] = tuple(union_modes)


def probe_folder(path: Path) -> Found:
    """A folder with model_index.json. Raises ModelError."""
    index = read_json(path / "model_index.json")
    kind = str(index.get("_class_name", ""))
    weights = tuple(sorted(path.glob("*/*.safetensors")))
    if not weights:
        other = next((p for p in path.glob("*/*") if p.suffix in (".bin", ".ckpt", ".pt")), None)
        more = f" Its weights are in {other.suffix} files, which can run code." if other else ""
        raise ModelError(f"The folder {path} holds no .safetensors weights.{more}")
    if kind.startswith("StableDiffusionXL"):
        return _sdxl(path, path, weights)
    if kind.startswith("Flux"):
        return _flux_folder(path, weights)
    raise ModelError(f"{path.name} is a {kind or 'model of an unknown kind'}, not SDXL or Flux.")


def probe_file(path: Path) -> Found:
    """A single checkpoint file. Raises ModelError."""
    header = safe.read_header(path)
    shapes = {name: info.shape for name, info in header.tensors.items()}
    title = header.metadata.get("modelspec.title", "").strip()[:120]
    if any(name.startswith("lora_") or ".lora_" in name for name in shapes):
        raise ModelError(f"“{path.name}” is a LoRA; LoRAs belong into the loras folder.")
    prefix = "model.diffusion_model."
    if "conditioner.embedders.1.model.ln_final.weight" in shapes:
        return _sdxl_file(path, shapes, title)
    if any(f"{p}double_blocks.0.img_attn.qkv.weight" in shapes for p in ("", prefix)):
        dev = any(name.endswith("guidance_in.in_layer.weight") for name in shapes)
        width = next((s[1] for n, s in shapes.items() if n.endswith("txt_in.weight")), 4096)
        return _flux(path, path.with_suffix(""), (path,), dev, width, title)
    if f"{prefix}input_blocks.0.0.weight" in shapes:
        if "conditioner.embedders.0.model.ln_final.weight" in shapes:
            raise ModelError(f"“{path.name}” is the SDXL refiner; only base models can draw.")
        raise ModelError(f"“{path.name}” is Stable Diffusion 1 or 2; SDXL is needed.")
    raise ModelError(f"“{path.name}” is not a checkpoint that Onmodel knows (SDXL, Flux).")


def probe_controlnet(path: Path) -> FoundControl | None:
    """A union ControlNet for SDXL, as a folder or as one file, or a ControlNet for Flux, as a
    folder; None if it is something else."""
    if path.is_dir() and (path / "config.json").is_file():
        config = read_json(path / "config.json")
        if config.get("_class_name") == "FluxControlNetModel":
            return _flux_control(path, config)
        if config.get("_class_name") != "ControlNetUnionModel":
            return None
        if not any(path.glob("*.safetensors")):
            return None
        width = int(config.get("cross_attention_dim", 0))
        return FoundControl(path, "sdxl", width, int(config.get("num_control_type", 6)))
    if path.is_file() and path.suffix.lower() == ".safetensors":
        shapes = {name: info.shape for name, info in safe.read_header(path).tensors.items()}
        key = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
        if "task_embedding" in shapes and key in shapes:
            return FoundControl(path, "sdxl", shapes[key][1], shapes["task_embedding"][0])
    return None


def _flux_control(path: Path, config: dict[str, Any]) -> FoundControl | None:
    """A union net by its number of modes; another one by what its onmodel.json says it follows."""
    kinds: tuple[str, ...] = flux_kinds if config.get("num_mode") else ()
    if (path / "onmodel.json").is_file():
        named = read_json(path / "onmodel.json").get("map_kinds", [])
        kinds = tuple(kind for kind in flux_kinds if kind in named)
    if not kinds or not any(path.glob("*.safetensors")):
        return None
    return FoundControl(path, "flux", int(config.get("joint_attention_dim", 4096)), 0, kinds)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} does not hold a JSON object.")
    return data


def _sdxl_file(path: Path, shapes: dict[str, tuple[int, ...]], title: str) -> Found:
    """A checkpoint in the original layout: its sizes must be those of a shipped configuration."""
    context = shapes.get(
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", (0, 0)
    )[1]
    first = shapes.get("model.diffusion_model.input_blocks.0.0.weight", (0, 0, 0, 0))
    beside = path.with_suffix("")
    for config in (beside, configs_folder / "sdxl-base-1.0"):
        if (config / "unet" / "config.json").is_file():
            unet = read_json(config / "unet" / "config.json")
            if (
                unet["cross_attention_dim"] == context
                and unet["block_out_channels"][0] == first[0]
                and unet["in_channels"] == first[1]
            ):
                v_prediction = "v_pred" in shapes
                return _sdxl(path, config, (path,), title, v_prediction, "ztsnr" in shapes)
    if first[1] == 9:
        raise ModelError(f"“{path.name}” is an inpainting model; a base model is needed.")
    raise ModelError(
        f"“{path.name}” has the layout of SDXL but other sizes ({first[0]} channels, "
        f"{context} text features).",
        f"Put a folder of configurations beside it, named “{beside.name}”.",
    )


def _sdxl(
    path: Path,
    config: Path,
    weights: tuple[Path, ...],
    title: str = "",
    v_prediction: bool = False,
    zero_snr: bool = False,
) -> Found:
    unet = read_json(config / "unet" / "config.json")
    vae = read_json(config / "vae" / "config.json")
    scheduler = read_json(config / "scheduler" / "scheduler_config.json")
    if v_prediction:
        # The marker keys that v-prediction checkpoints in the original layout carry.
        scheduler["prediction_type"] = "v_prediction"
    if zero_snr:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    side = int(unet["sample_size"]) * scale
    # Below 512 pixels a step of 64 would be too coarse to follow a frame's aspect.
    multiple = 64 if side >= 512 else scale * 2 ** (len(unet["block_out_channels"]) - 1)
    width = int(unet["cross_attention_dim"])
    return Found(path, "sdxl", config, weights, side * side, multiple, width, scheduler, title)


def _flux_folder(path: Path, weights: tuple[Path, ...]) -> Found:
    transformer = read_json(path / "transformer" / "config.json")
    file = path / "scheduler" / "scheduler_config.json"
    scheduler = read_json(file) if file.is_file() else None
    dev = bool(transformer.get("guidance_embeds"))
    width = int(transformer.get("joint_attention_dim", 4096))
    return _flux(path, path, weights, dev, width, "", scheduler)


def _flux(
    path: Path,
    config: Path,
    weights: tuple[Path, ...],
    dev: bool,
    context_width: int,
    title: str = "",
    scheduler: dict[str, Any] | None = None,
) -> Found:
    """dev: it is told its guidance, as FLUX.1 dev is, and is not distilled to four steps."""
    scheduler = scheduler or {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "use_dynamic_shifting": dev,
        "shift": 3.0 if dev else 1.0,
    }
    steps, guidance = (28, 3.5) if dev else (4, 1.0)
    return Found(
        path,
        "flux",
        config,
        weights,
        native_pixels=1024 * 1024,
        multiple=16,
        context_width=context_width,
        scheduler=scheduler,
        title=title,
        steps=steps,
        guidance=guidance,
    )

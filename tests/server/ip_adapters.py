# SPDX-License-Identifier: GPL-3.0-or-later
"""IP-Adapters with random numbers in the published layouts, and a tiny CLIP picture encoder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

hidden, embedding, face = 64, 48, 16
width = 80
"""Text features of `bench.random_model`'s SDXL."""


def write_encoder(folder: Path) -> Path:
    """CLIP of three layers, 32x32 pixels."""
    torch.manual_seed(3)
    config = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=embedding,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def write_adapter(
    path: Path, model: Path, kind: str, width: int = width, seed: int = 1, lora: bool = False
) -> Path:
    """An IP-Adapter for the model in the folder. kind: "plain", "plus", "faceid"."""
    from diffusers import UNet2DConditionModel

    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    state = {f"image_proj.{k}": v for k, v in _projection(kind, width, some).items()}
    unet = UNet2DConditionModel.from_pretrained(model / "unet")
    names = [n for n in unet.attn_processors if "attn2" in n]
    for number, name in enumerate(names):
        layer = unet.get_submodule(name.removesuffix(".processor"))
        for side in ("k", "v"):
            key = f"ip_adapter.{2 * number + 1}.to_{side}_ip.weight"
            state[key] = some(layer.inner_dim, width) * 3
    if lora:
        state["ip_adapter.0.to_q_lora.down.weight"] = some(4, 32)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path


def _projection(kind: str, width: int, some) -> dict[str, torch.Tensor]:
    norm = {"norm.weight": torch.ones(width), "norm.bias": some(width)}
    if kind == "plain":
        return {"proj.weight": some(4 * width, embedding), "proj.bias": some(4 * width), **norm}
    if kind == "faceid":
        return {
            "proj.0.weight": some(2 * face, face),
            "proj.0.bias": some(2 * face),
            "proj.2.weight": some(4 * width, 2 * face),
            "proj.2.bias": some(4 * width),
            **norm,
        }
    found = {
        "latents": some(1, 4, 64),
        "proj_in.weight": some(64, hidden),
        "proj_in.bias": some(64),
        "proj_out.weight": some(width, 64),
        "proj_out.bias": some(width),
        "norm_out.weight": torch.ones(width),
        "norm_out.bias": some(width),
    }
    for layer in range(4):
        at = f"layers.{layer}"
        for name in ("0.norm1", "0.norm2", "1.0"):
            found[f"{at}.{name}.weight"] = torch.ones(64)
            found[f"{at}.{name}.bias"] = some(64)
        found[f"{at}.0.to_q.weight"] = some(64, 64)
        found[f"{at}.0.to_kv.weight"] = some(128, 64)
        found[f"{at}.0.to_out.weight"] = some(64, 64)
        found[f"{at}.1.1.weight"] = some(256, 64)
        found[f"{at}.1.3.weight"] = some(64, 256)
    return found

# SPDX-License-Identifier: GPL-3.0-or-later
"""Shared by the tests of regional LoRAs: LoRAs of every kind of layer, and first steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from onmodel.generate import regional_settings
from onmodel.generate.artist import Artist
from onmodel.generate.regional_settings import RegionalSettings
from onmodel.models.family import Picture, RegionPrompt
from safetensors.torch import load_file, save_file

block = "down_blocks.1.attentions.0.transformer_blocks.0"
layers = {
    "tokens": [f"{block}.attn1.to_q", f"{block}.attn2.to_out.0", f"{block}.ff.net.0.proj"],
    "keys": [f"{block}.attn2.to_k", f"{block}.attn2.to_v"],
    "space": ["down_blocks.0.resnets.0.conv1", "down_blocks.1.downsamplers.0.conv", "conv_out"],
    "time": ["up_blocks.1.resnets.0.time_emb_proj"],
}
unet = [path for paths in layers.values() for path in paths]
text = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1"]
size = (96, 128)


def write_lora(
    path: Path, model: Path, seed: int, modules: list[str], texts: list[str] = (), rank: int = 3
) -> None:
    """A LoRA with random numbers, in diffusers' layout, that fits the model."""
    generator = torch.Generator().manual_seed(seed)
    files = {
        "unet": ("unet/diffusion_pytorch_model.safetensors", modules),
        "text_encoder": ("text_encoder/model.safetensors", texts),
        "text_encoder_2": ("text_encoder_2/model.safetensors", texts),
    }
    state = {}
    for component, (file, names) in files.items():
        weights = load_file(model / file)
        weights = {k.removeprefix("text_model."): v for k, v in weights.items()}
        for name in names:
            outputs, inputs, *kernel = weights[f"{name}.weight"].shape
            down = torch.randn(rank, inputs, *kernel, generator=generator)
            up = torch.randn(outputs, rank, *[1 for _ in kernel], generator=generator)
            gain = 0.5 / (inputs * (kernel[0] ** 2 if kernel else 1)) ** 0.5
            state[f"{component}.{name}.lora_A.weight"] = down * gain
            state[f"{component}.{name}.lora_B.weight"] = up
            state[f"{component}.{name}.alpha"] = torch.tensor(rank / 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)


def sides() -> tuple[np.ndarray, np.ndarray]:
    """Masks of the left and of the right half."""
    left = np.zeros(size, bool)
    left[:, :64] = True
    return left, ~left


def picture(*regions: RegionPrompt, seed: int = 1) -> Picture:
    """A picture without maps."""
    return Picture("a room", "blue", size[1], size[0], seed, regions=regions)


def use(artist: Artist, whole: dict[str, float], regional: list[str]) -> None:
    """Put LoRAs on the artist's model: of the whole picture with weights, and bound ones."""
    shelf, find = artist._loaded.shelf, artist.registry.find_lora
    shelf.use([(find(n), w) for n, w in whole.items()], [find(n) for n in regional])


def bind(artist: Artist, **weights: float) -> tuple[tuple[str, float], ...]:
    """LoRAs of a region."""
    find = artist.registry.find_lora
    return tuple(sorted((find(name).adapter, weight) for name, weight in weights.items()))


def first_step(
    artist: Artist,
    *pictures: Picture,
    settings: RegionalSettings = regional_settings.standard,
    guidance: float = 3.0,
) -> torch.Tensor:
    """(B, 4, 12, 16): what the model says of the same noise for each picture."""
    family = artist._loaded.family
    prepared = family.prepare(list(pictures), guidance, settings)
    noise = torch.randn(1, 4, 12, 16, generator=torch.Generator().manual_seed(9))
    return family.denoise(prepared, noise.expand(len(pictures), -1, -1, -1), torch.tensor(700), 0.0)

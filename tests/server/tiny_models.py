# SPDX-License-Identifier: GPL-3.0-or-later
"""Tiny models with adapters on them, for the tests of LoRA files and of training."""

from __future__ import annotations

from pathlib import Path

import torch
from onmodel.models.memory import Place
from onmodel.models.registry import ModelEntry, Registry
from onmodel.models.sdxl_parts import Parts, load_parts
from peft import LoraConfig, inject_adapter_in_model

from bench.random_model import build

cpu = Place("cpu", "float32", "cpu", 1 << 30)
text_targets = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
unet_targets = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]


def entry(folder: Path) -> ModelEntry:
    """A tiny SDXL in folder/models/tiny, made where it is not there yet."""
    path = folder / "models" / "tiny"
    if not path.is_dir():
        build(path)
    return Registry(folder, extra=[], embedded=folder / "none").find("tiny")


def parts(folder: Path) -> Parts:
    return load_parts(entry(folder), cpu)


def components(found: Parts) -> dict:
    return {
        "unet": found.unet,
        "text_encoder": found.text_encoders[0],
        "text_encoder_2": found.text_encoders[1],
    }


def adapt(models: dict, rank: int = 3, alpha: float = 7.0, seed: int = 1, convolutions=False):
    """Adapters that change something: their upper matrices are random as well."""
    torch.manual_seed(seed)
    for name, model in models.items():
        targets = unet_targets if name == "unet" else text_targets
        if name == "unet" and convolutions:
            targets = [*targets, "conv1", "conv2", "downsamplers.0.conv", "conv_shortcut"]
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), model, "default"
        )
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.1)


@torch.no_grad()
def outputs(models: dict) -> list[torch.Tensor]:
    """What the text encoders and the U-Net say to one fixed input."""
    torch.manual_seed(5)
    ids = torch.tensor([[1, 5, 9, 4, 2, 2, 2, 2]])
    first = models["text_encoder"](ids, output_hidden_states=True)
    second = models["text_encoder_2"](ids, output_hidden_states=True)
    keys = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
    added = {"text_embeds": second[0], "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
    x = torch.randn(1, 4, 8, 8)
    v = models["unet"](x, 500, encoder_hidden_states=keys, added_cond_kwargs=added)[0]
    return [keys, second[0], v]

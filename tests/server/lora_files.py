# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes LoRA files for tests: the same numbers under each naming, and hostile ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from onmodel.models.lora_names import original_unet_name
from safetensors.torch import save_file

attention = [
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.2.attentions.1.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
    "up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_out.0",
    "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2",
]
text = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1"]


def pairs(model_folder: Path, rank: int = 4, strength: float = 1.0) -> dict:
    """(component, module) to (down, up), fitting the model in the folder."""
    from safetensors.torch import load_file

    torch.manual_seed(3)
    files = {
        "unet": "unet/diffusion_pytorch_model.safetensors",
        "text_encoder": "text_encoder/model.safetensors",
        "text_encoder_2": "text_encoder_2/model.safetensors",
    }
    found = {}
    for component, file in files.items():
        state = {
            k.removeprefix("text_model."): v for k, v in load_file(model_folder / file).items()
        }
        for module in attention if component == "unet" else text:
            outputs, inputs = state[f"{module}.weight"].shape
            down = torch.randn(rank, inputs) * strength
            up = torch.randn(outputs, rank) * strength
            found[component, module] = (down, up)
    return found


def diffusers_file(path: Path, found: dict, alpha: float) -> None:
    """Current diffusers: lora_A/lora_B, text_model in the text encoders, alpha in the metadata."""
    state, adapter = {}, {}
    for (component, module), (down, up) in found.items():
        level = "" if component == "unet" else "text_model."
        state[f"{component}.{level}{module}.lora_A.weight"] = down
        state[f"{component}.{level}{module}.lora_B.weight"] = up
        adapter[f"{component}.r"] = down.shape[0]
        adapter[f"{component}.lora_alpha"] = alpha
    save_file(state, path, {"lora_adapter_metadata": json.dumps(adapter), "format": "pt"})


def kohya_file(path: Path, found: dict, alpha: float, original: bool) -> None:
    """kohya's scripts; original: the UNet named as in the original checkpoints."""
    prefix = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    state = {}
    for (component, module), (down, up) in found.items():
        name = module
        if component != "unet":
            name = f"text_model.{module}"
        elif original:
            name = original_unet_name(module, 2, [True, True, False])
        key = f"{prefix[component]}_{name.replace('.', '_')}"
        state[f"{key}.lora_down.weight"] = down
        state[f"{key}.lora_up.weight"] = up
        state[f"{key}.alpha"] = torch.tensor(alpha)
    save_file(state, path, {"ss_base_model_version": "sdxl_base_v1-0", "ss_output_name": "Ann"})


def raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A file with this header, right or wrong. header: JSON data, or the text itself."""
    text = header if isinstance(header, str) else json.dumps(header)
    size = len(text.encode()) if length is None else length
    path.write_bytes(struct.pack("<Q", size) + text.encode() + data)
    return path


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}

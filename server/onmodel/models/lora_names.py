# SPDX-License-Identifier: GPL-3.0-or-later
"""The names by which LoRA files call the modules of a loaded model.

Built from the model itself, so that a name is known if and only if the module is there:
    diffusers   unet.down_blocks.1.attentions.0.….to_k, text_encoder.text_model.encoder.…
    kohya       the same with underscores, and the UNet in the original naming of SDXL's
                checkpoints (input_blocks_4_1_transformer_blocks_0_attn1_to_k), the transformer of
                Flux in that of its original code (double_blocks_0_img_attn_qkv)
"""

from __future__ import annotations

import re
from typing import Any

from onmodel.lora import flux_names
from onmodel.models.family import Site

_resnet = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_single = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_down = re.compile(r"down_blocks\.(\d+)\.(attentions|resnets|downsamplers)\.(\d+)\.(.*)")
_up = re.compile(r"up_blocks\.(\d+)\.(attentions|resnets|upsamplers)\.(\d+)\.(.*)")
_mid = re.compile(r"mid_block\.(attentions|resnets)\.(\d+)\.(.*)")


def sdxl_sites(components: dict[str, Any]) -> dict[str, Site]:
    """ "component.name" to module, for a UNet and two CLIP text encoders."""
    import torch

    sites: dict[str, Site] = {}
    for component, model in components.items():
        for path, module in model.named_modules():
            if not isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                continue
            site = Site(component, path)
            for name in _names(component, path, model):
                sites[f"{component}.{name}"] = site
                sites[f"{component}.{name.replace('.', '_')}"] = site
    return sites


def flux_sites(components: dict[str, Any]) -> dict[str, Site]:
    """The same for Flux: its transformer, CLIP and T5."""
    import torch

    sites: dict[str, Site] = {}
    for component, model in components.items():
        for path, module in model.named_modules():
            if not isinstance(module, torch.nn.Linear):
                continue
            site = Site(component, path)
            if component != "transformer":
                for name in _names(component, path, model):
                    sites[f"{component}.{name}"] = site
                    sites[f"{component}.{name.replace('.', '_')}"] = site
                continue
            sites[f"transformer.{path}"] = site
            kohya = flux_names.find(path)
            if kohya is not None:
                name, fused = kohya
                sites[f"unet.{name}"] = Site(component, fused[0], fused)
    return sites


def _names(component: str, path: str, model: Any) -> list[str]:
    if component == "unet":
        layers = int(model.config.layers_per_block)
        attended = ["CrossAttn" in kind for kind in model.config.up_block_types]
        original = original_unet_name(path, layers, attended)
        return [path] if original is None else [path, original]
    # transformers changed whether CLIPTextModel has the level text_model; files keep both.
    bare = path.removeprefix("text_model.")
    return [bare, f"text_model.{bare}"]


def original_unet_name(path: str, layers: int, up_attended: list[bool]) -> str | None:
    """A UNet module's name in the original checkpoints of SDXL, None if it has no counterpart.

    layers: resnets of a down block (an up block has one more). up_attended: which up blocks hold
    attention (it moves the upsampler from place 1 to place 2).
    """
    if path in _single:
        return _single[path]
    if match := _down.fullmatch(path):
        block, kind, index, rest = int(match[1]), match[2], int(match[3]), match[4]
        at = 1 + block * (layers + 1) + index
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.op"
        return f"input_blocks.{at}.{_place(kind, rest)}"
    if match := _up.fullmatch(path):
        block, kind, index, rest = int(match[1]), match[2], int(match[3]), match[4]
        at = block * (layers + 1) + index
        if kind == "upsamplers":
            last = block * (layers + 1) + layers
            return f"output_blocks.{last}.{2 if up_attended[block] else 1}.conv"
        return f"output_blocks.{at}.{_place(kind, rest)}"
    if match := _mid.fullmatch(path):
        kind, index, rest = match[1], int(match[2]), match[3]
        if kind == "attentions":
            return f"middle_block.{2 * index + 1}.{rest}"
        return f"middle_block.{2 * index}.{_resnet.get(rest, rest)}"
    return None


def _place(kind: str, rest: str) -> str:
    return f"1.{rest}" if kind == "attentions" else f"0.{_resnet.get(rest, rest)}"

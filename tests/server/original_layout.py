# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a tiny SDXL as one file in the layout of the original checkpoints, for tests.

The opposite direction of what loaders do, written from the layouts themselves, so that a loader's
mistake does not cancel out.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
from onmodel.models.lora_names import original_unet_name
from safetensors.torch import load_file, save_file

unet_prefix = "model.diffusion_model."
vae_prefix = "first_stage_model."


def write(hub_folder: Path, target: Path) -> None:
    """target: a .safetensors path; its configuration goes into a folder of the same stem."""
    state = {}
    state |= {
        unet_prefix + unet_name(k): v
        for k, v in load_file(hub_folder / "unet/diffusion_pytorch_model.safetensors").items()
    }
    for k, v in load_file(hub_folder / "vae/diffusion_pytorch_model.safetensors").items():
        name = vae_name(k)
        # The original attention of the VAE is made of 1x1 convolutions.
        wide = "attn_1" in name and name.endswith("weight") and v.ndim == 2
        state[vae_prefix + name] = v[:, :, None, None].contiguous() if wide else v
    first = load_file(hub_folder / "text_encoder/model.safetensors")
    for k, v in first.items():
        bare = k.removeprefix("text_model.")
        state[f"conditioner.embedders.0.transformer.text_model.{bare}"] = v
    second = load_file(hub_folder / "text_encoder_2/model.safetensors")
    state |= {f"conditioner.embedders.1.model.{k}": v for k, v in open_clip(second).items()}
    save_file({k: v.clone() for k, v in state.items()}, target)
    config = target.with_suffix("")
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        (config / name).mkdir(parents=True)
        shutil.copy(hub_folder / name / "config.json", config / name)
    for name in ("tokenizer", "tokenizer_2", "scheduler"):
        shutil.copytree(hub_folder / name, config / name)
    shutil.copy(hub_folder / "model_index.json", config)


def unet_name(key: str) -> str:
    path, leaf = key.rsplit(".", 1)
    norms = {"norm1": "in_layers.0", "norm2": "out_layers.0"}
    if path == "conv_norm_out":
        return f"out.0.{leaf}"
    if match := re.fullmatch(r"(.*resnets\.\d+)\.(norm[12])", path):
        # A norm stands in the same place as its block's first convolution.
        conv = original_unet_name(f"{match[1]}.conv1", 2, [True, True, False])
        return f"{conv.removesuffix('in_layers.2')}{norms[match[2]]}.{leaf}"
    return f"{original_unet_name(path, 2, [True, True, False])}.{leaf}"


def vae_name(key: str) -> str:
    def up(match: re.Match) -> str:
        return f"decoder.up.{3 - int(match[1])}."

    key = re.sub(r"encoder\.down_blocks\.(\d+)\.", r"encoder.down.\1.", key)
    key = re.sub(r"decoder\.up_blocks\.(\d+)\.", up, key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0.", "mid.attn_1.")
    if "attn_1" in key:
        for a, b in (
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "proj_out"),
            ("group_norm", "norm"),
        ):
            key = key.replace(f"attn_1.{a}.", f"attn_1.{b}.")
    key = re.sub(r"resnets\.(\d)", r"block.\1", key)
    key = key.replace("downsamplers.0.conv", "downsample.conv")
    key = key.replace("upsamplers.0.conv", "upsample.conv")
    return key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def open_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' CLIP text model in open_clip's names."""
    state = {k.removeprefix("text_model."): v for k, v in state.items()}
    out = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
        "logit_scale": torch.tensor(4.6),
    }
    layers = 1 + max(int(m[1]) for k in state if (m := re.match(r"encoder\.layers\.(\d+)", k)))
    for i in range(layers):
        old, new = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
        for leaf in ("weight", "bias"):
            parts = [state[f"{old}.self_attn.{p}_proj.{leaf}"] for p in "qkv"]
            out[f"{new}.attn.in_proj_{leaf}"] = torch.cat(parts)
            for a, b in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                out[f"{new}.{b}.{leaf}"] = state[f"{old}.{a}.{leaf}"]
    return out

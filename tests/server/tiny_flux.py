# SPDX-License-Identifier: GPL-3.0-or-later
"""A Flux of a few thousand weights, in the hub's layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxPipeline,
    FluxTransformer2DModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

from bench.random_model import make_tokenizer


def build_control(folder: Path, modes: int | None = 7) -> Path:
    """A ControlNet for it whose additions are no zeros. modes: None for a net of one kind."""
    torch.manual_seed(1)
    net = FluxControlNetModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=[4, 4, 8],
        num_mode=modes,
    )
    added = (net.controlnet_x_embedder, *net.controlnet_blocks, *net.controlnet_single_blocks)
    for module in added:
        torch.nn.init.normal_(module.weight, std=0.2)
    net.save_pretrained(folder)
    return folder


double = {
    "img_mod.lin": ["norm1.linear"],
    "txt_mod.lin": ["norm1_context.linear"],
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "img_attn.proj": ["attn.to_out.0"],
    "txt_attn.proj": ["attn.to_add_out"],
    "img_mlp.0": ["ff.net.0.proj"],
    "img_mlp.2": ["ff.net.2"],
    "txt_mlp.0": ["ff_context.net.0.proj"],
    "txt_mlp.2": ["ff_context.net.2"],
    "img_attn.norm.query_norm": ["attn.norm_q"],
    "img_attn.norm.key_norm": ["attn.norm_k"],
    "txt_attn.norm.query_norm": ["attn.norm_added_q"],
    "txt_attn.norm.key_norm": ["attn.norm_added_k"],
}
single = {
    "modulation.lin": ["norm.linear"],
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "linear2": ["proj_out"],
    "norm.query_norm": ["attn.norm_q"],
    "norm.key_norm": ["attn.norm_k"],
}
outer = {
    "img_in": ["x_embedder"],
    "txt_in": ["context_embedder"],
    "final_layer.linear": ["proj_out"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
}
for _theirs, _ours in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance")):
    for _layer, _number in (("in", 1), ("out", 2)):
        _name = f"time_text_embed.{_ours}_embedder.linear_{_number}"
        outer[f"{_theirs}_in.{_layer}_layer"] = [_name]


def write_file(folder: Path, target: Path, prefix: str = "") -> None:
    """The transformer of a built model as one file in the original naming, the other parts and its
    configuration in a folder of the file's name beside it."""
    state = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    tables = [(outer, "", ""), (double, "double_blocks.0.", "transformer_blocks.0.")]
    tables += [(single, "single_blocks.0.", "single_transformer_blocks.0.")]
    found = {}
    for table, theirs, ours in tables:
        for name, parts in table.items():
            for leaf in ("weight", "bias"):
                values = [state.pop(f"{ours}{p}.{leaf}", None) for p in parts]
                if values[0] is None:
                    continue
                value = torch.cat(values)
                if "adaLN" in name:  # scale and shift stand the other way round
                    value = torch.cat([value[len(value) // 2 :], value[: len(value) // 2]])
                ending = "scale" if name.endswith("_norm") else leaf
                found[f"{prefix}{theirs}{name}.{ending}"] = value.clone()
    assert not state
    save_file(found, target)
    shutil.copytree(folder, target.with_suffix(""))
    for file in ("model_index.json", "transformer/diffusion_pytorch_model.safetensors"):
        (target.with_suffix("") / file).unlink()


def build(folder: Path, told: bool = True) -> Path:
    """Write the pipeline under folder. told: its guidance, as dev is and schnell is not."""
    torch.manual_seed(0)
    clip = make_tokenizer()
    letters = [(c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz,."]
    t5 = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters])
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=told),
        vae=AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.36,
            shift_factor=0.11,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                vocab_size=len(clip),
                bos_token_id=clip.bos_token_id,
                eos_token_id=clip.eos_token_id,
                pad_token_id=clip.pad_token_id,
            )
        ),
        tokenizer=clip,
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=len(t5), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ),
        tokenizer_2=t5,
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            guidance_embeds=told,
            axes_dims_rope=(4, 4, 8),
        ),
    )
    pipe.save_pretrained(folder)
    return folder

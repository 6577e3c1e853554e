# SPDX-License-Identifier: GPL-3.0-or-later
"""Flux's transformer from one file in the naming of its original code (black-forest-labs/flux).

diffusers splits what that code fuses (see `onmodel.lora.flux_names`), and its last modulation has
scale before shift. The library's own converter knows FLUX.1's sizes alone; this one takes the sizes
from the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onmodel.models import safe
from onmodel.models.errors import ModelError
from onmodel.models.probe import read_json

prefixes = ("", "model.diffusion_model.")
_double = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_q": "img_attn.qkv",
    "attn.to_k": "img_attn.qkv",
    "attn.to_v": "img_attn.qkv",
    "attn.add_q_proj": "txt_attn.qkv",
    "attn.add_k_proj": "txt_attn.qkv",
    "attn.add_v_proj": "txt_attn.qkv",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_single = {
    "norm.linear": "modulation.lin",
    "attn.to_q": "linear1",
    "attn.to_k": "linear1",
    "attn.to_v": "linear1",
    "proj_mlp": "linear1",
    "proj_out": "linear2",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}
_embedders = {
    "timestep_embedder": "time_in",
    "text_embedder": "vector_in",
    "guidance_embedder": "guidance_in",
}
_top = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
} | {
    f"time_text_embed.{ours}.linear_{i}": f"{theirs}.{layer}"
    for ours, theirs in _embedders.items()
    for i, layer in ((1, "in_layer"), (2, "out_layer"))
}
_order = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "proj_mlp")


def original_name(name: str) -> str:
    """A parameter of diffusers' FluxTransformer2DModel by the name in the original code: that of
    the fused one where it is a part."""
    module, _, leaf = name.rpartition(".")
    if module in _top:
        return f"{_top[module]}.{leaf}"
    stack, number, rest = module.split(".", 2)
    table, level = (
        (_double, "double_blocks") if stack == "transformer_blocks" else (_single, "single_blocks")
    )
    # RMS norms call their weight a scale.
    leaf = "scale" if ".norm_" in f".{rest}" else leaf
    return f"{level}.{number}.{table[rest]}.{leaf}"


def load_transformer(path: Path, config: Path, dtype: Any) -> Any:
    """The transformer of a file. config: a folder that may hold transformer/config.json, for sizes
    that a file does not tell. Raises ModelError where a weight is missing or of other sizes."""
    import torch
    from accelerate import init_empty_weights
    from diffusers import FluxTransformer2DModel
    from safetensors import safe_open

    shapes = {name: info.shape for name, info in safe.read_header(path).tensors.items()}
    prefix = next(p for p in prefixes if f"{p}double_blocks.0.img_attn.qkv.weight" in shapes)
    shapes = {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}
    own = config / "transformer" / "config.json"
    settings = read_json(own) if own.is_file() else sizes(path, shapes)
    with init_empty_weights():
        model = FluxTransformer2DModel.from_config(settings)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    state = {}
    with safe_open(str(path), framework="pt") as file:
        for source, names in _by_source(wanted).items():
            if source not in shapes:
                raise ModelError(f"“{path.name}” is no whole Flux: it lacks “{source}”.")
            rows = sum(wanted[name][0] for name in names)
            if shapes[source] != (rows, *wanted[names[0]][1:]):
                raise ModelError(
                    f"“{path.name}” has other sizes than its configuration: “{source}” is "
                    f"{shapes[source]}, not {(rows, *wanted[names[0]][1:])}."
                )
            value, at = file.get_tensor(f"{prefix}{source}").to(dtype), 0
            if source.startswith("final_layer.adaLN_modulation"):
                value = torch.cat(value.chunk(2)[::-1])
            for name in names:
                count = wanted[name][0]
                # Copies: a view would keep the fused weight alive beside its parts.
                state[name] = value[at : at + count].clone() if len(names) > 1 else value
                at += count
    model.load_state_dict(state, assign=True)
    return model


def _by_source(wanted: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """The file's name to the parameters that it holds, in the order of their rows."""
    found: dict[str, list[str]] = {}
    for name in wanted:
        found.setdefault(original_name(name), []).append(name)
    for names in found.values():
        if len(names) > 1:
            names.sort(key=lambda name: _order.index(name.split(".")[-2]))
    return found


def sizes(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The configuration that a file's shapes tell. Raises ModelError for heads of another size than
    FLUX.1's, whose rotary embedding no shape tells."""
    width, inputs = shapes["img_in.weight"]
    head = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][0]
    if head != 128:
        raise ModelError(
            f"“{path.name}” has heads of {head} channels, FLUX.1 has 128.",
            f"Put its transformer/config.json into the folder “{path.stem}” beside it.",
        )
    blocks = {tuple(name.split(".")[:2]) for name in shapes if "_blocks." in name}
    return {
        "in_channels": inputs,
        "num_layers": sum(level == "double_blocks" for level, _ in blocks),
        "num_single_layers": sum(level == "single_blocks" for level, _ in blocks),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": [16, 56, 56],
    }

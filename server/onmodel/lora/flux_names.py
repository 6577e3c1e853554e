# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of Flux' modules in Black Forest Labs' code, by which kohya's files call them.

diffusers splits what the original code fuses: a double block's `img_attn.qkv` is to_q, to_k and
to_v; a single block's `linear1` is to_q, to_k, to_v and proj_mlp, in this order.
"""

from __future__ import annotations

import re

from onmodel.models.errors import ModelError

_double = {
    "attn.to_out.0": "img_attn_proj",
    "attn.to_add_out": "txt_attn_proj",
    "ff.net.0.proj": "img_mlp_0",
    "ff.net.2": "img_mlp_2",
    "ff_context.net.0.proj": "txt_mlp_0",
    "ff_context.net.2": "txt_mlp_2",
    "norm1.linear": "img_mod_lin",
    "norm1_context.linear": "txt_mod_lin",
}
_double_fused = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_single = {"proj_out": "linear2", "norm.linear": "modulation_lin"}
_single_fused = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")}
_block = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")


def original(module: str) -> tuple[str, tuple[str, ...]]:
    """What `find` gives. Raises ModelError for a module without a name in kohya's layout."""
    found = find(module)
    if found is None:
        raise ModelError(f"“{module}” has no name in kohya's layout for Flux.")
    return found


def find(module: str) -> tuple[str, tuple[str, ...]] | None:
    """diffusers' path to kohya's name (with underscores), and the paths that are fused into that
    module, in their order; only the path itself where nothing is fused. None: it has no name."""
    match = _block.fullmatch(module)
    if match:
        single, number, rest = match.groups()
        level = "single_blocks" if single else "double_blocks"
        plain, fused = (_single, _single_fused) if single else (_double, _double_fused)
        if rest in plain:
            return f"{level}_{number}_{plain[rest]}", (module,)
        for name, parts in fused.items():
            if rest in parts:
                head = module.removesuffix(rest)
                return f"{level}_{number}_{name}", tuple(head + part for part in parts)
    return None

# SPDX-License-Identifier: GPL-3.0-or-later
"""Which layers get a LoRA, by the ends of their paths in diffusers' and transformers' naming."""

from __future__ import annotations

from onmodel.train.plan import AdapterPlan

attention = {
    "unet": ("to_q", "to_k", "to_v", "to_out.0"),
    "text": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "transformer": (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
    ),
}
feed_forward = {
    "unet": ("ff.net.0.proj", "ff.net.2"),
    "text": ("fc1", "fc2"),
    # In a single block proj_mlp widens and proj_out narrows, the attention's output included.
    "transformer": (
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
        "proj_mlp",
        "proj_out",
    ),
}
convolutions = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
blocks = {
    "unet": ("down_blocks.", "mid_block.", "up_blocks."),
    "text": ("encoder.layers.", "text_model.encoder.layers."),
    "transformer": ("transformer_blocks.", "single_transformer_blocks."),
}


def endings(kind: str, plan: AdapterPlan) -> tuple[str, ...]:
    """The ends of the paths that the plan trains. kind: "unet", "text", "transformer"."""
    if not isinstance(plan.targets, str):
        return plan.targets
    ends = attention[kind]
    if plan.targets == "attention+feed-forward":
        ends += feed_forward[kind]
    if plan.convolutions and kind == "unet":
        ends += convolutions
    return ends


def ends_with(path: str, ends: tuple[str, ...]) -> bool:
    """Whether a path is one of the ends, or ends with one after a dot."""
    return any(path == end or path.endswith(f".{end}") for end in ends)

# SPDX-License-Identifier: GPL-3.0-or-later
"""A model of the SDXL architecture with random weights, written to disk in the hub's layout.

For tests and benches: everything but the picture is real. The two text encoders have different
widths (single-file loaders tell them apart by width alone), and the union ControlNet's transformer
is as wide as its first block, as `ControlNetUnionModel` needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

words = ["a", "red", "blue", "man", "woman", "coat", "in", "the", "room", "street", ",", "angry"]


def build(
    folder: Path,
    widths: tuple[int, ...] = (32, 64, 64),
    text_widths: tuple[int, int] = (32, 48),
    size: int = 16,
    control_types: int = 6,
    seed: int = 0,
) -> Path:
    """Write unet, vae, text encoders, tokenizers, scheduler and controlnet under `folder`.

    widths: channels of the UNet's levels. size: latent side; pixels are 8 times that.
    Returns the folder.
    """
    import torch

    torch.manual_seed(seed)
    parts = components(widths, text_widths, size, control_types)
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": "0.42.1",
        "force_zeros_for_empty_prompt": True,
    }
    for name, part in parts.items():
        if name != "controlnet":
            library = "transformers" if "text" in name or "token" in name else "diffusers"
            index[name] = [library, type(part).__name__]
    import json

    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
    return folder


def components(
    widths: tuple[int, ...], text_widths: tuple[int, int], size: int, control_types: int
) -> dict[str, Any]:
    """The modules, untrained."""
    import torch
    from diffusers import (
        AutoencoderKL,
        ControlNetUnionModel,
        EulerDiscreteScheduler,
        UNet2DConditionModel,
    )
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
    )

    attention = ("CrossAttnDownBlock2D",) * (len(widths) - 1)
    up = ("CrossAttnUpBlock2D",) * (len(widths) - 1)
    tokenizer = make_tokenizer()
    time_dim = 8
    shared: dict[str, Any] = {
        "block_out_channels": widths,
        "down_block_types": ("DownBlock2D", *attention),
        "cross_attention_dim": sum(text_widths),
        "attention_head_dim": 2,
        "transformer_layers_per_block": 1,
        "norm_num_groups": 8,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": time_dim,
        "projection_class_embeddings_input_dim": 6 * time_dim + text_widths[1],
        "layers_per_block": 2,
    }
    unet = UNet2DConditionModel(sample_size=size, up_block_types=(*up, "UpBlock2D"), **shared)
    controlnet: Any = ControlNetUnionModel(
        conditioning_embedding_out_channels=(8, 16, 16, 24),
        num_control_type=control_types,
        num_trans_channel=widths[0],
        num_proj_channel=widths[0],
        num_trans_head=4,
        **shared,
    )
    # Fresh ControlNets end in zero convolutions; tests want an effect.
    for block in [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]:
        torch.nn.init.normal_(block.weight, std=0.2)
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=size * 8,
        scaling_factor=0.13025,
        force_upcast=True,
    )

    def text(width: int, cls: Any) -> Any:
        return cls(
            CLIPTextConfig(
                hidden_size=width,
                intermediate_size=width * 2,
                projection_dim=width,
                num_hidden_layers=3,
                num_attention_heads=2,
                vocab_size=len(tokenizer),
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )

    return {
        "unet": unet,
        "vae": vae,
        "text_encoder": text(text_widths[0], CLIPTextModel),
        "text_encoder_2": text(text_widths[1], CLIPTextModelWithProjection),
        "tokenizer": tokenizer,
        "tokenizer_2": make_tokenizer(pad="!"),
        "scheduler": EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        "controlnet": controlnet,
    }


def make_tokenizer(pad: str = "<|endoftext|>") -> Any:
    """CLIP's tokenizer class on a vocabulary of a few words and all single characters."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    vocab = letters + [c + "</w>" for c in letters]
    merges: list[str] = []
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merge = f"{parts[0]} {parts[1]}"
            parts = [parts[0] + parts[1], *parts[2:]]
            if merge not in merges:
                merges.append(merge)
            if parts[0] not in vocab:
                vocab.append(parts[0])
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    pairs: Any = [tuple(m.split()) for m in merges]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocab)},
        merges=pairs,
        pad_token=pad,
        model_max_length=77,
    )

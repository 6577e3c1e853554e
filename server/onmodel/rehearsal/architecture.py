# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded model's parts: SDXL's own classes, small.

Two CLIP text encoders of different widths, a UNet with SDXL's added embeddings, a union ControlNet
with the usual order of types, a 12-channel VAE at a factor of 8, v prediction with a zero terminal
SNR. Everything is stock diffusers and transformers: a folder of these parts loads with
`StableDiffusionXLControlNetUnionPipeline.from_pretrained` and nothing of ours. (Their classes have
no types that mypy can use, hence Any.)
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetUnionModel,
    LCMScheduler,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from onmodel.rehearsal import stem

latent_channels = 12
map_types = {"pose": 0, "depth": 1, "lineart": 3, "normal": 4}
"""Our maps' places in the union's order: pose, depth, thick line, thin line, normal, segment."""
vocabulary = Path(__file__).parent / "tokenizer" / "bpe_simple_vocab_16e6.txt.gz"
"""CLIP's byte pair merges as the package open-clip-torch ships them (MIT)."""
_merge_count = 48894
token_limit = 48
"""Prompts are padded and cut to so many tokens; the longest captions of the world have about 40."""
full_vocabulary = 49408
start_token, end_token = 49406, 49407


@dataclass(frozen=True)
class Sizes:
    """Widths of the model. text: hidden sizes of the two encoders, which must differ."""

    unet: tuple[int, ...] = (48, 96, 192)
    heads: tuple[int, ...] = (2, 4, 4)
    vae: tuple[int, ...] = (16, 32, 64, 96)
    text: tuple[int, int] = (64, 96)
    text_layers: int = 3
    groups: int = 16


tiny = Sizes(
    unet=(16, 32, 32),
    heads=(2, 2, 2),
    vae=(8, 8, 8, 8),
    text=(16, 24),
    text_layers=2,
    groups=8,
)
"""For tests."""


def make_tokenizer() -> Any:
    """CLIP's tokenizer with CLIP's token numbers."""
    with gzip.open(vocabulary, "rt", encoding="utf-8") as lines:
        merges = [line.rstrip("\n") for line in lines][1 : _merge_count + 1]
    letters = list(_byte_letters().values())
    words = [*letters, *(x + "</w>" for x in letters), *("".join(m.split()) for m in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    pairs: Any = [tuple(m.split()) for m in merges]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)},
        merges=pairs,
        model_max_length=token_limit,
        pad_token="<|endoftext|>",
    )


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-ins for the 256 bytes, in CLIP's order."""
    codes = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    out = {code: chr(code) for code in codes}
    extra = 0
    for code in range(256):
        if code not in out:
            out[code] = chr(256 + extra)
            extra += 1
    return out


def make_vae(sizes: Sizes) -> Any:
    """The autoencoder. Its latents are about unit variance as they are: scaling_factor is 1."""
    count = len(sizes.vae)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        block_out_channels=sizes.vae,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=256,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def make_text_encoders(
    sizes: Sizes, words: int = full_vocabulary, end: int = end_token
) -> tuple[Any, Any]:
    """SDXL's pair: hidden states of both, and the second one's pooled projection, are used.

    words, end: the size of the vocabulary and the number of its end token.
    """

    def config(width: int) -> CLIPTextConfig:
        # The CPU's fused attention is slow backwards.
        eager: dict[str, Any] = {"attn_implementation": "eager"}
        return CLIPTextConfig(
            vocab_size=words,
            hidden_size=width,
            intermediate_size=3 * width,
            projection_dim=width,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=4,
            max_position_embeddings=token_limit,
            hidden_act="gelu",
            bos_token_id=start_token if words == full_vocabulary else end - 1,
            eos_token_id=end,
            pad_token_id=end,
            **eager,
        )

    first, second = sizes.text
    return CLIPTextModel(config(first)), CLIPTextModelWithProjection(config(second))


def _shared(sizes: Sizes) -> dict[str, Any]:
    """What the UNet and the ControlNet have in common."""
    return {
        "in_channels": latent_channels,
        "block_out_channels": sizes.unet,
        "layers_per_block": 1,
        "attention_head_dim": sizes.heads,
        "cross_attention_dim": sum(sizes.text),
        "norm_num_groups": sizes.groups,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 6 * 32 + sizes.text[1],
    }


def make_unet(sizes: Sizes) -> Any:
    """The denoiser."""
    deep = len(sizes.unet) - 1
    return UNet2DConditionModel(
        sample_size=32,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * deep),
        up_block_types=(*("CrossAttnUpBlock2D",) * deep, "UpBlock2D"),
        **_shared(sizes),
    )


def make_controlnet(sizes: Sizes) -> Any:
    """The union ControlNet. It sees the prompt in its middle only: its work is the maps.

    The layers that look at the maps are fixed (`stem`), but for the last. Its outputs start small
    instead of at zero: it learns together with the UNet from the first step, there is no trained
    UNet whose drawings it could spoil.
    """
    width = sizes.unet[0]
    model: Any = ControlNetUnionModel(
        conditioning_embedding_out_channels=stem.channels,
        down_block_types=("DownBlock2D",) * len(sizes.unet),
        num_control_type=6,
        num_trans_channel=width,
        num_trans_head=4,
        num_trans_layer=1,
        num_proj_channel=width,
        **_shared(sizes),
    )
    for module in [*model.controlnet_down_blocks, model.controlnet_mid_block]:
        torch.nn.init.normal_(module.weight, std=0.3 / module.weight.shape[1] ** 0.5)
    stem.write(model.controlnet_cond_embedding)
    last = model.controlnet_cond_embedding.conv_out
    torch.nn.init.normal_(last.weight, std=1.0 / (9 * last.weight.shape[1]) ** 0.5)
    torch.nn.init.normal_(model.spatial_ch_projs.weight, std=0.3 / width**0.5)
    return model


def make_scheduler() -> Any:
    """SDXL's noise schedule, brought to zero terminal SNR, with v prediction.

    The scheduler of latent consistency models (Luo et al. 2023, arXiv:2310.04378), for what it does
    between steps: it takes the clean picture that a step foresees and puts all new noise on it.
    With little training some of the first noise is taken for picture; a deterministic sampler
    carries these blotches to the end, here the next step washes them out.
    """
    return LCMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        # For other schedulers that a preset may put in its place.
        timestep_spacing="trailing",
        steps_offset=1,
    )


class Denoiser(torch.nn.Module):
    """What is trained together: UNet, ControlNet and both text encoders.

    tokens: CLIP's numbers of the tokens that training meets. Only these have rows in the text
    encoders while they learn (the full table would cost more than all the rest); `full_encoders`
    puts them into a full table.
    """

    def __init__(self, sizes: Sizes, tokens: Sequence[int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.place: torch.Tensor
        self.tokens = [*sorted(set(tokens) - {start_token, end_token}), start_token, end_token]
        place = torch.full((full_vocabulary,), -1, dtype=torch.int64)
        place[self.tokens] = torch.arange(len(self.tokens))
        self.register_buffer("place", place, persistent=False)
        self.unet = make_unet(sizes)
        self.controlnet = make_controlnet(sizes)
        self.controlnet.controlnet_cond_embedding = stem.Packed(
            self.controlnet.controlnet_cond_embedding
        )
        pair = make_text_encoders(sizes, len(self.tokens), len(self.tokens) - 1)
        self.text_encoder, self.text_encoder_2 = pair

    def encode(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """CLIP's numbers (N, L) to embeddings (N, L, D) and pooled ones (N, P), as SDXL does.

        Raises KeyError for a token that training has no row for.
        """
        local = self.place[tokens]
        if bool((local < 0).any()):
            raise KeyError("A caption has a token outside of the training vocabulary.")
        first = self.text_encoder(local, output_hidden_states=True)
        second = self.text_encoder_2(local, output_hidden_states=True)
        both = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return both, second.text_embeds

    def full_controlnet(self) -> Any:
        """The ControlNet with its fixed layers, taking maps."""
        out = make_controlnet(self.sizes)
        missing, unknown = out.load_state_dict(self.controlnet.state_dict(), strict=False)
        fixed = "controlnet_cond_embedding."
        if unknown or any(not name.startswith(fixed) for name in missing):
            raise ValueError("The ControlNet's parts do not fit: its training is of another kind.")
        return out

    def full_encoders(self) -> tuple[Any, Any]:
        """The text encoders with CLIP's whole vocabulary; words never met keep random rows."""
        torch.manual_seed(0)
        pair = make_text_encoders(self.sizes)
        for full, small in zip(pair, (self.text_encoder, self.text_encoder_2), strict=True):
            state = small.state_dict()
            name = next(k for k in state if k.endswith("token_embedding.weight"))
            rows = full.state_dict()[name].clone()
            rows[self.tokens] = state[name].to(rows)
            full.load_state_dict({**state, name: rows})
        return pair


def pipeline_index() -> str:
    """model_index.json of the exported folder."""
    parts = {
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "controlnet": ["diffusers", "ControlNetUnionModel"],
        "scheduler": ["diffusers", "LCMScheduler"],
    }
    head = {
        "_class_name": "StableDiffusionXLControlNetUnionPipeline",
        "_diffusers_version": "0.42.1",
        "force_zeros_for_empty_prompt": False,
    }
    return json.dumps({**head, **parts}, indent=2) + "\n"

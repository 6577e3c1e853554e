# SPDX-License-Identifier: GPL-3.0-or-later
"""Regional prompts: each character's prompt is seen by that character's image tokens only.

The rule, the same in training and in drawing
    The text keys of a picture are its prompts' embeddings end to end: the shot's prompt, then one
    prompt per character ("<trigger> <noun>, <prompt>"). In every cross-attention of the UNet and
    of the ControlNet, an image token of the background sees the shot's prompt alone; an image
    token of character i sees the shot's prompt and character i's. A token sees a character's
    prompt when the character's mask covers at least a fifth of the token's area at that
    resolution: where two meet it sees both, and a small figure's head is not lost between coarse
    tokens. The
    pooled text embedding is the shot prompt's. The negative prompt is seen by all tokens.

It needs one pass of the denoiser whatever the number of characters, and pictures with different
numbers of characters share a batch (shorter ones are padded with keys that nobody sees).

A LoRA bound to a region acts there alone: see `regional_loras`. Where it changes keys and values,
its region needs a copy of the shot's (and of the negative) prompt with its own: `own` below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from onmodel.generate.image_tokens import ImageTokens

seen_share = 0.2
"""How much of an image token's area a character's mask covers when the token sees its prompt."""
key_step = 8
"""Key counts are padded to a multiple of this: fused attention on GPUs asks it of masks."""


def character_prompt(trigger: str, noun: str, prompt: str) -> str:
    """The prompt of a character's region: "<trigger> <noun>, <prompt>", empty parts left out."""
    name = " ".join(part.strip() for part in (trigger, noun) if part.strip())
    return ", ".join(part for part in (name, prompt.strip().strip(",").strip()) if part)


def token_shares(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """How much of each latent cell every mask covers.

    masks: (..., H, W), 0..1 or bool, in canvas pixels. size: latent (height, width).
    Returns (..., height, width) float32, 0..1.
    """
    leading = masks.shape[:-2]
    flat = masks.reshape(-1, 1, *masks.shape[-2:]).float()
    return F.adaptive_avg_pool2d(flat, size).reshape(*leading, *size)


class Regions:
    """Who sees what, for one batch.

    shares: (B, R, h, w) float, 0..1: the part of each latent cell that character r covers; zeros
        for a picture with fewer characters.
    segments: (B, L) integers: for each text key 0 = shot (or negative) prompt, seen by all image
        tokens; r + 1 = seen by the tokens of character r; -1 = padding, seen by none.
        Every row must have at least one 0.
    own: (B, R) bool: characters whose segment holds its own copy of the shot's prompt, so that
        their tokens do not see segment 0. None: no character.
    """

    def __init__(
        self, shares: torch.Tensor, segments: torch.Tensor, own: torch.Tensor | None = None
    ) -> None:
        if shares.ndim != 4 or segments.ndim != 2 or shares.shape[0] != segments.shape[0]:
            raise ValueError(
                f"Regions need shares (B, R, h, w) and segments (B, L) of one batch, not "
                f"{tuple(shares.shape)} and {tuple(segments.shape)}."
            )
        self.shares = shares
        self.segments = segments
        self.own = own
        self.grids = token_grids(shares.shape[-2], shares.shape[-1])
        self._members: dict[int, torch.Tensor] = {}
        self._bias: dict[tuple[int, torch.dtype, torch.device], torch.Tensor] = {}

    def members(self, tokens: int) -> torch.Tensor:
        """(B, R, tokens) bool: the image tokens of each character at that resolution."""
        if tokens not in self._members:
            grid = self.grids.get(tokens)
            if grid is None:
                raise ValueError(f"No level of this picture has {tokens} image tokens.")
            shares = F.adaptive_avg_pool2d(self.shares, grid)
            self._members[tokens] = shares.flatten(2) >= seen_share
        return self._members[tokens]

    def rows(self, rows: Sequence[int]) -> Regions:
        """The regions of some rows of the batch; a row may stand there twice."""
        index = torch.tensor(list(rows), device=self.shares.device)
        own = None if self.own is None else self.own[index]
        return Regions(self.shares[index], self.segments[index], own)

    def bias(self, tokens: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """(B, 1, tokens, L): 0 where an image token sees a text key, -inf where it does not."""
        key = (tokens, dtype, device)
        if key not in self._bias:
            members = self.members(tokens)
            batch, _, _ = members.shape
            everyone = members.new_ones(batch, 1, tokens)
            if self.own is not None:
                everyone = ~(members & self.own[..., None]).any(1, keepdim=True)
            nobody = members.new_zeros(batch, 1, tokens)
            # Row 0: the shot's keys; 1..R: the characters'; the last (reached by -1): padding.
            seen = torch.cat([everyone, members, nobody], dim=1)
            index = self.segments % seen.shape[1]
            seen = torch.gather(seen, 1, index[..., None].expand(-1, -1, tokens))
            bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            bias = bias.masked_fill(~seen, float("-inf")).transpose(1, 2)
            self._bias[key] = bias.unsqueeze(1).contiguous().to(device)
        return self._bias[key]


def join_prompts(
    prompts: Sequence[Sequence[torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of each picture, end to end and padded to one length.

    prompts: for each picture, embeddings (L_i, D): the shot's first, then each character's.
    Returns keys (B, L, D) and segments (B, L) int64 as `Regions` takes them.
    """
    lengths = [sum(p.shape[0] for p in row) for row in prompts]
    longest = max(lengths)
    if len(set(lengths)) > 1 or any(len(row) > 1 for row in prompts):
        longest = -(-longest // key_step) * key_step
    first = prompts[0][0]
    keys = first.new_zeros(len(prompts), longest, first.shape[-1])
    segments = torch.full((len(prompts), longest), -1, dtype=torch.int64, device=first.device)
    for b, row in enumerate(prompts):
        at = 0
        for segment, prompt in enumerate(row):
            keys[b, at : at + prompt.shape[0]] = prompt
            segments[b, at : at + prompt.shape[0]] = segment
            at += prompt.shape[0]
    return keys, segments


class RegionalAttnProcessor:
    """Attention for the UNet's and the ControlNet's blocks, with or without regions.

    Given to a model with `set_attn_processor`; the regions of a call travel in its
    `cross_attention_kwargs={"regions": Regions | None}`, so nothing is kept between calls and two
    threads never share state. Self-attention, and calls without regions, are the stock attention.
    A UNet's call may have "image_tokens" too: characters that are held by their portraits.

    plain: compute softmax(QK)V step by step instead of with the fused kernel. None: plain where
        gradients are wanted on a CPU, whose fused kernel is slow backwards; else fused.
    """

    def __init__(self, plain: bool | None = None) -> None:
        self.plain = plain

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        regions: Regions | None = None,
        image_tokens: ImageTokens | None = None,
    ) -> torch.Tensor:
        if attn.spatial_norm is not None or attn.group_norm is not None:
            raise ValueError("RegionalAttnProcessor is for transformer blocks only.")
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        batch, tokens, _ = hidden_states.shape
        query = _split_heads(attn.to_q(hidden_states), attn.heads)
        key = _split_heads(attn.to_k(context), attn.heads)
        value = _split_heads(attn.to_v(context), attn.heads)

        bias = None
        if attention_mask is not None:
            bias = attn.prepare_attention_mask(attention_mask, context.shape[1], batch)
            bias = bias.view(batch, attn.heads, -1, bias.shape[-1])
        if regions is not None and encoder_hidden_states is not None:
            seen = regions.bias(tokens, query.dtype, query.device)
            bias = seen if bias is None else bias + seen

        plain = self.plain
        if plain is None:
            plain = query.device.type == "cpu" and query.requires_grad
        if plain:
            scores = torch.matmul(query * attn.scale, key.transpose(-1, -2))
            if bias is not None:
                scores = scores + bias
            out = torch.matmul(scores.softmax(dim=-1), value)
        else:
            out = F.scaled_dot_product_attention(query, key, value, bias, scale=attn.scale)
        out = out.transpose(1, 2).reshape(batch, tokens, -1)
        if image_tokens is not None and encoder_hidden_states is not None:
            out = image_tokens.add(attn, query, attn.scale, out)
        out = attn.to_out[1](attn.to_out[0](out))
        if attn.residual_connection:
            out = out + hidden_states
        if attn.rescale_output_factor != 1.0:
            out = out / attn.rescale_output_factor
        return out


def use_regions(*models: Any, plain: bool | None = None) -> None:
    """Make UNets and ControlNets understand `cross_attention_kwargs={"regions": ...}`."""
    for model in models:
        model.set_attn_processor(RegionalAttnProcessor(plain))


def _split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, N, heads * d) to (B, heads, N, d)."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def token_grids(height: int, width: int) -> dict[int, tuple[int, int]]:
    """Token count to (height, width) for every level of a UNet whose latents have this size.

    A downsampling convolution (stride 2, padding 1) halves a side and rounds up.
    """
    grids: dict[int, tuple[int, int]] = {}
    while True:
        grids[height * width] = (height, width)
        if height == 1 and width == 1:
            return grids
        height, width = (height + 1) // 2, (width + 1) // 2

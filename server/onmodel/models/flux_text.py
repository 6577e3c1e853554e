# SPDX-License-Identifier: GPL-3.0-or-later
"""Prompts to Flux's text embeddings: T5's keys, and CLIP's pooled vector.

As in diffusers' pipeline: T5 reads the prompt padded to the model's length (512 tokens for dev,
256 for schnell) with no mask, and the padding's keys count, since the model was trained with them.
A longer prompt is cut into pieces of that length, each encoded by itself, the keys put end to end.
CLIP reads the first 75 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Embedding:
    """A prompt's embedding. keys: (L, D). pooled: (P,). words: how many keys are no padding."""

    keys: torch.Tensor
    pooled: torch.Tensor
    words: int


def token_pieces(tokenizer: Any, text: str, length: int) -> list[list[int]]:
    """T5's token ids in pieces of at most `length`, an end token closing each."""
    ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
    room = length - 1
    return [[*ids[i : i + room], tokenizer.eos_token_id] for i in range(0, max(len(ids), 1), room)]


def encode(
    clip: Any, t5: Any, tokenizers: tuple[Any, Any], text: str, length: int, device: str
) -> Embedding:
    """The embedding of a prompt of any length, in the encoders' formats.

    length: tokens of T5. A prompt in one piece has all its words first, then padding.
    """
    first, second = tokenizers
    pieces = token_pieces(second, text, length)
    padded = [piece + [second.pad_token_id] * (length - len(piece)) for piece in pieces]
    keys = t5(torch.tensor(padded, device=device))[0].flatten(0, 1)
    words = len(pieces[0]) if len(pieces) == 1 else len(keys)
    ids = first(
        text,
        padding="max_length",
        max_length=first.model_max_length,
        truncation=True,
        verbose=False,
    ).input_ids
    pooled = clip(torch.tensor([ids], device=device)).pooler_output[0]
    return Embedding(keys, pooled, words)

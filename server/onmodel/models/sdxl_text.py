# SPDX-License-Identifier: GPL-3.0-or-later
"""Prompts to SDXL's text embeddings, for drawing and for training alike.

A prompt longer than the encoders take is cut into chunks of their length (75 tokens and the two
marks), each encoded by itself, the keys put end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def token_chunks(tokenizer: Any, text: str) -> list[list[int]]:
    """Token ids of a text in chunks of the encoder's length, start and end tokens in each."""
    ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
    room = tokenizer.model_max_length - 2
    return [padded(tokenizer, ids[i : i + room]) for i in range(0, max(len(ids), 1), room)]


def padded(tokenizer: Any, ids: list[int]) -> list[int]:
    """One chunk: start token, ids, end token, padding."""
    row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    return row + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(row))


def chunk_count(tokenizers: Sequence[Any], text: str) -> int:
    """How many chunks the text needs."""
    return max(len(token_chunks(t, text)) for t in tokenizers)


def encode(
    encoders: Sequence[Any],
    tokenizers: Sequence[Any],
    texts: Sequence[str],
    device: torch.device | str,
    at_least: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys (B, chunks · L, D) and pooled embeddings (B, P) of texts, in the encoders' format.

    at_least: chunks of every text, so that texts of several batches have one length. SDXL takes
    the last layer but one of both encoders, without the final norm, and the second one's pooled
    projection of the first chunk.
    """
    per_tokenizer = [[token_chunks(t, text) for text in texts] for t in tokenizers]
    count = max(at_least, *(len(chunks) for rows in per_tokenizer for chunks in rows))
    keys: list[torch.Tensor] = []
    pooled: torch.Tensor | None = None
    for encoder, tokenizer, rows in zip(encoders, tokenizers, per_tokenizer, strict=True):
        blank = padded(tokenizer, [])
        ids = [chunk for chunks in rows for chunk in chunks + [blank] * (count - len(chunks))]
        out = encoder(torch.tensor(ids, device=device), output_hidden_states=True)
        hidden = out.hidden_states[-2]
        keys.append(hidden.reshape(len(texts), -1, hidden.shape[-1]))
        pooled = out[0].reshape(len(texts), count, -1)[:, 0]
    assert pooled is not None
    return torch.cat([k.to(keys[-1].dtype) for k in keys], dim=-1), pooled

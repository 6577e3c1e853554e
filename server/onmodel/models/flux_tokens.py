# SPDX-License-Identifier: GPL-3.0-or-later
"""Flux's image tokens: a latent of 2 x 2 cells is one (black-forest-labs/flux, `prepare`)."""

from __future__ import annotations

import torch


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) to tokens (B, h/2 · w/2, 4C); within a token: channel, row, column."""
    batch, channels, height, width = latents.shape
    split = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * 4)


def unpack(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """What `pack` undoes: (B, C, h, w)."""
    batch, _, size = tokens.shape
    split = tokens.view(batch, height // 2, width // 2, size // 4, 2, 2)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(batch, size // 4, height, width)


def token_places(rows: int, columns: int) -> torch.Tensor:
    """(rows · columns, 3): 0, row and column of every token, for its rotary embedding."""
    places = torch.zeros(rows, columns, 3)
    places[..., 1] = torch.arange(rows)[:, None]
    places[..., 2] = torch.arange(columns)[None]
    return places.view(-1, 3)

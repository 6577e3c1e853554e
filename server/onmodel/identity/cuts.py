# SPDX-License-Identifier: GPL-3.0-or-later
"""Stored cuts of heads as tensors, as the face network sees them, and as drawings show them."""

from __future__ import annotations

import numpy as np
import torch

from onmodel.identity import augment, pack
from onmodel.identity.net import input_size

Array = np.ndarray


def to_tensor(cuts: Array) -> torch.Tensor:
    """(N, S, S, 3) uint8 to (N, 3, S, S) float32 in -1..1."""
    return torch.from_numpy(np.array(cuts)).permute(0, 3, 1, 2).float() / 127.5 - 1


def network_input(cuts: Array) -> torch.Tensor:
    """Stored cuts to what the net sees of them: (N, 3, 64, 64)."""
    return augment.place(to_tensor(cuts), input_size, pack.input_margin / pack.stored_margin, None)


def as_drawn(cuts: Array, seed: int = 7) -> Array:
    """(N, 64, 64, 3) uint8: what the net would see of a small model's drawings of these cuts."""
    rng = torch.Generator().manual_seed(seed)
    zoom = pack.input_margin / pack.stored_margin
    parts = []
    for part in torch.from_numpy(np.array(cuts)).split(64):
        x = part.permute(0, 3, 1, 2).float() / 127.5 - 1
        parts.append(augment.spoil(augment.place(x, input_size, zoom, rng), rng))
    return to_pictures(torch.cat(parts))


def to_pictures(x: torch.Tensor) -> Array:
    """(N, 3, H, W) in -1..1 to (N, H, W, 3) uint8."""
    out: Array = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return out

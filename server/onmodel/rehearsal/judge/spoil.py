# SPDX-License-Identifier: GPL-3.0-or-later
"""Make renders look like the soft, slightly noisy drawings of a small model."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from onmodel.identity.augment import coarse_blocks


def _between(n: int, low: float, high: float, rng: torch.Generator) -> torch.Tensor:
    return (torch.rand(n, generator=rng) * (high - low) + low)[:, None, None, None]


def as_if_drawn(x: torch.Tensor, rng: torch.Generator, tint: float = 0.08) -> torch.Tensor:
    """(N, 3, S, S) in -1..1, off in colour and light, soft, blotchy, blocky; some stay sharp.

    tint: how much colours and light change.
    """
    n, size = len(x), x.shape[-1]
    y = (x + 1) / 2
    y = y.clamp(0, 1) ** torch.exp(torch.randn(n, generator=rng) * 2 * tint)[:, None, None, None]
    y = y * torch.exp(torch.randn(n, 3, generator=rng) * tint)[:, :, None, None]
    grey = y.mean(1, keepdim=True)
    y = grey + (y - grey) * _between(n, 1 - 3 * tint, 1 + 2.5 * tint, rng)
    x = y * 2 - 1
    out = torch.empty_like(x)
    # One softness a group: a resize of each by itself would cost too much.
    for group in torch.randperm(n, generator=rng).chunk(4):
        one = x[group]
        if torch.rand((), generator=rng) < 0.75:
            small = round(math.exp(float(_between(1, math.log(32), math.log(size), rng))))
            one = F.interpolate(one, size=(small, small), mode="area")
            one = F.interpolate(one, size=(size, size), mode="bilinear", align_corners=False)
        out[group] = one
    for cells, strength in ((8, 0.12), (32, 0.12), (size, 0.08)):
        grain = torch.randn(n, 3, cells, cells, generator=rng) * _between(n, 0, strength, rng)
        out += grain if cells == size else F.interpolate(grain, size=(size, size), mode="nearest")
    if torch.rand((), generator=rng) < 0.5:
        out = coarse_blocks(out, _between(n, 0.05, 0.5, rng).flatten())
    return out.clamp(-1, 1)

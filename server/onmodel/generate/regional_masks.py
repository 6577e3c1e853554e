# SPDX-License-Identifier: GPL-3.0-or-later
"""How much of a character's LoRA acts where: soft shares of tokens, at every level of a UNet."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from onmodel.generate.regional_settings import RegionalSettings


def feathered(shares: torch.Tensor, sigma: float) -> torch.Tensor:
    """shares (B, R, h, w), blurred by a Gaussian of `sigma` cells; the border repeats itself.

    A blur is linear: shares that added up to at most 1 still do.
    """
    if sigma <= 0:
        return shares
    reach = math.ceil(3 * sigma)
    at = torch.arange(-reach, reach + 1, dtype=shares.dtype, device=shares.device)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    flat = shares.flatten(0, 1).unsqueeze(1)
    flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), mode="replicate"), kernel)
    kernel = kernel.transpose(2, 3)
    flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), mode="replicate"), kernel)
    return flat.view_as(shares)


def at_level(
    shares: torch.Tensor, grid: tuple[int, int], settings: RegionalSettings, grown: bool
) -> torch.Tensor:
    """Each region's part of every token of a level, adding up to at most 1 over the regions.

    shares: (B, R, h, w) of latent cells, feathered. grid: (height, width) of the level.
    grown: spread each mask by one token, into what no region covers and never into a neighbour.
    Returns (B, R, height, width).
    """
    level = F.adaptive_avg_pool2d(shares, grid)
    if not settings.soft:
        level = (level >= 0.5).to(level.dtype)
    if grown:
        gain = F.max_pool2d(level, 3, stride=1, padding=1) - level
        free = (1 - level.sum(1, keepdim=True)).clamp(min=0)
        level = level + gain * (free / gain.sum(1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
    # Two regions of half a token each are both whole ones in the hard rule.
    return level / level.sum(1, keepdim=True).clamp(min=1)

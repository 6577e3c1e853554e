# SPDX-License-Identifier: GPL-3.0-or-later
"""The ControlNet's first layers, written down instead of learned.

A ControlNet looks at its maps through seven small convolutions, the first two at full size. On a
CPU these cost more than all the rest of the denoiser, and what they have to find is known: where
grey is, where face points are, which colour a limb has. So they are fixed here, in the class's own
layout, and only the last one (`conv_out`) learns. Training then starts from their outputs, which
are packed once for each sample.

Features of an 8 x 8 cell, all from 0 up: grey in 4 x 4 places, white points in 4 x 4 places,
the six colour differences in 2 x 2 places each (16 + 16 + 24 = 56).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

channels = (8, 8, 14, 56)
"""`conditioning_embedding_out_channels` of the stem."""
_differences = ((0, 1), (1, 0), (1, 2), (2, 1), (0, 2), (2, 0))
_lift = 6.0
"""Added to values on their way: there SiLU is straight, near 0 it would swallow dark greys."""
_low, _top = -0.3, 8.0
"""Packed features span this: SiLU's least value is -0.28; grey reaches 6, white some 8."""

white = slice(16, 32)
white_least = 14
"""Which packed features are of white points, and what they exceed where there is one."""


@torch.no_grad()
def write(embedding: Any) -> None:
    """Put the fixed weights into a `ControlNetConditioningEmbedding` with `channels`."""
    for layer in (embedding.conv_in, *embedding.blocks):
        layer.weight.zero_()
        layer.bias.zero_()
        layer.requires_grad_(False)
    first = embedding.conv_in
    first.weight[0, :, 1, 1] = 2.0  # 6 x grey
    first.bias[0] = _lift
    first.weight[1, :, 1, 1] = 4.0  # white alone is above the threshold
    first.bias[1] = -10.2
    for i, (more, less) in enumerate(_differences):
        first.weight[2 + i, more, 1, 1] = 6.0
        first.weight[2 + i, less, 1, 1] = -6.0
    same, down, same_half, down_half, same_quarter, last = embedding.blocks
    for layer in (same, same_half, same_quarter):
        for i in range(layer.weight.shape[0]):
            layer.weight[i, i, 1, 1] = 1.0
    # Half size: the mean of four pixels; white counts more, a point is small.
    for i in range(8):
        down.weight[i, i, 1:, 1:] = 1.0 if i == 1 else 0.25
    # Quarter size: grey and white in four places, colour differences as a mean.
    for i in range(2):
        for place in range(4):
            down_half.weight[4 * i + place, i, 1 + place // 2, 1 + place % 2] = 1.0
    for i in range(6):
        down_half.weight[8 + i, 2 + i, 1:, 1:] = 0.25
    # An eighth: everything in four places.
    for i in range(14):
        for place in range(4):
            last.weight[4 * i + place, i, 1 + place // 2, 1 + place % 2] = 1.0
    # Values travel lifted and come down at the end; the first layer lifts grey alone.
    lifted = torch.zeros(8)
    lifted[0] = _lift
    for layer in embedding.blocks:
        taken = (layer.weight.sum((2, 3)) * lifted).sum(1)
        lifted = torch.full((layer.weight.shape[0],), 0.0 if layer is last else _lift)
        layer.bias.copy_(lifted - taken)


@torch.no_grad()
def features(embedding: Any, maps: torch.Tensor) -> torch.Tensor:
    """What the fixed layers make of maps (N, 3, H, W) in 0..1: (N, 56, H / 8, W / 8) uint8."""
    x = F.silu(embedding.conv_in(maps))
    for layer in embedding.blocks:
        x = F.silu(layer(x))
    return ((x.clamp(_low, _top) - _low) * (255 / (_top - _low))).round().to(torch.uint8)


class Packed(torch.nn.Module):
    """Takes the place of the embedding while training: packed features in, `conv_out` on top."""

    def __init__(self, embedding: Any) -> None:
        super().__init__()
        self.conv_out = embedding.conv_out

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        """(N, 56, h, w), 0..255, to the ControlNet's width."""
        out: torch.Tensor = self.conv_out(packed * ((_top - _low) / 255) + _low)
        return out

# SPDX-License-Identifier: GPL-3.0-or-later
"""A ControlNet's embedding of maps that is computed once for each map."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class OnceEmbedded(nn.Module):
    """A ControlNet's embedding of maps, which lets through what is already embedded.

    The stock ControlNet embeds the same full-size map again at every step. Embedded maps are told
    by their channel count, which is never three.
    """

    def __init__(self, inner: nn.Module, channels: int) -> None:
        super().__init__()
        self.inner = inner
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.shape[1] == self.channels else self.inner(x)


def embed_once(controlnet: Any) -> None:
    """Give a ControlNet this embedding."""
    channels = int(controlnet.config.block_out_channels[0])
    inner = controlnet.controlnet_cond_embedding
    controlnet.controlnet_cond_embedding = OnceEmbedded(inner, channels)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The rehearsal world's face network: a small residual net, 64 x 64 in, 128 numbers out.

It looks through an oval window: shoulders and the corners of the set are grey to it, since a
person's clothes in this world never change and would be the easiest thing to know them by.

Pre-activation residual blocks with PReLU as in the "IR" nets of ArcFace (Deng et al. 2019,
arXiv:1801.07698, section 3.1), and a global depthwise convolution instead of a pooled mean, since
where a feature lies in a face matters (MobileFaceNets, Chen et al. 2018, arXiv:1804.07573).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

input_size = 64
embedding_size = 128
widths = (28, 52, 96, 160)


class Block(nn.Module):
    """A residual block: (N, a, h, w) to (N, b, h / stride, w / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(inputs)
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.between = nn.BatchNorm2d(outputs)
        self.bend = nn.PReLU(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.after = nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else None
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        y = self.bend(self.between(self.first(self.before(x))))
        y = self.after(self.second(y))
        x = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
        return y + (self.short(x) if self.short is not None else x)


def window() -> torch.Tensor:
    """(1, 1, 64, 64): 1 within an oval about the head, 0 outside, a soft edge of some pixels."""
    at = (torch.arange(input_size) + 0.5) / input_size - 0.5
    far = ((at[None, :] / 0.45) ** 2 + ((at[:, None] + 0.03) / 0.44) ** 2).sqrt()
    return ((1.05 - far) / 0.1).clamp(0, 1)[None, None]


class FaceNet(nn.Module):
    """Pictures (N, 3, 64, 64), RGB, -1 to 1, to embeddings (N, 128) of length 1."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d = widths
        self.seen: torch.Tensor
        self.register_buffer("seen", window(), persistent=False)
        first = nn.Conv2d(3, a, 4, 2, 1, bias=False)
        self.stem = nn.Sequential(first, nn.BatchNorm2d(a), nn.PReLU(a))
        self.body = nn.Sequential(
            Block(a, a, 1),
            Block(a, b, 2),
            Block(b, b, 1),
            Block(b, c, 2),
            Block(c, c, 1),
            Block(c, d, 2),
        )
        self.where = nn.Conv2d(d, d, input_size // 16, groups=d, bias=False)
        self.rest = nn.BatchNorm2d(d)
        self.out = nn.Linear(d, embedding_size, bias=False)
        self.last = nn.BatchNorm1d(embedding_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        y = self.rest(self.where(self.body(self.stem(x * self.seen)))).flatten(1)
        return F.normalize(self.last(self.out(y)).float(), dim=1)

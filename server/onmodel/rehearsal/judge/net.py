# SPDX-License-Identifier: GPL-3.0-or-later
"""The judge's network: a small U-Net over pictures of 128² pixels.

U-Net: Ronneberger et al. 2015, arXiv:1505.04597. It works on 2 x 2 pixels at a time (12 channels at
64²) and gives every pixel one of `parts`.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

Array = np.ndarray

side = 128
"""Pictures of any canvas are brought to side x side pixels; other aspects are squeezed."""
parts = ("background", "skin", "head", "hair", "top", "bottom", "shoes")
"""Classes, numbered as in the world's `part` maps."""
widths = (16, 40, 72, 112)
weights_file = Path(__file__).parent / "weights.safetensors"


def _convs(inputs: int, outputs: int, count: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(count):
        layers.append(nn.Conv2d(inputs if i == 0 else outputs, outputs, 3, padding=1, bias=False))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class PartNet(nn.Module):
    """Pictures (N, 3, 128, 128), RGB, -1 to 1, to scores (N, 7, 128, 128)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convs(12, widths[0], 2)
        self.down = nn.ModuleList(_convs(a, b, 2) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(
            _convs(a + b, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.last = nn.Conv2d(widths[0], 4 * len(parts), 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        x = self.stem(F.pixel_unshuffle(x, 2))
        kept = []
        for block in self.down:
            kept.append(x)
            x = block(F.max_pool2d(x, 2))
        for block in self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, kept.pop()], dim=1))
        return F.pixel_shuffle(self.last(x), 2)


def shrunk(picture: Array) -> Array:
    """(128, 128, 3) uint8: a picture (H, W, 3) uint8 of any size, by area."""
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BOX))


def nearest(labels: Array) -> Array:
    """(128, 128): labels (H, W) at the middle of each pixel of the small picture."""
    rows, columns = (
        ((np.arange(side) + 0.5) * length / side).astype(int) for length in labels.shape
    )
    return labels[rows][:, columns]


def tensor(small: Array) -> torch.Tensor:
    """(N, 3, H, W) float, -1 to 1, of pictures (N, H, W, 3) uint8."""
    return torch.from_numpy(np.array(small)).permute(0, 3, 1, 2).float() / 127.5 - 1


class Judge:
    """The trained network. Raises FileNotFoundError where its weights are missing."""

    def __init__(self, file: Path = weights_file) -> None:
        from safetensors.torch import load_file

        self._net = PartNet()
        state = load_file(file)
        self._net.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
        )
        self._net.eval().requires_grad_(False)

    def parts(self, small: Array) -> Array:
        """(N, 128, 128) uint8, index of `parts`, of pictures (N, 128, 128, 3) uint8 (`shrunk`)."""
        found = [self._net(x).argmax(1) for x in tensor(small).split(16)]
        return torch.cat(found).to(torch.uint8).numpy()

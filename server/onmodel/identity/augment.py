# SPDX-License-Identifier: GPL-3.0-or-later
"""Make clean renders look like what a small diffusion model draws, so that one net serves both.

Boxes of a stand-in's head sit a little wrong; drawings are soft, blotchy, blocky, a little off in
colour and light. Hue is touched little: skin and hair colour belong to a character.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


def _uniform(n: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    return torch.rand(n, generator=rng) * (high - low) + low


def _some(n: int, chance: float, rng: torch.Generator) -> Tensor:
    return torch.rand(n, generator=rng) < chance


def place(pictures: Tensor, size: int, zoom: float, rng: torch.Generator | None) -> Tensor:
    """(N, 3, size, size): the middle of (N, 3, S, S), moved, turned, scaled, stretched, mirrored.

    zoom: side of the cut over the side of the pictures. rng None: no change of place.
    """
    n = len(pictures)
    turn = torch.zeros(n, 2, 3)
    if rng is None:
        turn[:, 0, 0] = turn[:, 1, 1] = zoom
    else:
        angle = torch.randn(n, generator=rng) * math.radians(6)
        wide = zoom * torch.exp(torch.randn(n, generator=rng) * 0.10)
        tall = wide * torch.exp(torch.randn(n, generator=rng) * 0.04)
        flip = torch.where(_some(n, 0.5, rng), -1.0, 1.0)
        turn[:, 0, 0] = wide * angle.cos() * flip
        turn[:, 0, 1] = -tall * angle.sin()
        turn[:, 1, 0] = wide * angle.sin() * flip
        turn[:, 1, 1] = tall * angle.cos()
        turn[:, :, 2] = torch.randn(n, 2, generator=rng) * 0.055
    grid = F.affine_grid(turn, [n, 3, size, size], align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


@functools.cache
def _cosines(block: int = 8) -> Tensor:
    """The orthonormal DCT-II matrix (block, block)."""
    k = torch.arange(block, dtype=torch.float64)
    rows = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / (2 * block))
    rows[0] *= math.sqrt(0.5)
    return (rows * math.sqrt(2 / block)).float()


def coarse_blocks(pictures: Tensor, step: Tensor) -> Tensor:
    """8 x 8 blocks with rounded DCT coefficients, as JPEG and latents of patches lose them.

    pictures (N, 3, H, W), sides divisible by 8; step (N,): size of a rounding step of the finest
    coefficient, in the pictures' units.
    """
    n, c, h, w = pictures.shape
    base = _cosines()
    tiles = pictures.reshape(n, c, h // 8, 8, w // 8, 8).permute(0, 1, 2, 4, 3, 5)
    freq = base @ tiles @ base.T
    ramp = (torch.arange(8)[:, None] + torch.arange(8)[None] + 1).float() / 15
    steps = (step[:, None, None] * ramp).reshape(n, 1, 1, 1, 8, 8) + 1e-4
    freq = torch.round(freq / steps) * steps
    tiles = base.T @ freq @ base
    return tiles.permute(0, 1, 2, 4, 3, 5).reshape(n, c, h, w)


def _softer(x: Tensor, side: int, mode: str) -> Tensor:
    small = F.interpolate(x, size=(side, side), mode="area")
    return F.interpolate(small, size=x.shape[-2:], mode=mode, align_corners=False)


def _light(x: Tensor, rng: torch.Generator) -> Tensor:
    """Exposure, gamma, contrast, a gradient of light, a mild tint."""
    n, size = len(x), x.shape[-1]
    y = (x + 1) / 2
    y = y.clamp(0, 1) ** torch.exp(torch.randn(n, generator=rng) * 0.16)[:, None, None, None]
    ramp = torch.linspace(-1, 1, size)
    angle = _uniform(n, 0, 2 * math.pi, rng)
    lit = (
        angle.cos()[:, None, None] * ramp[None, None]
        + angle.sin()[:, None, None] * ramp[None, :, None]
    )
    lit = 1 + lit[:, None] * (torch.randn(n, generator=rng) * 0.14)[:, None, None, None]
    gain = torch.exp(torch.randn(n, generator=rng) * 0.14)[:, None, None, None]
    tint = torch.exp(torch.randn(n, 3, generator=rng) * 0.04)[:, :, None, None]
    y = y * lit * gain * tint
    mean = y.mean((1, 2, 3), keepdim=True)
    y = (y - mean) * torch.exp(torch.randn(n, generator=rng) * 0.1)[:, None, None, None] + mean
    return y * 2 - 1


def _blotches(x: Tensor, rng: torch.Generator) -> Tensor:
    n, size = len(x), x.shape[-1]
    noise = torch.zeros_like(x)
    for side, strength in ((4, 0.04), (8, 0.04), (16, 0.03), (size, 0.02)):
        grain = torch.randn(n, 3, side, side, generator=rng)
        grain = grain if side == size else F.interpolate(grain, size=(size, size), mode="bilinear")
        noise += grain * (torch.rand(n, generator=rng) * strength)[:, None, None, None]
    return x + noise


def _patch(x: Tensor, rng: torch.Generator) -> Tensor:
    """One in six gets a block of one colour: hands, props and other people cover faces."""
    n, size = len(x), x.shape[-1]
    at = torch.arange(size)
    keep = torch.ones(n, size, size, dtype=torch.bool)
    centre = torch.randint(size, (n, 2), generator=rng)
    half = torch.randint(size // 12, size // 5, (n, 2), generator=rng)
    down = (at[None] - centre[:, :1]).abs() < half[:, :1]
    across = (at[None] - centre[:, 1:]).abs() < half[:, 1:]
    keep &= ~(down[:, :, None] & across[:, None, :] & _some(n, 1 / 6, rng)[:, None, None])
    colour = torch.rand(n, 3, 1, 1, generator=rng) * 2 - 1
    return torch.where(keep[:, None], x, colour)


def spoil(x: Tensor, rng: torch.Generator) -> Tensor:
    """(N, 3, S, S) in -1..1, changed as the module's head says; one in three stays sharp."""
    n, size = len(x), x.shape[-1]
    x = _patch(_light(x, rng), rng)
    # All of one group get the same softness: a resize of each by itself would cost too much.
    order = torch.randperm(n, generator=rng)
    out = torch.empty_like(x)
    for group in order.chunk(9):
        part = x[group]
        if torch.rand((), generator=rng) > 1 / 3:
            side = round(math.exp(float(_uniform(1, math.log(14), math.log(size), rng))))
            mode = "bicubic" if torch.rand((), generator=rng) < 0.6 else "bilinear"
            part = _softer(part, side, mode)
        out[group] = part
    out = _blotches(out, rng)
    blocky = _some(n, 0.35, rng)
    step = torch.where(blocky, _uniform(n, 0.1, 0.8, rng), torch.full((n,), 0.02))
    return coarse_blocks(out, step).clamp(-1, 1)

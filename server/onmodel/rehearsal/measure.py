# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures of the denoiser on held-out people: is everybody there, in their colours?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from onmodel.rehearsal import data
from onmodel.rehearsal.sampling import Decode, draw, make_batch
from onmodel.rehearsal.train import Trainer, full_prompts
from onmodel.rehearsal.train_vae import psnr


def colours_in(pictures: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Mean colour (N, P, 3) of pictures (N, 3, H, W) under masks (N, P, h, w), 0..1."""
    masks = F.interpolate(shares, size=pictures.shape[-2:], mode="nearest")
    total = torch.einsum("nphw,nchw->npc", masks, pictures)
    return total / masks.sum((2, 3)).clamp(min=1e-6)[..., None]


def _edges(pictures: torch.Tensor) -> torch.Tensor:
    """Strength of change (N, H - 1, W - 1)."""
    grey = pictures.mean(1)
    across = grey[:, 1:, 1:] - grey[:, 1:, :-1]
    down = grey[:, 1:, 1:] - grey[:, :-1, 1:]
    return torch.hypot(across, down)


def measure(
    trainer: Trainer,
    shards: Sequence[data.Shard],
    decode: Decode,
    count: int = 24,
    kinds: Sequence[str] = ("pose", "depth", "normal"),
    steps: int = 12,
) -> dict[str, float]:
    """Draw `count` held-out samples of the first shard from their maps and captions.

    psnr: dB against the render. colour: mean distance (0..255, root mean square of the channels)
    of the mean colour under each person's mask. own: share of people whose colour is nearer to
    their own render's than to any other's of the batch. edges: correlation of the pictures'
    edges with the render's: are outlines where they belong.
    """
    shard = shards[0]
    index = torch.linspace(0, len(shard) - 1, count).round().long()
    prompts = [full_prompts(shard.words[int(i)]) for i in index]
    drawn, truth = [], []
    for part in range(0, count, 8):
        batch = make_batch(shard, index[part : part + 8], prompts[part : part + 8], trainer.tokens)
        empty = trainer.tokens("")
        drawn.append(decode(draw(trainer.average, batch, trainer.noise, empty, kinds, steps)))
        truth.append(decode(batch.latents))
    y, x = torch.cat(drawn).clamp(-1, 1), torch.cat(truth).clamp(-1, 1)
    shares = shard.shares["own"][index].float() / 255
    there = shares.mean((2, 3)) > 0.02
    mine, real = colours_in(y, shares)[there], colours_in(x, shares)[there]
    far = torch.cdist(mine, real)
    edges = torch.stack([_edges(y).flatten(), _edges(x).flatten()])
    return {
        "psnr": round(psnr(y, x), 2),
        "colour": round(float((mine - real).pow(2).mean(-1).sqrt().mean()) * 127.5, 1),
        "own": round(float((far.argmin(1) == torch.arange(len(far))).float().mean()), 3),
        "edges": round(float(torch.corrcoef(edges)[0, 1]), 3),
        "people": float(len(far)),
    }

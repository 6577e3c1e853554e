# SPDX-License-Identifier: GPL-3.0-or-later
"""The latent space: overlapping principal patches of the world.

The renders are smooth: 12 numbers for 8 x 8 pixels give them back at about 34 dB by a linear sum
of patches that overlap their neighbours (a lapped transform; H. S. Malvar, "Signal Processing with
Lapped Transforms", 1992). Latents are these numbers, fixed by the data before any network exists.
So the denoiser can start at once, the VAE's decoder learns beside it, and its encoder learns to
give the same latents; a better decoder later asks nothing of the denoiser.

An SDXL decoder grows pictures by repeating pixels and cannot tell the places within a cell apart
when all cells are alike. The fit is therefore kept from patches that, laid side by side in equal
amounts, give a texture (`notch`).
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.nn.functional as F

from onmodel.rehearsal.architecture import latent_channels

log = logging.getLogger(__name__)

patch = 8
_look, _lay = 24, 40
"""Pixels across of what a latent looks at, and of what it lays down."""


class PatchBasis(torch.nn.Module):
    """look (12, 3, 24, 24), lay (12, 3, 40, 40), mean (1,), spread (12,): latents are what `look`
    sees of picture - mean, divided by spread; pictures the sum of `lay` by latent times spread."""

    look: torch.Tensor
    lay: torch.Tensor
    mean: torch.Tensor
    spread: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("look", torch.zeros(latent_channels, 3, _look, _look))
        self.register_buffer("lay", torch.zeros(latent_channels, 3, _lay, _lay))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("spread", torch.ones(latent_channels))

    def fit(self, pictures: torch.Tensor, steps: int = 2500, notch: float = 1.0) -> None:
        """Find the patches. pictures: (N, 3, H, W), -1..1, sides at least 128."""
        rng = torch.Generator().manual_seed(3)
        self.mean.copy_(pictures.mean())
        x = pictures - self.mean
        look, lay = self._begin(x)
        parameters = [look.requires_grad_(), lay.requires_grad_()]
        optimizer = torch.optim.Adam(parameters, 3e-3)
        side = min(128, x.shape[-2], x.shape[-1])
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * min(1.0, step / 50 + 0.02) * max(0.005, 1 - step / steps)
            index = torch.randint(0, len(x), (8,), generator=rng)
            rooms = (x.shape[-2] - side + 1, x.shape[-1] - side + 1)
            top, left = (int(torch.randint(0, room, (), generator=rng)) for room in rooms)
            crop = x[index, :, top : top + side, left : left + side]
            back = _lay_down(_look_at(crop, look), lay)
            inner = (..., slice(16, -16), slice(16, -16)) if side > 64 else (...,)
            loss = F.mse_loss(back[inner], crop[inner]) + notch * _texture(lay)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step % 500 == 499:
                log.info("patches: step %d, loss %.5f", step + 1, float(loss.detach()))
        self._settle(x, look.detach(), lay.detach())

    def _begin(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The principal patches that do not overlap."""
        flat = F.pixel_unshuffle(x, patch).permute(0, 2, 3, 1).reshape(-1, 3 * patch * patch)
        vectors, _, _ = torch.linalg.svd(flat.T @ flat / len(flat))
        first = vectors[:, :latent_channels].T.reshape(-1, 3, patch, patch)
        look, lay = torch.zeros_like(self.look), torch.zeros_like(self.lay)
        for kernel, side in ((look, _look), (lay, _lay)):
            at = (side - patch) // 2
            kernel[..., at : at + patch, at : at + patch] = first
        return look, lay

    @torch.no_grad()
    def _settle(self, x: torch.Tensor, look: torch.Tensor, lay: torch.Tensor) -> None:
        """Turn the channels into principal ones and give them their spreads."""
        z = torch.cat([_look_at(part, look) for part in x.split(32)])
        flat = z.permute(0, 2, 3, 1).reshape(-1, latent_channels)
        # Channels are compared by what they lay down, not by how a fit happened to scale them.
        size = lay.flatten(1).norm(dim=1)
        flat, look, lay = flat * size, look * size.view(-1, 1, 1, 1), lay / size.view(-1, 1, 1, 1)
        vectors, values, _ = torch.linalg.svd(flat.T @ flat / len(flat))
        look = torch.einsum("cihw,cd->dihw", look, vectors)
        lay = torch.einsum("cihw,cd->dihw", lay, vectors)
        deviation = values.sqrt()
        # Whitened in part only: fully white channels spend the loss on fine noise.
        spread = deviation**0.6 * deviation[0] ** 0.4
        scale = (deviation / spread).pow(2).mean().sqrt()
        self.look.copy_(look)
        self.lay.copy_(lay)
        self.spread.copy_(spread * scale)

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) in -1..1 to latents (N, 12, H / 8, W / 8), mean square about 1."""
        return _look_at(pictures - self.mean, self.look) / self.spread.view(1, -1, 1, 1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents to pictures by laying patches, (N, 3, H, W)."""
        return _lay_down(latents * self.spread.view(1, -1, 1, 1), self.lay) + self.mean

    def save(self, path: Path) -> None:
        """Write the basis; `load` reads it."""
        part = path.with_suffix(".part")
        torch.save(self.state_dict(), part)
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> PatchBasis:
        """Read a basis. Raises FileNotFoundError when there is none."""
        out = cls()
        out.load_state_dict(torch.load(path, weights_only=True))
        return out


def _look_at(x: torch.Tensor, look: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, look, stride=patch, padding=(_look - patch) // 2)


def _lay_down(z: torch.Tensor, lay: torch.Tensor) -> torch.Tensor:
    return F.conv_transpose2d(z, lay, stride=patch, padding=(_lay - patch) // 2)


def _texture(lay: torch.Tensor) -> torch.Tensor:
    """How far equal latents everywhere are from a plain colour, (N, 12) mean square."""
    cells = lay.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))
    whole = cells.sum((-4, -2)).flatten(-2)
    return (whole - whole.mean(-1, keepdim=True)).pow(2).mean()

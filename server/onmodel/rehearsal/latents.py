# SPDX-License-Identifier: GPL-3.0-or-later
"""The latent space: the world's first principal patches.

The renders are smooth: their 8 x 8 patches lie near an 8-dimensional plane (about 32 dB). Latents
are coordinates on that plane, fixed by the data before any network exists. So the denoiser can
start at once, the VAE's decoder learns beside it, and its encoder learns to give the same
latents; a better decoder later asks nothing of the denoiser.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from onmodel.rehearsal.architecture import latent_channels

patch = 8


class PatchBasis(torch.nn.Module):
    """mean (192,), basis (192, 8), spread (8,): patch = mean + basis @ (spread * latent)."""

    mean: torch.Tensor
    basis: torch.Tensor
    spread: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        size = 3 * patch * patch
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.zeros(size, latent_channels))
        self.register_buffer("spread", torch.ones(latent_channels))

    def fit(self, pictures: torch.Tensor) -> None:
        """Find the plane. pictures: (N, 3, H, W), -1..1."""
        patches = F.pixel_unshuffle(pictures, patch).permute(0, 2, 3, 1)
        flat = patches.reshape(-1, patches.shape[-1])
        mean = flat.mean(0)
        vectors, values, _ = torch.linalg.svd((flat - mean).T @ (flat - mean) / len(flat))
        deviation = values[:latent_channels].sqrt()
        # Whitened in part only: fully white channels spend the loss on fine noise.
        spread = deviation**0.6 * deviation[0] ** 0.4
        latents = (flat - mean) @ vectors[:, :latent_channels] / spread
        self.mean.copy_(mean)
        self.basis.copy_(vectors[:, :latent_channels])
        self.spread.copy_(spread * latents.pow(2).mean().sqrt())

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) in -1..1 to latents (N, 8, H / 8, W / 8), mean square about 1."""
        patches = F.pixel_unshuffle(pictures, patch).permute(0, 2, 3, 1)
        return (((patches - self.mean) @ self.basis) / self.spread).permute(0, 3, 1, 2)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents to pictures on the plane, (N, 3, H, W)."""
        patches = (latents.permute(0, 2, 3, 1) * self.spread) @ self.basis.T + self.mean
        return F.pixel_shuffle(patches.permute(0, 3, 1, 2), patch)

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

# SPDX-License-Identifier: GPL-3.0-or-later
"""Previews: latents to small RGB pictures by one linear map, without the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

# The known fit for SDXL's VAE: RGB in -1..1 from its four scaled channels (ComfyUI's
# latent_formats.py), and the offset.
_sdxl_factors = [
    [0.3651, 0.4232, 0.4341],
    [-0.2533, -0.0042, 0.1068],
    [0.1076, 0.1111, -0.0362],
    [-0.3165, -0.2492, -0.2188],
]
_sdxl_offset = [0.1084, -0.0175, -0.0011]
_sdxl_vae_widths = [128, 256, 512, 512]


@dataclass(frozen=True)
class LinearPreview:
    """factors: (C, 3), offset: (3,), to RGB in -1..1."""

    factors: torch.Tensor
    offset: torch.Tensor

    @classmethod
    def fit(cls, family: Any) -> LinearPreview:
        """The map for a family's VAE: known for SDXL's own, else fitted to two decoded samples.

        Least squares between smooth random latents and their decoded pictures, shrunk to latent
        size; a fixed seed, so that it is the same every time.
        """
        vae = family.parts.vae
        widths, channels = list(vae.config.block_out_channels), vae.config.latent_channels
        if widths == _sdxl_vae_widths and channels == len(_sdxl_factors):
            return cls(torch.tensor(_sdxl_factors), torch.tensor(_sdxl_offset))
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(2, channels, 4, 4, generator=generator)
        latents = torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear")
        images = family.decode(latents.to(family.place.device))
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        small = torch.nn.functional.adaptive_avg_pool2d(pixels, (16, 16))
        x = latents.permute(0, 2, 3, 1).reshape(-1, channels)
        x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
        y = small.permute(0, 2, 3, 1).reshape(-1, 3)
        solved = torch.linalg.lstsq(x, y, driver="gelsd").solution
        family.clock.take()
        return cls(solved[:-1], solved[-1])

    def draw(self, latents: torch.Tensor) -> np.ndarray:
        """(B, h, w, 3) uint8 of latents (B, C, h, w)."""
        x = latents.detach().float().cpu().permute(0, 2, 3, 1)
        rgb = x @ self.factors + self.offset
        return np.asarray(((rgb + 1.0) * 127.5).clamp(0, 255).to(torch.uint8).numpy())

# SPDX-License-Identifier: GPL-3.0-or-later
"""Losses per picture, noise schedules and their weights.

Everything here returns one number for each picture (B,); the engine weights and averages them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F

Prediction = Literal["epsilon", "v"]


def latent_mask(mask: torch.Tensor, size: tuple[int, int], background: float) -> torch.Tensor:
    """Weights (1, h, w) of the loss at latent resolution.

    mask: (H, W), 0..1, 1 is the character. A latent cell weighs what the mask covers of it (its
    mean, not one sampled pixel: a face of 64 pixels is 8 cells wide). background: the weight of
    what is outside, m' = m + background · (1 - m).
    """
    covered = F.adaptive_avg_pool2d(mask[None, None].float(), size)[0]
    return covered + background * (1.0 - covered)


def per_picture(squared: torch.Tensor, masks: torch.Tensor | None) -> torch.Tensor:
    """Σ(l·m) / Σm over each picture: (B,).

    squared: (B, C, h, w). masks: (B, 1, h, w), or None for a plain mean. Dividing by the mask's
    own sum, not by the picture's area, keeps small characters as important as large ones.
    """
    cells = squared.mean(dim=1, keepdim=True)
    if masks is None:
        return cells.flatten(1).mean(1)
    weights = masks.to(cells)
    total = weights.flatten(1).sum(1)
    if bool((total <= 0).any()):
        raise ValueError("A mask without any weight has no loss.")
    return (cells * weights).flatten(1).sum(1) / total


def min_snr_weight(snr: torch.Tensor, gamma: float, prediction: Prediction) -> torch.Tensor:
    """Min-SNR weights of the squared error, by what is predicted.

    Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy" (arXiv 2303.09556),
    section 3.4: min(SNR, gamma) on the error of x0. In terms of noise that is min(SNR, gamma) /
    SNR, in terms of v (Salimans and Ho 2022) min(SNR, gamma) / (SNR + 1). At zero SNR the first
    tends to 1.
    """
    least = snr.clamp(max=gamma)
    if prediction == "epsilon":
        return torch.where(snr > 0, least / snr.clamp(min=1e-20), torch.ones_like(snr))
    return least / (snr + 1.0)


class NoiseSchedule:
    """A model's own discrete noise schedule (DDPM, Ho et al. 2020), from its configuration.

    signal, noise: (T,) factors whose squares sum to 1; with zero terminal SNR (Lin et al., arXiv
    2305.08891) the last signal is exactly 0.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        from diffusers import DDPMScheduler

        known = (
            "num_train_timesteps",
            "beta_start",
            "beta_end",
            "beta_schedule",
            "trained_betas",
            "rescale_betas_zero_snr",
        )
        plain = {k: config[k] for k in known if config.get(k) is not None}
        scheduler: Any = DDPMScheduler(**plain)
        kept = scheduler.alphas_cumprod.double()
        kind = str(config.get("prediction_type", "epsilon"))
        if kind not in ("epsilon", "v_prediction"):
            raise ValueError(f"Models that predict “{kind}” cannot be trained.")
        self.prediction: Prediction = "epsilon" if kind == "epsilon" else "v"
        self.zero_terminal_snr = bool(config.get("rescale_betas_zero_snr"))
        self.signal = kept.sqrt().float()
        self.noise = (1.0 - kept).sqrt().float()
        self.snr = (kept / (1.0 - kept)).float()

    def __len__(self) -> int:
        return len(self.signal)

    def times(self, count: int, rng: torch.Generator) -> torch.Tensor:
        """(count,) times, each equally likely."""
        return torch.randint(0, len(self), (count,), generator=rng)

    def mix(
        self, clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy latents and what the model should predict of them, both (B, C, h, w)."""
        signal = self.signal[times].view(-1, 1, 1, 1).to(clean.device)
        amount = self.noise[times].view(-1, 1, 1, 1).to(clean.device)
        noisy = signal * clean + amount * noise
        target = noise if self.prediction == "epsilon" else signal * noise - amount * clean
        return noisy, target


def offset_noise(noise: torch.Tensor, strength: float, rng: torch.Generator) -> torch.Tensor:
    """Noise with a constant per channel added (Guttenberg, "Diffusion with offset noise", 2023):
    it lets a model learn pictures brighter or darker than the mean."""
    if strength == 0.0:
        return noise
    return noise + strength * torch.randn((*noise.shape[:2], 1, 1), generator=rng)


def flow_levels(count: int, tokens: int, rng: torch.Generator) -> torch.Tensor:
    """(count,) noise levels in (0, 1) for flow matching: logit-normal, shifted by picture size.

    Logit-normal times are those of Stable Diffusion 3 (Esser et al., arXiv 2403.03206, section
    3.1); Flux shifts them by μ, which grows linearly from 0.5 at 256 tokens to 1.15 at 4096 (its
    scheduler's configuration), as its sampler does: e^μ / (e^μ + 1/t - 1).
    """
    t = torch.sigmoid(torch.randn(count, generator=rng))
    mu = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)
    shift = math.exp(mu)
    return shift / (shift + 1.0 / t - 1.0)


def flow_mix(
    clean: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points on the straight path from clean to noise, and its direction (rectified flow)."""
    level = levels.view(-1, 1, 1, 1).to(clean)
    return (1.0 - level) * clean + level * noise, noise - clean

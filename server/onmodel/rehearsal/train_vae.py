# SPDX-License-Identifier: GPL-3.0-or-later
"""Train the autoencoder: its decoder draws pictures from the fixed latents, its encoder learns
to give these latents. Resumable to the step, as `train` is."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from onmodel.rehearsal import data
from onmodel.rehearsal.architecture import Sizes, make_vae
from onmodel.rehearsal.latents import PatchBasis
from onmodel.rehearsal.muon import optimizers_of
from onmodel.rehearsal.sampling import fast_bf16, sheet
from onmodel.rehearsal.stop import stoppable

log = logging.getLogger(__name__)

_held_out = 48


@dataclass(frozen=True)
class Plan:
    """steps in all; the rate falls to a fiftieth along a cosine. encoder_every: the encoder
    learns in every such step. crops, batches: pixels and pictures of most steps, and of the last
    quarter: there larger parts are
    shown, since the norms see all of a picture at once."""

    steps: int = 1800
    crops: tuple[int, int] = (128, 192)
    batches: tuple[int, int] = (4, 2)
    rate: float = 2e-3
    encoder_every: int = 4

    def rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        fall = 0.5 * (1 + np.cos(np.pi * min(1.0, step / self.steps)))
        return self.rate * min(1.0, (step + 1) / 50) * max(0.02, float(fall))


def _edges(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """How much the differences between neighbouring pixels differ."""
    d = x - y
    return (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()


class VaeTrainer:
    """The autoencoder, its running average and its optimizer, at a step."""

    def __init__(self, sizes: Sizes, basis: PatchBasis) -> None:
        torch.manual_seed(2)
        self.sizes = sizes
        self.basis = basis
        self.model = make_vae(sizes).to(memory_format=torch.channels_last)
        self.average = make_vae(sizes).to(memory_format=torch.channels_last)
        self.average.load_state_dict(self.model.state_dict())
        self.average.requires_grad_(False).eval()
        self.optimizers = optimizers_of(self.model)
        self.step = 0

    def train_step(self, plan: Plan, pictures: Sequence[torch.Tensor]) -> float:
        """One step on random crops of pictures (H, W, 3) uint8; returns the decoder's loss."""
        rng = torch.Generator().manual_seed(self.step)
        for group in (g for o in self.optimizers for g in o.param_groups):
            group["lr"] = plan.rate_at(self.step)
        part = 1 if self.step > plan.steps * 3 // 4 else 0
        crop, batch = plan.crops[part], plan.batches[part]
        x = torch.stack([self._crop(pictures, crop, rng) for _ in range(batch)])
        x = (x.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(
            memory_format=torch.channels_last
        )
        z = self.basis.encode(x)
        dirty = z + 0.04 * torch.randn(z.shape, generator=rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16()):
            y = self.model.decode(dirty).sample.float()
            d = y - x
            loss = d.abs().mean() + 0.5 * _edges(y, x) + 3.0 * d.pow(2).mean()
            total = loss
            if self.step % plan.encoder_every == 0:
                code = self.model.encode(x).latent_dist
                spread = (code.logvar.float() + 10).pow(2).mean()
                total = loss + 0.3 * F.mse_loss(code.mean.float(), z) + 0.001 * spread
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        keep = min(0.995, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.model.parameters()), 1 - keep
            )
        return float(loss.detach())

    @staticmethod
    def _crop(pictures: Sequence[torch.Tensor], crop: int, rng: torch.Generator) -> torch.Tensor:
        picture = pictures[int(torch.randint(0, len(pictures), (), generator=rng))]
        corner = [
            int(torch.randint(0, (side - crop) // 8 + 1, (), generator=rng)) * 8
            for side in picture.shape[:2]
        ]
        return picture[corner[0] : corner[0] + crop, corner[1] : corner[1] + crop]

    def measure(self, pictures: torch.Tensor) -> dict[str, float]:
        """PSNR in dB on pictures (N, 3, H, W): decoder on true latents, and there and back."""
        z = self.basis.encode(pictures)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16()):
            drawn = torch.cat([self.average.decode(q[None]).sample for q in z]).float()
            codes = torch.cat([self.average.encode(p[None]).latent_dist.mean for p in pictures])
            back = torch.cat([self.average.decode(q[None]).sample for q in codes]).float()
        return {
            "plane": psnr(self.basis.decode(z), pictures),
            "decoder": psnr(drawn, pictures),
            "both": psnr(back, pictures),
        }

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on."""
        part = path.with_suffix(".part")
        state = {
            "sizes": vars(self.sizes),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
        }
        torch.save(state, part)
        part.replace(path)

    @classmethod
    def load(cls, path: Path, basis: PatchBasis) -> VaeTrainer:
        """The trainer that `save` wrote."""
        state = torch.load(path, weights_only=True)
        out = cls(Sizes(**state["sizes"]), basis)
        out.model.load_state_dict(state["model"])
        out.average.load_state_dict(state["average"])
        if "optimizers" in state:
            for optimizer, kept in zip(out.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
        else:
            log.warning("%s was trained by another optimizer; ours starts afresh.", path)
        out.step = state["step"]
        return out


def psnr(x: torch.Tensor, y: torch.Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of pictures (N, 3, H, W) in -1..1."""
    error = ((x.clamp(-1, 1) - y) / 2).pow(2).mean((1, 2, 3))
    return float((-10 * torch.log10(error)).mean())


def run(folder: Path, samples: Path, plan: Plan, sizes: Sizes, minutes: float) -> int:
    """Train in `folder` (with basis.pt) on the pictures of `samples`."""
    numbers = data.sample_numbers(samples)
    kept = [n for n in numbers if n >= 24576] or numbers[-96:]
    training = [n for n in numbers if n < kept[0]]
    if not training:
        log.error("There are no samples in %s. Make some with python -m world.samples.", samples)
        return 2
    pictures = []
    for number in training:
        with np.load(samples / f"{number:06d}.npz") as arrays:
            pictures.append(torch.from_numpy(arrays["rgb"]))
    test = data.pictures(samples, kept)[:_held_out]
    path = folder / "vae.pt"
    basis = PatchBasis.load(folder / "basis.pt")
    trainer = VaeTrainer.load(path, basis) if path.exists() else VaeTrainer(sizes, basis)
    log.info("%d pictures, step %d of %d", len(pictures), trainer.step, plan.steps)
    begun = saved = time.monotonic()
    with stoppable() as asked, (folder / "vae.jsonl").open("a") as metrics:
        while trainer.step < plan.steps and not asked:
            if time.monotonic() - begun > minutes * 60:
                break
            loss = trainer.train_step(plan, pictures)
            if trainer.step % 200 == 0:
                row = {"step": trainer.step, "loss": round(loss, 4), **trainer.measure(test[:16])}
                row["minutes"] = round((time.monotonic() - begun) / 60, 2)
                metrics.write(json.dumps(row) + "\n")
                metrics.flush()
            if time.monotonic() - saved > 120:
                trainer.save(path)
                saved = time.monotonic()
    trainer.save(path)
    log.info("stopped at step %d: %s", trainer.step, trainer.measure(test))
    _sheet(trainer, test[:8], folder / "vae.png")
    return 0


def _sheet(trainer: VaeTrainer, pictures: torch.Tensor, path: Path) -> None:
    z = trainer.basis.encode(pictures)
    with torch.no_grad():
        rows = [pictures, trainer.basis.decode(z), trainer.average.decode(z).sample]
    Image.fromarray(sheet(rows)).save(path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rehearsal vae`."""
    plan = Plan()
    parser.add_argument("samples", type=Path)
    parser.add_argument("--steps", type=int, default=plan.steps)
    parser.add_argument("--rate", type=float, default=plan.rate)
    parser.add_argument("--minutes", type=float, default=1e9)


def from_options(options: argparse.Namespace) -> int:
    """Run `rehearsal vae` as the options ask."""
    plan = Plan(steps=options.steps, rate=options.rate)
    return run(options.folder, options.samples, plan, Sizes(), options.minutes)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Train the judge on renders that are made to look like soft, slightly noisy drawings.

    onmodel rehearsal judge SAMPLES [--minutes 10]

The pack of samples, the training's state and its log lie in the folder `judge` of the rehearsal
folder; a run that was stopped goes on from its last minute. Held-out people are never trained on.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from onmodel.rehearsal.judge import attributes, pack
from onmodel.rehearsal.judge.net import PartNet, parts, tensor, weights_file
from onmodel.rehearsal.judge.spoil import as_if_drawn
from onmodel.rehearsal.muon import Muon

log = logging.getLogger(__name__)

batch, rate, average_decay = 8, 3e-3, 0.99
small_share = 0.55
"""Part of the time that is spent on pictures of half the size, twice as many a step: what is where
is learnt there, for half the price."""


def move(
    pictures: torch.Tensor, labels: torch.Tensor, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (N, 3, S, S) and labels (N, S, S), turned, scaled, moved and mirrored alike."""
    n = len(pictures)
    angle = torch.randn(n, generator=rng) * math.radians(4)
    zoom = torch.exp(torch.randn(n, generator=rng) * 0.15)
    flip = torch.where(torch.rand(n, generator=rng) < 0.5, -1.0, 1.0)
    turn = torch.zeros(n, 2, 3)
    turn[:, 0, 0], turn[:, 0, 1] = zoom * angle.cos() * flip, -zoom * angle.sin()
    turn[:, 1, 0], turn[:, 1, 1] = zoom * angle.sin() * flip, zoom * angle.cos()
    turn[:, :, 2] = torch.randn(n, 2, generator=rng) * 0.08
    grid = F.affine_grid(turn, [n, 3, *pictures.shape[-2:]], align_corners=False)
    moved = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    places = labels[:, None].float()
    kept = F.grid_sample(places, grid, "nearest", padding_mode="border", align_corners=False)
    return moved, kept[:, 0].long()


def optimizers(net: PartNet) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the convolutions inside; AdamW for the first, the last and the norms."""
    inside = [p for n, p in net.named_parameters() if p.ndim == 4 and n.startswith(("down", "up"))]
    known = {id(p) for p in inside}
    rest = [p for p in net.parameters() if id(p) not in known]
    return Muon(inside), torch.optim.AdamW(rest, lr=rate, weight_decay=0.01)


class Training:
    """Network, its running average, optimizers, and how many steps and seconds they have had."""

    def __init__(self, state_file: Path, seconds: float) -> None:
        self.net = PartNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.muon, self.adam = optimizers(self.net)
        self.rng = torch.Generator().manual_seed(0)
        self.seconds, self.step, self.spent = seconds, 0, 0.0
        self._file = state_file
        if state_file.is_file():
            state: dict[str, Any] = torch.load(state_file, weights_only=True)
            self.net.load_state_dict(state["net"])
            self.average.load_state_dict(state["average"])
            self.muon.load_state_dict(state["muon"])
            self.adam.load_state_dict(state["adam"])
            self.rng.set_state(state["rng"])
            self.step, self.spent = state["step"], state["spent"]

    def save(self) -> None:
        """Write the state, whole or not at all."""
        part = self._file.with_suffix(".part")
        state = {
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "rng": self.rng.get_state(),
            "step": self.step,
            "spent": self.spent,
        }
        torch.save(state, part)
        part.replace(self._file)

    def _rate(self) -> float:
        done = min(1.0, self.spent / self.seconds)
        return rate * min(1.0, (self.step + 1) / 50) * (0.02 + 0.98 * math.cos(done * math.pi / 2))

    def take(self, rgb: np.ndarray, part: np.ndarray) -> float:
        """One step on a random batch of pictures (N, S, S, 3) and labels; its loss."""
        began = time.process_time()
        half = self.spent < small_share * self.seconds
        count = 2 * batch if half else batch
        index = torch.randint(len(rgb), (count,), generator=self.rng).numpy()
        x, y = move(tensor(rgb[index]), torch.from_numpy(part[index]), self.rng)
        if half:
            x, y = F.avg_pool2d(x, 2), y[:, ::2, ::2]
        x = as_if_drawn(x, self.rng).contiguous(memory_format=torch.channels_last)
        for group in self.muon.param_groups + self.adam.param_groups:
            group["lr"] = self._rate()
        scores = self.net(x)
        loss = F.cross_entropy(scores, y) + 0.3 * _overlap_loss(scores, y)
        self.net.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.muon.step()
        self.adam.step()
        self.step += 1
        self._follow()
        self.spent += time.process_time() - began
        return float(loss.detach())

    @torch.no_grad()
    def _follow(self) -> None:
        """Bring the average, normalisation included, a little nearer to the network."""
        share = max(1 - average_decay, 1 / (self.step + 1))
        own = self.net.state_dict()
        for name, value in self.average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(own[name], share)
            else:
                value.copy_(own[name])

    def run(self, rgb: np.ndarray, part: np.ndarray) -> None:
        """Steps until the time is spent, saved every twenty seconds."""
        self.net.train()
        mean, saved = 0.0, self.spent
        while self.spent < self.seconds:
            loss = self.take(rgb, part)
            mean = loss if mean == 0 else 0.95 * mean + 0.05 * loss
            if self.spent - saved > 20:
                saved = self.spent
                self.save()
                log.info("judge: step %d, %.0f s, loss %.4f", self.step, self.spent, mean)
        self.save()


def _overlap_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """1 - the figure's soft Dice overlap (Milletari et al. 2016, arXiv:1606.04797)."""
    figure = 1 - scores.softmax(1)[:, 0]
    true = (labels > 0).float()
    both = (figure * true).sum((1, 2))
    return (1 - (2 * both + 1) / (figure.sum((1, 2)) + true.sum((1, 2)) + 1)).mean()


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks; 1 where both are empty."""
    either = int((a | b).sum())
    return float((a & b).sum() / either) if either else 1.0


@torch.no_grad()
def score(net: PartNet, rgb: np.ndarray, part: np.ndarray, drawn: bool) -> dict[str, float]:
    """Mean IoU of the figure, and of each part where it is there, of pictures and labels.

    drawn: on pictures that were made to look like drawings.
    """
    rng = torch.Generator().manual_seed(1)
    found = []
    for x in tensor(rgb).split(16):
        found.append(net(as_if_drawn(x, rng) if drawn else x).argmax(1))
    seen = torch.cat(found).numpy()
    out = {
        "figure": float(np.mean([overlap(a > 0, b > 0) for a, b in zip(seen, part, strict=True)]))
    }
    for number, name in enumerate(parts[1:], 1):
        pairs = [(a == number, b == number) for a, b in zip(seen, part, strict=True)]
        there = [overlap(a, b) for a, b in pairs if b.sum() >= 60]
        out[name] = float(np.mean(there)) if there else math.nan
    return out


def save_weights(net: PartNet, file: Path = weights_file) -> None:
    """Write the network in fp16."""
    from safetensors.torch import save_file

    halves = {
        k: (v.half() if v.is_floating_point() else v).contiguous()
        for k, v in net.state_dict().items()
    }
    save_file(halves, file, metadata={"format": "pt"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rehearsal judge`."""
    parser.add_argument("samples", type=Path, help="folder of python -m world.samples")
    parser.add_argument("--minutes", type=float, default=10.0, help="time to train")
    parser.add_argument("--rules-only", action="store_true", help="keep the network as it is")


def from_options(options: argparse.Namespace) -> int:
    """Run `rehearsal judge` as the options ask; prints what the judge is worth on renders."""
    folder = options.folder / "judge"
    data = pack.load_or_make(options.samples, folder)
    kept = data.kept
    if not options.rules_only:
        training = Training(folder / "state.pt", options.minutes * 60)
        training.run(data.rgb[~kept], data.part[~kept])
        save_weights(training.average)
        for drawn in (False, True):
            found = score(training.average, data.rgb[kept], data.part[kept], drawn)
            words = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
            log.info("IoU on held-out %s: %s", "as if drawn" if drawn else "renders", words)
    attributes.train(data)
    return 0

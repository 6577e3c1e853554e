# SPDX-License-Identifier: GPL-3.0-or-later
"""Muon: momentum whose matrices are made orthogonal before a step.

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the size of a
step so that it is AdamW's (root mean square 0.2) after J. Liu et al., "Muon is Scalable for LLM
Training", 2025. torch.optim.Muon takes plain matrices only and works in bfloat16, which is slow on
a CPU without matrix units; here convolutions count as (outputs, all the rest), and matrices of one
shape go through together, in their own precision.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

_a, _b, _c = 3.4445, -4.7750, 2.0315
"""Jordan's quintic: steep at 0, and near 1 from there on."""
_rounds = 5


class Muon(torch.optim.Optimizer):
    """For the weights of layers between the first and the last, of two axes or more."""

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step along the gradients."""
        for group in self.param_groups:
            momentum, rate = group["momentum"], group["lr"]
            alike: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["mean"] = torch.zeros_like(p)
                state["mean"].lerp_(p.grad, 1 - momentum)
                shape = (p.shape[0], p.numel() // p.shape[0])
                ahead = torch.lerp(p.grad, state["mean"], momentum).reshape(shape)
                alike.setdefault(shape, []).append((p, ahead))
            for shape, pairs in alike.items():
                even = orthogonal(torch.stack([ahead for _, ahead in pairs]))
                size = rate * 0.2 * max(shape) ** 0.5
                for (p, _), direction in zip(pairs, even, strict=True):
                    p.mul_(1 - rate * group["weight_decay"])
                    p.add_(direction.reshape(p.shape), alpha=-size)


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    """Matrices (N, R, C) with their singular values brought near 1."""
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_rounds):
        square = x @ x.mT
        x = _a * x + (_b * square + _c * (square @ square)) @ x
    return x.mT if tall else x


def optimizers_of(model: torch.nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the layers inside; AdamW for words, positions, norms, and first and last layers."""
    matrices: list[torch.Tensor] = []
    rest: list[torch.Tensor] = []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        outer = name.endswith(("conv_in.weight", "conv_out.weight")) or "_embedding.weight" in name
        narrow = p.ndim < 2 or min(p.shape[0], p.numel() // p.shape[0]) < 12
        (rest if outer or narrow else matrices).append(p)
    adam = torch.optim.AdamW(rest, 1e-3, betas=(0.9, 0.98), weight_decay=0.01, foreach=True)
    return Muon(matrices), adam

# SPDX-License-Identifier: GPL-3.0-or-later
"""Optimizers out of well-kept packages, and the learning rate as a function of the step."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch

from onmodel.train.plan import OptimizerPlan, PlanError, SchedulePlan

Group = dict[str, Any]


def make(plan: OptimizerPlan, groups: Sequence[Group]) -> Any:
    """An optimizer for parameter groups, each with "params" and "lr".

    Raises PlanError where the package is not installed or cannot work here.
    """
    rows = [dict(g) for g in groups]
    common: dict[str, Any] = {"lr": plan.rate, "weight_decay": plan.weight_decay}
    if plan.name == "adamw":
        device = rows[0]["params"][0].device.type
        # One kernel for each weight instead of a dozen: LoRAs are hundreds of small weights.
        fused = device in ("cpu", "cuda")
        return torch.optim.AdamW(rows, betas=plan.betas, fused=fused, **common)
    if plan.name == "adamw8bit":
        package = _package("bitsandbytes", "AdamW 8-bit", "adamw")
        if rows[0]["params"][0].device.type != "cuda":
            raise PlanError(
                "AdamW 8-bit needs a CUDA device.", "Set optimizer.name to “adamw” on this machine."
            )
        return package.optim.AdamW8bit(rows, betas=plan.betas, **common)
    if plan.name == "prodigy":
        package = _package("prodigyopt", "Prodigy", "adamw")
        if len({row["lr"] for row in rows}) > 1:
            raise PlanError(
                "Prodigy finds one rate for all weights, but the plan has two.",
                "Set optimizer.rate and optimizer.text_encoder_rate to 1.0.",
            )
        # Decoupled decay, bias correction and the safeguard against early overestimates are what
        # its authors advise for diffusion models (readme of the package).
        return package.Prodigy(
            rows,
            betas=plan.betas,
            decouple=True,
            use_bias_correction=True,
            safeguard_warmup=True,
            **common,
        )
    from transformers.optimization import Adafactor

    # A rate is given, so Adafactor's own relative one is off (Shazeer and Stern 2018).
    return Adafactor(rows, relative_step=False, scale_parameter=False, warmup_init=False, **common)


def _package(name: str, title: str, instead: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PlanError(
            f"{title} needs the package {name}, which is not installed here.",
            f"Install it (pip install {name}) or set optimizer.name to “{instead}”.",
        ) from error


def set_rates(optimizer: Any, plan: SchedulePlan, step: int, steps: int) -> float:
    """Set every group's rate for a step, counted from 0; returns the first group's.

    Each group keeps its own full rate under "full_rate".
    """
    scale = factor(plan, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("full_rate", group["lr"]) * scale
    return float(optimizer.param_groups[0]["lr"])


def factor(plan: SchedulePlan, step: int, steps: int) -> float:
    """The share of the full rate at a step, counted from 0.

    Warm-up rises linearly to 1 over `warm_up` steps; then constant; linear, to 0 at the end;
    cosine, half a period; or polynomial, (1 - progress)^power. (The shapes of the schedulers in
    transformers and kohya's scripts; here the first step already moves.)
    """
    if step < plan.warm_up:
        return (step + 1) / (plan.warm_up + 1)
    progress = min(1.0, (step - plan.warm_up) / max(1, steps - plan.warm_up))
    if plan.scheduler == "linear":
        return 1.0 - progress
    if plan.scheduler == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if plan.scheduler == "polynomial":
        return float((1.0 - progress) ** plan.power)
    return 1.0

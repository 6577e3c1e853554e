# SPDX-License-Identifier: GPL-3.0-or-later
"""The learning itself: adapters, optimizer, average, and one step after another.

A step is a pure function of the state before it and of its number: all chance comes from
generators seeded by (seed, step), so a run that goes on from a saved state repeats the losses of
an uninterrupted one to the bit on the same machine.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.training_utils import EMAModel

from onmodel.lora import layouts
from onmodel.train import adapters, optimizers
from onmodel.train.dataset import Picture
from onmodel.train.family import TrainedFamily
from onmodel.train.plan import PlanError, TrainingPlan
from onmodel.train.rng import generator, seed_of
from onmodel.train.samples import Samples

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taken:
    """One step. loss: mean over its pictures, prior weight applied. rate: of the first group.
    grad_norm: before clipping."""

    loss: float
    rate: float
    grad_norm: float


class Trainer:
    """A family with adapters, and what moves them. step: how many steps are done."""

    def __init__(
        self, plan: TrainingPlan, family: TrainedFamily, samples: Samples, steps: int
    ) -> None:
        self.plan, self.family, self.samples, self.steps = plan, family, samples, steps
        self.step = 0
        adapters.add_adapters(family.components, plan.adapter, seed_of(plan.run.seed, "adapters"))
        self.weights = adapters.parameters(family.components)
        self._list = list(self.weights.values())
        self.accelerator = family.accelerator
        made = optimizers.make(plan.optimizer, self._groups())
        self.optimizer: Any = self.accelerator.prepare_optimizer(made)
        self.ema: Any = None
        if plan.schedule.ema is not None:
            self.ema = EMAModel(self._list, decay=plan.schedule.ema)

    @property
    def scaler(self) -> Any:
        """What keeps float16's gradients from underflowing; None with other formats."""
        return self.accelerator.scaler

    def _groups(self) -> list[dict[str, Any]]:
        text = [w for n, w in self.weights.items() if n.startswith("text_encoder")]
        other = [w for n, w in self.weights.items() if not n.startswith("text_encoder")]
        rows = [(other, self.plan.optimizer.rate), (text, self.plan.optimizer.text_encoder_rate)]
        return [{"params": w, "lr": rate, "full_rate": rate} for w, rate in rows if w]

    def take(self) -> Taken:
        """Make the next step. Raises PlanError where the numbers run away."""
        step, seed = self.step, self.plan.run.seed
        rate = optimizers.set_rates(self.optimizer, self.plan.schedule, step, self.steps)
        batches = self.samples.order.batch_at(step)
        # Kept by accelerate for the whole process, where another plan may have been measured.
        self.accelerator.gradient_accumulation_steps = len(batches)
        self.accelerator.step = 0
        total = 0.0
        for part, showings in enumerate(batches):
            # Dropout inside of the model takes the global generator.
            torch.manual_seed(seed_of(seed, step, part, "model"))
            batch = self.samples.batch(showings, step, part)
            found = self.family.losses(batch, generator(seed, step, part))
            weights = [self._weight(self.samples.pictures[s.index]) for s in showings]
            loss = (found * found.new_tensor(weights)).mean()
            with self.accelerator.accumulate():
                self.accelerator.backward(loss)
            total += loss.item() / len(batches)
        norm = self._update()
        if not math.isfinite(total):
            raise PlanError(
                f"The training ran away: the loss of step {step + 1} is {total}.",
                "Lower optimizer.rate, or take bf16 or fp32 for base.dtype.",
            )
        self.step += 1
        return Taken(total, rate, norm)

    def _weight(self, picture: Picture) -> float:
        return self.plan.loss.prior_weight if picture.regularisation else 1.0

    def _update(self) -> float:
        # A weight that no picture of this step reached has no gradient.
        limit = self.plan.optimizer.max_grad_norm or math.inf
        norm = float(self.accelerator.clip_grad_norm_(self._list, limit))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.step(self._list)
        return norm

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the weights are their average, where the plan keeps one."""
        if self.ema is None:
            yield
            return
        self.ema.store(self._list)
        self.ema.copy_to(self._list)
        try:
            yield
        finally:
            self.ema.restore(self._list)

    @contextmanager
    def unlearned(self) -> Iterator[None]:
        """Within, the adapters change nothing: the base model draws."""
        kept = [weight.detach().clone() for weight in self._list]
        for weight in self._list:
            weight.data.zero_()
        try:
            yield
        finally:
            for weight, value in zip(self._list, kept, strict=True):
                weight.data.copy_(value)

    def deltas(self) -> layouts.Deltas:
        """The LoRA as it would be saved now."""
        with self.averaged():
            return layouts.collect(self.family.components, adapters.adapter_name)

    def state(self) -> dict[str, Any]:
        """All that the next steps depend on."""
        return {
            "step": self.step,
            "weights": {n: w.detach().cpu() for n, w in self.weights.items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": {} if self.scaler is None else self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        for name, weight in self.weights.items():
            weight.data.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.step = int(state["step"])


@contextmanager
def repeatable(device: str, threads: int | None) -> Iterator[None]:
    """Within, torch computes the same numbers from the same inputs every time."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    strict = device != "cpu"
    if strict:
        # cuBLAS needs this to be repeatable; read when its first handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        if strict:
            torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The denoising loop: the same for every family.

Ours rather than a pipeline's call, for what that cannot do: stop within a step of a cancel and go
on with the rest of the batch, give each picture its own scheduler and noise (so that it is the
same picture alone and in any batch), and carry the regions into the ControlNet too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from onmodel.generate import regional_settings
from onmodel.generate.regional_settings import RegionalSettings
from onmodel.models import sampling, schedulers
from onmodel.models.errors import ModelError
from onmodel.models.family import Family, Picture
from onmodel.models.registry import ModelEntry

preview_interval = 0.5
steps_limit = 200


@dataclass(frozen=True)
class Settings:
    """How to denoise. preset: a scheduler preset that fits the model."""

    preset: str
    steps: int
    guidance: float
    regional: RegionalSettings = regional_settings.standard


def settings_of(request: dict[str, Any], entry: ModelEntry) -> Settings:
    """How a request's model is to denoise. Raises ModelError for what it cannot do, and where the
    request is pinned to other settings of the model (`onmodel.api.check.pin`)."""
    asked = request.get("sampling") or {}
    name = asked.get("preset") or "default"
    if name == "default":
        name = entry.default_preset
    usual = sampling.usual(entry, name)
    if asked.get("method") not in (None, usual.method):
        raise ModelError(
            f"“{entry.name}” no longer draws as it did when this keyframe was sent: its settings "
            "have changed.",
            "Put its old configuration back, or send the keyframe again to use the new one.",
        )
    steps = asked.get("steps") or usual.steps
    guidance = asked.get("guidance")
    if guidance is None:
        guidance = usual.guidance
    if not 1 <= int(steps) <= steps_limit:
        raise ModelError(f"{steps} steps cannot be drawn.", f"Choose 1 to {steps_limit} steps.")
    return Settings(name, int(steps), float(guidance))


@dataclass(frozen=True)
class Start:
    """Where to start instead of from noise alone, for image-to-image and inpainting.

    latents: (B, …) clean, as `Family.encode` gives. strength: 0..1, the part of the steps that is
    done. mask: (B, 1, h, w) in latent cells, 1 where it may change; None: everywhere.
    """

    latents: torch.Tensor
    strength: float
    mask: torch.Tensor | None = None


class Watcher(Protocol):
    """Told of progress, asked for cancels. Rows are places in the given list of pictures."""

    def step(self, row: int, step: int, steps: int) -> None:
        """A step of this picture is done, 1..steps."""

    def preview(self, row: int, step: int, steps: int, image: np.ndarray) -> None:
        """The picture so far, small: (h, w, 3) uint8."""

    def cancelled(self, row: int) -> bool:
        """Whether this picture is no longer wanted."""


def sample(
    family: Family,
    pictures: Sequence[Picture],
    settings: Settings,
    watcher: Watcher,
    start: Start | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Draw pictures of one size; yields (row, (H, W, 3) uint8) as each is decoded.

    Pictures that the watcher calls cancelled leave the batch at the next step and are not yielded.
    """
    rows, latents = denoised(family, pictures, settings, watcher, start)
    for place, row in enumerate(rows):
        if not watcher.cancelled(row):
            yield row, family.decode(latents[place : place + 1])[0]


def steps_of(steps: int, strength: float) -> int:
    """How many of so many steps are done from a start of this denoise strength; at least one."""
    return min(steps, max(1, round(steps * strength)))


def denoised(
    family: Family,
    pictures: Sequence[Picture],
    settings: Settings,
    watcher: Watcher,
    start: Start | None = None,
) -> tuple[list[int], torch.Tensor]:
    """Rows that nobody cancelled and their clean latents (n, …), for a next sampler or `decode`."""
    rows = [r for r in range(len(pictures)) if not watcher.cancelled(r)]
    if not rows:
        return [], torch.empty(0)
    run = _Run(family, [pictures[r] for r in rows], rows, settings, start)
    shown = time.perf_counter()
    steps = len(run.timesteps)
    for i in range(steps):
        if not run.drop_cancelled(watcher):
            return [], run.latents[:0]
        run.step(i)
        for row in run.rows:
            watcher.step(row, i + 1, steps)
        now = time.perf_counter()
        if now - shown >= preview_interval and i + 1 < steps:
            shown = now
            for row, image in zip(run.rows, family.preview(run.clean), strict=True):
                watcher.preview(row, i + 1, steps, image)
    return run.rows, run.latents


class _Run:
    """A batch on its way. All lists and first axes follow `rows`."""

    def __init__(
        self,
        family: Family,
        pictures: list[Picture],
        rows: list[int],
        settings: Settings,
        start: Start | None,
    ) -> None:
        self.family = family
        self.rows = rows
        self.prepared = family.prepare(pictures, settings.guidance, settings.regional)
        config = family.entry.found.scheduler
        self.schedulers = [schedulers.make(settings.preset, config) for _ in rows]
        # CPU generators: a seed means the same noise on every device.
        self.generators = [torch.Generator().manual_seed(p.seed) for p in pictures]
        for scheduler, picture in zip(self.schedulers, pictures, strict=True):
            _set_steps(family, scheduler, settings, picture)
        self.timesteps = self.schedulers[0].timesteps
        noise = torch.cat(
            [
                family.noise(g, p.width, p.height)
                for g, p in zip(self.generators, pictures, strict=True)
            ]
        ).to(family.place.device)
        self.start = start
        self.skipped = 0
        self.first_noise = noise
        if start is None:
            self.latents = noise * float(getattr(self.schedulers[0], "init_noise_sigma", 1.0))
        else:
            self.start = Start(start.latents[rows], start.strength, _rows(start.mask, rows))
            self._begin_at(start.strength)
            self.latents = self._noised(0)
        self.clean = self.latents

    def _begin_at(self, strength: float) -> None:
        """Leave out the first steps, so that `strength` of them remain; at least one."""
        total = len(self.timesteps)
        self.skipped = skip = total - steps_of(total, strength)
        self.timesteps = self.timesteps[skip:]
        for scheduler in self.schedulers:
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(skip)

    def _noised(self, i: int) -> torch.Tensor:
        """The start's latents with the noise that step i expects."""
        assert self.start is not None
        t = self.timesteps[i : i + 1]
        parts = [
            _add_noise(scheduler, self.start.latents[b : b + 1], self.first_noise[b : b + 1], t)
            for b, scheduler in enumerate(self.schedulers)
        ]
        return torch.cat(parts)

    def drop_cancelled(self, watcher: Watcher) -> bool:
        """Take cancelled pictures out; False if none is left."""
        keep = [place for place, row in enumerate(self.rows) if not watcher.cancelled(row)]
        if len(keep) < len(self.rows) and keep:
            self.prepared.keep(keep)
            self.schedulers = [self.schedulers[k] for k in keep]
            self.generators = [self.generators[k] for k in keep]
            self.latents, self.first_noise = self.latents[keep], self.first_noise[keep]
            if self.start is not None:
                self.start = Start(
                    self.start.latents[keep], self.start.strength, _rows(self.start.mask, keep)
                )
            self.rows = [self.rows[k] for k in keep]
        return bool(keep)

    @torch.inference_mode()
    def step(self, i: int) -> None:
        """Step i of all pictures."""
        t = self.timesteps[i]
        scaled = torch.cat(
            [
                _scale(scheduler, self.latents[b : b + 1], t)
                for b, scheduler in enumerate(self.schedulers)
            ]
        )
        # Steps that a start leaves out count as done: a map's start and end are places on the way
        # from noise to picture.
        done = (self.skipped + i) / (self.skipped + len(self.timesteps))
        out = self.family.denoise(self.prepared, scaled, t, done)
        moved, clean = [], []
        for b, scheduler in enumerate(self.schedulers):
            result = _advance(
                scheduler, out[b : b + 1], t, self.latents[b : b + 1], self.generators[b]
            )
            moved.append(result[0])
            clean.append(result[1])
        self.latents, self.clean = torch.cat(moved), torch.cat(clean)
        if self.start is not None and self.start.mask is not None:
            last = i + 1 == len(self.timesteps)
            known = self.start.latents if last else self._noised(i + 1)
            mask = self.start.mask
            self.latents = known * (1 - mask) + self.latents * mask


def _set_steps(family: Family, scheduler: Any, settings: Settings, picture: Picture) -> None:
    """Some schedulers cannot do every number of steps (LCM: at most 50)."""
    try:
        family.set_steps(scheduler, settings.steps, picture.width, picture.height)
    except ValueError as error:
        raise ModelError(
            f"The scheduler preset “{settings.preset}” cannot draw in {settings.steps} steps.",
            "Choose fewer steps, or another preset.",
        ) from error


def _rows(mask: torch.Tensor | None, rows: list[int]) -> torch.Tensor | None:
    return None if mask is None else mask[rows]


def _add_noise(
    scheduler: Any, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor
) -> torch.Tensor:
    """Flow-matching schedulers call it otherwise, and know by themselves at which step they are."""
    if hasattr(scheduler, "scale_noise"):
        noisy: torch.Tensor = scheduler.scale_noise(clean, t, noise)
    else:
        noisy = scheduler.add_noise(clean, noise, t)
    return noisy


def _scale(scheduler: Any, latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Flow-matching schedulers have nothing to scale and no such method."""
    if not hasattr(scheduler, "scale_model_input"):
        return latents
    scaled: torch.Tensor = scheduler.scale_model_input(latents, t)
    return scaled


_takes_generator: dict[type, bool] = {}


def _advance(
    scheduler: Any,
    output: torch.Tensor,
    t: torch.Tensor,
    latents: torch.Tensor,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One scheduler step: the next latents, and the clean latents it foresees (for previews)."""
    kind = type(scheduler)
    if kind not in _takes_generator:
        import inspect

        _takes_generator[kind] = "generator" in inspect.signature(kind.step).parameters
    options = {"generator": generator} if _takes_generator[kind] else {}
    result = scheduler.step(output, t, latents, **options)
    following = result.prev_sample
    clean = getattr(result, "pred_original_sample", None)
    if clean is None:
        clean = getattr(result, "denoised", None)
    if clean is None and hasattr(scheduler, "scale_noise"):
        # A flow's output is the direction from picture to noise.
        clean = latents - scheduler.sigmas[scheduler.step_index - 1] * output
    if clean is None and getattr(scheduler.config, "algorithm_type", "").endswith("dpmsolver++"):
        clean = scheduler.model_outputs[-1]
    return following, following if clean is None else clean

# SPDX-License-Identifier: GPL-3.0-or-later
"""Draws with a model and LoRAs as the server does, without server and queue."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.held_out import Sample

Array = np.ndarray


class Painter:
    """The embedded model, warm. data: a data folder whose `loras` can be used."""

    def __init__(self, data: Path | None = None, threads: int = 1) -> None:
        import torch
        from onmodel.models import families
        from onmodel.models.loras import LoraShelf
        from onmodel.models.memory import choose_place
        from onmodel.models.registry import Registry

        torch.set_num_threads(threads)
        self._registry = Registry(data)
        self.entry = self._registry.find("rehearsal")
        self.family = families.load(self.entry, choose_place(0))
        self._shelf = LoraShelf(self.family)
        self.seconds: list[float] = []

    def use(self, names: Sequence[str]) -> list[str]:
        """Make these LoRAs of the data folder ready to be bound to regions; their adapters."""
        found = [self._registry.find_lora(name) for name in names]
        self._shelf.use([], found)
        return [one.adapter for one in found]

    def draw(self, picture: Any, steps: int | None = None) -> Array:
        """(H, W, 3) uint8: one `models.family.Picture` at the model's own settings."""
        from onmodel.generate.sampler import Settings, sample

        settings = Settings("default", steps or self.entry.steps, self.entry.guidance)
        began = time.perf_counter()
        drawn = [pixels for _, pixels in sample(self.family, [picture], settings, _Nobody())]
        self.seconds.append(time.perf_counter() - began)
        return drawn[0]


class _Nobody:
    """A watcher that does not look and never cancels."""

    def step(self, row: int, step: int, steps: int) -> None:
        """Not wanted."""

    def preview(self, row: int, step: int, steps: int, image: Array) -> None:
        """Not wanted."""

    def cancelled(self, row: int) -> bool:
        """Never."""
        return False


def picture(
    prompt: str,
    people: Sequence[tuple[str, Array, Sequence[str]]],
    maps: Mapping[str, Array],
    seed: int,
) -> Any:
    """A `models.family.Picture`.

    people: prompt, mask (H, W) bool and adapters of each. maps: (H, W, 3) or (H, W) uint8 by kind.
    """
    from onmodel.models.family import ControlMap, Picture, RegionPrompt

    height, width = next(iter(maps.values())).shape[:2]
    shown = []
    for kind, image in sorted(maps.items()):
        colour = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        shown.append(ControlMap(kind, colour))
    regions = [
        RegionPrompt(text, mask, tuple((name, 1.0) for name in sorted(adapters)))
        for text, mask, adapters in people
        if mask.any()
    ]
    return Picture(prompt, "", width, height, seed, shown, regions)


def of_sample(sample: Sample, kinds: Sequence[str], seed: int) -> Any:
    """The picture of a held-out sample: its prompts in their regions, and these of its maps."""
    people = [
        (person["caption"], sample.person == index + 1, ())
        for index, person in enumerate(sample.told["people"])
    ]
    maps = {kind: getattr(sample, kind) for kind in kinds}
    return picture(sample.shot, people, maps, seed)


def without_regions(made: Any) -> Any:
    """The same picture with one prompt for all: nothing but the maps says where anybody is."""
    texts = [region.prompt for region in made.regions]
    return replace(made, prompt=", ".join([*texts, made.prompt]), regions=[])

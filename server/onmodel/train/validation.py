# SPDX-License-Identifier: GPL-3.0-or-later
"""Drawings while training: the same prompts, seeds and maps at every checkpoint."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from onmodel.lora.save import write_atomically
from onmodel.train.buckets import Order
from onmodel.train.dataset import Picture
from onmodel.train.family import Drawing, TrainedFamily
from onmodel.train.maps import MapSet, map_sets
from onmodel.train.pictures import open_map
from onmodel.train.plan import TrainingPlan
from onmodel.train.samples import pixels


def _of_pictures(order: Order, pictures: Sequence[Picture]) -> list[MapSet]:
    """The maps of training pictures, seven of them if there are so many."""
    shown = [(p, f) for p, f in zip(pictures, order.fits, strict=True) if p.maps]
    shown = [(p, f) for p, f in shown if not p.regularisation]
    spread = shown[:: max(1, len(shown) // 7)]
    return [MapSet({m.kind: m.path for m in p.maps}, f, p.caption) for p, f in spread]


def drawings(plan: TrainingPlan, order: Order, pictures: tuple[Picture, ...]) -> list[Drawing]:
    """What to draw: `count` drawings of each prompt, each with a seed of its own.

    They follow the maps of `validation.maps` in turn; without it, where the plan trains with maps,
    those of training pictures. Raises PlanError for maps that cannot be used.
    """
    folder = plan.validation.maps
    sets = map_sets(plan, Path(folder).expanduser()) if folder else _of_pictures(order, pictures)
    step = plan.data.bucket_step
    side = max(step, plan.data.resolution // step * step)
    found: list[Drawing] = []
    for number in range(len(plan.validation.prompts)):
        for i in range(plan.validation.count):
            seed = plan.validation.seed + i
            if not sets:
                prompt = plan.validation_prompts()[number]
                found.append(Drawing(prompt, seed, (side, side)))
                continue
            maps = sets[(number * plan.validation.count + i) % len(sets)]
            prompt = plan.validation_prompts(maps.caption)[number]
            found.append(_on_maps(maps, prompt, seed))
    return found


def _on_maps(maps: MapSet, prompt: str, seed: int) -> Drawing:
    way = Image.Resampling.BILINEAR
    ready = {
        kind: pixels(maps.fit.apply(open_map(path), way), False)
        for kind, path in maps.files.items()
    }
    return Drawing(prompt, seed, maps.fit.bucket, ready, maps.head)


def draw_all(family: TrainedFamily, wanted: Sequence[Drawing], folder: Path) -> list[Path]:
    """Draw into PNG files 00.png, 01.png … in the order of `wanted`."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    files = []
    for number, drawing in enumerate(wanted):
        data = io.BytesIO()
        Image.fromarray(family.draw(drawing).numpy()).save(data, "PNG")
        path = folder / f"{number:02d}.png"
        write_atomically(path, data.getvalue())
        files.append(path)
    return files

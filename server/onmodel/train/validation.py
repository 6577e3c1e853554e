# SPDX-License-Identifier: GPL-3.0-or-later
"""Drawings while training: the same prompts, seeds and maps at every checkpoint."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from onmodel.lora.save import write_atomically
from onmodel.train.buckets import Order
from onmodel.train.dataset import Picture
from onmodel.train.family import Drawing, TrainedFamily
from onmodel.train.pictures import open_map
from onmodel.train.plan import TrainingPlan
from onmodel.train.samples import pixels


def drawings(plan: TrainingPlan, order: Order, pictures: tuple[Picture, ...]) -> list[Drawing]:
    """What to draw: `count` drawings of each prompt, each with a seed of its own.

    Where the plan trains with maps, each drawing follows the maps of another training picture.
    """
    shown = [(p, f) for p, f in zip(pictures, order.fits, strict=True) if p.maps]
    shown = [(p, f) for p, f in shown if not p.regularisation]
    step = plan.data.bucket_step
    side = max(step, plan.data.resolution // step * step)
    found: list[Drawing] = []
    for number, prompt in enumerate(plan.validation_prompts()):
        for i in range(plan.validation.count):
            place = number * plan.validation.count + i
            seed = plan.validation.seed + i
            if not shown:
                found.append(Drawing(prompt, seed, (side, side)))
                continue
            picture, fit = shown[place * max(1, len(shown) // 7) % len(shown)]
            maps = {
                m.kind: pixels(fit.apply(open_map(m.path), Image.Resampling.BILINEAR), False)
                for m in picture.maps
            }
            found.append(Drawing(prompt, seed, fit.bucket, maps))
    return found


def draw_all(family: TrainedFamily, wanted: list[Drawing], folder: Path) -> list[Path]:
    """Draw into PNG files 00.png, 01.png … in the order of `wanted`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, drawing in enumerate(wanted):
        data = io.BytesIO()
        Image.fromarray(family.draw(drawing).numpy()).save(data, "PNG")
        path = folder / f"{number:02d}.png"
        write_atomically(path, data.getvalue())
        files.append(path)
    return files

# SPDX-License-Identifier: GPL-3.0-or-later
"""A tiny data set and a plan for it, for the tests of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from onmodel.train.plan import (
    AdapterPlan,
    BasePlan,
    DataPlan,
    RunPlan,
    SchedulePlan,
    TrainingPlan,
)
from PIL import Image

from tests.server import tiny_models


def pictures(folder: Path, count: int = 4, side: int = 64, maps: bool = False) -> Path:
    """Noisy pictures with captions, every other one with a mask."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        colours = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(colours).resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a zanna woman in the room, {'red' * (i % 2)} coat")
        if i % 2 == 0:
            mask = np.zeros((side, side), np.uint8)
            mask[8:40, 8:40] = 255
            Image.fromarray(mask).save(folder / f"{i}.mask.png")
        if maps:
            image.convert("L").save(folder / f"{i}.depth.png")
            if i % 2 == 0:
                image.rotate(90).save(folder / f"{i}.pose.png")
    return folder


def plan(folder: Path, **parts) -> TrainingPlan:
    """Six steps on four pictures with the tiny SDXL. parts: changes by part of the plan."""
    found = TrainingPlan(
        name="zanna",
        base=BasePlan(str(tiny_models.entry(folder).found.path), "sdxl", "fp32"),
        data=DataPlan(
            images=str(pictures(folder / "pictures", maps=True)),
            trigger="zanna",
            noun="woman",
            resolution=64,
            bucket_step=32,
            min_bucket=32,
            max_bucket=128,
        ),
        adapter=AdapterPlan(rank=2, alpha=4.0),
        schedule=SchedulePlan(steps=6, batch=2),
        run=RunPlan(save_every=2, threads=1),
    )
    for part, changes in parts.items():
        found = replace(found, **{part: replace(getattr(found, part), **changes)})
    return found

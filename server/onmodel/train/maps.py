# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders of maps that validation drawings follow, best of shots that no training picture shows.

NAME.pose.png, NAME.depth.png, NAME.normal.png …   maps of one size
NAME.txt                                           what {caption} in prompts stands for
NAME.head.json                                     {"box": [left, top, right, bottom]}, px of the
                                                   maps: where they put the head
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from onmodel.train.buckets import Fit, fit
from onmodel.train.dataset import map_kinds
from onmodel.train.pictures import PictureError, open_map
from onmodel.train.plan import PlanError, TrainingPlan

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class MapSet:
    """The maps of one drawing: files by kind, all of one size. head: its box on the canvas."""

    files: dict[str, Path]
    fit: Fit
    caption: str = ""
    head: Box | None = None


def map_sets(plan: TrainingPlan, folder: Path) -> list[MapSet]:
    """The maps in a folder, in the order of their names. Raises PlanError."""
    by_name: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob("*.png")):
        name, _, kind = path.stem.rpartition(".")
        if name and kind in map_kinds:
            by_name.setdefault(name, {})[kind] = path
    if not by_name:
        raise PlanError(
            f"There are no maps in {folder}.",
            "validation.maps is a folder of NAME.pose.png, NAME.depth.png and the like.",
        )
    return [_map_set(plan, folder / name, files) for name, files in by_name.items()]


def _map_set(plan: TrainingPlan, stem: Path, files: dict[str, Path]) -> MapSet:
    caption, head = stem.with_name(f"{stem.name}.txt"), stem.with_name(f"{stem.name}.head.json")
    try:
        sizes = {open_map(path).size for path in files.values()}
        words = " ".join(caption.read_text("utf-8").split()) if caption.is_file() else ""
        told = json.loads(head.read_text("utf-8"))["box"] if head.is_file() else []
        box = [float(v) for v in told]
    except (PictureError, OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(f"The maps {stem} cannot be used: {error}") from error
    if len(sizes) > 1:
        raise PlanError(f"The maps {stem} have different sizes.", "Make them of one keyframe.")
    if len(box) not in (0, 4):
        raise PlanError(f"The head box of {stem} has {len(box)} numbers, not four.")
    width, height = sizes.pop()
    place = fit(width, height, plan.data)
    return MapSet(files, place, words, _on_canvas(box, (width, height), place) if box else None)


def _on_canvas(box: list[float], size: tuple[int, int], place: Fit) -> Box:
    across, down = (b / a for a, b in zip(size, place.resized, strict=True))
    left, top = place.crop
    return (
        box[0] * across - left,
        box[1] * down - top,
        box[2] * across - left,
        box[3] * down - top,
    )

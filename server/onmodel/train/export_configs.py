# SPDX-License-Identifier: GPL-3.0-or-later
"""The same plan for other trainers: their configs, and the data laid out as they read it.

What is kept here is what they train on: refused pictures are left out, captions are completed,
pictures are upright 8-bit sRGB, the background weight is painted into the masks where a trainer
has no number for it. Every key of the plan is either in the config or named as missing: the
builders read the plan through `Reader`, which knows what they did not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from onmodel.train.buckets import Order
from onmodel.train.dataset import DataSet, Picture
from onmodel.train.export_ai_toolkit import ai_toolkit
from onmodel.train.export_kohya import kohya
from onmodel.train.export_onetrainer import onetrainer
from onmodel.train.export_plan import Built, Reader, Subset
from onmodel.train.export_simpletuner import simpletuner
from onmodel.train.pictures import open_mask, open_picture
from onmodel.train.plan import PlanError, TrainingPlan


@dataclass(frozen=True)
class Exported:
    """What `export` wrote. command: how the trainer is started. missing: sentences."""

    files: tuple[Path, ...]
    command: str
    missing: tuple[str, ...]


Builder = Callable[[Reader, Sequence[Subset], Order, Path], Built]

builders: dict[str, tuple[Builder, str]] = {
    "kohya": (kohya, "alpha"),
    "simpletuner": (simpletuner, "folder"),
    "ai-toolkit": (ai_toolkit, "plain"),
    "onetrainer": (onetrainer, "label"),
}
"""Name to builder, and how masks are laid out for it, see `write_data`."""


def export(plan: TrainingPlan, data: DataSet, order: Order, tool: str, folder: Path) -> Exported:
    """Write configs and data for `tool` into a folder. Raises PlanError, OSError.

    tool: "kohya", "simpletuner", "ai-toolkit", "onetrainer".
    """
    if tool not in builders:
        raise PlanError(f"There is no export for {tool}.", f"Take {', '.join(builders)}.")
    folder = folder.expanduser().absolute()
    builder, mask_style = builders[tool]
    reader = Reader(plan, tool)
    subsets = write_data(plan, data, folder, mask_style)
    built = builder(reader, subsets, order, folder)
    reader.lack(
        "" if plan.validation.references is None else "validation.references",
        f"{tool} does not choose among checkpoints: measure the identity of its drawings yourself.",
    )
    reader.lack(
        "" if plan.validation.maps is None else "validation.maps",
        f"{tool} draws its samples without maps, and {{caption}} in prompts is left out.",
    )
    missing = reader.missing()
    files = []
    for name, content in built.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")
        files.append(path)
    note = folder / "MISSING.txt"
    note.write_text("".join(f"{sentence}\n" for sentence in missing), "utf-8")
    return Exported((*files, note), built.command, missing)


def write_data(plan: TrainingPlan, data: DataSet, folder: Path, mask_style: str) -> list[Subset]:
    """The kept pictures under FOLDER/data, one folder for each number of repeats.

    mask_style: "alpha" (the mask is the picture's alpha channel, weights painted in), "folder"
    (beside, of the same names, weights painted in), "plain" (the same without weights), "label"
    (NAME-masklabel.png in the same folder).
    """
    subsets: list[Subset] = []
    masked = plan.loss.masked and any(p.mask for p in data.own)
    for regularisation, pictures in ((False, data.own), (True, data.others)):
        for repeats in sorted({p.repeats for p in pictures}):
            rows = [p for p in pictures if p.repeats == repeats]
            kind = "regularisation" if regularisation else "character"
            name = f"{kind}-{repeats}"
            place = folder / "data" / name
            place.mkdir(parents=True, exist_ok=True)
            beside = mask_style in ("folder", "plain") and masked and not regularisation
            masks = folder / "data" / f"{name}-masks" if beside else None
            for number, picture in enumerate(rows):
                weights = _weights(picture, plan, mask_style) if masked else None
                _write_picture(picture, weights, place / f"{number:04}", mask_style, masks)
            subsets.append(Subset(name, place, len(rows), repeats, regularisation, masks))
    return subsets


def _weights(picture: Picture, plan: TrainingPlan, mask_style: str) -> Image.Image | None:
    """The mask, with the background's weight painted in where the trainer has no number for it.

    None for regularisation pictures; white where a picture of the character has no mask.
    """
    if picture.regularisation:
        return None
    if picture.mask is None:
        return Image.new("L", (picture.width, picture.height), 255)
    mask = open_mask(picture.mask)
    if mask_style not in ("alpha", "folder"):
        return mask
    cover = np.asarray(mask, np.float32) / 255
    background = plan.loss.background
    return Image.fromarray(np.uint8(np.round(255 * (background + (1 - background) * cover))))


def _write_picture(
    picture: Picture,
    weights: Image.Image | None,
    stem: Path,
    mask_style: str,
    masks: Path | None,
) -> None:
    image = open_picture(picture.path)[0]
    stem.with_suffix(".txt").write_text(picture.caption, "utf-8")
    if weights is not None and mask_style == "alpha":
        image.putalpha(weights)
    elif weights is not None and mask_style == "label":
        weights.save(stem.with_name(f"{stem.name}-masklabel.png"))
    elif weights is not None and masks is not None:
        masks.mkdir(parents=True, exist_ok=True)
        weights.save(masks / f"{stem.name}.png")
    image.save(stem.with_suffix(".png"))

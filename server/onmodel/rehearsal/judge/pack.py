# SPDX-License-Identifier: GPL-3.0-or-later
"""The world's samples as the judge wants them: 128² pictures and labels in one file.

pack.npz holds rgb (N, 128, 128, 3), part and person (N, 128, 128), all uint8, and number (N,);
pack.json the samples' descriptions without their poses.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onmodel.rehearsal.judge.net import nearest, shrunk

Array = np.ndarray
log = logging.getLogger(__name__)

held_out = 24576
"""Sample numbers from here on show people (and their takes) that are kept for tests."""


@dataclass
class Pack:
    """Arrays as in the module's head; told: one description a sample."""

    rgb: Array
    part: Array
    person: Array
    number: Array
    told: list[dict[str, Any]]

    @property
    def kept(self) -> Array:
        """(N,) bool: held out from training."""
        return self.number >= held_out


def make(samples: Path, out: Path) -> Pack:
    """Pack all whole samples of a folder. Raises FileNotFoundError where there is none."""
    paths = sorted(samples.glob("[0-9]*.json"))
    if not paths:
        raise FileNotFoundError(f"{samples} holds no samples; make them by python -m world.samples")
    rows: dict[str, list[Array]] = {"rgb": [], "part": [], "person": []}
    told = []
    for path in paths:
        with np.load(path.with_suffix(".npz")) as arrays:
            rows["rgb"].append(shrunk(arrays["rgb"]))
            rows["part"].append(nearest(arrays["part"]))
            rows["person"].append(nearest(arrays["person"]))
        description = json.loads(path.read_text())
        for person in description["people"]:
            del person["pose"], person["standin_pose"]
        told.append(description)
    stacked = {name: np.stack(value) for name, value in rows.items()}
    number = np.array([int(p.stem) for p in paths])
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "pack.npz", number=number, **stacked)
    (out / "pack.json").write_text(json.dumps(told))
    log.info("%d samples in %s", len(told), out)
    return Pack(number=number, told=told, **stacked)


def load(folder: Path) -> Pack:
    """Read a pack. Raises FileNotFoundError where there is none."""
    told = json.loads((folder / "pack.json").read_text())
    with np.load(folder / "pack.npz") as arrays:
        return Pack(told=told, **{name: arrays[name] for name in arrays})


def load_or_make(samples: Path, folder: Path) -> Pack:
    """The pack of a folder of samples, made anew where it lacks some of them."""
    numbers = sorted(int(p.stem) for p in samples.glob("[0-9]*.json"))
    if (folder / "pack.json").is_file():
        packed = load(folder)
        if packed.number.tolist() == numbers:
            return packed
    return make(samples, folder)

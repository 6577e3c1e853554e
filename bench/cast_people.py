# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is in the frames of the cast's benches: held-out people with LoRAs, and people in words.

The people with LoRAs are those that `python -m bench.lora_test` left in its folder
(ONMODEL_LORA_TEST, else ~/.cache/onmodel/lora-test): the four of `wanted` have to be there, more
are taken too. Where a frame needs more people of a look than there are LoRAs, strangers of that
look stand beside, held by their traits in words alone.
"""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.lora_test import default_folder, looks
from world.frame_plans import Plan

Array = np.ndarray

wanted = (("realistic", 4103), ("realistic", 4107), ("animated", 4109), ("animated", 4113))
default_frames = 52
square, wide = (256, 256), (352, 192)
kinds = {
    1: (("full body shot", square), ("three-quarter shot", square)),
    2: (("full body shot", square), ("three-quarter shot", square)),
    3: (("full body shot", square), ("medium shot", wide)),
    4: (("full body shot", square), ("three-quarter shot", wide)),
    5: (("three-quarter shot", wide),),
}
"""Framings and canvases by the number of people: they take turns."""


@dataclass(frozen=True)
class Member:
    """Somebody of a look. references: a folder of portraits with their boxes. lora: a file, or
    None: held by words."""

    look: str
    identity: int
    noun: str
    traits: str
    references: Path
    lora: Path | None = None

    @property
    def name(self) -> str:
        """What its LoRA is called, too."""
        return f"{self.look}-{self.identity}"

    @property
    def portraits(self) -> tuple[Path, ...]:
        """The references' pictures."""
        return tuple(sorted(self.references.glob("*.png")))


def results_folder() -> Path:
    """Where `bench.lora_test` left its characters."""
    return Path(os.environ.get("ONMODEL_LORA_TEST") or default_folder)


def frames_wanted() -> int:
    """Frames of each number of people: ONMODEL_CAST_FRAMES, else the default."""
    return int(os.environ.get("ONMODEL_CAST_FRAMES") or default_frames)


def lacking(folder: Path) -> str:
    """A sentence on the LoRAs that are missing and how to make them, or ""."""
    missing = [(look, n) for look, n in wanted if not lora_file(folder, f"{look}-{n}").is_file()]
    if not missing:
        return ""
    names = ", ".join(f"{look}-{n}" for look, n in missing)
    look, identity = missing[0]
    command = f"python -m bench.lora_test --identity {identity} --look {look}"
    return f"There is no LoRA of {names}: make it by {command}."


def lora_file(folder: Path, name: str) -> Path:
    """Where a character's LoRA lies."""
    return folder / name / "loras" / f"{name}.safetensors"


def cast(folder: Path) -> dict[str, list[Member]]:
    """By look the people with a LoRA: the wanted ones first, then what else is there."""
    names = [f"{look}-{n}" for look, n in wanted]
    names += sorted(p.parent.parent.name for p in folder.glob("*/loras/*.safetensors"))
    out: dict[str, list[Member]] = {look: [] for look in looks}
    for name in dict.fromkeys(names):
        lora, data = lora_file(folder, name), folder / name / "data"
        if lora.is_file() and (data / "character.json").is_file():
            one = _member(data, lora)
            out[one.look].append(one)
    return out


def strangers(folder: Path) -> dict[str, list[Member]]:
    """By look the people without a LoRA; rendered where they are missing."""
    from bench.identity import make_strangers

    make_strangers(folder)
    return {
        look: [
            _member(p.parent, None)
            for p in sorted((folder / "strangers" / look).glob("*/character.json"))
        ]
        for look in looks
    }


def _member(data: Path, lora: Path | None) -> Member:
    told: dict[str, Any] = json.loads((data / "character.json").read_text())
    identity = int(told["identity"]["seed"])
    return Member(told["look"], identity, told["noun"], told["traits"], data / "references", lora)


@dataclass(frozen=True)
class Cell:
    """A frame to draw and who is in it, in the plan's order."""

    plan: Plan
    members: tuple[Member, ...]


def cells(
    count: int, frames: int, own: dict[str, list[Member]], others: dict[str, list[Member]]
) -> list[Cell]:
    """Frames of `count` people, their looks, framings and casts taking turns.

    own: by look the people with a LoRA. others: by look those who fill up. Looks without LoRAs
    are left out.
    """
    used = [look for look in looks if own.get(look)]
    found = []
    for number in range(frames if used else 0):
        framing, size = kinds[count][number % len(kinds[count])]
        turn = number // len(kinds[count])
        look = used[turn % len(used)]
        groups = list(itertools.combinations(own[look], min(count, len(own[look]))))
        chosen = list(groups[turn // len(used) % len(groups)])
        chosen += others[look][: count - len(chosen)]
        if len(chosen) < count:
            raise RuntimeError(f"There are not {count} people of the look {look}.")
        plan = Plan(number, look, tuple(m.identity for m in chosen), framing, size)
        found.append(Cell(plan, tuple(chosen)))
    return found

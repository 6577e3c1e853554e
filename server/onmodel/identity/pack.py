# SPDX-License-Identifier: GPL-3.0-or-later
"""From the world's samples to a pack of heads: one array of cuts and one line of facts each.

Two kinds of folder are read: `python -m world.samples` (whole pictures with a head box a person)
and `python -m world.heads` (heads alone). A pack is heads.npy (N, 88, 88, 3) uint8, the square
about the head box with `stored_margin`, and heads.json, one `Head` each.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onmodel.identity.interface import (
    Array,
    HeadBox,
    box_from_pose,
    cut,
    head_size,
    square,
    unusable,
)

log = logging.getLogger(__name__)

stored_size = 88
stored_margin = 1.6
input_margin = 1.25
"""Margin of the cut that the net sees; the rest of a stored cut is room for jitter."""
least_pixels = 14
widest_yaw = 100.0
held_out = 4096
"""First identity kept for tests, as `world.samples.identities`."""
per_person = 6
"""Samples of one person, as `world.samples.per_person`."""
least_visible = 22
"""Of the 70 face points of a pose: in a profile about half of them are hidden by the head."""


@dataclass(frozen=True)
class Head:
    """Facts of a cut. pixels: size of the head in its picture; yaw: degrees, None = not known;
    kin: attributes in words, equal for people who differ by face alone."""

    identity: int
    look: str
    framing: str
    pixels: float
    yaw: float | None
    kin: str
    source: str


@dataclass
class Pack:
    """cuts (N, 88, 88, 3) uint8, memory-mapped; heads: N facts."""

    cuts: Array
    heads: list[Head]


def save(folder: Path, cuts: list[Array], heads: list[Head]) -> None:
    """Write a pack; the facts last, so that a pack that has them is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "heads.npy", np.stack(cuts))
    part = folder / "heads.part"
    part.write_text(json.dumps([asdict(head) for head in heads]))
    part.replace(folder / "heads.json")


def load(folder: Path) -> Pack:
    """Read a pack. Raises FileNotFoundError where there is none."""
    rows = json.loads((folder / "heads.json").read_text())
    return Pack(np.load(folder / "heads.npy", mmap_mode="r"), [Head(**row) for row in rows])


def _kin(caption: str) -> str:
    """Person, skin and hair of a caption: "young man, pale skin, short white hair, white beard"."""
    parts = caption.split(", ")
    return ", ".join(p for p in parts[:5] if "eyes" not in p and not _worn(p))


def _worn(words: str) -> bool:
    return words.split(" ")[-1] in {"sweater", "t-shirt", "trousers", "shorts", "skirt", "shirt"}


def _yaw(person: dict[str, Any]) -> float | None:
    if "yaw" in person:
        return float(person["yaw"])
    view = person["caption"].rsplit(", ", 1)[-1]
    return {"facing": None, "in profile": 80.0, "from behind": 180.0}.get(view)


def _box(person: dict[str, Any], width: int, height: int) -> HeadBox:
    """The head without hanging hair; where the picture cuts it, worked out of the face points."""
    told = person.get("face")
    if told and min(told) > 0 and told[2] < width and told[3] < height:
        return (float(told[0]), float(told[1]), float(told[2]), float(told[3]))
    return box_from_pose(person["pose"])


@dataclass(frozen=True)
class Found:
    """A head where it was found: the whole picture (H, W, 3) uint8, its box in it, its facts."""

    picture: Array
    box: HeadBox
    head: Head


def heads_of_sample(folder: Path, number: int) -> Iterator[Found]:
    """The usable heads of one sample of `world.samples`."""
    told = json.loads((folder / f"{number:06d}.json").read_text())
    with np.load(folder / f"{number:06d}.npz") as arrays:
        picture = arrays["rgb"]
    for person in told["people"]:
        visible = sum(p[3] == "visible" for p in person["pose"]["face"])
        if not person["seen"] or visible < least_visible:
            continue
        box = _box(person, picture.shape[1], picture.shape[0])
        yaw = _yaw(person)
        if unusable(picture, box, yaw, least_pixels, widest_yaw) is not None:
            continue
        look = person.get("look") or told.get("look") or "realistic"
        facts = Head(
            identity=int(person["identity"]),
            look=look,
            framing=told["framing"],
            pixels=round(head_size(box), 1),
            yaw=yaw,
            kin=_kin(person["caption"]),
            source=f"{folder.name}/{number:06d}",
        )
        yield Found(picture, box, facts)


def heads_of_file(path: Path) -> Iterator[Found]:
    """The usable heads of one file of `world.heads`. Runs in a checkout: the words for kin come
    from `world.people`."""
    from world import looks, people

    with np.load(path) as arrays:
        rows = dict(arrays)
    for index, seed in enumerate(rows["identity"]):
        who = people.resident(int(seed))
        x0, y0, x1, y1 = (float(v) for v in rows["face"][index])
        box, picture = (x0, y0, x1, y1), rows["rgb"][index]
        yaw = float(rows["yaw"][index])
        if unusable(picture, box, yaw, least_pixels, widest_yaw):
            continue
        facts = Head(
            identity=int(seed),
            look=looks.looks[int(rows["look"][index])],
            framing="head alone",
            pixels=round(head_size(box), 1),
            yaw=round(yaw, 1),
            kin=_kin(f"{people.noun(who)}, {people.description(who)}"),
            source=f"{path.name}/{index}",
        )
        yield Found(picture, box, facts)


def heads_in(samples: Path, first: int = 0) -> Iterator[Found]:
    """The usable heads of a folder of either kind, of people from number `first` on.

    A sample's main person decides; whom it shows beside that one comes from the same side.
    """
    for path in sorted(samples.glob("[0-9]*.json")):
        if int(path.stem) // per_person >= first:
            yield from heads_of_sample(samples, int(path.stem))
    for path in sorted(samples.glob("heads_*.npz")):
        if int(path.stem.split("_")[1]) >= first:
            yield from heads_of_file(path)


def pack_samples(samples: Path, out: Path, strangers: bool = False) -> int:
    """Pack all whole samples of a folder of either kind; the number of heads.

    strangers: an older world's people, whose numbers mean others than in the packs beside it.
    They get numbers below 0, and those kept for tests are left out.
    """
    cuts: list[Array] = []
    heads: list[Head] = []
    for found in heads_in(samples):
        head = found.head
        if strangers and head.identity >= held_out:
            continue
        number = -1 - head.identity if strangers else head.identity
        cuts.append(cut(found.picture, square(found.box, stored_margin), stored_size))
        heads.append(replace(head, identity=number))
    if not heads:
        raise FileNotFoundError(f"{samples} holds no samples with a head to be seen.")
    save(out, cuts, heads)
    log.info("%d heads of %d people in %s", len(heads), len({h.identity for h in heads}), out)
    return len(heads)

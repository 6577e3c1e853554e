# SPDX-License-Identifier: GPL-3.0-or-later
"""What a frame of several given people shows, and how it is kept on disk. Without Blender.

`world.frames` makes them. A frame is two pictures before one camera: the people themselves, and in
each one's place a stand-in of nobody's face, whose maps and masks a storyboard would give.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from addon.core.request import Box, Head, Pose, from_data, to_data

Array = np.ndarray

least_height = 20.0
"""Pixels of a frame's lowest head; the rehearsal embedder asks for 16."""

_makers = ("world", "addon/core")
_made_by = (
    *("frames", "frame_plans", "samples", "cast", "people", "identities", "body", "face", "hair"),
    *("poses", "sets", "looks", "studio"),
    *("openpose", "depth", "normals"),
)


@dataclass(frozen=True)
class Plan:
    """What a frame shows; equal plans make equal frames.

    identities: seeds of `people.resident`, in the order of the cast, not of the picture. framing:
    of `cast.framings`, the least of what is seen. size: (width, height) px. loose: heads may be
    hidden, turned away or outside the picture, bodies may cross; else every head is well seen.
    """

    number: int
    look: str
    identities: tuple[int, ...]
    framing: str
    size: tuple[int, int] = (256, 256)
    loose: bool = False

    @property
    def key(self) -> str:
        """Changes with the plan and with the code that makes frames: names its files."""
        text = json.dumps([asdict(self), _code()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def _code() -> str:
    """A digest of the sources that decide what a frame looks like, as they are now: the process
    that renders reads them later than the one that asks."""
    root, found = Path(__file__).resolve().parents[1], hashlib.sha256()
    for folder in _makers:
        for path in sorted((root / folder).glob("*.py")):
            if path.stem in _made_by:
                found.update(path.read_bytes())
    return found.hexdigest()


def plan_of(data: dict[str, Any]) -> Plan:
    """A plan out of what `dataclasses.asdict` and JSON made of it."""
    lists = {name: tuple(data[name]) for name in ("identities", "size")}
    return Plan(**{**data, **lists})


def heads_fit(boxes: list[tuple[float, float, float, float]], size: tuple[int, int]) -> bool:
    """Whether heads (x0, y0, x1, y1) px lie in the picture, large enough, apart from each other."""
    for place, (x0, y0, x1, y1) in enumerate(boxes):
        if x0 < 1 or y0 < 1 or x1 > size[0] - 1 or y1 > size[1] - 1 or y1 - y0 < least_height:
            return False
        for a0, b0, a1, b1 in boxes[:place]:
            shared = max(0.0, min(x1, a1) - max(x0, a0)) * max(0.0, min(y1, b1) - max(y0, b0))
            if shared > 0.25 * min((x1 - x0) * (y1 - y0), (a1 - a0) * (b1 - b0)):
                return False
    return True


@dataclass(frozen=True)
class Person:
    """One person of a frame.

    noun, traits, expression, view: the caption's parts. face: box of the true head in the picture
    of the people, px, without hanging hair; None: behind the camera. yaw: degrees from facing the
    camera, > 0 to the picture's right. seen: the part of the true head that nothing covers, 0..1,
    of what lies in the picture. head: the stand-in's, as a request has it, without a mask. middle:
    [x, y, z] px and metres of the middle of the stand-in's head bone. pose: the stand-in's.
    """

    identity: int
    noun: str
    traits: str
    expression: str
    view: str
    face: Box | None
    yaw: float
    seen: float
    head: Head | None
    middle: list[float]
    pose: Pose


@dataclass(frozen=True)
class View:
    """The camera. matrix_world: 16 floats, row-major. frustum: as `request.Camera` has it."""

    matrix_world: list[float]
    frustum: list[float]
    orthographic: bool


@dataclass(frozen=True)
class Told:
    """What a frame's file says besides its pixels."""

    set_name: str
    view: View
    people: list[Person]


@dataclass(frozen=True)
class Frame:
    """A frame, (H, W) of the plan's size, all uint8.

    rgb (H, W, 3): the people. person: whose pixel it is there, 0 = nobody's, else 1 + index in the
    plan. Of the stand-ins: pose, normal (H, W, 3) and depth (H, W), the add-on's maps; owner (H, W)
    as person; heads (H, W): 1 + index of the person whose head is seen there.
    """

    plan: Plan
    set_name: str
    view: View
    people: list[Person]
    rgb: Array
    person: Array
    pose: Array
    depth: Array
    normal: Array
    owner: Array
    heads: Array

    @property
    def shot(self) -> str:
        """The prompt of the whole picture. More than two people are not told apart by the captions
        that the rehearsal model has learned: it knows one and "two people"."""
        several = ["two people"] if len(self.people) > 1 else []
        return ", ".join([*several, self.plan.look, self.plan.framing, self.set_name])


_arrays = ("rgb", "person", "pose", "depth", "normal", "owner", "heads")


def save(frame: Frame, folder: Path) -> None:
    """Write KEY.npz, then KEY.json: a frame that has the second is whole."""
    path = folder / f"{frame.plan.key}.json"
    with path.with_suffix(".npz").open("wb") as file:
        np.savez_compressed(file, **{name: getattr(frame, name) for name in _arrays})
    part = path.with_suffix(".part")
    part.write_text(json.dumps(to_data(Told(frame.set_name, frame.view, frame.people))))
    part.replace(path)


def there(plan: Plan, folder: Path) -> bool:
    """Whether the frame has been made."""
    return (folder / f"{plan.key}.json").is_file()


def load(plan: Plan, folder: Path) -> Frame:
    """Read what `save` wrote. Raises FileNotFoundError."""
    path = folder / f"{plan.key}.json"
    told = from_data(Told, json.loads(path.read_text()), "frame")
    with np.load(path.with_suffix(".npz")) as arrays:
        return Frame(plan, told.set_name, told.view, told.people, **{n: arrays[n] for n in _arrays})

# SPDX-License-Identifier: GPL-3.0-or-later
"""controlnet-aux's own drawing of people, and what it drew, kept.

With `controlnet-aux` and OpenCV 4 (`pip install --no-deps controlnet-aux`, then
opencv-python-headless and matplotlib) `python -m tests.addon.golden.openpose_oracle` draws
`cases()` and writes openpose.json and openpose_<n>.png beside this file.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import random
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from addon.core.openpose import hand_limbs, palette, stick_ratio
from addon.core.png import encode
from addon.core.request import Keypoint, Pose, from_data, to_data

folder = Path(__file__).parent
cases_file = folder / "openpose.json"


def picture_file(number: int) -> Path:
    return folder / f"openpose_{number}.png"


@dataclasses.dataclass(frozen=True)
class Case:
    width: int
    height: int
    people: list[Pose]


def kept_cases() -> list[Case]:
    return [from_data(Case, data) for data in json.loads(cases_file.read_text())]


# --- people --------------------------------------------------------------------------------------


def random_case(seed: int, width: int, height: int, people: int, missing: float = 0.1) -> Case:
    """People of one height, standing near each other, everything a little anywhere."""
    draw = random.Random(seed)
    found = []
    for _ in range(people):
        size = draw.uniform(0.25, 0.9) * height
        x, y = draw.uniform(0.2, 0.8) * width, draw.uniform(-0.1, 0.3) * height
        found.append(_person(draw, x, y, size, width, height, missing))
    return Case(width, height, found)


_body = (
    *((0, 0.06), (0, 0.16), (-0.1, 0.17), (-0.15, 0.32), (-0.16, 0.46)),
    *((0.1, 0.17), (0.15, 0.32), (0.16, 0.46), (-0.06, 0.5), (-0.07, 0.73), (-0.07, 0.95)),
    *((0.06, 0.5), (0.07, 0.73), (0.07, 0.95), (-0.015, 0.045), (0.015, 0.045)),
    *((-0.035, 0.05), (0.035, 0.05)),
)


def _person(
    draw: random.Random, x: float, y: float, size: float, width: int, height: int, missing: float
) -> Pose:
    def point(u: float, v: float, stray: float) -> Keypoint:
        px = x + (u + draw.gauss(0, stray)) * size
        py = y + (v + draw.gauss(0, stray)) * size
        state = "visible" if 0 < px < width and 0 < py < height else "outside"
        if draw.random() < missing:
            state = "hidden"
        return Keypoint(round(px, 3), round(py, 3), 3.0, state)

    def hand(u: float, v: float) -> list[Keypoint | None]:
        points: list[Keypoint | None] = [point(u, v, 0.0)]
        for finger in range(5):
            turn = math.radians(draw.uniform(60, 120) + 20 * (finger - 2))
            points += [
                point(u + math.cos(turn) * n * 0.02, v + math.sin(turn) * n * 0.02, 0.002)
                for n in range(1, 5)
            ]
        return points

    body: list[Keypoint | None] = [point(u, v, 0.03) for u, v in _body]
    if missing:
        body[draw.randrange(18)] = None
    face: list[Keypoint | None] = [point(0, 0.06, 0.012) for _ in range(70)]
    return Pose(body, hand(0.16, 0.46), hand(-0.16, 0.46), face)


def cases() -> list[Case]:
    """Several sizes, one to four people over each other, points missing."""
    return [
        random_case(1, 256, 256, 2),
        random_case(2, 512, 768, 1, missing=0.0),
        random_case(3, 1024, 1024, 3),
        random_case(4, 1344, 768, 4),
        random_case(5, 2048, 1152, 2),
    ]


# --- the oracle ----------------------------------------------------------------------------------


class _Point(NamedTuple):
    x: float
    y: float


def available() -> bool:
    """Whether controlnet-aux and an OpenCV 4 are here."""
    if any(importlib.util.find_spec(name) is None for name in ("controlnet_aux", "cv2")):
        return False
    import cv2

    return cv2.__version__.startswith("4.")


def _drawing_code(ratio: int) -> types.ModuleType:
    """Its util.py, without the package around it, which wants torch and model weights.

    The stick's width and the joint's radius are constants in it; they are set to 4 * ratio.
    """
    spec = importlib.util.find_spec("controlnet_aux")
    assert spec and spec.submodule_search_locations
    source = (Path(spec.submodule_search_locations[0]) / "open_pose" / "util.py").read_text()
    body, rest = source.split("def draw_handpose", 1)
    for constant in ("stickwidth = 4", "(int(x), int(y)), 4,"):
        assert body.count(constant) == 1
        body = body.replace(constant, constant.replace("4", str(4 * ratio)))
    parent, sibling = types.ModuleType("oracle"), types.ModuleType("oracle.body")
    parent.__path__ = []
    sibling.Keypoint, sibling.BodyResult = _Point, Any  # type: ignore[attr-defined]
    sys.modules |= {"oracle": parent, "oracle.body": sibling}
    module = types.ModuleType("oracle.util")
    module.__package__ = "oracle"
    exec(compile(body + "def draw_handpose" + rest, "util.py", "exec"), module.__dict__)
    return module


def draw(case: Case, ratio: int | None = None) -> np.ndarray:
    """The oracle's picture, (H, W, 3) uint8, one person after the other as it draws them."""
    util = _drawing_code(ratio or stick_ratio(case.width, case.height))
    canvas = np.zeros((case.height, case.width, 3), np.uint8)

    def seen(points: Sequence[Keypoint | None]) -> list[_Point | None]:
        return [
            _Point(p.x / case.width, p.y / case.height) if p and p.state == "visible" else None
            for p in points
        ]

    for person in case.people:
        util.draw_bodypose(canvas, seen(person.body))
        for hand in (person.left_hand, person.right_hand):
            # It cannot draw hands with gaps; points left of the canvas are not drawn.
            util.draw_handpose(canvas, [p or _Point(-1.0, -1.0) for p in seen(hand)])
        util.draw_facepose(canvas, [p for p in seen(person.face) if p])
    return canvas


def _indexed(picture: np.ndarray) -> np.ndarray:
    """The picture as entries of our palette, so that it is kept small."""
    colours = palette().astype(int)
    entries = np.zeros(picture.shape[:2], np.uint8)
    rows, columns = np.nonzero(picture.any(axis=2))
    apart = np.abs(picture[rows, columns, None].astype(int) - colours).max(axis=2)
    assert apart.min(axis=1).max() <= 1
    entries[rows, columns] = apart.argmin(axis=1)
    return entries


if __name__ == "__main__":
    assert len(hand_limbs) == 20 and available()
    cases_file.write_text(json.dumps(to_data(cases()), separators=(",", ":")) + "\n")
    for number, case in enumerate(kept_cases()):
        exact = draw(case)
        picture_file(number).write_bytes(encode(_indexed(exact), 9, palette()))

# SPDX-License-Identifier: GPL-3.0-or-later
"""Training samples: pictures of the world with their maps, masks, poses and captions.

    python -m world.samples OUT --start 0 --count 1000

Sample number N is made of its number (and --set) alone: the same one every time, in any process
and order.
OUT/NNNNNN.npz holds `rgb` (H, W, 3) uint8; `disparity` (H, W) float16, 1/m, 0 = background;
`person` (H, W) uint8, 0 = none, else 1 + index of the person; `normal` (H, W, 3) uint8 as the
add-on's normal map. OUT/NNNNNN.json holds the shot's words and, per person, caption and pose.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from world import people, poses, sets
from world.studio import Lens, Studio

Array = np.ndarray
log = logging.getLogger(__name__)

framings = {
    "close-up": 0.30,
    "portrait": 0.52,
    "medium shot": 0.95,
    "three-quarter shot": 1.35,
    "full body shot": 2.05,
}
"""Height of the picture at the subject, in metres (of a full body shot: the least)."""
canvases = ((256, 256), (352, 192), (192, 352), (320, 224))
_canvas_odds = (0.74, 0.11, 0.09, 0.06)
per_person = 6
identities = 4096
"""People of the training world, `per_person` samples each. Samples from number
identities * per_person on show other people: they are kept for tests."""
_set_odds = tuple(0.28 if name == "park" else 0.72 / (len(sets.names) - 1) for name in sets.names)
"""The park is the sample storyboard's place."""
_body_points = (
    None,
    None,
    ("RightArm", 0),
    ("RightForeArm", 0),
    ("RightHand", 0),
    ("LeftArm", 0),
    ("LeftForeArm", 0),
    ("LeftHand", 0),
    ("RightUpLeg", 0),
    ("RightLeg", 0),
    ("RightFoot", 0),
    ("LeftUpLeg", 0),
    ("LeftLeg", 0),
    ("LeftFoot", 0),
)
"""COCO-18 points 0-13 as (bone, 0 = head); nose and neck are worked out."""
_fingers = ("Thumb", "Index", "Middle", "Ring", "Pinky")


@dataclass(frozen=True)
class Actor:
    """One person of a sample. yaw: degrees, 0 = faces the camera's side of the set (-y)."""

    who: people.Identity
    person: people.Figure
    posed: poses.Posed
    expression: str
    yaw: float


@functools.lru_cache(maxsize=24)
def _figure(seed: int, expression: str) -> people.Figure:
    return people.figure(people.identity(seed), expression)


def _actor(rng: np.random.Generator, seed: int, yaw: float, at: Array) -> Actor:
    expression = str(rng.choice(list(people.expressions)))
    person = _figure(seed, expression)
    posed = poses.pose_figure(person, poses.random_pose(rng))
    hips = posed.heads[person.bones.index("mixamorig:Hips")]
    centre = np.array([hips[0], hips[1], 0.0])
    posed = dataclasses.replace(posed, vertices=posed.vertices - centre)
    posed = dataclasses.replace(posed, heads=posed.heads - centre, tails=posed.tails - centre)
    posed = posed.moved(poses.turn("z", yaw), at)
    return Actor(people.identity(seed), person, posed, expression, yaw)


def _bone(actor: Actor, name: str, tail: bool = False) -> Array:
    ends = actor.posed.tails if tail else actor.posed.heads
    return ends[actor.person.bones.index(f"mixamorig:{name}")]


def _cast(rng: np.random.Generator, number: int, framing: str) -> list[Actor]:
    """One person, or in about a quarter of the samples two."""
    close = framing in ("close-up", "portrait")
    first = number // per_person
    behind = rng.random() < 0.15
    yaw = float(rng.uniform(110, 250) if behind else rng.normal(0, 32 if close else 42))
    actors = [_actor(rng, first, yaw, np.zeros(3))]
    if rng.random() < (0.12 if close else 0.32):
        second = int(rng.integers(identities)) + first // identities * identities
        side = float(rng.choice([-1, 1])) * float(rng.uniform(0.22 if close else 0.3, 0.85))
        back = float(rng.uniform(-0.5, 0.9))
        behind = rng.random() < 0.2
        yaw = float(rng.uniform(110, 250) if behind else rng.normal(0, 50))
        actors.append(_actor(rng, second, yaw, np.array([side, back, 0.0])))
    return actors


def _lens(
    rng: np.random.Generator, actors: list[Actor], framing: str, size: tuple[int, int]
) -> Lens:
    width, height = size
    main = actors[0]
    head = _bone(main, "Head") + np.array([0, 0, 0.09])
    hips = _bone(main, "Hips")
    low, high = main.posed.vertices.min(0), main.posed.vertices.max(0)
    centre = {
        "close-up": head,
        "portrait": head - [0, 0, 0.09],
        "medium shot": head * 0.62 + hips * 0.38,
        "three-quarter shot": head * 0.42 + hips * 0.58,
        "full body shot": (low + high) / 2,
    }[framing]
    reach = framings[framing] * float(rng.uniform(0.9, 1.15))
    if framing == "full body shot":
        reach = max(reach * 0.5, float(high[2] - low[2]) * float(rng.uniform(1.1, 1.5)))
    if len(actors) > 1:
        other = _bone(actors[1], "Head") + np.array([0, 0, 0.09])
        share = float(rng.uniform(0.35, 0.5))
        centre = centre + np.array([(other[0] - head[0]) * share, 0, 0])
        reach = max(reach, 1.15 * abs(float(other[0] - head[0])) * height / width)
    # A tall canvas still has to hold the subject's width.
    reach *= max(1.0, 0.8 * height / width)
    centre = centre + rng.normal(0, 0.04, 3) * reach
    degrees = float(rng.normal(2, 8))
    focal = float(rng.uniform(32, 75))
    return Lens.towards(centre, reach, focal, degrees, size, orthographic=bool(rng.random() < 0.06))


def _state(z_buffer: Array, owner: Array, index: int, point: Array, slack: float) -> str:
    """request.Keypoint's state of a projected point (x, y, z)."""
    height, width = z_buffer.shape
    x, y, z = point
    if z <= 0:
        return "behind"
    if not (0 <= x < width and 0 <= y < height):
        return "outside"
    before = z_buffer[int(y), int(x)]
    own = owner[int(y), int(x)] == index + 1
    return "hidden" if before < z - (slack if own else 0.05) else "visible"


def _points(actor: Actor) -> dict[str, list[tuple[Array, float]]]:
    """World points of a pose by part, each with how deep it may lie in its own body (m)."""
    inside, hand, surface = 0.17, 0.06, 0.02
    v, marks, ears = actor.posed.vertices, actor.person.landmarks, actor.person.ears
    shoulders = (_bone(actor, "RightArm") + _bone(actor, "LeftArm")) / 2
    body: list[tuple[Array, float]] = [(v[marks[30]], surface), (shoulders, inside)]
    body += [(_bone(actor, bone[0]), inside) for bone in _body_points if bone is not None]
    body += [(v[marks[68]], surface), (v[marks[69]], surface)]
    body += [(v[ears[0]], 0.05), (v[ears[1]], 0.05)]
    out = {"body": body, "face": [(v[m], surface) for m in marks]}
    for side in ("left", "right"):
        name = f"{side.title()}Hand"
        points = [(_bone(actor, name), hand)]
        for finger in _fingers:
            points += [(_bone(actor, f"{name}{finger}{k}"), hand) for k in (1, 2, 3)]
            points.append((_bone(actor, f"{name}{finger}3", tail=True), hand))
        out[f"{side}_hand"] = points
    return out


def _pose(actor: Actor, index: int, lens: Lens, z_buffer: Array, owner: Array) -> dict[str, Any]:
    out = {}
    for part, points in _points(actor).items():
        projected = lens.project(np.array([p for p, _ in points]))
        states = [
            _state(z_buffer, owner, index, point, slack)
            for point, (_, slack) in zip(projected, points, strict=True)
        ]
        out[part] = [
            [round(float(x), 2), round(float(y), 2), round(float(z), 4), state]
            for (x, y, z), state in zip(projected, states, strict=True)
        ]
    return out


def _view(actor: Actor, lens: Lens) -> str:
    """Where the head looks, in words."""
    head = actor.person.bones.index("mixamorig:Head")
    marks = actor.posed.vertices[actor.person.landmarks[[68, 69, 30]]]
    ahead = marks.mean(0) - actor.posed.heads[head]
    away = lens.position - actor.posed.heads[head]
    angle = np.degrees(np.arctan2(ahead[0], -ahead[1]) - np.arctan2(away[0], -away[1]))
    angle = abs((angle + 180) % 360 - 180)
    return "from behind" if angle > 110 else "in profile" if angle > 55 else "facing"


def make(
    number: int, studio: Studio, only: str | None = None
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Sample `number`: arrays and description as the module's head says. only: this set."""
    rng = np.random.default_rng([number, 2611])
    framing = str(rng.choice(list(framings), p=[0.2, 0.22, 0.2, 0.17, 0.21]))
    size = canvases[int(rng.choice(len(canvases), p=_canvas_odds))]
    set_name = only or str(rng.choice(sets.names, p=_set_odds))
    actors = _cast(rng, number, framing)
    lens = _lens(rng, actors, framing, size)
    subject = float(-lens.camera_space(_bone(actors[0], "Hips")[None])[0, 2])
    scene = sets.before(sets.build(set_name, rng), lens.matrix_world, subject - 0.8)
    picture = studio.shoot(
        [(a.posed.vertices, a.person.faces, a.person.colours) for a in actors], scene, lens
    )
    rgb = picture.over(sets.skies[set_name], sets.tints.get(set_name, (1, 1, 1)))
    order = [int(i) for i in np.unique(picture.owner) if i > 0]
    described = []
    for index, actor in enumerate(actors):
        words = (people.noun(actor.who), people.description(actor.who), actor.expression)
        described.append(
            {
                "identity": actor.who.seed,
                "caption": ", ".join([*words, _view(actor, lens)]),
                "seen": index + 1 in order,
                "distance": round(float(np.linalg.norm(_bone(actor, "Head") - lens.position)), 3),
                "pose": _pose(actor, index, lens, picture.depth, picture.owner),
            }
        )
    disparity = np.where(np.isfinite(picture.depth), 1 / picture.depth, 0)
    arrays = {
        "rgb": rgb,
        "disparity": disparity.astype(np.float16),
        "person": picture.owner,
        "normal": picture.normal,
    }
    return arrays, {"number": number, "framing": framing, "set": set_name, "people": described}


def main(argv: list[str]) -> int:
    """Make samples into a folder; those that are there already are kept."""
    parser = argparse.ArgumentParser(prog="python -m world.samples", description=main.__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--set", choices=sets.names, help="this set only")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    studio = Studio()
    begun, made = time.monotonic(), 0
    for number in range(options.start, options.start + options.count):
        path = options.out / f"{number:06d}.json"
        if path.exists():
            continue
        arrays, description = make(number, studio, options.set)
        with path.with_suffix(".npz").open("wb") as file:
            np.savez(file, **arrays)
        # The description is written last: a sample that has one is whole.
        part = path.with_suffix(".part")
        part.write_text(json.dumps(description))
        part.replace(path)
        made += 1
        if made % 100 == 0:
            log.info("sample %d, %.3f s each", number, (time.monotonic() - begun) / made)
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # bpy as a module can crash while Python tears it down; all files are closed by now.
    os._exit(code)

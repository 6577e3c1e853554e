# SPDX-License-Identifier: GPL-3.0-or-later
"""Training samples: pictures of the world with their maps, masks, poses and captions.

    python -m world.samples OUT --start 0 --count 1000

Sample number N is made of its number (and --set) alone: the same one every time, in any process
and order.
OUT/NNNNNN.npz holds `rgb` (H, W, 3) uint8; `disparity` (H, W) float16, 1/m, 0 = background;
`person` (H, W) uint8, 0 = none, else 1 + index of the person; `normal` (H, W, 3) uint8 as the
add-on's normal map; `part` (H, W) uint8, index of `people.regions`. `standin_disparity`,
`standin_person`, `standin_normal` show one generic stand-in in each person's place, in the same
pose before the same camera. OUT/NNNNNN.json holds the shot's words (framing, set, look) and per
person: caption; pose and standin_pose; head, face: boxes [x0, y0, x1, y1] px, or null, of the head
with all hair and without what hangs; standin_face: box of the stand-in's head; yaw, pitch: degrees
the head is turned from the camera, 0 = looks into it, yaw > 0 towards the picture's right edge,
pitch > 0 up.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from world import looks, people, sets
from world.cast import (
    Actor,
    bone,
    cast,
    close_framings,
    frame,
    framings,
    head_boxes,
    head_turn,
    pose_points,
    stand_ins,
    view,
)
from world.studio import Body, Lens, Maps, Studio

Array = np.ndarray
log = logging.getLogger(__name__)

canvases = ((256, 256), (352, 192), (192, 352), (320, 224))
_canvas_odds = (0.80, 0.08, 0.07, 0.05)
_framing_odds = (0.16, 0.28, 0.20, 0.16, 0.20)
_attempts = 12
per_person = 6
identities = 4096
"""People of the training world, `per_person` samples each. Samples from number
identities * per_person on show other people: they are kept for tests."""
_set_odds = tuple(0.20 if name == "park" else 0.80 / (len(sets.names) - 1) for name in sets.names)
"""The park is the sample storyboard's place."""


@dataclass(frozen=True)
class Words:
    """What a sample is called."""

    number: int
    framing: str
    set_name: str
    look: str


def _bodies(actors: list[Actor]) -> list[Body]:
    return [
        Body(a.posed.vertices, a.person.faces, a.person.colours, a.person.region, a.person.piece)
        for a in actors
    ]


def _unfit(actors: list[Actor], lens: Lens, maps: Maps | None, framing: str) -> str:
    """Why a sample is drawn anew, or "": asked once before and once after the maps are there."""
    width, height = lens.size
    whole, skull = head_boxes(actors[0], lens)
    # MakeHuman's long hair reaches to the hips. Only people of the sample storyboard wear it.
    box = skull if actors[0].who.hair_length == "long" else whole
    if box is None:
        return "the head is behind the camera"
    x0, y0, x1, y1 = box
    inside = max(0, min(x1, width) - max(x0, 0)) * max(0, min(y1, height) - max(y0, 0))
    if inside < 0.6 * (x1 - x0) * (y1 - y0):
        return "the head is outside the picture"
    if maps is None:
        return ""
    covered = [(maps.owner == i + 1).mean() for i in range(len(actors))]
    if covered[0] < 0.02 or max(covered) > 0.85:
        return "a person is too small or too large"
    head = (maps.owner == 1) & np.isin(maps.part, (2, 3))
    wanted = 0.4 if framing in close_framings else 0.25
    return "the head is hidden" if head.sum() < wanted * inside else ""


def _light(
    rng: np.random.Generator, words: Words, lights: Sequence[int]
) -> tuple[int, tuple[float, float, float]]:
    """Which light, and the picture's gain: the set's own tint, brighter or darker, warm or cool."""
    light = lights[int(rng.integers(len(lights)))]
    bright = float(rng.uniform(0.84, 1.12))
    if words.look == "animated":
        bright *= 0.95
    warm = float(np.clip(rng.normal(0, 0.03), -0.05, 0.05))
    r, g, b = sets.tints.get(words.set_name, (1.0, 1.0, 1.0))
    return light, (r * bright * (1 + warm), g * bright, b * bright * (1 - warm))


def _described(
    actor: Actor, double: Actor, index: int, lens: Lens, maps: Maps, plain: Maps
) -> dict[str, Any]:
    """What the JSON says of one person. double: the stand-in, plain: the maps that show it."""
    yaw, pitch = head_turn(actor, lens)
    words = (people.noun(actor.who), people.description(actor.who), actor.expression)
    found = (*head_boxes(actor, lens), head_boxes(double, lens)[1])
    boxes = [None if b is None else _clipped(b, lens.size) for b in found]
    return {
        "identity": actor.who.seed,
        "caption": ", ".join([*words, view(yaw)]),
        "seen": bool((maps.owner == index + 1).any()),
        "distance": round(float(np.linalg.norm(bone(actor, "Head") - lens.position)), 3),
        "head": boxes[0],
        "face": boxes[1],
        "standin_face": boxes[2],
        "yaw": round(yaw, 1),
        "pitch": round(pitch, 1),
        "pose": pose_points(actor, index, lens, maps.depth, maps.owner),
        "standin_pose": pose_points(double, index, lens, plain.depth, plain.owner),
    }


def _clipped(box: tuple[float, float, float, float], size: tuple[int, int]) -> list[int] | None:
    """A box in whole pixels of the picture, None: outside."""
    x0, x1 = (int(np.clip(round(v), 0, size[0])) for v in (box[0], box[2]))
    y0, y1 = (int(np.clip(round(v), 0, size[1])) for v in (box[1], box[3]))
    return [x0, y0, x1, y1] if x1 > x0 and y1 > y0 else None


def _disparity(depth: Array) -> Array:
    return np.where(np.isfinite(depth), 1 / depth, 0).astype(np.float16)


def shoot(
    rng: np.random.Generator,
    studio: Studio,
    actors: list[Actor],
    lens: Lens,
    words: Words,
    lights: Sequence[int] = tuple(range(len(looks.lights))),
) -> tuple[dict[str, Array], dict[str, Any]] | None:
    """A sample's arrays and description; None: the picture is unfit. lights: of `looks.lights`."""
    if _unfit(actors, lens, None, words.framing):
        return None
    subject = float(-lens.camera_space(bone(actors[0], "Hips")[None])[0, 2])
    scene = sets.build(words.set_name, rng)
    for actor in actors:
        if actor.sits:
            seat = bone(actor, "Hips") - np.array([0, 0, 0.10])
            scene = sets.with_stool(scene, seat)
    scene = sets.before(scene, lens.matrix_world, subject - 0.8)
    light, gain = _light(rng, words, lights)
    studio.prepare(scene, lens)
    studio.seat(_bodies(actors))
    maps = studio.maps()
    if _unfit(actors, lens, maps, words.framing):
        return None
    rgb = looks.over(
        studio.picture(words.look, light), sets.skies[words.set_name], gain, words.look
    )
    doubles = stand_ins(actors, words.framing)
    studio.seat(_bodies(doubles))
    plain = studio.maps()
    described = [
        _described(actor, double, index, lens, maps, plain)
        for index, (actor, double) in enumerate(zip(actors, doubles, strict=True))
    ]
    arrays = {
        "rgb": rgb,
        "disparity": _disparity(maps.depth),
        "person": maps.owner,
        "normal": maps.normal,
        "part": maps.part,
        "standin_disparity": _disparity(plain.depth),
        "standin_person": plain.owner,
        "standin_normal": plain.normal,
    }
    return arrays, {
        "number": words.number,
        "framing": words.framing,
        "set": words.set_name,
        "look": words.look,
        "people": described,
    }


def make(
    number: int, studio: Studio, only: str | None = None
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Sample `number`: arrays and description as the module's head says. only: this set."""
    for attempt in range(_attempts):
        made = _attempt(number, attempt, studio, only)
        if made is not None:
            return made
    raise RuntimeError(f"Sample {number} shows nobody in {_attempts} attempts: see `_unfit`.")


def _attempt(
    number: int, attempt: int, studio: Studio, only: str | None
) -> tuple[dict[str, Array], dict[str, Any]] | None:
    rng, framing, look, size = _begun(number, attempt)
    set_name = only or str(rng.choice(sets.names, p=_set_odds))
    first = number // per_person
    pool = (first // identities * identities, identities)
    actors = cast(rng, first, pool, framing, look)
    lens = frame(rng, actors, framing, size)
    return shoot(rng, studio, actors, lens, Words(number, framing, set_name, look))


def _begun(number: int, attempt: int) -> tuple[np.random.Generator, str, str, tuple[int, int]]:
    """An attempt's generator after its first choices: framing, look, canvas (width, height)."""
    rng = np.random.default_rng([number, 2611, attempt])
    framing = str(rng.choice(list(framings), p=_framing_odds))
    look = str(rng.choice(looks.looks))
    return rng, framing, look, canvases[int(rng.choice(len(canvases), p=_canvas_odds))]


def main(argv: list[str]) -> int:
    """Make samples into a folder; those that are there already are kept."""
    parser = argparse.ArgumentParser(prog="python -m world.samples", description=main.__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--set", choices=sets.names, help="this set only")
    sizes = {f"{width}x{height}": (width, height) for width, height in canvases}
    parser.add_argument("--canvas", choices=sizes, help="only numbers that begin with this canvas")
    options = parser.parse_args(argv)
    wanted = sizes.get(options.canvas)
    options.out.mkdir(parents=True, exist_ok=True)
    studio = Studio()
    begun, made = time.monotonic(), 0
    for number in range(options.start, options.start + options.count):
        path = options.out / f"{number:06d}.json"
        if path.exists() or (wanted and _begun(number, 0)[3] != wanted):
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

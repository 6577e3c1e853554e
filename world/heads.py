# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of heads for training the identity embedder: both looks, all turns to profile.

    python -m world.heads OUT --identities 0-899 --each 10

Identities from `samples.identities` on are nobody of the training world. OUT/heads_AAAAA_BBBBB.npz
holds identities A to B - 1, `each` pictures of each: `rgb` (N, 112, 112, 3) uint8; `identity` (N,)
int32; `look`, `expression` (N,) uint8, indices of `looks.looks` and of `people.expressions`;
`yaw`, `pitch` (N,) float32, degrees, as in `world.samples`; `face` (N, 4) float32, the box of the
head without hanging hair, px. A crop is a square about the middle of that box, 1.1 to 1.7 times its
longer side, a little off. A garment's colour is drawn anew for every picture: it is not identity.
Files that are there are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import time
from pathlib import Path

import numpy as np

from world import looks, people, poses, sets
from world.cast import facing, head_boxes, head_turn, placed
from world.studio import Body, Lens, Studio

Array = np.ndarray
log = logging.getLogger(__name__)

side = 112
per_file = 30
"""Identities of one file."""


def _turns(rng: np.random.Generator) -> tuple[dict[str, Array], float]:
    """A pose of neck and arms, and the body's yaw: seven in ten look about, the rest anywhere."""
    yaw = facing(rng, 30, away=0.0) if rng.random() < 0.7 else float(rng.uniform(-95, 95))
    rotations = {
        "LeftArm": poses.turn("y", 38 + float(rng.normal(0, 8))),
        "RightArm": poses.turn("y", -38 - float(rng.normal(0, 8))),
        "Neck": poses.turn("z", float(rng.normal(0, 6))) @ poses.turn("x", float(rng.normal(0, 4))),
        "Head": poses.turn("z", float(rng.normal(0, 12)))
        @ poses.turn("x", float(rng.normal(0, 8)))
        @ poses.turn("y", float(rng.normal(0, 6))),
    }
    return rotations, yaw


def head(seed: int, index: int, studio: Studio) -> dict[str, Array]:
    """Picture `index` of the resident `seed`: one row of the module's arrays, by name."""
    rng = np.random.default_rng([seed, 4177, index])
    look = looks.looks[index % 2]
    expression = str(rng.choice(list(people.expressions)))
    colour = str(rng.choice(list(people.cloths)))
    who = dataclasses.replace(people.resident(seed), top_colour=colour)
    rotations, yaw = _turns(rng)
    actor = placed(who, expression, look, rotations, yaw, np.zeros(3))
    lens = _lens(
        rng, actor.posed.vertices[np.unique(actor.person.faces[actor.person.part == "head"])]
    )
    set_name = str(rng.choice(sets.names))
    distance = float(-lens.camera_space(actor.posed.heads[:1])[0, 2])
    scene = sets.before(sets.build(set_name, rng), lens.matrix_world, distance - 0.8)
    studio.prepare(scene, lens)
    studio.seat([_bust(actor.posed.vertices, actor.person)])
    picture = studio.picture(look, int(rng.integers(len(looks.lights))))
    gain = rng.uniform(0.8, 1.15) * (1 + rng.normal(0, 0.03, 3))
    tint = np.array(sets.tints.get(set_name, (1.0, 1.0, 1.0))) * gain
    turned, pitch = head_turn(actor, lens)
    _, box = head_boxes(actor, lens)
    return {
        "rgb": looks.over(picture, sets.skies[set_name], tuple(tint.tolist()), look),
        "identity": np.array(seed, np.int32),
        "look": np.array(looks.looks.index(look), np.uint8),
        "expression": np.array(list(people.expressions).index(expression), np.uint8),
        "yaw": np.array(turned, np.float32),
        "pitch": np.array(pitch, np.float32),
        "face": np.array(box, np.float32),
    }


def _bust(vertices: Array, person: people.Figure) -> Body:
    """What of a person a picture of the head can show."""
    low = person.heads[person.bones.index("mixamorig:Neck"), 2] - 0.25
    kept = person.vertices[person.faces[:, 0], 2] > low
    return Body(
        vertices, person.faces[kept], person.colours, person.region[kept], person.piece[kept]
    )


def _lens(rng: np.random.Generator, points: Array) -> Lens:
    """A camera on a head's points (n, 3)."""
    # The neck belongs to the head's surface: its lower third goes.
    high = points[:, 2].max()
    points = points[points[:, 2] > high - 0.26]
    low, high = points.min(0), points.max(0)
    longer = float(max(high[0] - low[0], high[2] - low[2]))
    reach = longer * float(rng.uniform(1.1, 1.7))
    centre = (low + high) / 2 + rng.normal(0, 0.05, 3) * reach
    degrees = float(rng.normal(2, 8))
    return Lens.towards(centre, reach, float(rng.uniform(40, 85)), degrees, (side, side))


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal()):
        raise argparse.ArgumentTypeError("Write the first and the last identity: 0-899.")
    return range(int(first), int(last) + 1)


def main(argv: list[str]) -> int:
    """Make pictures of heads into a folder; files that are there already are kept."""
    parser = argparse.ArgumentParser(prog="python -m world.heads", description=main.__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--identities", type=_range, required=True, metavar="FIRST-LAST")
    parser.add_argument("--each", type=int, default=10)
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    studio = Studio()
    begun, made = time.monotonic(), 0
    wanted = options.identities
    for first in range(wanted.start, wanted.stop, per_file):
        end = min(first + per_file, wanted.stop)
        path = options.out / f"heads_{first:05d}_{end:05d}.npz"
        if path.exists():
            continue
        rows = [head(seed, k, studio) for seed in range(first, end) for k in range(options.each)]
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, **{name: np.stack([row[name] for row in rows]) for name in rows[0]})
        part.replace(path)
        made += len(rows)
        log.info("identity %d, %.3f s a picture", end - 1, (time.monotonic() - begun) / made)
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # bpy as a module can crash while Python tears it down; all files are closed by now.
    os._exit(code)

# SPDX-License-Identifier: GPL-3.0-or-later
"""One person of the world as a LoRA trainer wants them: pictures, masks, captions, a test set.

    python -m world.characters OUT --identity 4100 --look animated --count 24 \
        --test portrait=12 --test "medium shot=4"

Plain image folders, the same for the same arguments:

OUT/train/0001.png, 0001.txt, 0001.mask.png, 0001.json: a picture (RGB), its caption, the person's
    mask (8 bits, 255 = person), the caption in parts and the boxes; 0001.pose.png, 0001.depth.png,
    0001.normal.png: its maps with a stand-in of nobody's face in the person's place, by the
    add-on's own functions.
OUT/checks/01.pose.png …, 01.json, 01.head.json: maps alone, of further shots of a stand-in, to
    draw on while training; what they show, and {"box": the stand-in's head}.
OUT/references/01.png to 03.png, 01.json: portraits, neutral, facing the camera, in a set and a
    light that no training picture has (`reference_set`, `reference_light`), and their boxes.
OUT/test/0001/picture.png: another picture, of another seed; pose.png, depth.png, normal.png: its
    maps with a stand-in; mask.png: the stand-in; shot.json: what the picture shows, and the
    stand-in's head.
OUT/character.json: the identity, its traits in words, the arguments.

A caption is `noun, traits, expression, view, framing, set, look`. For a trigger word's caption put
the trigger before the noun and leave out `traits`: parts are in the JSON under those names. Boxes
are [x0, y0, x1, y1] px or null; yaw and pitch as in `world.samples`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from addon.core.depth import depth_map, depth_range
from addon.core.openpose import draw_pose
from addon.core.request import Keypoint, Pose
from world import looks, people, poses, samples, sets, storyboard_cast
from world.cast import Actor, act, close_framings, facing, frame, framings, placed
from world.studio import Studio

Array = np.ndarray
log = logging.getLogger(__name__)

size = (256, 256)
train_mix = {
    "close-up": 5,
    "portrait": 9,
    "medium shot": 4,
    "three-quarter shot": 3,
    "full body shot": 3,
}
"""Shares of the framings in a training set: faces first."""
test_mix = {"portrait": 12, "medium shot": 4, "three-quarter shot": 4, "full body shot": 4}
behind_framings = ("medium shot", "three-quarter shot", "portrait")
reference_set = "studio"
reference_light = 4
_train_sets = tuple(name for name in sets.names if name != reference_set)
_train_lights = tuple(i for i in range(len(looks.lights)) if i != reference_light)
_purposes = ("train", "test", "reference", "check")
check_mix = {"close-up": 1, "portrait": 4, "medium shot": 1}
_attempts = 24
_reference_turns = (0.0, -18.0, 18.0)


def spread(mix: dict[str, int], count: int) -> list[str]:
    """`count` framings in about the shares of a mix, largest remainders first."""
    total = sum(mix.values())
    wanted = {name: share * count / total for name, share in mix.items()}
    given = {name: int(value) for name, value in wanted.items()}
    rest = sorted(mix, key=lambda name: given[name] - wanted[name])
    for name in rest[: count - sum(given.values())]:
        given[name] += 1
    return [name for name, times in given.items() for _ in range(times)]


def _made(
    studio: Studio,
    who: people.Identity,
    look: str,
    framing: str,
    purpose: str,
    index: int,
    behind: bool = False,
) -> tuple[dict[str, Array], dict[str, Any]]:
    """One picture with its maps and description, as `world.samples` has them."""
    for attempt in range(_attempts):
        key = [who.seed, looks.looks.index(look), _purposes.index(purpose), index, attempt]
        rng = np.random.default_rng(key)
        set_name = str(rng.choice(_train_sets))
        lights: tuple[int, ...] = _train_lights
        if purpose == "reference":
            set_name, lights = reference_set, (reference_light,)
            actor = _reference(rng, who, look, _reference_turns[index % len(_reference_turns)])
        else:
            spread = 30 if framing in close_framings else 40
            turn = float(rng.uniform(140, 220)) if behind else facing(rng, spread, away=0.0)
            actor = act(rng, who, look, turn, np.zeros(3))
        lens = frame(rng, [actor], framing, size)
        words = samples.Words(index, framing, set_name, look)
        made = samples.shoot(rng, studio, [actor], lens, words, lights)
        # A head turned right away shows no face: a curated set has such pictures where it means to.
        if made is not None and (abs(made[1]["people"][0]["yaw"]) >= 100) == behind:
            return made
    raise RuntimeError(f"No fit {framing} of identity {who.seed} in {_attempts} attempts.")


def _reference(rng: np.random.Generator, who: people.Identity, look: str, turned: float) -> Actor:
    rotations = {
        "LeftArm": poses.turn("y", 40),
        "RightArm": poses.turn("y", -40),
        "Head": poses.turn("x", float(rng.normal(0, 2))),
    }
    return placed(who, "neutral", look, rotations, turned, np.zeros(3))


def parts_of(description: dict[str, Any]) -> dict[str, str]:
    """The caption of a one-person description in parts."""
    words = description["people"][0]["caption"].split(", ")
    return {
        "noun": words[0],
        "traits": ", ".join(words[1:-2]),
        "expression": words[-2],
        "view": words[-1],
        "framing": description["framing"],
        "set": description["set"],
        "look": description["look"],
    }


def caption_of(parts: dict[str, str]) -> str:
    """All parts in order."""
    return ", ".join(parts.values())


def _said(description: dict[str, Any]) -> dict[str, Any]:
    parts = parts_of(description)
    person = description["people"][0]
    kept = ("identity", "head", "face", "yaw", "pitch", "distance")
    return {"caption": caption_of(parts), "parts": parts, **{name: person[name] for name in kept}}


def _save(path: Path, pixels: Array) -> None:
    Image.fromarray(pixels).save(path)


def _mask(owner: Array) -> Array:
    return np.where(owner > 0, 255, 0).astype(np.uint8)


def _write_maps(prefix: str, arrays: dict[str, Array], description: dict[str, Any]) -> None:
    """prefix: of the files' paths, before "pose.png" and the others."""
    disparity = arrays["standin_disparity"].astype(np.float32)
    z = np.divide(1, disparity, out=np.full_like(disparity, np.inf), where=disparity > 0)
    near, far = depth_range([z])
    rows = description["people"][0]["standin_pose"]
    points: dict[str, Any] = {part: [Keypoint(*p) for p in rows[part]] for part in rows}
    height, width = disparity.shape
    _save(Path(f"{prefix}pose.png"), draw_pose([Pose(**points)], width, height))
    _save(Path(f"{prefix}depth.png"), depth_map(z, near, far))
    _save(Path(f"{prefix}normal.png"), arrays["standin_normal"])


def make(
    out: Path,
    studio: Studio,
    who: people.Identity,
    look: str,
    count: int,
    tests: dict[str, int],
    checks: int = 0,
    behind: int = 0,
) -> None:
    """Write a character's folders, see the module's head. tests: framing to number. behind: so many
    more training pictures, from behind."""
    for name in ("train", "references", "test", "checks"):
        (out / name).mkdir(parents=True, exist_ok=True)
    shown = spread(train_mix, count)
    backs = [behind_framings[i % len(behind_framings)] for i in range(behind)]
    for number, framing in enumerate([*shown, *backs], 1):
        turned = number > len(shown)
        arrays, description = _made(studio, who, look, framing, "train", number, turned)
        said = _said(description)
        stem = out / "train" / f"{number:04d}"
        _save(stem.with_suffix(".png"), arrays["rgb"])
        _save(stem.with_suffix(".mask.png"), _mask(arrays["person"]))
        stem.with_suffix(".txt").write_text(said["caption"] + "\n")
        stem.with_suffix(".json").write_text(json.dumps(said, indent=1))
        _write_maps(f"{stem}.", arrays, description)
    for number, framing in enumerate(spread(check_mix, checks), 1):
        arrays, description = _made(studio, who, look, framing, "check", number)
        stem = out / "checks" / f"{number:02d}"
        _write_maps(f"{stem}.", arrays, description)
        stem.with_suffix(".json").write_text(json.dumps(_said(description), indent=1))
        box = {"box": description["people"][0]["standin_face"]}
        stem.with_suffix(".head.json").write_text(json.dumps(box))
    for number in range(len(_reference_turns)):
        arrays, description = _made(studio, who, look, "portrait", "reference", number)
        stem = out / "references" / f"{number + 1:02d}"
        _save(stem.with_suffix(".png"), arrays["rgb"])
        stem.with_suffix(".json").write_text(json.dumps(_said(description), indent=1))
    wanted = [framing for framing, times in tests.items() for _ in range(times)]
    for number, framing in enumerate(wanted, 1):
        arrays, description = _made(studio, who, look, framing, "test", number)
        folder = out / "test" / f"{number:04d}"
        folder.mkdir(exist_ok=True)
        _save(folder / "picture.png", arrays["rgb"])
        _write_maps(f"{folder}/", arrays, description)
        _save(folder / "mask.png", _mask(arrays["standin_person"]))
        double = {"standin_face": description["people"][0]["standin_face"]}
        (folder / "shot.json").write_text(json.dumps(_said(description) | double, indent=1))
    about = {
        "identity": people.to_data(who),
        "noun": people.noun(who),
        "traits": people.description(who),
        "look": look,
        "train": count + behind,
        "checks": checks,
        "test": tests,
    }
    (out / "character.json").write_text(json.dumps(about, indent=1))


def _test_of(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if name not in framings or not number.isdecimal():
        raise argparse.ArgumentTypeError(
            f"Write FRAMING=NUMBER with a framing of: {', '.join(framings)}."
        )
    return name, int(number)


def main(argv: list[str]) -> int:
    """Make the pictures of one person for training and testing a LoRA."""
    parser = argparse.ArgumentParser(prog="python -m world.characters", description=main.__doc__)
    parser.add_argument("out", type=Path)
    person = parser.add_mutually_exclusive_group(required=True)
    person.add_argument(
        "--identity",
        type=int,
        help=f"seed of the person; from {samples.identities} on: never in the training world",
    )
    cast = storyboard_cast.identities()
    person.add_argument("--storyboard", choices=list(cast), help="a person of the sample")
    parser.add_argument("--look", choices=looks.looks, required=True)
    parser.add_argument("--count", type=int, default=24, help="training pictures")
    parser.add_argument(
        "--test",
        type=_test_of,
        action="append",
        metavar="FRAMING=NUMBER",
        help="test pictures of a framing, may be repeated; default: "
        + ", ".join(f"{name}={times}" for name, times in test_mix.items()),
    )
    parser.add_argument(
        "--behind", type=int, default=0, help="further training pictures, from behind [0]"
    )
    parser.add_argument("--checks", type=int, default=6, help="shots to draw while training")
    options = parser.parse_args(argv)
    tests = dict(options.test) if options.test else test_mix
    who = cast[options.storyboard] if options.storyboard else people.resident(options.identity)
    sizes = (options.count, tests, options.checks, options.behind)
    make(options.out, Studio(), who, options.look, *sizes)
    log.info("%s: %s", options.out, people.description(who))
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # bpy as a module can crash while Python tears it down; all files are closed by now.
    os._exit(code)

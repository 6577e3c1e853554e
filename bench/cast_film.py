# SPDX-License-Identifier: GPL-3.0-or-later
"""The sample storyboard as requests: captured by the add-on, kept for the cast's benches.

    python -m bench.cast_film OUT

OUT/film.json holds a row for each keyframe: `request`, the take 1 that the add-on would send with
its default face pass; `shot_seed`, of which further takes' seeds are made; `middles`, by character
[x, y] px of the middle of its head bone by Blender's own projection, null behind the camera.
OUT/blobs/ holds the images by hash. The characters get three portraits each: renders of them in a
set and light of their own, as every other reference of the benches.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.cast_drawing import Blobs, cache_folder
from bench.sample import film

log = logging.getLogger(__name__)

head_bones = ("mixamorig:Head", "DEF-spine.006")
turns = (0.0, -18.0, 18.0)
"""Degrees that the portraits are turned by, as those of `world.characters`."""
_attempts = 24


def read() -> tuple[list[dict[str, Any]], Blobs]:
    """The rows and their images; captured in a process of Blender's own where they are missing.

    Raises CalledProcessError where that fails.
    """
    folder = cache_folder() / "film" / _key()
    if not (folder / "film.json").is_file():
        command = [sys.executable, "-m", "bench.cast_film", str(folder)]
        # Blender writes a line for every render.
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    blobs = Blobs()
    for path in (folder / "blobs").iterdir():
        blobs.data[path.name] = path.read_bytes()
    return json.loads((folder / "film.json").read_text()), blobs


@functools.cache
def _key() -> str:
    """A digest of the film, of the code that captures it, and of the model that it is for."""
    from onmodel.models.registry import Registry

    root, found = Path(__file__).resolve().parents[1], hashlib.sha256(film.read_bytes())
    for folder in ("addon/capture", "addon/core", "addon/scene", "addon/render"):
        for path in sorted((root / folder).glob("*.py")):
            found.update(path.read_bytes())
    found.update(Path(__file__).read_bytes() + Registry().find("rehearsal").hash.encode())
    return found.hexdigest()[:24]


# --- in Blender ----------------------------------------------------------------------------------


def portraits() -> dict[str, tuple[bytes, ...]]:
    """Three PNG files of each character of the film."""
    from world import characters, poses, samples, storyboard_cast
    from world.cast import frame, head_boxes, placed
    from world.frame_plans import heads_fit
    from world.identities import Identity
    from world.studio import Studio

    studio, found = Studio(), {}
    arms = {"LeftArm": poses.turn("y", 40), "RightArm": poses.turn("y", -40)}
    words = samples.Words(0, "portrait", characters.reference_set, "realistic")
    light, side = (characters.reference_light,), (256, 256)

    def shown(who: Identity, number: int) -> bytes:
        for attempt in range(_attempts):
            rng = np.random.default_rng([who.seed, 311, number, attempt])
            actor = placed(who, "neutral", words.look, arms, turns[number], np.zeros(3))
            lens = frame(rng, [actor], words.framing, side)
            box = head_boxes(actor, lens)[1]
            if box is None or not heads_fit([box], side):
                continue
            made = samples.shoot(rng, studio, [actor], lens, words, light)
            if made is not None:
                file = io.BytesIO()
                Image.fromarray(made[0]["rgb"]).save(file, "PNG")
                return file.getvalue()
        raise RuntimeError(f"No portrait of {who} shows its head in {_attempts} attempts.")

    for name, who in storyboard_cast.identities().items():
        found[name] = tuple(shown(who, number) for number in range(len(turns)))
    return found


def capture(out: Path) -> None:
    """Write the rows and images of every keyframe of the sample."""
    from onmodel.models.registry import Registry

    from addon.core.blob import Blob
    from addon.core.request import to_data
    from addon.render.requests import build, encode
    from addon.render.sources import actors_of, shot_settings
    from addon.scene.film import read_film
    from bench.joints import blenders_pixel, bone_end
    from bench.sample import captured

    looks = {name: tuple(map(Blob, files)) for name, files in portraits().items()}
    model = Registry().find("rehearsal").info()
    rows = []
    (out / "blobs").mkdir(parents=True, exist_ok=True)
    for scene, shot, cast, keyframe in captured(int(model["native_pixels"]), model["multiple"]):
        settings = shot_settings(shot, read_film(scene), model)
        actors = [dataclasses.replace(actor, references=()) for actor in actors_of(cast)]
        encoded = encode(keyframe, [m.kind for m in settings.maps], looks)
        request, images = build(encoded, settings, actors, 1)
        for image in images:
            (out / "blobs" / image.hash).write_bytes(image.data)
        scene.frame_set(keyframe.frame)
        middles: dict[str, list[float] | None] = {}
        for member in cast:
            bone = next(n for n in head_bones if n in member.armature.pose.bones)
            ends = [bone_end(member.armature, bone, end) for end in ("head", "tail")]
            world, camera = np.mean(ends, axis=0), scene.objects[shot.camera]
            ahead = -(np.linalg.inv(np.array(camera.matrix_world)) @ [*world, 1.0])[2]
            at = blenders_pixel(scene, shot, camera, world, keyframe.canvas)
            middles[member.name] = [float(v) for v in at] if ahead > 0 else None
        rows.append({"request": to_data(request), "shot_seed": settings.seed, "middles": middles})
    part = out / "film.part"
    part.write_text(json.dumps(rows))
    part.replace(out / "film.json")


def main(argv: list[str]) -> int:
    """The command line of the module's head."""
    if len(argv) != 1:
        log.error("Name the folder: python -m bench.cast_film OUT")
        return 2
    capture(Path(argv[0]))
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # bpy as a module can crash while Python tears it down; all files are closed by now.
    os._exit(code)

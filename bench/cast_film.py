# SPDX-License-Identifier: GPL-3.0-or-later
"""The sample storyboard as requests: captured by the add-on, kept for the cast's benches.

    python -m bench.cast_film OUT

OUT/film.json holds a row for each keyframe: `request`, the take 1 that the add-on would send with
its default face pass; `shot_seed`, of which further takes' seeds are made; `middles`, by character
[x, y] px of the middle of its head bone by Blender's own projection, null behind the camera.
OUT/blobs/ holds the images by hash. The characters have the sample's portraits.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.cast_drawing import Blobs, cache_folder
from bench.sample import film

log = logging.getLogger(__name__)

head_bones = ("mixamorig:Head", "DEF-spine.006")


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
    model = Registry().find("rehearsal").info()
    asked_of = json.dumps([model["hash"], model["sampling"]])
    found.update(Path(__file__).read_bytes() + asked_of.encode())
    return found.hexdigest()[:24]


# --- in Blender ----------------------------------------------------------------------------------


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
    from world import storyboard_cast, storyboard_portraits

    looks = {
        name: tuple(Blob(file.read_bytes()) for file in storyboard_portraits.files(name))
        for name in storyboard_cast.identities()
    }
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

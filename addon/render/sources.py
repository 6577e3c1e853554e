# SPDX-License-Identifier: GPL-3.0-or-later
"""What a render session takes out of the scene and puts into it, as plain functions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bpy

from ..capture.capture import ShotCapture, find_camera
from ..core import shots as paths
from ..core.shots import Shot
from ..planes import planes
from ..scene.cast import CastMember
from ..scene.errors import SceneError
from ..scene.film import Film
from .items import Item, ItemState
from .requests import Actor, Encoded, MapSetting, ShotSettings

if TYPE_CHECKING:
    from .settings import TakeSettings

log = logging.getLogger(__name__)


def output_root(film: Film, given: Path | None) -> Path:
    """The folder that results go to. Raises SceneError where nothing says which."""
    root = given or film.output
    if root is None:
        raise SceneError(
            "The file was never saved, so there is no folder for the drawings beside it.",
            "Save the file, or choose another output folder (Film > Output).",
        )
    return root.expanduser().resolve()


def plan_items(
    scene: bpy.types.Scene, film: Film, shots: Sequence[Shot], settings: TakeSettings, root: Path
) -> list[Item]:
    """The keyframes and takes to draw, shot by shot, frame by frame."""
    items: list[Item] = []
    former = {planes.key_of(p): _file_of(p) for p in planes.planes(scene)}
    for shot in shots:
        for frame in shot.keyframes:
            if settings.frames is not None and (shot.name, frame) not in settings.frames:
                continue
            for take in range(1, (settings.takes or shot.takes or film.takes) + 1):
                path = paths.output_path(root, film.name, shot.name, take, frame)
                key = planes.PlaneKey(shot.uid, frame, take)
                items.append(Item(len(items), shot.name, frame, take, path, former.get(key)))
    return items


def _file_of(plane: bpy.types.Object) -> Path | None:
    image = planes.picture_of(plane)
    return Path(bpy.path.abspath(image.filepath)).resolve() if image else None


def open_capture(
    scene: bpy.types.Scene,
    shot: Shot,
    frames: Sequence[int],
    film: Film,
    cast: Sequence[CastMember],
    model: dict[str, Any],
) -> ShotCapture:
    """A capture of these frames of a shot, on the canvas that suits the model."""
    pixels = film.native_pixels or int(model["native_pixels"])
    return ShotCapture(scene, shot, list(cast), pixels, int(model["multiple"]), frames=frames)


def actors_of(cast: Sequence[CastMember]) -> list[Actor]:
    """The cast without its objects, for the threads that may not touch bpy."""
    return [
        Actor(
            m.name,
            m.noun,
            m.trigger,
            m.prompt,
            tuple(m.loras),
            tuple(Path(r) for r in m.references),
        )
        for m in cast
    ]


def shot_settings(shot: Shot, film: Film, model: dict[str, Any]) -> ShotSettings:
    """What is the same for all keyframes of a shot; maps that the model takes only."""
    kinds = model.get("map_kinds", [])
    return ShotSettings(
        film=film.name,
        shot=shot.name,
        seed=film.seed if shot.seed is None else shot.seed,
        model=str(model["name"]),
        model_hash=model.get("hash"),
        prompt=join_words(shot.prompt, film.prompt),
        negative_prompt=join_words(shot.negative_prompt, film.negative_prompt),
        sampling=film.sampling,
        loras=tuple(film.loras),
        maps=tuple(
            MapSetting(m.kind, m.weight, m.start, m.end) for m in film.maps if m.kind in kinds
        ),
    )


def join_words(shot: str, film: str) -> str:
    """A shot's words, then the film's, which are true of every shot."""
    return ", ".join(part.strip(" ,") for part in (shot, film) if part.strip(" ,"))


def map_files(root: Path, settings: ShotSettings, encoded: Encoded) -> dict[Path, bytes]:
    """Where the maps and masks of a keyframe are kept: <root>/<film>/<shot>/maps."""
    frame = encoded.captured.frame
    any_take = paths.output_path(root, settings.film, settings.shot, 1, frame)
    folder = any_take.parent.parent / "maps"
    named = {**encoded.maps, **{f"mask_{name}": blob for name, blob in encoded.masks.items()}}
    return {
        folder / f"{any_take.stem}_{paths.file_name(name)}.png": blob.data
        for name, blob in named.items()
    }


def is_placed(scene: bpy.types.Scene, shot: Shot, item: Item) -> bool:
    """Whether the scene has an image plane of this keyframe and take."""
    return item.take in planes.takes(scene, shot.uid, item.frame)


def place(scene: bpy.types.Scene, shot: Shot, item: Item, request_json: str) -> bool:
    """Puts a result before its shot's camera; False where the very same is there already.

    Raises PlaneError or CaptureError with what is wrong. A drawing that was there before the run
    does not take the place of the take that the artist has picked.
    """
    there = planes.planes(scene, shot.uid, item.frame)
    same = [p for p in there if planes.key_of(p).take == item.take]
    if item.state is ItemState.kept and same and planes.request_of(same[0]) == request_json:
        return False
    ranges = planes.show_ranges(shot.keyframes, shot.start, shot.end)
    render = scene.render
    shape = planes.frame_of_scene(scene)
    if shot.frame_size is not None:
        shape = planes.Frame(
            shot.frame_size.width,
            shot.frame_size.height,
            render.pixel_aspect_x,
            render.pixel_aspect_y,
        )
    picked = planes.picked_take(scene, shot.uid, item.frame)
    planes.place(
        scene,
        find_camera(scene, shot.camera),
        item.path,
        shot.uid,
        item.frame,
        item.take,
        ranges.get(item.frame, (item.frame, item.frame)),
        shape,
        request_json,
        pick=item.state is ItemState.done or picked in (None, item.take),
        name=shot.name,
    )
    return True

# SPDX-License-Identifier: GPL-3.0-or-later
"""What a render session takes out of the scene and puts into it, as plain functions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bpy

from ..capture.capture import ShotCapture, find_camera
from ..core import shots as paths
from ..core.request import FacePass, to_data
from ..core.shots import Shot
from ..planes import planes
from ..scene import shots as shots_of_scene
from ..scene.cast import CastMember
from ..scene.errors import SceneError
from ..scene.film import Film
from .items import Item, ItemState
from .requests import Actor, MapSetting, ShotSettings, effective_sampling

if TYPE_CHECKING:
    from .settings import TakeSettings

log = logging.getLogger(__name__)


def as_asked(film: Film, settings: TakeSettings) -> Film:
    """The film as this run is asked to draw it."""
    rule = film.retakes if settings.retakes is None else settings.retakes
    if settings.only_take is not None or (rule is not None and rule.most <= 1):
        rule = None
    face_pass = film.face_pass if settings.face_pass else FacePass(enabled=False)
    return replace(film, retakes=rule, face_pass=face_pass)


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
    """The keyframes and takes to draw, shot by shot, frame by frame.

    The take that the artist has picked is among them, so that what is shown is never out of date.
    """
    items: list[Item] = []
    for shot in shots:
        for frame in shot.keyframes:
            if settings.frames is not None and (shot.name, frame) not in settings.frames:
                continue
            takes = {*range(1, (settings.takes or shot.takes or film.takes) + 1)}
            picked = artists_take(scene, shot, frame)
            takes |= {picked} if picked else set()
            for take in sorted(takes) if settings.only_take is None else [settings.only_take]:
                item = take_item(scene, film, shot, frame, take, root)
                item.number = len(items)
                items.append(item)
    return items


def take_item(
    scene: bpy.types.Scene, film: Film, shot: Shot, frame: int, take: int, root: Path
) -> Item:
    """An item of this take, its number still to be given."""
    path = paths.output_path(root, film.name, shot.name, take, frame)
    there = planes.planes(scene, shot.uid, frame)
    former = next((_file_of(p) for p in there if planes.key_of(p).take == take), None)
    return Item(-1, shot.name, frame, take, path, former)


def artists_take(scene: bpy.types.Scene, shot: Shot, frame: int) -> int:
    """The take of this keyframe that the artist has picked, 0 for none."""
    return shots_of_scene.picked_take(scene, shot.uid, frame)


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
            tuple(p.read_packed() for p in m.references),
            m.reference_weight,
        )
        for m in cast
    ]


def shot_settings(shot: Shot, film: Film, model: dict[str, Any]) -> ShotSettings:
    """What is the same for all keyframes of a shot; maps that the model takes only.

    Raises BuildError where it cannot be known how the model is to denoise.
    """
    kinds = model.get("map_kinds", [])
    return ShotSettings(
        film=film.name,
        shot=shot.name,
        seed=film.seed if shot.seed is None else shot.seed,
        model=str(model["name"]),
        model_hash=model.get("hash"),
        prompt=join_words(shot.prompt, film.prompt),
        negative_prompt=join_words(shot.negative_prompt, film.negative_prompt),
        sampling=effective_sampling(film.sampling, model),
        loras=tuple(film.loras),
        maps=tuple(
            MapSetting(m.kind, m.weight, m.start, m.end) for m in film.maps if m.kind in kinds
        ),
        face_pass=film.face_pass,
    )


def unknown_maps(film: Film, model: dict[str, Any]) -> list[str]:
    """Kinds of the film's maps that the model does not take."""
    return [m.kind for m in film.maps if m.kind not in model.get("map_kinds", [])]


def join_words(shot: str, film: str) -> str:
    """A shot's words, then the film's, which are true of every shot."""
    return ", ".join(part.strip(" ,") for part in (shot, film) if part.strip(" ,"))


def is_placed(scene: bpy.types.Scene, shot: Shot, item: Item) -> bool:
    """Whether the scene has an image plane of this keyframe and take."""
    return item.take in planes.takes(scene, shot.uid, item.frame)


def place(
    scene: bpy.types.Scene, shot: Shot, item: Item, request_json: str, asked_for: bool = False
) -> bool:
    """Puts a result before its shot's camera; False where the very same is there already.

    asked_for: the artist wants to see just this take. Otherwise the take that the artist has
    picked stays shown; and where nobody has, what was drawn before the run does not take the place
    of what is shown.
    Raises PlaneError or CaptureError with what is wrong.
    """
    there = planes.planes(scene, shot.uid, item.frame)
    same = [p for p in there if planes.key_of(p).take == item.take]
    if item.state is ItemState.kept and same and planes.request_of(same[0]) == request_json:
        planes.set_heads(same[0], item.heads)
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
    takes = {planes.key_of(p).take for p in there} | {item.take}
    picked = planes.picked_take(scene, shot.uid, item.frame)
    artists = artists_take(scene, shot, item.frame)
    new = item.state is ItemState.done
    if artists in takes and not (asked_for and new):
        pick = artists == item.take
    else:
        pick = new or picked in (None, item.take)
    plane = planes.place(
        scene,
        find_camera(scene, shot.camera),
        item.path,
        shot.uid,
        item.frame,
        item.take,
        ranges.get(item.frame, (item.frame, item.frame)),
        shape,
        request_json,
        pick=pick,
        name=shot.name,
    )
    planes.set_heads(plane, item.heads)
    if pick and artists:
        shots_of_scene.pick_take(scene, shot.uid, item.frame, item.take)
    return True


def show_best(scene: bpy.types.Scene, shot: Shot, item: Item) -> None:
    """Shows the take with the highest score of the item's keyframe as it is drawn now.

    Where the artist has picked a take, or no take has a score, nothing changes.
    """
    if artists_take(scene, shot, item.frame) or item.request is None:
        return
    planes.show_best(scene, shot.uid, item.frame, to_data(item.request))

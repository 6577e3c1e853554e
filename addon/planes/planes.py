# SPDX-License-Identifier: GPL-3.0-or-later
"""Drawn keyframes as image planes locked to the shot cameras.

A plane is a unit square with a Child Of constraint to its camera (location and rotation only: a
camera's scale is not part of its view) whose place and size are driven by the camera's lens,
sensor, shift and orthographic scale. Drivers, not values, because a plane is seen on many frames
and a zoom or an animated shift must not slide it off the frame; they are plain arithmetic, which
Blender evaluates without the right to run scripts, and they need no handler, so the planes stay
right in a Blender without Onmodel, on a farm, and after undo. The frame's shape is the drawing's
own and is fixed when the plane is made.

Nothing here uses bpy.ops, so that an operator around it is one step of undo.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bpy

from ..core.marks import planes_collection
from ..core.retakes import best_take, judge, same_but_for_take
from ..core.scores import CharacterRow, HeadScore, lowest, parse, read_heads, table
from ..core.scores import Frame as ScoredFrame
from . import cards, keys
from .errors import PlaneError

collection_name = "Onmodel Keyframes"
_mark = "onmodel_plane"
_score_of = "score "
_longest_property = 63
"""Bytes of UTF-8 that Blender takes."""


@dataclass(frozen=True)
class Frame:
    """The shape of a shot's frame: delivery pixels and the pixel's aspect."""

    width: int
    height: int
    pixel_aspect_x: float = 1.0
    pixel_aspect_y: float = 1.0


@dataclass(frozen=True)
class PlaneKey:
    """What a plane shows. shot: what never changes about it, its uid; see `place`."""

    shot: str
    frame: int
    take: int


def frame_of_scene(scene: bpy.types.Scene) -> Frame:
    """The frame of a shot that has the scene's own size."""
    r = scene.render
    return Frame(r.resolution_x, r.resolution_y, r.pixel_aspect_x, r.pixel_aspect_y)


def show_ranges(frames: Sequence[int], start: int, end: int) -> dict[int, tuple[int, int]]:
    """For each keyframe the inclusive frames on which it is shown.

    Together they fill the shot (start to end): every frame shows the nearest keyframe, of two
    equally near ones the earlier.
    """
    inside = sorted({f for f in frames if start <= f <= end})
    found: dict[int, tuple[int, int]] = {}
    for i, frame in enumerate(inside):
        first = start if i == 0 else (inside[i - 1] + frame) // 2 + 1
        last = end if i == len(inside) - 1 else (frame + inside[i + 1]) // 2
        found[frame] = (first, last)
    return found


def place(
    scene: bpy.types.Scene,
    camera: bpy.types.Object,
    image_path: str | Path,
    shot: str,
    frame: int,
    take: int,
    frame_range: tuple[int, int],
    frame_shape: Frame | None = None,
    request_json: str = "",
    opacity: float = 1.0,
    distance: float | None = None,
    pick: bool = True,
    name: str = "",
) -> bpy.types.Object:
    """Put a drawn keyframe before its camera, filling its frame, visible on `frame_range` only.

    shot: by which it is found again, the shot's uid; name: what the artist calls the shot now, for
    the names in the outliner, `shot` where it is empty.
    A plane of the same shot, frame and take is replaced; other takes stay, hidden if `pick`.
    frame_range: first and last frame, inclusive. frame_shape: of the shot; the scene's when None.
    request_json: the keyframe's request, kept in the plane's custom properties ("onmodel_request").
    opacity: 0..1, times the picture's own alpha. distance: metres from the camera; None takes the
    nearest at which it is drawn, so that it lies before everything else.
    Raises PlaneError for a panoramic camera, an image that cannot be read or an empty range.
    """
    path = Path(image_path)
    first, last = frame_range
    if last < first:
        raise PlaneError(
            f"The keyframe {frame} of shot {name or shot} has no frames to be seen on."
        )
    if camera.type != "CAMERA" or camera.data.type not in ("PERSP", "ORTHO"):
        raise PlaneError(
            f"{camera.name} is no perspective or orthographic camera.",
            "Choose such a camera for the shot, or change the camera's type.",
        )
    shape = frame_shape or frame_of_scene(scene)
    where = _distance(scene, camera, distance)
    image = cards.load_image(scene, path)
    key = PlaneKey(shot, frame, take)
    plane = cards.make_card(image, scene, opacity)
    remove(scene, key)  # only now: the new plane keeps a picture that both share
    cards.name_card(plane, f"{name or shot} {frame:04d} take {take:02d}")
    _shot_collection(scene, shot, name or shot).objects.link(plane)
    _lock(plane, camera, scene, shape, where)
    plane[_mark] = True
    plane["onmodel_shot"], plane["onmodel_frame"], plane["onmodel_take"] = shot, frame, take
    plane["onmodel_first"], plane["onmodel_last"] = first, last
    plane["onmodel_width"], plane["onmodel_height"] = shape.width, shape.height
    plane["onmodel_pixel_aspect"] = [shape.pixel_aspect_x, shape.pixel_aspect_y]
    plane["onmodel_request"] = request_json
    keys.hide(plane)
    if pick:
        pick_take(scene, shot, frame, take)
    return plane


def planes(
    scene: bpy.types.Scene, shot: str | None = None, frame: int | None = None
) -> list[bpy.types.Object]:
    """The scene's planes, of one shot or one keyframe if asked, in order of frame and take."""
    found = [o for o in _all(scene) if shot is None or o["onmodel_shot"] == shot]
    found = [o for o in found if frame is None or o["onmodel_frame"] == frame]
    return sorted(found, key=lambda o: (o["onmodel_frame"], o["onmodel_shot"], o["onmodel_take"]))


def is_plane(item: bpy.types.Object) -> bool:
    """Whether this object is an image plane of ours (a capture leaves these out)."""
    return bool(item.get(_mark))


def key_of(plane: bpy.types.Object) -> PlaneKey:
    """Shot, frame and take of an image plane."""
    return PlaneKey(plane["onmodel_shot"], plane["onmodel_frame"], plane["onmodel_take"])


def picture_of(plane: bpy.types.Object) -> bpy.types.Image | None:
    """The picture that the plane shows; None where somebody took it away."""
    nodes = plane.data.materials[0].node_tree.nodes
    return next((n.image for n in nodes if n.type == "TEX_IMAGE"), None)


def request_of(plane: bpy.types.Object) -> str:
    """The JSON of the request that the plane's picture was drawn from."""
    return str(plane["onmodel_request"])


def takes(scene: bpy.types.Scene, shot: str, frame: int) -> list[int]:
    """The takes of a keyframe that are in the scene."""
    return [int(o["onmodel_take"]) for o in planes(scene, shot, frame)]


def picked_take(scene: bpy.types.Scene, shot: str, frame: int) -> int | None:
    """The take of a keyframe that is shown, None if none is."""
    for plane in planes(scene, shot, frame):
        if plane.get("onmodel_picked"):
            return int(plane["onmodel_take"])
    return None


def pick_take(scene: bpy.types.Scene, shot: str, frame: int, take: int) -> None:
    """Show this take of the keyframe on its frames and hide the others.

    Raises PlaneError if the scene has no such take.
    """
    candidates = planes(scene, shot, frame)
    if not any(p["onmodel_take"] == take for p in candidates):
        raise PlaneError(
            f"Take {take} of frame {frame} is not in the scene.",
            "Render the take, or pick one of the others.",
        )
    for plane in candidates:
        plane["onmodel_picked"] = plane["onmodel_take"] == take
        if plane["onmodel_picked"]:
            keys.show(plane, plane["onmodel_first"], plane["onmodel_last"], scene.frame_current)
        else:
            keys.hide(plane)


def show_best(
    scene: bpy.types.Scene, shot: str, frame: int, request: Mapping[str, Any]
) -> int | None:
    """Show the take with the highest score, of equal ones the earliest; returns its number.

    Only takes of this very request (plain data) count, whatever their seeds. None, and nothing
    changes, where none of them has a score.
    """
    judged = [
        judge(key_of(p).take, heads_of(p))
        for p in planes(scene, shot, frame)
        if same_but_for_take(json.loads(request_of(p) or "{}"), request)
    ]
    best = best_take(judged)
    if best is not None and best != picked_take(scene, shot, frame):
        pick_take(scene, shot, frame, best)
    return best


def show_best_like_shown(scene: bpy.types.Scene, shot: str, frame: int) -> None:
    """`show_best` among the takes that are drawn of the same request as the one shown."""
    picked = picked_take(scene, shot, frame)
    for plane in planes(scene, shot, frame):
        if key_of(plane).take == picked:
            show_best(scene, shot, frame, json.loads(request_of(plane) or "{}"))


def set_heads(plane: bpy.types.Object, heads: Sequence[Mapping[str, Any]]) -> None:
    """Keep the record of the drawn heads (see core.scores) in the plane's custom properties.

    "onmodel_heads" is the record as JSON; "onmodel_score" the lowest score, and "score NAME" each
    character's, for the artist and for drivers. What has no score has no such property.
    """
    for name in [k for k in list(plane.keys()) if k.startswith(_score_of) or k == "onmodel_score"]:
        del plane[name]
    plane["onmodel_heads"] = json.dumps(list(heads))
    scored = [h for h in read_heads(heads) if h.value is not None]
    for head in scored:
        name = f"{_score_of}{head.character}".encode()[:_longest_property].decode(errors="ignore")
        plane[name] = head.value
    if scored:
        plane["onmodel_score"] = lowest(scored)


def heads_of(plane: bpy.types.Object) -> tuple[HeadScore, ...]:
    """The plane's drawn heads; empty where nothing is known of them."""
    return parse(str(plane.get("onmodel_heads", "[]")))


def film_scores(scene: bpy.types.Scene) -> list[CharacterRow]:
    """The table of scores over the takes that are shown."""
    shown = [p for p in planes(scene) if p.get("onmodel_picked")]
    return table(_scored(p) for p in shown)


def _scored(plane: bpy.types.Object) -> ScoredFrame:
    key = key_of(plane)
    return ScoredFrame(key.shot, key.frame, key.take, heads_of(plane))


def set_range(scene: bpy.types.Scene, plane: bpy.types.Object, first: int, last: int) -> None:
    """Show the plane on other frames (inclusive), as when a shot is retimed."""
    plane["onmodel_first"], plane["onmodel_last"] = first, last
    if plane.get("onmodel_picked"):
        keys.show(plane, first, last, scene.frame_current)


def set_opacity(plane: bpy.types.Object, opacity: float) -> None:
    """How much of the scene the plane covers, 0..1."""
    cards.set_opacity(plane, opacity)


def remove(scene: bpy.types.Scene, key: PlaneKey) -> bool:
    """Remove one plane with its mesh, material, action and unused image; whether there was one."""
    found = [p for p in planes(scene, key.shot, key.frame) if p["onmodel_take"] == key.take]
    for plane in found:
        cards.delete_card(plane)
    _drop_empty_collections(scene)
    return bool(found)


def clear(scene: bpy.types.Scene, shot: str | None = None) -> int:
    """Remove all planes of the scene, or of one shot; returns how many."""
    found = planes(scene, shot)
    for plane in found:
        cards.delete_card(plane)
    _drop_empty_collections(scene)
    return len(found)


# --- place and size ------------------------------------------------------------------------------


def _distance(scene: bpy.types.Scene, camera: bpy.types.Object, distance: float | None) -> float:
    near, far = camera.data.clip_start, camera.data.clip_end
    if distance is None:
        # Just behind the near clip; far from the world's origin a little further, where single
        # precision would shake a plane of a few centimetres by more than half a pixel.
        distance = max(near * 1.02, camera.matrix_world.translation.length * 1e-3)
    if not near < distance < far:
        raise PlaneError(
            f"{camera.name} draws nothing at {distance:g} m: it is clipped to {near:g}-{far:g} m.",
            "Change Clip Start or Clip End of the camera.",
        )
    return float(distance)


def _lock(
    plane: bpy.types.Object,
    camera: bpy.types.Object,
    scene: bpy.types.Scene,
    shape: Frame,
    distance: float,
) -> None:
    """Constrain the plane to the camera and drive it to fill the frame.

    The formulas are those of Blender's BKE_camera_params_compute_viewplane: the sensor (or the
    orthographic scale) spans the frame's longer or fitted side, shifts are parts of that side.
    """
    hold = plane.constraints.new("CHILD_OF")
    hold.name = "Shot camera"
    hold.target = camera
    hold.use_scale_x = hold.use_scale_y = hold.use_scale_z = False
    hold.inverse_matrix.identity()
    plane.location.z = -distance

    data = camera.data
    wide = shape.width * shape.pixel_aspect_x
    tall = shape.height * shape.pixel_aspect_y
    fit = data.sensor_fit
    horizontal = fit == "HORIZONTAL" or (fit == "AUTO" and wide >= tall)
    if data.type == "ORTHO":
        variables = {"s": (data, "ortho_scale")}
        span = "s"
    else:
        sensor = "sensor_height" if fit == "VERTICAL" else "sensor_width"
        variables = {"s": (data, sensor), "f": (data, "lens")}
        span = f"{distance!r}*s/f"
    # Blender renders whole pixels: the percentage cuts both sides down, which changes the shape a
    # little. p/100 of a side, cut as Blender cuts it.
    percent = {"p": (scene, "render.resolution_percentage")}
    columns = f"floor({shape.width}*p/100+0.0001)"
    rows = f"floor({shape.height}*p/100+0.0001)"
    aspect = shape.pixel_aspect_y / shape.pixel_aspect_x
    if horizontal:
        across, up = span, f"{span}*{aspect!r}*{rows}/max({columns},1)"
    else:
        across, up = f"{span}*{columns}/({aspect!r}*max({rows},1))", span
    across_needs = variables if horizontal else {**variables, **percent}
    up_needs = {**variables, **percent} if horizontal else variables
    keys.drive(plane, "scale", 0, across, across_needs)
    keys.drive(plane, "scale", 1, up, up_needs)
    keys.drive(plane, "location", 0, f"{span}*x", {**variables, "x": (data, "shift_x")})
    keys.drive(plane, "location", 1, f"{span}*y", {**variables, "y": (data, "shift_y")})
    plane.lock_location = plane.lock_rotation = plane.lock_scale = (True, True, True)


# --- collections ---------------------------------------------------------------------------------


def _all(scene: bpy.types.Scene) -> Iterator[bpy.types.Object]:
    top = _top_collection(scene)
    if top is not None:
        yield from (o for o in top.all_objects if is_plane(o))


def _top_collection(scene: bpy.types.Scene) -> bpy.types.Collection | None:
    for found in scene.collection.children:
        if found.get(planes_collection):
            return found
    return None


def _shot_collection(scene: bpy.types.Scene, shot: str, name: str) -> bpy.types.Collection:
    top = _top_collection(scene)
    if top is None:
        top = bpy.data.collections.new(collection_name)
        top[planes_collection] = True
        top.color_tag = "COLOR_05"
        scene.collection.children.link(top)
    for found in top.children:
        if found.get("onmodel_shot") == shot:
            found.name = f"Keyframes {name}"
            return found
    made = bpy.data.collections.new(f"Keyframes {name}")
    made["onmodel_shot"] = shot
    top.children.link(made)
    return made


def _drop_empty_collections(scene: bpy.types.Scene) -> None:
    top = _top_collection(scene)
    if top is None:
        return
    for child in list(top.children):
        if child.get("onmodel_shot") is not None and not child.all_objects:
            bpy.data.collections.remove(child)
    if not top.all_objects and not top.children:
        bpy.data.collections.remove(top)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Drawn keyframes as image strips of the video sequencer, one channel a take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bpy

from .errors import PlaneError
from .planes import PlaneKey

first_channel = 1
_mark = "onmodel_strip"


def place_strip(
    scene: bpy.types.Scene,
    image_path: str | Path,
    shot: str,
    frame: int,
    take: int,
    frame_range: tuple[int, int],
    request_json: str = "",
) -> Any:
    """An image strip on the frames `frame_range` (inclusive), in the channel of its take.

    Take 1 is in channel 1; a channel further up is taken where the range is not free there. A
    strip of the same shot, frame and take is replaced. A scene with strips renders them instead of
    its cameras as long as its Sequencer output option is on: that stays the artist's choice.
    Raises PlaneError for a picture that is not there or an empty range.
    """
    path = Path(image_path)
    first, last = frame_range
    if not path.is_file():
        raise PlaneError(f"The drawing {path} is gone.", "Render the keyframe again.")
    if last < first:
        raise PlaneError(f"The keyframe {frame} of shot {shot} has no frames to be seen on.")
    remove_strip(scene, PlaneKey(shot, frame, take))
    strips = _collection(scene)
    channel = first_channel + take - 1
    while any(s.channel == channel and _meet(s, first, last) for s in strips):
        channel += 1
    name = f"{shot} {frame:04d} take {take:02d}"
    strip = strips.new_image(name, str(path), channel, first)
    _set_length(strip, last - first + 1)
    strip[_mark] = True
    strip["onmodel_shot"], strip["onmodel_frame"], strip["onmodel_take"] = shot, frame, take
    strip["onmodel_request"] = request_json
    return strip


def strips(scene: bpy.types.Scene) -> list[Any]:
    """Our strips in the scene, in order of frame and take."""
    if scene.sequence_editor is None:
        return []
    found = [s for s in _collection(scene) if s.get(_mark)]
    return sorted(found, key=lambda s: (s["onmodel_frame"], s["onmodel_take"]))


def remove_strip(scene: bpy.types.Scene, key: PlaneKey) -> bool:
    """Remove the strip of one shot, frame and take; whether there was one."""
    for strip in strips(scene):
        if (strip["onmodel_shot"], strip["onmodel_frame"], strip["onmodel_take"]) == (
            key.shot,
            key.frame,
            key.take,
        ):
            _collection(scene).remove(strip)
            return True
    return False


def clear_strips(scene: bpy.types.Scene) -> int:
    """Remove all our strips; returns how many."""
    found = strips(scene)
    for strip in found:
        _collection(scene).remove(strip)
    return len(found)


def strip_range(strip: Any) -> tuple[int, int]:
    """The inclusive frames on which a strip is seen."""
    if hasattr(strip, "left_handle"):  # the names from 5.2 on
        return strip.left_handle, strip.right_handle - 1
    return strip.frame_final_start, strip.frame_final_end - 1


def _collection(scene: bpy.types.Scene) -> Any:
    """The sequencer's strips: `strips` from 4.4 on, `sequences` before."""
    editor = scene.sequence_editor or scene.sequence_editor_create()
    return editor.strips if hasattr(editor, "strips") else editor.sequences


def _meet(strip: Any, first: int, last: int) -> bool:
    start, end = strip_range(strip)
    return bool(start <= last and first <= end)


def _set_length(strip: Any, frames: int) -> None:
    if hasattr(strip, "right_handle"):
        strip.right_handle = strip.left_handle + frames
    else:
        strip.frame_final_duration = frames

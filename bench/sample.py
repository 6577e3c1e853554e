# SPDX-License-Identifier: GPL-3.0-or-later
"""The sample storyboard, opened and captured once, for the benches that measure on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from addon.capture.capture import CapturedKeyframe
    from addon.core.shots import Shot
    from addon.scene.cast import CastMember

film = Path(__file__).resolve().parents[1] / "samples" / "storyboard.blend"


def open_sample() -> tuple[Any, list[Shot], list[CastMember]]:
    """Scene, enabled shots and cast of the sample."""
    import bpy

    import addon

    if not hasattr(bpy.types.Scene, "onmodel"):
        addon.register()
    bpy.ops.wm.open_mainfile(filepath=str(film))
    from addon.scene.cast import read_cast
    from addon.scene.shots import read_shots

    scene = bpy.context.scene
    shots = [s for s in read_shots(scene) if s.enabled]
    return scene, shots, read_cast(scene)


def captured(
    native_pixels: int, multiple: int
) -> Iterator[tuple[Any, Shot, list[CastMember], CapturedKeyframe]]:
    """Scene, shot, cast and capture of every keyframe of the sample."""
    from addon.capture.capture import ShotCapture

    scene, shots, cast = open_sample()
    for shot in shots:
        with ShotCapture(scene, shot, cast, native_pixels, multiple) as capture:
            for _ in capture.steps():
                pass
        for keyframe in capture.keyframes:
            yield scene, shot, cast, keyframe

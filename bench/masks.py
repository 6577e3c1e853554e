# SPDX-License-Identifier: GPL-3.0-or-later
"""Character masks of the sample against the object-index pass of plain renders of the scene.

The sizes are such that canvas and frame are one (multiples of 40 on 16:9 and 9:16), so the plain
render goes through the shot's own camera, as the artist's F12 would.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Figure
from bench.sample import captured

native_pixels, multiple = 640 * 360, 40


def run() -> list[Figure]:
    """Pixels in which masks differ from the index pass or overlap; and that the occluder wins."""
    different = overlap = pixels = shared = nearer = 0
    for scene, shot, cast, keyframe in captured(native_pixels, multiple):
        masks = [keyframe.masks.get(m.name) for m in cast]
        drawn = [np.zeros(keyframe.depth.shape, bool) if m is None else m > 0 for m in masks]
        ids = index_pass(scene, shot, keyframe, cast)
        for number, mask in enumerate(drawn, 1):
            different += int(((ids == number) != mask).sum())
            pixels += int(mask.sum())
        overlap += int((np.sum(drawn, axis=0) > 1).sum())
        if all(m.any() for m in drawn):
            shared += 1
            nearer += occluded_pixels(scene, shot, keyframe, cast, drawn)
    note = f"{pixels} pixels of characters"
    return [
        Figure("masks, pixels unlike the object-index pass", different, "px", 0, "==", note),
        Figure("masks, pixels in two masks", overlap, "px", 0, "==", f"{shared} shared keyframes"),
        Figure(
            "masks, pixels that went to the nearer character",
            nearer,
            "px",
            1,
            ">=",
            "in the farther one's mask as soon as the nearer one is away",
        ),
    ]


def occluded_pixels(
    scene: Any, shot: Any, keyframe: Any, cast: list[Any], drawn: list[np.ndarray]
) -> int:
    """Pixels of one character that show the other one when it is taken away."""
    found = 0
    for number, member in enumerate(cast, 1):
        for mesh in member.meshes:
            mesh.hide_render = True
        others = index_pass(scene, shot, keyframe, cast)
        for mesh in member.meshes:
            mesh.hide_render = False
        found += int(((others > 0) & (others != number) & drawn[number - 1]).sum())
    return found


def index_pass(scene: Any, shot: Any, keyframe: Any, cast: list[Any]) -> np.ndarray:
    """(H, W) which of the cast (from 1) a plain Cycles render shows in each pixel, 0 for none."""
    import bpy

    from addon.capture import exr

    for item in scene.objects:
        item.pass_index = 0
    for number, member in enumerate(cast, 1):
        for mesh in member.meshes:
            mesh.pass_index = number
    height, width = keyframe.depth.shape
    render = scene.render
    render.engine = "CYCLES"
    render.resolution_x, render.resolution_y = width, height
    render.resolution_percentage = 100
    render.use_compositing = render.use_sequencer = False
    scene.cycles.device, scene.cycles.samples = "CPU", 1
    scene.cycles.filter_width, scene.cycles.max_bounces = 0.01, 0
    scene.cycles.use_denoising = scene.cycles.use_adaptive_sampling = False
    scene.camera = scene.objects[shot.camera]
    scene.view_layers[0].use_pass_object_index = True
    scene.frame_set(keyframe.frame)
    settings = render.image_settings
    if bpy.app.version >= (5, 0, 0):
        settings.media_type = "MULTI_LAYER_IMAGE"
        settings.use_exr_interleave = True
    settings.file_format, settings.color_depth = "OPEN_EXR_MULTILAYER", "32"
    settings.exr_codec = "NONE"
    with tempfile.TemporaryDirectory() as folder:
        render.filepath = str(Path(folder) / "index.exr")
        bpy.ops.render.render(write_still=True)
        channels = exr.read_channels(Path(folder) / "index.exr")
    name = next(n for n in channels if "Index" in n)
    return np.asarray(channels[name]).astype(int)

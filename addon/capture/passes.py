# SPDX-License-Identifier: GPL-3.0-or-later
"""Depth, normals and object indices of a scene at a frame, by one 1-sample Cycles render.

How the film scene stays exactly as it was:

- What is rendered is a copy of the scene ("stage"; it shares the objects) that lives only inside
  `render_passes`. Settings, camera, markers, animation and compositor are changed on the copy.
- Everything is read from the depsgraph of the render itself (a handler gets it), which never
  writes back to the data it evaluates: the current frame and unkeyed poses stay. That is also
  what the pixels show: render visibility, render subdivision.
- The one thing set on shared data is `Object.pass_index`, put back before the function returns.
- After a render Blender evaluates the scene of the context, which would throw unkeyed changes
  away: the context is an empty scene.

Works from Blender 4.2 on, with and without a display. Cycles on the CPU is the engine that needs
none; its passes were equal to the pixel in all versions.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bpy
import numpy as np

from ..core.projection import View, camera_settings
from . import exr
from .errors import CaptureError
from .materials import needs_materials
from .stage import layer_name, set_stage

log = logging.getLogger(__name__)

largest_canvas = 4096 * 4096
"""Pixels. Nine 32-bit channels of it are 600 MB; no model draws as many."""

_render_handlers = (
    "render_init",
    "render_pre",
    "render_post",
    "render_write",
    "render_complete",
    "render_cancel",
    "render_stats",
)
_advice = "See that the temporary folder can be written and has space."
_far = 1e9
"""Cycles writes 1e10 for what no ray hits."""


@dataclass(frozen=True)
class Passes:
    """What the camera sees, pixel by pixel, row 0 on top.

    z: (H, W) float32, planar distance along the view axis in metres, inf where nothing is.
    normals: (H, W, 3) float32, world space, zero where nothing is.
    ids: (H, W) int32, the given index of the object, 0 for all others and for nothing.
    """

    z: np.ndarray
    normals: np.ndarray
    ids: np.ndarray


def render_passes(
    scene: bpy.types.Scene,
    view_layer: str,
    camera: bpy.types.Object,
    frame: int,
    width: int,
    height: int,
    indices: Mapping[bpy.types.Object, int],
    look: Callable[[bpy.types.Depsgraph], View],
    timings: dict[str, float],
) -> Passes:
    """Render the passes of `scene` at `frame` on a canvas of width x height square pixels.

    camera: stands where the picture is taken from. indices: object -> its number on `ids`, see
    `free_indices`. look: called once with the evaluated depsgraph of the render, says what the
    camera sees and may gather what it likes; a CaptureError it raises comes out here.
    timings: gets seconds for "stage", "render" (evaluation and writing included), "gather", "read".
    Raises CaptureError; the scene is as it was in any case.
    """
    if width * height > largest_canvas:
        raise CaptureError(
            f"A canvas of {width} x {height} pixels is too large to capture.",
            "Choose a model or a drawing size of at most 4096 x 4096 pixels.",
        )
    if bpy.app.is_job_running("RENDER"):
        raise CaptureError("Blender is rendering.", "Capture again when the render is done.")
    began = time.perf_counter()
    with contextlib.ExitStack() as undo:
        folder = _folder(undo)
        path = folder / "passes.exr"
        stage, eye = set_stage(undo, scene, view_layer, camera)
        _set_render(stage, width, height, path)
        if not needs_materials(stage.view_layers[0]):
            stage.view_layers[0].material_override = _flat_material(undo)
        _set_indices(undo, indices)
        _silence_handlers(undo)
        watch = _Watch(stage, eye, look)
        handlers = bpy.app.handlers.frame_change_post
        handlers.append(watch.on_frame)
        undo.callback(handlers.remove, watch.on_frame)
        timings["stage"] = time.perf_counter() - began
        _render(undo, stage, frame)
        watch.check()
        timings["gather"] = watch.seconds
        timings["render"] = time.perf_counter() - began - timings["stage"] - watch.seconds
        reading = time.perf_counter()
        passes = _read(path)
    # The rest of the time goes to putting everything back.
    timings["read"] = time.perf_counter() - reading
    return passes


def _folder(undo: contextlib.ExitStack) -> Path:
    try:
        return Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="onmodel-")))
    except OSError as error:
        raise CaptureError(
            f"No temporary folder could be made: {_sentence(error)}", _advice
        ) from error


def free_indices(count: int) -> list[int]:
    """Pass indices that no object of the file has, so that no stranger looks like the cast."""
    used = {o.pass_index for o in bpy.data.objects}
    free = [i for i in range(1, 32768) if i not in used]
    if len(free) < count:
        raise CaptureError(
            "No object index is free to tell the characters apart.",
            "Set the pass index of objects that do not need one to 0.",
        )
    return free[:count]


class _Watch:
    """Looks at the render's own depsgraph the moment it is evaluated.

    What it changes on the eye is evaluated once more by Blender before the engine starts.
    """

    def __init__(
        self,
        stage: bpy.types.Scene,
        eye: bpy.types.Object,
        look: Callable[[bpy.types.Depsgraph], View],
    ) -> None:
        self.stage, self.eye, self.look = stage, eye, look
        self.seconds = 0.0
        self.done = False
        self.error: CaptureError | None = None

    def on_frame(self, scene: bpy.types.Scene, depsgraph: bpy.types.Depsgraph) -> None:
        if scene != self.stage or depsgraph.mode != "RENDER" or self.done or self.error:
            return
        began = time.perf_counter()
        try:
            view = self.look(depsgraph)
        except CaptureError as error:
            self.error = error
            return
        for name, value in camera_settings(view.frustum, view.projection).items():
            setattr(self.eye.data, name, value)
        self.eye.data.clip_start = view.clip_start
        self.eye.data.clip_end = view.clip_end
        self.done = True
        self.seconds = time.perf_counter() - began

    def check(self) -> None:
        if self.error:
            raise self.error
        if not self.done:
            raise CaptureError(
                "The characters could not be read from the scene.",
                "Blender's console tells why; please report it.",
            )


def _set_render(stage: bpy.types.Scene, width: int, height: int, path: Path) -> None:
    render = stage.render
    try:
        render.engine = "CYCLES"
    except TypeError as error:
        raise CaptureError(
            "Cycles is switched off, and captures are taken with it.",
            "Enable the add-on Cycles Render Engine in Blender's preferences.",
        ) from error
    _assign(
        stage.cycles,
        {
            "device": "CPU",
            "shading_system": False,
            "samples": 1,
            "use_adaptive_sampling": False,
            "use_denoising": False,
            "use_guiding": False,
            "use_auto_tile": False,
            "time_limit": 0.0,
            "pixel_filter_type": "GAUSSIAN",
            "filter_width": 0.01,
            "max_bounces": 0,
            "seed": 0,
            "use_animated_seed": False,
            "use_light_tree": False,
            "use_fast_gi": False,
        },
    )
    if bpy.app.version < (5, 0, 0):
        stage.cycles.feature_set = "SUPPORTED"
    _assign(
        render,
        {
            "resolution_x": width,
            "resolution_y": height,
            "resolution_percentage": 100,
            "pixel_aspect_x": 1.0,
            "pixel_aspect_y": 1.0,
            "use_border": False,
            "use_multiview": False,
            "use_motion_blur": False,
            "use_freestyle": False,
            "use_compositing": False,
            "use_sequencer": False,
            "use_persistent_data": False,
            "use_stamp": False,
            "use_overwrite": True,
            "use_placeholder": False,
            "film_transparent": True,
            "threads_mode": "AUTO",
            "filepath": str(path),
        },
    )
    settings = render.image_settings
    if bpy.app.version >= (5, 0, 0):
        settings.media_type = "MULTI_LAYER_IMAGE"
        # One part with all passes in it, as all Blender versions before wrote it.
        settings.use_exr_interleave = True
    settings.file_format = "OPEN_EXR_MULTILAYER"
    settings.color_depth = "32"
    settings.exr_codec = "NONE"
    _set_layer(stage.view_layers[0])


def _set_layer(layer: bpy.types.ViewLayer) -> None:
    for group in (layer, layer.cycles):
        for prop in group.bl_rna.properties:
            if prop.identifier.startswith(("use_pass_", "pass_debug_")) and not prop.is_readonly:
                setattr(group, prop.identifier, False)
    layer.cycles.denoising_store_passes = False
    layer.use = True
    layer.samples = 0
    layer.material_override = None
    # Fog is not a surface, though its box is one.
    layer.use_volumes = False
    layer.use_pass_z = True
    layer.use_pass_normal = True
    layer.use_pass_object_index = True


def _assign(group: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(group, name, value)


def _flat_material(undo: contextlib.ExitStack) -> bpy.types.Material:
    """An opaque surface that asks for no light and no texture."""
    material = bpy.data.materials.new("Onmodel capture")
    undo.callback(bpy.data.materials.remove, material)
    if bpy.app.version < (5, 0, 0):
        material.use_nodes = True
    nodes = material.node_tree.nodes
    nodes.clear()
    surface = nodes.new("ShaderNodeEmission")
    output = nodes.new("ShaderNodeOutputMaterial")
    material.node_tree.links.new(surface.outputs[0], output.inputs["Surface"])
    return material


def _set_indices(undo: contextlib.ExitStack, indices: Mapping[bpy.types.Object, int]) -> None:
    for item, index in indices.items():
        undo.callback(setattr, item, "pass_index", item.pass_index)
        item.pass_index = index


def _silence_handlers(undo: contextlib.ExitStack) -> None:
    """A capture is not the render that somebody's handlers wait for."""
    for name in _render_handlers:
        handlers = getattr(bpy.app.handlers, name)
        kept = list(handlers)
        handlers.clear()
        undo.callback(handlers.extend, kept)


def _render(undo: contextlib.ExitStack, stage: bpy.types.Scene, frame: int) -> None:
    had_result = any(i.type == "RENDER_RESULT" for i in bpy.data.images)
    empty = bpy.data.scenes.new("Onmodel capture context")
    undo.callback(bpy.data.scenes.remove, empty)
    # The operator renders the frame of the context's scene.
    empty.frame_current = frame
    stage.frame_subframe = 0.0
    context = {"scene": empty, "view_layer": empty.view_layers[0], "area": None, "region": None}
    try:
        with bpy.context.temp_override(**context):
            bpy.ops.render.render(scene=stage.name, write_still=True)
    except RuntimeError as error:
        raise CaptureError(
            f"Blender could not render the capture: {_sentence(error)}", _advice
        ) from error
    finally:
        if not had_result:
            for image in [i for i in bpy.data.images if i.type == "RENDER_RESULT"]:
                bpy.data.images.remove(image)


def _sentence(error: Exception) -> str:
    return str(error).removeprefix("Error: ").strip().rstrip(".") + "."


def _read(path: Path) -> Passes:
    try:
        channels = exr.read_channels(path)
    except (OSError, exr.ExrError) as error:
        raise CaptureError(
            f"The capture could not be read back: {_sentence(error)}", _advice
        ) from error
    found = {name.removeprefix(f"{layer_name}."): data for name, data in channels.items()}
    index = found.get("Object Index.X", found.get("IndexOB.X"))
    if index is None or not {"Depth.Z", "Normal.X", "Normal.Y", "Normal.Z"} <= set(found):
        raise CaptureError("Cycles left passes out of the capture.", "Please report it.")
    z = np.array(found["Depth.Z"])
    z[z > _far] = np.inf
    normals = np.stack([found[f"Normal.{axis}"] for axis in "XYZ"], axis=2)
    return Passes(z, normals, index.astype(np.int32))

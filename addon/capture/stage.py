# SPDX-License-Identifier: GPL-3.0-or-later
"""The stage: a scene of our own that shows what a view layer of the film scene shows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import bpy

from ..core.marks import planes_collection

layer_name = "capture"
"""Of the stage's only view layer; channels of a render begin with it."""

_shaping: dict[str, tuple[str, ...]] = {
    "render": ("use_simplify", "simplify_", "fps", "frame_map_", "hair_"),
    "cycles": ("dicing_", "offscreen_", "max_subdiv", "use_camera_cull", "use_distance_cull"),
    "cycles_curves": ("shape", "subdivisions"),
    "unit_settings": ("",),
}
"""Settings that shape or time what is seen: the beginnings of their names."""


def set_stage(
    undo: contextlib.ExitStack, scene: bpy.types.Scene, view_layer: str, camera: bpy.types.Object
) -> tuple[bpy.types.Scene, bpy.types.Object]:
    """A scene with the objects, the one view layer and the settings of `scene`.

    Returns it and its camera, which stands where `camera` does, whatever moves that. Both are
    removed by `undo`; the scene's own markers and animation, which would act on it, are not there.
    """
    if bpy.app.version < (4, 3, 0) and scene.rigidbody_world is None:
        stage = _rebuilt(undo, scene, view_layer)
    else:
        stage = _copied(undo, scene, view_layer)
    stage.name = "Onmodel capture"
    stage.world = None
    stage.view_layers[0].name = layer_name
    for layer_collection in _all_below(stage.view_layers[0].layer_collection):
        # The drawings that stand before the cameras are no part of the film.
        if layer_collection.collection.get(planes_collection):
            layer_collection.exclude = True
    data = bpy.data.cameras.new("Onmodel capture")
    undo.callback(bpy.data.cameras.remove, data)
    eye = bpy.data.objects.new("Onmodel capture", data)
    undo.callback(bpy.data.objects.remove, eye)
    stage.collection.objects.link(eye)
    eye.parent = camera
    stage.camera = eye
    return stage, eye


def _copied(undo: contextlib.ExitStack, scene: bpy.types.Scene, view_layer: str) -> bpy.types.Scene:
    stage = scene.copy()
    undo.callback(bpy.data.scenes.remove, stage)
    stage.animation_data_clear()
    stage.timeline_markers.clear()
    for layer in list(stage.view_layers):
        if layer.name != view_layer:
            stage.view_layers.remove(layer)
    return stage


def _rebuilt(
    undo: contextlib.ExitStack, scene: bpy.types.Scene, view_layer: str
) -> bpy.types.Scene:
    """As `_copied`, from nothing.

    Blender 4.2 counts what a copied scene uses twice and takes it back once: objects would never
    get free again. Only a rigid body world, which no script can build alike, is worth that.
    """
    stage = bpy.data.scenes.new("Onmodel capture")
    undo.callback(bpy.data.scenes.remove, stage)
    for name in ("frame_start", "frame_end", "frame_step", "gravity", "use_gravity"):
        setattr(stage, name, getattr(scene, name))
    for group, beginnings in _shaping.items():
        source, target = getattr(scene, group), getattr(stage, group)
        for prop in source.bl_rna.properties:
            if prop.identifier.startswith(beginnings) and not prop.is_readonly:
                setattr(target, prop.identifier, getattr(source, prop.identifier))
    for key, value in scene.items():
        if isinstance(value, (int, float, str)):
            stage[key] = value
    for item in scene.collection.objects:
        stage.collection.objects.link(item)
    for child in scene.collection.children:
        stage.collection.children.link(child)
    _copy_visibility(
        scene.view_layers[view_layer].layer_collection, stage.view_layers[0].layer_collection
    )
    return stage


def _copy_visibility(source: bpy.types.LayerCollection, target: bpy.types.LayerCollection) -> None:
    for name in ("exclude", "holdout", "indirect_only", "hide_viewport"):
        if getattr(source, name) != getattr(target, name):
            setattr(target, name, getattr(source, name))
    for child in source.children:
        _copy_visibility(child, target.children[child.name])


def _all_below(layer: bpy.types.LayerCollection) -> Iterator[bpy.types.LayerCollection]:
    for child in layer.children:
        yield child
        yield from _all_below(child)

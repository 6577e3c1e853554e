# SPDX-License-Identifier: GPL-3.0-or-later
"""Keyed visibility and drivers of one object, in Blender 4.2 to 5.2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import bpy

_visibility = ("hide_viewport", "hide_render")


def show(item: bpy.types.Object, first: int, last: int, now: int) -> None:
    """Key the object to be seen, in viewport and render, on the frames first to last only.

    now: the current frame, which Blender does not evaluate anew by itself.
    """
    hide(item)
    for path in _visibility:
        for frame, hidden in ((first - 1, True), (first, False), (last + 1, True)):
            setattr(item, path, hidden)
            item.keyframe_insert(path, frame=frame)
    for curve in curves(item):
        for point in curve.keyframe_points:
            point.interpolation = "CONSTANT"
    for path in _visibility:
        setattr(item, path, not first <= now <= last)


def hide(item: bpy.types.Object) -> None:
    """Hide the object on every frame; its drivers stay."""
    animation = item.animation_data
    if animation is not None and animation.action is not None:
        action = animation.action
        animation.action = None
        if action.users == 0:
            bpy.data.actions.remove(action)
    item.hide_viewport = item.hide_render = True


def curves(item: bpy.types.Object) -> Iterator[Any]:
    """The F-curves of the object's action: flat up to 4.3, in layers and slots from 4.4 on."""
    animation = item.animation_data
    if animation is None or animation.action is None:
        return
    action = animation.action
    if not hasattr(action, "layers"):
        yield from action.fcurves
        return
    for layer in action.layers:
        for strip in layer.strips:
            for bag in strip.channelbags:
                if bag.slot_handle == animation.action_slot.handle:
                    yield from bag.fcurves


def drive(
    item: bpy.types.Object,
    path: str,
    index: int,
    expression: str,
    variables: Mapping[str, tuple[bpy.types.ID, str]],
) -> None:
    """Drive a property by plain arithmetic on properties of other data."""
    driver = item.driver_add(path, index).driver
    driver.type = "SCRIPTED"
    for name, (owner, data_path) in variables.items():
        variable = driver.variables.new()
        variable.name = name
        variable.type = "SINGLE_PROP"
        target = variable.targets[0]
        target.id_type = owner.id_type
        target.id = owner
        target.data_path = data_path
    driver.expression = expression

# SPDX-License-Identifier: GPL-3.0-or-later
"""The lists of shots and characters."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import bpy

from ..scene import shots
from . import status, text


class ONMODEL_UL_cast(bpy.types.UIList):
    """A character a row: in the cast or not, name, noun with what holds it, and whether its rig is
    understood."""

    def draw_item(  # type: ignore[override]
        self,
        context: bpy.types.Context,
        layout: bpy.types.UILayout,
        _data: object,
        item: bpy.types.PropertyGroup,
        _icon: int,
        _active_data: object,
        _active_property: str,
    ) -> None:
        row = layout.row(align=True)
        row.prop(item, "enabled", text="")
        name = row.row()
        name.active = item.enabled
        name.prop(item, "name", text="", emboss=False, icon="OUTLINER_OB_ARMATURE")
        noun = row.row()
        noun.alignment = "RIGHT"
        noun.active = False
        held = status.icon_of_holding(status.holding_of(context.scene, item))
        noun.label(text=item.noun, icon=held)
        row.label(text="", icon=status.icon_of_character(context.scene, item))


class ONMODEL_UL_shots(bpy.types.UIList):
    """A shot a row: drawn or not, its camera (a click looks through it), name, frames, state.

    placed: by uid; the panel sets it while it draws, so that not every row looks for itself.
    """

    placed: ClassVar[dict[str, shots.Placed]] = {}

    def draw_item(  # type: ignore[override]
        self,
        context: bpy.types.Context,
        layout: bpy.types.UILayout,
        _data: object,
        item: bpy.types.PropertyGroup,
        _icon: int,
        _active_data: object,
        _active_property: str,
    ) -> None:
        row = layout.row(align=True)
        row.prop(item, "enabled", text="")
        if item.detached:
            name = row.row()
            name.active = False
            name.prop(item, "name", text="", emboss=False, icon="UNLINKED")
            name.label(text="no marker")
            return
        placed = self.placed.get(item.uid)
        if placed is None:
            row.label(text=item.name)
            return
        here = placed.start <= context.scene.frame_current <= placed.end
        go = row.operator(
            "onmodel.shot_go",
            text="",
            icon="VIEW_CAMERA" if here else "CAMERA_DATA",
            emboss=False,
        )
        go.uid = item.uid
        name = row.row()
        name.active = item.enabled
        name.prop(item, "name", text="", emboss=False)
        frames = row.row()
        frames.alignment = "RIGHT"
        frames.active = False
        frames.label(text=f"{placed.start}\N{EN DASH}{placed.end}")
        status.draw_shot(row, context.scene, placed)


_waiting: dict[str, Callable[[], None]] = {}
"""Scenes that a timer is about to sync, by name."""


def sync_soon(scene: bpy.types.Scene, placed: list[shots.Placed]) -> None:
    """Have the rows follow the markers after this drawing: nothing may be written while drawing."""
    name = scene.name
    if name in _waiting or scene.library is not None or shots.is_synced(scene, placed):
        return

    def sync() -> None:
        _waiting.pop(name, None)
        found = bpy.data.scenes.get(name)
        if found is not None:
            shots.sync(found)
            text.redraw()

    _waiting[name] = sync
    bpy.app.timers.register(sync)


def forget() -> None:
    """Call off what is still to be synced: the add-on goes."""
    for sync in _waiting.values():
        if bpy.app.timers.is_registered(sync):
            bpy.app.timers.unregister(sync)
    _waiting.clear()
    ONMODEL_UL_shots.placed = {}


classes = (ONMODEL_UL_cast, ONMODEL_UL_shots)

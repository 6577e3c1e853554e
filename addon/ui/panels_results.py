# SPDX-License-Identifier: GPL-3.0-or-later
"""The panel about what was drawn: the keyframe one looks at, its takes, and all of them."""

from __future__ import annotations

import bpy

from ..core import scores
from ..core.marks import planes_collection
from ..planes import planes
from ..scene import shots
from . import drawing, text
from .operators_results import image_of, shown
from .panels_scene import Sidebar

_takes_a_row = 3
_label_share = 0.17


class ONMODEL_PT_results(Sidebar, bpy.types.Panel):
    bl_label = "Results"
    bl_idname = "ONMODEL_PT_results"
    bl_order = 5

    def draw(self, context: bpy.types.Context) -> None:
        layout = self.layout
        scene = context.scene
        if not planes.planes(scene):
            text.wrapped(
                layout,
                "Drawings appear here and before their cameras, on the frames they stand for.",
                icon="IMAGE_DATA",
            )
            return
        if not text.shows_pictures(context):
            text.wrapped(layout, "This viewport shows the drawings as blank cards.", icon="INFO")
            layout.operator("onmodel.pictures_show", icon="SHADING_TEXTURE")
        key = shown(scene)
        row = layout.row(align=True)
        row.operator("onmodel.keyframe_step", text="", icon="TRIA_LEFT").step = -1
        shot = shots.names(scene)[key.shot] if key else ""
        words = f"{shot}  \N{BULLET}  {key.frame}" if key else "Not drawn here"
        row.operator("onmodel.keyframe_go", text=words).frame = (
            key.frame if key else scene.frame_current
        )
        row.operator("onmodel.keyframe_step", text="", icon="TRIA_RIGHT").step = 1
        if key is not None:
            _draw_keyframe(layout, scene, key)


def _draw_keyframe(
    layout: bpy.types.UILayout, scene: bpy.types.Scene, key: planes.PlaneKey
) -> None:
    image = image_of(scene, key)
    preview = image.preview_ensure() if image is not None else None
    if preview is not None:
        layout.template_icon(icon_value=preview.icon_id, scale=6.5)
    takes = planes.takes(scene, key.shot, key.frame)
    _draw_takes(layout, scene, key)
    here = scene.frame_current == key.frame
    row = layout.row(align=True)
    again = row.row(align=True)
    again.enabled = here and drawing.current is None
    draw = again.operator("onmodel.draw", text="New Take", icon="ADD")
    draw.what, draw.only_take = "keyframe", max(takes, default=0) + 1
    draw = again.operator("onmodel.draw", text="Draw Again", icon="FILE_REFRESH")
    draw.what, draw.only_take, draw.redraw = "keyframe", key.take, True
    row.operator("onmodel.results_clear", text="", icon="TRASH").what = "take"
    if not here:
        note = layout.column()
        note.active = False
        text.wrapped(note, f"Shown from keyframe {key.frame}.")


def _draw_takes(layout: bpy.types.UILayout, scene: bpy.types.Scene, key: planes.PlaneKey) -> None:
    """A button for each take, with its lowest score; a pin beside them if the artist picked one."""
    row = layout.row(align=True)
    split = row.split(factor=_label_share)
    split.label(text="Takes")
    grid = split.grid_flow(row_major=True, columns=_takes_a_row, align=True)
    for plane in planes.planes(scene, key.shot, key.frame):
        take = planes.key_of(plane).take
        score = scores.lowest(planes.heads_of(plane))
        words = str(take) if score is None else f"{take}:  {score:.2f}"
        pick = grid.operator("onmodel.take_pick", text=words, depress=take == key.take)
        pick.shot, pick.frame, pick.take = key.shot, key.frame, take
    if shots.picked_take(scene, key.shot, key.frame):
        pick = row.operator("onmodel.take_pick", text="", icon="PINNED", depress=True)
        pick.shot, pick.frame, pick.take = key.shot, key.frame, 0


class ONMODEL_PT_results_all(Sidebar, bpy.types.Panel):
    bl_label = "All Drawings"
    bl_parent_id = "ONMODEL_PT_results"
    bl_order = 2

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return bool(planes.planes(context.scene))

    def draw(self, context: bpy.types.Context) -> None:
        _draw_all(self.layout, context.scene)


def _draw_all(layout: bpy.types.UILayout, scene: bpy.types.Scene) -> None:
    found = next((c for c in scene.collection.children if c.get(planes_collection)), None)
    row = layout.row(align=True)
    if found is not None:
        row.prop(found, "hide_viewport", text="Show", toggle=True, invert_checkbox=True)
    for percent in (50, 100):
        row.operator("onmodel.planes_opacity", text=f"{percent} %").opacity = percent / 100
    layout.operator("onmodel.strips_place", icon="SEQUENCE")
    row = layout.row(align=True)
    row.operator("onmodel.results_clear", text="Clear Shot", icon="TRASH").what = "shot"
    row.operator("onmodel.results_clear", text="Clear All").what = "all"


classes = (ONMODEL_PT_results, ONMODEL_PT_results_all)

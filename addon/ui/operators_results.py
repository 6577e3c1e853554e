# SPDX-License-Identifier: GPL-3.0-or-later
"""Operators of the Results panel. What they do is in `planes/`.

No `from __future__ import annotations` here: Blender reads the annotations as values.
"""

import bpy
from bpy.props import EnumProperty, FloatProperty, IntProperty, StringProperty

from ..planes import planes, strips
from ..scene import shots
from ..scene.errors import SceneError
from . import text
from .operator_base import Reporting


def shown(scene: bpy.types.Scene) -> planes.PlaneKey | None:
    """The keyframe that is to be seen at the current frame, with its picked take."""
    placed = shots.at_frame(scene, scene.frame_current)
    if placed is None:
        return None
    for plane in planes.planes(scene, placed.name):
        first, last = plane["onmodel_first"], plane["onmodel_last"]
        if plane.get("onmodel_picked") and first <= scene.frame_current <= last:
            return planes.key_of(plane)
    return None


def image_of(scene: bpy.types.Scene, key: planes.PlaneKey) -> bpy.types.Image | None:
    """The picture of a plane."""
    for plane in planes.planes(scene, key.shot, key.frame):
        if plane["onmodel_take"] == key.take:
            for node in plane.data.materials[0].node_tree.nodes:
                if node.type == "TEX_IMAGE":
                    return node.image
    return None


class ONMODEL_OT_take_pick(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.take_pick"
    bl_label = "Pick Take"
    bl_description = "Show this take of the keyframe"
    bl_options = {"REGISTER", "UNDO"}

    shot: StringProperty(options={"SKIP_SAVE"})
    frame: IntProperty(options={"SKIP_SAVE"})
    take: IntProperty(options={"SKIP_SAVE"})

    def apply(self, context: bpy.types.Context) -> None:
        scene = context.scene
        planes.pick_take(scene, self.shot, self.frame, self.take)
        shots.sync(scene)
        for placed in shots.place(scene):
            if placed.name == self.shot and placed.row is not None:
                shots.keyframe_row(placed.row, self.frame).take = self.take
        text.redraw()


class ONMODEL_OT_results_clear(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.results_clear"
    bl_label = "Clear Image Planes"
    bl_options = {"REGISTER", "UNDO"}

    what: EnumProperty(
        name="What",
        items=(
            ("take", "This Take", ""),
            ("shot", "This Shot", ""),
            ("all", "All Shots", ""),
        ),
        default="shot",
    )

    @classmethod
    def description(cls, _context: bpy.types.Context, values: bpy.types.OperatorProperties) -> str:
        of = {"take": "of this take", "shot": "of this shot", "all": "of the whole film"}
        return f"Remove the image planes {of[values.what]} from the scene. The files stay"

    def apply(self, context: bpy.types.Context) -> None:
        scene = context.scene
        if self.what == "all":
            planes.clear(scene)
            strips.clear_strips(scene)
        elif self.what == "shot":
            placed = shots.at_frame(scene, scene.frame_current)
            if placed is None:
                raise SceneError("The current frame is in no shot.", "Go to a frame of a shot.")
            planes.clear(scene, placed.name)
        else:
            key = shown(scene)
            if key is None:
                raise SceneError("No drawing is shown here.", "Go to a keyframe that is drawn.")
            planes.remove(scene, key)
            left = planes.takes(scene, key.shot, key.frame)
            if left:
                planes.pick_take(scene, key.shot, key.frame, left[-1])
        text.redraw()


class ONMODEL_OT_strips_place(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.strips_place"
    bl_label = "To the Sequencer"
    bl_description = "Put the picked takes of all keyframes into the video sequencer as an edit"
    bl_options = {"REGISTER", "UNDO"}

    def apply(self, context: bpy.types.Context) -> None:
        scene = context.scene
        found = [p for p in planes.planes(scene) if p.get("onmodel_picked")]
        if not found:
            raise SceneError("There is no drawing yet.", "Draw a keyframe first.")
        strips.clear_strips(scene)
        for plane in found:
            key = planes.key_of(plane)
            image = image_of(scene, key)
            if image is not None:
                strips.place_strip(
                    scene,
                    bpy.path.abspath(image.filepath),
                    key.shot,
                    key.frame,
                    key.take,
                    (plane["onmodel_first"], plane["onmodel_last"]),
                    planes.request_of(plane),
                )
        self.report({"INFO"}, f"{len(found)} strips are in the sequencer.")


class ONMODEL_OT_planes_opacity(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.planes_opacity"
    bl_label = "Opacity"
    bl_description = "How much of the 3D scene the drawings cover"
    bl_options = {"REGISTER", "UNDO"}

    opacity: FloatProperty(name="Opacity", default=1.0, min=0.0, max=1.0, subtype="FACTOR")

    def apply(self, context: bpy.types.Context) -> None:
        for plane in planes.planes(context.scene):
            planes.set_opacity(plane, self.opacity)


class ONMODEL_OT_pictures_show(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.pictures_show"
    bl_label = "Show Pictures"
    bl_description = "Have this window's viewports show pictures on objects (Color: Texture)"

    def apply(self, context: bpy.types.Context) -> None:
        for area in context.window.screen.areas if context.window else ():
            if area.type == "VIEW_3D" and area.spaces.active.shading.type == "WIREFRAME":
                area.spaces.active.shading.type = "SOLID"
        text.show_pictures(context.window)


classes = (
    ONMODEL_OT_pictures_show,
    ONMODEL_OT_take_pick,
    ONMODEL_OT_results_clear,
    ONMODEL_OT_strips_place,
    ONMODEL_OT_planes_opacity,
)

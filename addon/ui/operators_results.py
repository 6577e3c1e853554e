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
from .operators_shots import go


def shown(scene: bpy.types.Scene) -> planes.PlaneKey | None:
    """The keyframe that is to be seen at the current frame, with its picked take."""
    placed = shots.at_frame(scene, scene.frame_current)
    if placed is None:
        return None
    for plane in planes.planes(scene, placed.uid):
        first, last = plane["onmodel_first"], plane["onmodel_last"]
        if plane.get("onmodel_picked") and first <= scene.frame_current <= last:
            return planes.key_of(plane)
    return None


def image_of(scene: bpy.types.Scene, key: planes.PlaneKey) -> bpy.types.Image | None:
    """The picture of a plane."""
    for plane in planes.planes(scene, key.shot, key.frame):
        if plane["onmodel_take"] == key.take:
            return planes.picture_of(plane)
    return None


class ONMODEL_OT_take_pick(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.take_pick"
    bl_label = "Pick Take"
    bl_options = {"REGISTER", "UNDO"}

    shot: StringProperty(name="Shot", description="Its name or uid", options={"SKIP_SAVE"})
    frame: IntProperty(options={"SKIP_SAVE"})
    take: IntProperty(
        name="Take", description="0 leaves the choice to Onmodel again", options={"SKIP_SAVE"}
    )

    @classmethod
    def description(cls, _context: bpy.types.Context, values: bpy.types.OperatorProperties) -> str:
        if values.take:
            return "Show this take of the keyframe, whatever is drawn later"
        return "Leave the choice to Onmodel again: the take with the highest score"

    def apply(self, context: bpy.types.Context) -> None:
        scene = context.scene
        shots.sync(scene)
        placed = next((p for p in shots.place(scene) if self.shot in (p.uid, p.name)), None)
        if placed is None:
            raise SceneError(f"There is no shot {self.shot}.", "Choose a shot from the list.")
        if self.take:
            planes.pick_take(scene, placed.uid, self.frame, self.take)
        else:
            planes.show_best_like_shown(scene, placed.uid, self.frame)
        shots.pick_take(scene, placed.uid, self.frame, self.take)
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
            planes.clear(scene, placed.uid)
        else:
            key = shown(scene)
            if key is None:
                raise SceneError("No drawing is shown here.", "Go to a keyframe that is drawn.")
            planes.remove(scene, key)
            if shots.picked_take(scene, key.shot, key.frame) == key.take:
                shots.pick_take(scene, key.shot, key.frame, 0)
            left = planes.takes(scene, key.shot, key.frame)
            if left:
                planes.pick_take(scene, key.shot, key.frame, left[-1])
        text.redraw()


class ONMODEL_OT_worst_go(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.worst_go"
    bl_label = "Go to Worst Frame"
    bl_description = "Go to the keyframe in which this character has its lowest score"
    bl_options = {"REGISTER", "UNDO"}

    who: StringProperty(name="Character", options={"SKIP_SAVE"})
    embedder: StringProperty(
        name="Embedder", description="By whose scores; empty: the first", options={"SKIP_SAVE"}
    )

    def apply(self, context: bpy.types.Context) -> None:
        scene = context.scene
        rows = (r for r in planes.film_scores(scene) if r.character == self.who)
        worst = next((r.worst for r in rows if self.embedder in ("", r.embedder)), None)
        if worst is None:
            raise SceneError(f"{self.who} has no score yet.", "Draw with portraits in the cast.")
        shots.sync(scene)
        placed = shots.find(scene, worst.shot)
        go(context, placed.marker.camera, worst.frame)
        scene.onmodel.shot_index = next(
            k for k, row in enumerate(scene.onmodel.shots) if row.uid == worst.shot
        )
        for item in context.selected_objects:
            item.select_set(False)
        # Image planes let clicks through and cannot be selected; the active object can be one.
        for plane in planes.planes(scene, worst.shot, worst.frame):
            if planes.key_of(plane).take == worst.take:
                context.view_layer.objects.active = plane
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
        names = shots.names(scene)
        for plane in found:
            key = planes.key_of(plane)
            image = image_of(scene, key)
            if image is not None:
                strips.place_strip(
                    scene,
                    bpy.path.abspath(image.filepath),
                    names.get(key.shot, key.shot),
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
    ONMODEL_OT_worst_go,
    ONMODEL_OT_strips_place,
    ONMODEL_OT_planes_opacity,
)

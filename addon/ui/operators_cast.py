# SPDX-License-Identifier: GPL-3.0-or-later
"""Operators of the Cast panel. What they do is in `scene/cast.py`.

No `from __future__ import annotations` here: Blender reads the annotations as values.
"""

import bpy
from bpy.props import EnumProperty, IntProperty, StringProperty

from ..scene import cast
from ..scene.errors import SceneError
from .operator_base import Reporting

_lists = {
    "meshes": "mesh_index",
    "loras": "lora_index",
    "references": "reference_index",
    "joints": "joint_index",
}
"""The lists of a character and the properties that hold their selected row."""


class OfCharacter(Reporting):
    """An operator on one character: the named one, else the selected one."""

    bl_options = {"REGISTER", "UNDO"}

    who: StringProperty(options={"HIDDEN", "SKIP_SAVE"})

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return bool(context.scene.onmodel.cast)

    def character(self, context: bpy.types.Context) -> bpy.types.PropertyGroup:
        """The character's row. Raises SceneError when there is none."""
        settings = context.scene.onmodel
        if self.who:
            found = next((r for r in settings.cast if r.name == self.who), None)
        else:
            found = cast.active_row(context.scene)
        if found is None:
            raise SceneError("No character is selected.", "Choose one in the list.")
        return found


class ONMODEL_OT_cast_add(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.cast_add"
    bl_label = "Add to Cast"
    bl_description = "Take the selected rig and the meshes it moves into the cast"
    bl_options = {"REGISTER", "UNDO"}

    def apply(self, context: bpy.types.Context) -> None:
        picked = [o for o in context.selected_objects if cast.armature_of(o) is not None]
        rigs = list(dict.fromkeys(cast.armature_of(o) for o in picked))
        if not rigs and context.object is not None:
            rigs = [cast.armature_of(context.object)]
        for rig in rigs or [None]:
            row = cast.add_character(context.scene, rig)
            self.report({"INFO"}, f"{row.name} joined the cast with {len(row.meshes)} meshes.")


class ONMODEL_OT_cast_add_all(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.cast_add_all"
    bl_label = "Cast All Rigs"
    bl_description = "Take every rig of the scene that moves a mesh into the cast"
    bl_options = {"REGISTER", "UNDO"}

    def apply(self, context: bpy.types.Context) -> None:
        rigs = cast.uncast_rigs(context.scene)
        if not rigs:
            raise SceneError(
                "No further armature of the scene moves a mesh.",
                "Add a rigged character, or select its rig and add it by hand.",
            )
        for rig in rigs:
            cast.add_character(context.scene, rig)


class ONMODEL_OT_cast_remove(OfCharacter, bpy.types.Operator):
    bl_idname = "onmodel.cast_remove"
    bl_label = "Remove from Cast"
    bl_description = "Take the character out of the cast. Its rig and meshes stay"

    def apply(self, context: bpy.types.Context) -> None:
        settings = context.scene.onmodel
        row = self.character(context)
        settings.cast.remove(next(k for k, r in enumerate(settings.cast) if r == row))
        settings.cast_index = max(0, min(settings.cast_index, len(settings.cast) - 1))


class ONMODEL_OT_cast_move(OfCharacter, bpy.types.Operator):
    bl_idname = "onmodel.cast_move"
    bl_label = "Move Character"
    bl_description = "Move the character in the list"

    step: IntProperty(default=1, min=-1, max=1, options={"SKIP_SAVE"})

    def apply(self, context: bpy.types.Context) -> None:
        settings = context.scene.onmodel
        target = settings.cast_index + self.step
        if 0 <= target < len(settings.cast):
            settings.cast.move(settings.cast_index, target)
            settings.cast_index = target


class ONMODEL_OT_cast_bind(OfCharacter, bpy.types.Operator):
    bl_idname = "onmodel.cast_bind"
    bl_label = "Bind the Selected Rig"
    bl_description = "Let the selected rig play this character, and find its meshes"

    def apply(self, context: bpy.types.Context) -> None:
        row = self.character(context)
        rig = cast.armature_of(context.object)
        if rig is None:
            raise SceneError("No armature is selected.", "Select the rig of the character.")
        row.armature = rig
        row.meshes.clear()
        cast.find_meshes(context.scene, row)


class ONMODEL_OT_cast_find_meshes(OfCharacter, bpy.types.Operator):
    bl_idname = "onmodel.cast_find_meshes"
    bl_label = "Find Meshes"
    bl_description = "List the meshes that the character's rig moves"

    def apply(self, context: bpy.types.Context) -> None:
        row = self.character(context)
        if cast.find_meshes(context.scene, row) == 0 and not row.meshes:
            raise SceneError(
                f"No mesh is moved by {row.armature.name}.",
                "Give the body an Armature modifier, or add it to the list by hand.",
            )


class ONMODEL_OT_cast_select(OfCharacter, bpy.types.Operator):
    bl_idname = "onmodel.cast_select"
    bl_label = "Select in Scene"
    bl_description = "Select the character's rig"

    def apply(self, context: bpy.types.Context) -> None:
        row = self.character(context)
        if row.armature is None or row.armature.name not in context.view_layer.objects:
            raise SceneError(f"{row.name} has no armature in this view.", "Choose one.")
        for item in context.selected_objects:
            item.select_set(False)
        row.armature.select_set(True)
        context.view_layer.objects.active = row.armature


class ONMODEL_OT_row_add(OfCharacter, bpy.types.Operator):
    bl_idname = "onmodel.row_add"
    bl_label = "Add"
    bl_description = "Add a row to this list of the character"

    of: EnumProperty(items=[(k, k, "") for k in _lists], options={"SKIP_SAVE"})

    def apply(self, context: bpy.types.Context) -> None:
        row = self.character(context)
        rows = getattr(row, self.of)
        rows.add()
        setattr(row, _lists[self.of], len(rows) - 1)


class ONMODEL_OT_row_remove(OfCharacter, bpy.types.Operator):
    bl_idname = "onmodel.row_remove"
    bl_label = "Remove"
    bl_description = "Remove this row from the character"

    of: EnumProperty(items=[(k, k, "") for k in _lists], options={"SKIP_SAVE"})
    index: IntProperty(options={"SKIP_SAVE"})

    def apply(self, context: bpy.types.Context) -> None:
        rows = getattr(self.character(context), self.of)
        if 0 <= self.index < len(rows):
            rows.remove(self.index)


class ONMODEL_OT_joint_correct(OfCharacter, bpy.types.Operator):
    bl_idname = "onmodel.joint_correct"
    bl_label = "Bind Joint by Hand"
    bl_description = "Add a row that binds this joint to a bone of your choice"

    joint: StringProperty(options={"SKIP_SAVE"})

    def apply(self, context: bpy.types.Context) -> None:
        row = self.character(context)
        if not any(j.joint == self.joint for j in row.joints):
            row.joints.add().joint = self.joint
            row.joint_index = len(row.joints) - 1


class ONMODEL_OT_film_lora_add(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.film_lora_add"
    bl_label = "Add Style LoRA"
    bl_description = "Add a LoRA that acts on whole pictures: a style, a set"
    bl_options = {"REGISTER", "UNDO"}

    def apply(self, context: bpy.types.Context) -> None:
        context.scene.onmodel.loras.add()


class ONMODEL_OT_film_lora_remove(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.film_lora_remove"
    bl_label = "Remove Style LoRA"
    bl_description = "Remove this LoRA from the film"
    bl_options = {"REGISTER", "UNDO"}

    index: IntProperty(options={"SKIP_SAVE"})

    def apply(self, context: bpy.types.Context) -> None:
        rows = context.scene.onmodel.loras
        if 0 <= self.index < len(rows):
            rows.remove(self.index)


classes = (
    ONMODEL_OT_cast_add,
    ONMODEL_OT_cast_add_all,
    ONMODEL_OT_cast_remove,
    ONMODEL_OT_cast_move,
    ONMODEL_OT_cast_bind,
    ONMODEL_OT_cast_find_meshes,
    ONMODEL_OT_cast_select,
    ONMODEL_OT_row_add,
    ONMODEL_OT_row_remove,
    ONMODEL_OT_joint_correct,
    ONMODEL_OT_film_lora_add,
    ONMODEL_OT_film_lora_remove,
)

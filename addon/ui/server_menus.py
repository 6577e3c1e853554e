# SPDX-License-Identifier: GPL-3.0-or-later
"""Menus of what the connected server offers: models and sampling presets."""

from __future__ import annotations

import bpy

from ..scene import server_words

map_titles = {"pose": "Pose", "depth": "Depth", "normal": "Normals", "lineart": "Lines"}


def draw_choice(
    layout: bpy.types.UILayout, settings: bpy.types.PropertyGroup, name: str, menu: str
) -> None:
    """A text field, which works offline, with the server's offers in a menu beside it."""
    row = layout.row(align=True)
    row.prop(settings, name)
    row.menu(menu, text="", icon="DOWNARROW_HLT")


class ONMODEL_MT_models(bpy.types.Menu):
    bl_label = "Models of the Server"
    bl_idname = "ONMODEL_MT_models"

    def draw(self, context: bpy.types.Context) -> None:
        models = server_words.models()
        for model in models:
            words = str(model.get("title") or model["name"])
            button = self.layout.operator("wm.context_set_string", text=words)
            button.data_path = "scene.onmodel.model"
            button.value = str(model["name"])
        if not models:
            self.layout.label(text="Connect to a server first")


class ONMODEL_MT_presets(bpy.types.Menu):
    bl_label = "Presets of the Model"
    bl_idname = "ONMODEL_MT_presets"

    def draw(self, context: bpy.types.Context) -> None:
        for name in server_words.presets(context.scene.onmodel.model):
            button = self.layout.operator("wm.context_set_string", text=name)
            button.data_path = "scene.onmodel.preset"
            button.value = name


classes = (ONMODEL_MT_models, ONMODEL_MT_presets)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Operators of the Server panel. What they do is in `connection.py`.

No `from __future__ import annotations` here: Blender reads the annotations as values.
"""

import bpy

from ..core.client import ClientError
from . import connection, preferences
from .operator_base import Reporting


class ONMODEL_OT_server_start(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.server_start"
    bl_label = "Connect"
    bl_description = "Start the server, or connect to the one named in the preferences"

    def apply(self, context: bpy.types.Context) -> None:
        """For scripts: returns when the server is ready."""
        connection.connection.begin(preferences.get(context))
        connection.connection.wait()

    def invoke(self, context: bpy.types.Context, _event: bpy.types.Event) -> set[str]:
        connection.connection.begin(preferences.get(context))
        connection.watch()
        return {"FINISHED"}


class ONMODEL_OT_server_stop(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.server_stop"
    bl_label = "Disconnect"
    bl_description = "Disconnect; a server that this Blender started is stopped"

    def apply(self, _context: bpy.types.Context) -> None:
        connection.connection.end()


class ONMODEL_OT_preferences(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.preferences"
    bl_label = "Server Preferences"
    bl_description = "Choose which server draws"

    def apply(self, context: bpy.types.Context) -> None:
        if preferences.addon_id not in context.preferences.addons:
            raise ClientError(
                "Onmodel runs from a script and has no preferences.",
                "Install it as an extension to set them.",
            )
        bpy.ops.preferences.addon_show(module=preferences.addon_id)


classes = (ONMODEL_OT_server_start, ONMODEL_OT_server_stop, ONMODEL_OT_preferences)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The add-on's preferences: which server draws. Kept with Blender, never in a .blend.

No `from __future__ import annotations` here: Blender reads the annotations as values.
"""

from dataclasses import dataclass
from typing import Any

import bpy
from bpy.props import BoolProperty, EnumProperty, StringProperty

from . import text

addon_id = __package__.rpartition(".")[0]
"""The add-on's module name: "bl_ext.user_default.onmodel" when installed as an extension."""


@dataclass(frozen=True)
class Defaults:
    """The preferences where the add-on was registered by a script and has no place for its own."""

    mode: str = "managed"
    command: str = ""
    url: str = ""
    token: str = ""
    start_when_drawing: bool = True


class OnmodelPreferences(bpy.types.AddonPreferences):
    """Shown in Preferences > Add-ons > Onmodel."""

    bl_idname = addon_id

    mode: EnumProperty(
        name="Server",
        description="Who draws",
        items=(
            ("managed", "This Computer", "Onmodel starts and stops the server by itself"),
            ("remote", "Another Computer", "Connect to a server by its address and token"),
        ),
        default="managed",
    )
    command: StringProperty(
        name="Server program",
        description="The `onmodel` program, or the folder of Onmodel's checkout. Empty: it is"
        " looked for beside the add-on and on the PATH",
        subtype="FILE_PATH",
    )
    start_when_drawing: BoolProperty(
        name="Start the server when I draw",
        description="Draw starts the server if it is not running",
        default=True,
    )
    url: StringProperty(
        name="Address",
        description="Address of the server, such as http://192.168.0.12:8188",
    )
    token: StringProperty(
        name="Token",
        description="The word the server gave you. It is kept in Blender's preferences only",
        subtype="PASSWORD",
    )

    def draw(self, _context: bpy.types.Context) -> None:
        layout = self.layout
        layout.use_property_split = True
        layout.use_property_decorate = False
        layout.row().prop(self, "mode", expand=True)
        if self.mode == "managed":
            layout.prop(self, "command")
            layout.prop(self, "start_when_drawing")
        else:
            layout.prop(self, "url")
            layout.prop(self, "token")
            if not bpy.app.online_access:
                layout.label(
                    text="Blender's Allow Online Access is off (System > Network).", icon="ERROR"
                )
        notes = layout.column(align=True)
        notes.active = False
        text.wrapped(
            notes,
            "The server keeps its model in video memory while it runs, beside Blender's own. If"
            " Blender runs out of it, stop the server in the sidebar or draw on another computer.",
            width=560,
        )


def get(context: bpy.types.Context) -> Any:
    """The preferences: OnmodelPreferences, or `Defaults` where the add-on is not installed."""
    entry = context.preferences.addons.get(addon_id)
    found = entry.preferences if entry else None
    return found if found is not None else Defaults()


classes = (OnmodelPreferences,)

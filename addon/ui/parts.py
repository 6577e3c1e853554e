# SPDX-License-Identifier: GPL-3.0-or-later
"""All classes of the interface in the order of their registration."""

from __future__ import annotations

import bpy

from . import (
    connection,
    lists,
    operators_cast,
    operators_server,
    operators_shots,
    panels_draw,
    panels_scene,
    preferences,
    server_menus,
)

_modules = (
    preferences,
    operators_server,
    operators_cast,
    operators_shots,
    server_menus,
    lists,
    panels_scene,
    panels_draw,
)


def register() -> None:
    for module in _modules:
        for cls in module.classes:
            bpy.utils.register_class(cls)


def unregister() -> None:
    """Stop timers and a server that was started here, then take the classes off."""
    connection.close()
    lists.forget()
    for module in reversed(_modules):
        for cls in reversed(module.classes):
            bpy.utils.unregister_class(cls)

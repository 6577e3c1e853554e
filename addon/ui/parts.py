# SPDX-License-Identifier: GPL-3.0-or-later
"""All classes of the interface in the order of their registration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bpy

from . import (
    connection,
    drawing,
    lists,
    operators_cast,
    operators_draw,
    operators_portraits,
    operators_results,
    operators_server,
    operators_shots,
    panels_draw,
    panels_faces,
    panels_results,
    panels_scene,
    preferences,
    server_menus,
    text,
)

_modules = (
    preferences,
    operators_server,
    operators_cast,
    operators_portraits,
    operators_shots,
    operators_draw,
    operators_results,
    server_menus,
    lists,
    panels_scene,
    panels_draw,
    panels_results,
    panels_faces,
)


def register() -> None:
    for module in _modules:
        for cls in module.classes:
            bpy.utils.register_class(cls)
    for handlers, function in _handlers():
        handlers.append(function)


def unregister() -> None:
    """Stop timers and a server that was started here, then take the classes off."""
    for handlers, function in _handlers():
        if function in handlers:
            handlers.remove(function)
    drawing.before_load()
    connection.close()
    lists.forget()
    if bpy.app.timers.is_registered(text.redraw):
        bpy.app.timers.unregister(text.redraw)
    for module in reversed(_modules):
        for cls in reversed(module.classes):
            bpy.utils.unregister_class(cls)


def _handlers() -> list[tuple[list[Any], Callable[..., None]]]:
    all_handlers = bpy.app.handlers
    return [
        (all_handlers.undo_post, drawing.after_undo),
        (all_handlers.redo_post, drawing.after_undo),
        (all_handlers.load_pre, drawing.before_load),
    ]

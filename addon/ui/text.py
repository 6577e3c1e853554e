# SPDX-License-Identifier: GPL-3.0-or-later
"""Words in panels: Blender's labels do not wrap, so long sentences are broken here."""

from __future__ import annotations

import textwrap

import blf
import bpy

_letters_guess = 38
_margin = 64
"""Points at both sides of a panel's text: panel, box and region borders."""


def wrapped(
    layout: bpy.types.UILayout, sentence: str, icon: str = "NONE", width: float | None = None
) -> None:
    """Draw a sentence over as many lines as it needs, the icon before the first.

    width: in unscaled points; that of the region being drawn when None.
    """
    context = bpy.context
    if width is None:
        scale = context.preferences.system.ui_scale
        width = (context.region.width / scale if context.region else 260) - _margin
    if icon != "NONE":
        width -= 24
    column = layout.column(align=True)
    column.scale_y = 0.85
    for number, line in enumerate(_break(sentence, width)):
        column.label(text=line, icon=icon if number == 0 else _indent(icon))


def _indent(icon: str) -> str:
    return "NONE" if icon == "NONE" else "BLANK1"


def _break(sentence: str, width: float) -> list[str]:
    if bpy.app.background:
        return textwrap.wrap(sentence, _letters_guess) or [""]
    style = bpy.context.preferences.ui_styles[0].widget
    blf.size(0, style.points)
    lines, line = [], ""
    for word in sentence.split():
        longer = f"{line} {word}".strip()
        if line and blf.dimensions(0, longer)[0] > width:
            lines.append(line)
            line = word
        else:
            line = longer
    return [*lines, line]


def show_pictures(window: bpy.types.Window | None) -> None:
    """Have the window's solid viewports show pictures on objects, not blank cards.

    Objects without a picture keep their colour in them.
    """
    for area in window.screen.areas if window else ():
        if area.type == "VIEW_3D" and area.spaces.active.shading.type == "SOLID":
            area.spaces.active.shading.color_type = "TEXTURE"


def shows_pictures(context: bpy.types.Context) -> bool:
    """Whether the viewport being drawn shows pictures on objects."""
    shading = getattr(context.space_data, "shading", None)
    if shading is None or shading.type in {"MATERIAL", "RENDERED"}:
        return True
    return bool(shading.type == "SOLID" and shading.color_type == "TEXTURE")


def redraw() -> None:
    """Have the sidebars drawn again. Does nothing without a window."""
    manager = bpy.context.window_manager
    for window in manager.windows if manager else ():
        for area in window.screen.areas:
            if area.type == "VIEW_3D":
                for region in area.regions:
                    if region.type == "UI":
                        region.tag_redraw()


def redraw_twice() -> None:
    """Have the sidebars drawn now and once more: a panel that grew gets its room only then."""
    redraw()
    if not bpy.app.background and not bpy.app.timers.is_registered(redraw):
        bpy.app.timers.register(redraw, first_interval=0.2)

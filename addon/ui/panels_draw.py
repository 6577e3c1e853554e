# SPDX-License-Identifier: GPL-3.0-or-later
"""The panels about drawing: the server, the render, its results."""

from __future__ import annotations

import time

import bpy

from ..scene import film, problems, server_words, shots
from . import preferences, status, text
from .connection import Link, connection
from .panels_scene import Sidebar

_few_problems = 4


class ONMODEL_PT_server(Sidebar, bpy.types.Panel):
    bl_label = "Server"
    bl_idname = "ONMODEL_PT_server"
    bl_order = 0

    def draw_header_preset(self, _context: bpy.types.Context) -> None:
        row = self.layout.row(align=True)
        words, icon = {
            Link.ready: (connection.device.upper(), "CHECKMARK"),
            Link.failed: ("", "ERROR"),
            Link.off: ("", "UNLINKED"),
        }.get(connection.link, ("", "SORTTIME"))
        row.label(text=words, icon=icon)
        row.operator("onmodel.preferences", text="", icon="PREFERENCES", emboss=False)

    def draw(self, context: bpy.types.Context) -> None:
        layout = self.layout
        chosen = preferences.get(context)
        managed = chosen.mode == "managed"
        link = connection.link
        if link is Link.ready:
            _draw_ready(layout, context, managed)
        elif link in (Link.starting, Link.shaking_hands):
            seconds = int(time.monotonic() - connection.since)
            row = layout.row(align=True)
            words = "Starting the server" if link is Link.starting else "Connecting"
            row.label(text=f"{words}\N{HORIZONTAL ELLIPSIS} {seconds} s", icon="SORTTIME")
            row.operator("onmodel.server_stop", text="", icon="X")
        elif link is Link.stopping:
            layout.label(text="Stopping the server\N{HORIZONTAL ELLIPSIS}", icon="SORTTIME")
        else:
            _draw_off(layout, managed)


def _draw_ready(layout: bpy.types.UILayout, context: bpy.types.Context, managed: bool) -> None:
    settings = context.scene.onmodel
    model = server_words.model(settings.model)
    row = layout.row(align=True)
    row.prop(settings, "model", text="", icon="BRUSH_DATA", placeholder=_first_title())
    row.menu("ONMODEL_MT_models", text="", icon="DOWNARROW_HLT")
    row.separator()
    row.operator(
        "onmodel.server_stop", text="", icon="QUIT" if managed else "UNLINKED", emboss=True
    )
    if model is None and server_words.models():
        text.wrapped(layout, f"The server has no model named {settings.model}.", icon="ERROR")
    elif model is None:
        text.wrapped(layout, "The server has no model to draw with.", icon="ERROR")
    elif model.get("embedded"):
        note = layout.column()
        note.active = False
        text.wrapped(note, "A small model for rehearsals: it blocks scenes out, no more.")


def _first_title() -> str:
    first = server_words.model("")
    return str(first.get("title") or first["name"]) if first else ""


def _draw_off(layout: bpy.types.UILayout, managed: bool) -> None:
    if connection.message:
        problem = layout.column()
        problem.alert = True
        text.wrapped(problem, connection.message, icon="ERROR")
        if connection.fix:
            text.wrapped(layout, connection.fix, icon="BLANK1")
    elif managed:
        text.wrapped(layout, "The server draws your keyframes on this computer.", icon="INFO")
    else:
        text.wrapped(layout, "Your keyframes are drawn on another computer.", icon="INFO")
    big = layout.row(align=True)
    big.scale_y = 1.3
    again = "Try Again" if connection.message else ""
    if managed:
        big.operator("onmodel.server_start", text=again or "Start Server", icon="PLAY")
    else:
        big.operator("onmodel.server_start", text=again or "Connect", icon="LINKED")


class ONMODEL_PT_draw(Sidebar, bpy.types.Panel):
    bl_label = "Draw"
    bl_idname = "ONMODEL_PT_draw"
    bl_order = 4

    def draw(self, context: bpy.types.Context) -> None:
        layout = self.layout
        scene = context.scene
        run = status.run
        if run.active:
            _draw_running(layout)
            return
        placed = shots.place(scene)
        if not placed:
            text.wrapped(layout, "Nothing to draw yet. Make a shot first.", icon="INFO")
            return
        found = problems.validate(scene)
        errors = [p for p in found if p.level == "error"]
        buttons = layout.column()
        buttons.enabled = not errors
        wanted = [p for p in placed if p.row is None or p.row.enabled]
        count = sum(len(p.shot.keyframes) for p in wanted if p.shot)
        active = shots.active_row(scene)
        now = next((p for p in placed if active is not None and p.uid == active.uid), None)
        big = buttons.column(align=True)
        big.scale_y = 1.4
        words = f"Draw All ({_counted(count, 'keyframe')})" if count else "Draw All"
        big.operator("onmodel.draw", text=words, icon="RENDER_ANIMATION").what = "all"
        small = buttons.row(align=True)
        name = f"Shot {now.name}" if now else "Shot"
        small.operator("onmodel.draw", text=name, icon="CAMERA_DATA").what = "shot"
        small.operator("onmodel.draw", text="This Frame", icon="KEYFRAME_HLT").what = "keyframe"
        rule = film.read_retakes(scene.onmodel.retakes)
        if rule is not None:
            note = layout.row()
            note.active = False
            words = f"Retakes until {rule.score:.2f}, at most {_counted(rule.most, 'take')}"
            note.label(text=words, icon="LOOP_BACK")
        if now is not None:
            _draw_standing(layout, scene, now)
        _draw_outcome(layout)
        _draw_problems(layout, found)


def _draw_standing(
    layout: bpy.types.UILayout, scene: bpy.types.Scene, placed: shots.Placed
) -> None:
    """How the selected shot stands, and a way to be sure of it."""
    standing = status.standing(scene, placed)
    row = layout.row(align=True)
    row.label(text=status.words[standing.state], icon=status.icons[standing.state])
    if standing.state in ("done", "stale"):
        check = row.operator("onmodel.draw", text="", icon="VIEWZOOM")
        check.what, check.check = "all", True


def _draw_running(layout: bpy.types.UILayout) -> None:
    run = status.run
    column = layout.column(align=True)
    row = column.row(align=True)
    row.scale_y = 1.4
    row.progress(text=run.words, factor=run.share)
    row.operator("onmodel.cancel", text="", icon="X")
    column.separator()
    detail = column.column()
    detail.active = False
    text.wrapped(detail, run.detail or "You can go on working meanwhile.")


def _draw_outcome(layout: bpy.types.UILayout) -> None:
    """What came of the last run."""
    run = status.run
    if run.outcome:
        text.wrapped(layout, run.outcome, icon="CHECKMARK" if not run.troubles else "INFO")
    for trouble in run.troubles[:_few_problems]:
        box = layout.box().column(align=True)
        said = box.column()
        said.alert = True
        text.wrapped(said, trouble.message, icon="ERROR")
        if trouble.fix:
            text.wrapped(box, trouble.fix, icon="BLANK1")
    if run.retryable:
        layout.operator(
            "onmodel.draw", text="Draw the Failed Again", icon="LOOP_BACK"
        ).what = "failed"


def _draw_problems(layout: bpy.types.UILayout, found: list[problems.Problem]) -> None:
    for problem in found[:_few_problems]:
        box = layout.box().column(align=True)
        said = box.column()
        said.alert = problem.level == "error"
        text.wrapped(said, problem.message, icon="ERROR" if problem.level == "error" else "INFO")
        text.wrapped(box, problem.fix, icon="BLANK1")
        if problem.fix_operator:
            box.separator(factor=0.5)
            button = box.operator(problem.fix_operator, text=problem.fix_label)
            for key, value in problem.fix_values.items():
                setattr(button, key, value)
    if len(found) > _few_problems:
        layout.label(text=f"and {_counted(len(found) - _few_problems, 'more remark')}")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


classes = (ONMODEL_PT_server, ONMODEL_PT_draw)

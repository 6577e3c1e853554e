# SPDX-License-Identifier: GPL-3.0-or-later
"""Operators of the Draw panel. What they do is in `drawing.py`.

`execute()` (a script) returns when all is drawn; `invoke()` (a click) returns at once and a timer
moves the same run on, never for long except while it captures. Such a run ends with one push of
undo, so that one Ctrl-Z takes its results away; REGISTER and UNDO are not asked of Blender, which
would push for the script only, or twice.

No `from __future__ import annotations` here: Blender reads the annotations as values.
"""

import logging
import time

import bpy
from bpy.props import BoolProperty, EnumProperty, IntProperty, StringProperty

from ..core.shots import Shot
from ..render.results import OutputError
from ..render.session import State
from ..render.settings import TakeSettings
from ..scene import problems, shots
from ..scene.errors import SceneError
from . import connection, drawing, preferences, status, text

log = logging.getLogger(__name__)

tick_seconds = 0.03
"""Between two ticks of a run in the window."""

tick_budget = 0.015
"""Seconds of steps that a tick may go on after the first one."""


class ONMODEL_OT_draw(bpy.types.Operator):
    """Draw keyframes, as the button says, and place them before their cameras"""

    bl_idname = "onmodel.draw"
    bl_label = "Draw"

    what: EnumProperty(
        name="What",
        items=(
            ("all", "All", "Every keyframe of every shot that is ticked"),
            ("shot", "Shot", "Every keyframe of the selected shot"),
            ("keyframe", "This Frame", "The keyframe at the current frame"),
            ("failed", "Failed", "What failed in the last run"),
        ),
        default="all",
        options={"SKIP_SAVE"},
    )
    shots: StringProperty(
        name="Shots", description="Names of shots, by commas; instead of the selected one"
    )
    takes: IntProperty(
        name="Takes",
        description="Number of takes of each keyframe; 0 as set",
        min=0,
        options={"SKIP_SAVE"},
    )
    only_take: IntProperty(
        name="Only Take",
        description="Draw nothing but the take of this number; 0 for all",
        min=0,
        options={"SKIP_SAVE"},
    )
    check: BoolProperty(
        name="Check",
        description="Draw nothing; find out what is not drawn as it is now",
        options={"SKIP_SAVE"},
    )
    redraw: BoolProperty(
        name="Redraw", description="Draw what is drawn already again", options={"SKIP_SAVE"}
    )

    _timer = None

    @classmethod
    def description(cls, _context: bpy.types.Context, values: bpy.types.OperatorProperties) -> str:
        if values.check:
            return (
                "Capture the keyframes again and mark the shots whose poses, camera or set changed"
                " since they were drawn. Draws nothing; takes about a second a keyframe"
            )
        return {
            "all": "Draw every keyframe of every shot that is ticked. What is drawn already and"
            " has not changed is kept",
            "shot": "Draw the keyframes of the selected shot",
            "keyframe": "Draw the frame you are looking at, keyframe or not",
            "failed": "Draw again what failed in the last run",
        }[values.what]

    def execute(self, context: bpy.types.Context) -> set[str]:
        """For scripts: blocks until all is drawn."""
        run = self._begin(context)
        if run is None:
            return {"CANCELLED"}
        run.run()
        return self._end(context, run)

    def invoke(self, context: bpy.types.Context, _event: bpy.types.Event) -> set[str]:
        chosen = preferences.get(context)
        idle = connection.connection.link in (connection.Link.off, connection.Link.failed)
        if idle and not chosen.start_when_drawing:
            self.report({"ERROR"}, "No server is connected. Start it in the Server panel.")
            return {"CANCELLED"}
        if self._begin(context) is None:
            return {"CANCELLED"}
        connection.watch()
        text.show_pictures(context.window)
        manager = context.window_manager
        self._timer = manager.event_timer_add(tick_seconds, window=context.window)
        manager.modal_handler_add(self)
        return {"RUNNING_MODAL"}

    def modal(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        run = drawing.current
        if run is None:
            return self._stop(context, {"CANCELLED"})
        if event.type == "ESC" and event.value == "PRESS" and run.holds_input:
            run.cancel()
            return {"RUNNING_MODAL"}
        if event.type != "TIMER":
            held = run.holds_input and not _is_harmless(context, event)
            return {"RUNNING_MODAL" if held else "PASS_THROUGH"}
        until = time.perf_counter() + tick_budget
        ended = run.tick()
        while not ended and time.perf_counter() < until and run.session.state is State.capturing:
            ended = run.tick()
        text.redraw()
        if not ended:
            return {"PASS_THROUGH"}
        result = self._end(context, run)
        bpy.ops.ed.undo_push(message="Check Keyframes" if self.check else "Draw Keyframes")
        return self._stop(context, result)

    def cancel(self, context: bpy.types.Context) -> None:
        """Blender takes the operator away: another file is opened, or the window closed."""
        if drawing.current is not None:
            drawing.current.close()
            drawing.end()
        self._stop(context, set())

    def _begin(self, context: bpy.types.Context) -> drawing.Drawing | None:
        scene = context.scene
        try:
            errors = [p for p in problems.validate(scene) if p.level == "error"]
            if errors:
                raise SceneError(errors[0].message, errors[0].fix)
            return drawing.begin(scene, self._order(context), preferences.get(context))
        except (SceneError, OutputError) as error:
            self.report({"ERROR"}, f"{error.message} {error.fix}".strip())
            return None

    def _order(self, context: bpy.types.Context) -> drawing.Order:
        scene = context.scene
        frames = None
        if self.what == "failed" and status.run.order is not None:
            last: drawing.Order = status.run.order
            names = [s.name for s in last.shots]
            return drawing.Order(drawing.shots_named(scene, names), last.settings)
        if self.what == "keyframe":
            shot, frame = _shot_at(scene, scene.frame_current)
            chosen, frames = [shot], frozenset({(shot.name, frame)})
        elif self.what == "shot" or self.shots:
            names = [n.strip() for n in self.shots.split(",") if n.strip()]
            row = shots.active_row(scene)
            names = names or ([row.name] if row is not None else [])
            chosen = drawing.shots_named(scene, names)
            if not chosen:
                raise SceneError("No shot is selected.", "Choose one in the Shots list.")
        else:
            chosen = [s for s in shots.read_shots(scene) if s.enabled]
        settings = TakeSettings(
            takes=self.takes or None,
            only_take=self.only_take or None,
            frames=frames,
            redraw=self.redraw,
            check=self.check,
        )
        return drawing.Order(chosen, settings)

    def _end(self, context: bpy.types.Context, run: drawing.Drawing) -> set[str]:
        run.finish()
        drawing.end()
        text.redraw_twice()
        session = run.session
        if session.state is State.failed:
            self.report({"ERROR"}, f"{session.message} {session.fix}".strip())
            return {"CANCELLED"}
        self.report({"INFO"}, session.message)
        return {"FINISHED"} if session.state is State.done else {"CANCELLED"}

    def _stop(self, context: bpy.types.Context, result: set[str]) -> set[str]:
        if self._timer is not None:
            context.window_manager.event_timer_remove(self._timer)
            self._timer = None
        return result


def _is_harmless(context: bpy.types.Context, event: bpy.types.Event) -> bool:
    """Whether an event may reach Blender while maps are captured.

    A change of the scene would be in the pictures, and an undo would exchange it. Looking around
    is harmless, and so is the mouse in the sidebar, where Cancel is.
    """
    if event.type in _looking_around:
        return True
    if event.type not in {"LEFTMOUSE", "RIGHTMOUSE"} or context.window is None:
        return False
    sidebars = [
        region
        for area in context.window.screen.areas
        if area.type == "VIEW_3D"
        for region in area.regions
        if region.type == "UI"
    ]
    return any(
        0 <= event.mouse_x - r.x < r.width and 0 <= event.mouse_y - r.y < r.height for r in sidebars
    )


_looking_around = {
    *("MOUSEMOVE", "INBETWEEN_MOUSEMOVE", "MIDDLEMOUSE", "NDOF_MOTION"),
    *("WHEELUPMOUSE", "WHEELDOWNMOUSE", "TRACKPADPAN", "TRACKPADZOOM", "WINDOW_DEACTIVATE"),
}


def _shot_at(scene: bpy.types.Scene, frame: int) -> tuple[Shot, int]:
    """The shot that this frame is in, the frame among its keyframes."""
    found = shots.at_frame(scene, frame)
    if found is None or found.shot is None:
        raise SceneError(f"Frame {frame} is in no shot.", "Go to a frame of a shot.")
    if frame not in found.shot.keyframes:
        shots.mark_keyframe(scene, found.uid, frame)
        found = shots.find(scene, found.uid)
    assert found.shot is not None
    return found.shot, frame


class ONMODEL_OT_cancel(bpy.types.Operator):
    """Stop drawing. What is drawn stays; other jobs of the server go on"""

    bl_idname = "onmodel.cancel"
    bl_label = "Cancel Drawing"

    @classmethod
    def poll(cls, _context: bpy.types.Context) -> bool:
        return drawing.current is not None

    def execute(self, _context: bpy.types.Context) -> set[str]:
        if drawing.current is not None:
            drawing.current.cancel()
        return {"FINISHED"}


classes = (ONMODEL_OT_draw, ONMODEL_OT_cancel)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Onmodel without a window.

    blender -b film.blend --command onmodel render --shots all --out DIR
    blender -b film.blend --command onmodel shots | check
    python -m addon render film.blend --shots 010,030 --out DIR      (bpy as a module)

The same RenderSession as the panel's. Progress goes to stderr, results (with --json as data) to
stdout. The exit code says how it ended: see ExitCode. Nothing of bpy is imported before a command
runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command_line import CommandError, ExitCode, HelpWanted, build_parser
from .core.client import Client
from .core.retakes import RetakeRule, default_takes, never
from .serving import server
from .terminal import Interrupts, Reporter, results

if TYPE_CHECKING:
    from .core.shots import Shot
    from .render.session import RenderSession

log = logging.getLogger(__name__)

__all__ = ["ExitCode", "main", "register", "unregister"]


def main(argv: Sequence[str], open_file: bool = False, program: str = "onmodel") -> int:
    """Runs a command; returns an ExitCode.

    argv: without the program. open_file: the .blend named on the command line is opened first.
    """
    try:
        parser = build_parser(open_file, program)
        options = parser.parse_args(list(argv))
        if options.command is None:
            parser.error("a command is missing: render, shots or check")
        with results:
            if open_file:
                _open(options.file)
            scene = _scene(options.scene)
            return int(_commands[options.command](scene, options))
    except HelpWanted:
        return int(ExitCode.ok)
    except CommandError as error:
        sys.stderr.write(f"onmodel: {error.message} {error.fix}".rstrip() + "\n")
        return int(error.code)


def _open(path: Path) -> None:
    import bpy

    if not path.is_file():
        raise CommandError(ExitCode.usage, f"There is no file {path}.", "Name a .blend file.")
    try:
        bpy.ops.wm.open_mainfile(filepath=str(path.resolve()))
    except RuntimeError as error:
        raise CommandError(
            ExitCode.usage, f"{path} cannot be opened: {str(error).strip()}", ""
        ) from None


def _scene(name: str | None) -> Any:
    import bpy

    if name is None:
        return bpy.context.scene
    scene = bpy.data.scenes.get(name)
    if scene is None:
        have = ", ".join(s.name for s in bpy.data.scenes)
        raise CommandError(ExitCode.usage, f"There is no scene {name}.", f"There are: {have}.")
    return scene


def run_shots(scene: Any, options: argparse.Namespace) -> ExitCode:
    """`onmodel shots`: one line a shot."""
    shots = _read_shots(scene)
    data = [_shot_data(s) for s in shots]
    if options.json:
        _write_json(data)
    for shot in [] if options.json else data:
        keyframes = ", ".join(str(f) for f in shot["keyframes"])
        mark = " " if shot["enabled"] else "-"
        results.write(
            f"{mark} {shot['name']:12} {shot['start']:5}-{shot['end']:<5} keyframes {keyframes}"
        )
    if not shots:
        raise CommandError(
            ExitCode.nothing_to_draw,
            "The film has no shot.",
            "Bind a camera to a marker on the timeline (Marker > Bind Camera to Markers).",
        )
    return ExitCode.ok


def run_check(scene: Any, options: argparse.Namespace) -> ExitCode:
    """`onmodel check`: what stands between the scene and its drawings."""
    from .scene import problems

    found = problems.validate(scene)
    if options.json:
        _write_json(
            [
                {"level": p.level, "message": p.message, "fix": p.fix, "about": p.about}
                for p in found
            ]
        )
    for p in [] if options.json else found:
        results.write(f"{p.level}: {p.message} {p.fix}".rstrip())
    if not found and not options.json:
        results.write("Nothing is wrong.")
    wrong = any(p.level == "error" for p in found)
    return ExitCode.nothing_to_draw if wrong else ExitCode.ok


def run_render(scene: Any, options: argparse.Namespace) -> ExitCode:
    """`onmodel render`."""
    from .scene import problems
    from .scene.errors import SceneError

    reporter = Reporter()
    errors = [p for p in problems.validate(scene, options.out is not None) if p.level == "error"]
    for problem in errors:
        reporter.say(f"error: {problem.message} {problem.fix}".rstrip())
    if errors:
        raise CommandError(ExitCode.nothing_to_draw, "Nothing can be drawn before that.")
    shots = _pick_shots(scene, options.shots)
    if options.model:
        scene.onmodel.model = options.model
    process = None
    try:
        connect, process = server(options, reporter)
        session = _session(scene, shots, options, connect)
        if options.dry_run:
            return _tell_plan(session, options)
        _drive(session, reporter)
        return _tell_result(session, options, reporter)
    except SceneError as error:
        raise CommandError(ExitCode.nothing_to_draw, error.message, error.fix) from None
    finally:
        if process is not None:
            process.stop(wait=10.0)


_commands: dict[str, Callable[[Any, argparse.Namespace], ExitCode]] = {
    "render": run_render,
    "shots": run_shots,
    "check": run_check,
}


# --- render --------------------------------------------------------------------------------------


def _session(
    scene: Any, shots: list[Shot], options: argparse.Namespace, connect: Callable[[], Client]
) -> RenderSession:
    from .render.session import RenderSession
    from .render.settings import TakeSettings
    from .scene.shots import sync as keep_shots

    if not (options.no_planes or options.dry_run):
        # The planes name their shots by what the rows keep, whatever is renamed later.
        keep_shots(scene)
    settings = TakeSettings(
        takes=options.takes,
        redraw=options.redraw,
        place=not options.no_planes,
        keep_maps=options.maps,
        retakes=_retakes(scene, options),
        face_pass=not options.no_face_pass,
        patience=options.wait,
    )
    return RenderSession(scene, shots, settings, connect, options.out)


def _retakes(scene: Any, options: argparse.Namespace) -> RetakeRule | None:
    """The rule of the command line, laid over the film's; None: as the film says."""
    from .scene.film import read_retakes

    if options.no_retakes:
        return never
    if options.retake_until is None and options.at_most is None:
        return None
    film = read_retakes(scene.onmodel.retakes)
    if options.retake_until is None and film is None:
        raise CommandError(
            ExitCode.usage,
            "--at-most says how many takes, but the film draws no retakes.",
            "Say until which score: --retake-until 0.45.",
        )
    score = film.score if options.retake_until is None and film else options.retake_until
    most = options.at_most or (film.most if film else default_takes)
    return RetakeRule(score, most)


def _drive(session: RenderSession, reporter: Reporter) -> None:
    """Steps to the end. Ctrl-C cancels exactly this render; a second one leaves at once."""
    with Interrupts() as interrupts:
        while not session.ended:
            session.step()
            reporter.progress(session.progress, session.message)
            if interrupts.count > 1:
                session.close()
            elif interrupts.count == 1 and session.state.name != "cancelling":
                reporter.say("Cancelling; press Ctrl-C again to leave at once.")
                session.cancel()
            if session.state.name not in ("capturing", "placing"):
                time.sleep(0.01)


def _tell_plan(session: RenderSession, options: argparse.Namespace) -> ExitCode:
    from .render.results import read_sidecar

    data = [
        {**item.to_data(), "drawn_before": read_sidecar(item.path) is not None}
        for item in session.items
    ]
    if options.json:
        _write_json({"keyframes": data})
    for item in [] if options.json else session.items:
        results.write(f"{item.shot} frame {item.frame} take {item.take}: {item.path}")
    if not session.items:
        raise CommandError(ExitCode.nothing_to_draw, "There is no keyframe to draw.")
    return ExitCode.ok


def _tell_result(
    session: RenderSession, options: argparse.Namespace, reporter: Reporter
) -> ExitCode:
    from .render.items import ItemState
    from .render.session import Failure, State

    code = {
        Failure.none: ExitCode.ok,
        Failure.scene: ExitCode.nothing_to_draw,
        Failure.server: ExitCode.no_server,
        Failure.keyframes: ExitCode.some_failed,
        Failure.disk: ExitCode.disk,
    }[session.failure]
    if session.state is State.cancelled:
        code = ExitCode.cancelled
    for note in session.notes:
        reporter.say(note)
    for item in session.items:
        if item.state is ItemState.failed:
            reporter.say(f"Shot {item.shot} frame {item.frame}: {item.message} {item.fix}".rstrip())
    reporter.say(f"{session.message} {session.fix}".rstrip())
    if options.save and not options.no_planes:
        _save(options.save, reporter)
    if options.json:
        _write_json({**session.to_data(), "exit_code": int(code)})
    else:
        for item in session.items:
            if item.state in (ItemState.done, ItemState.kept):
                results.write(str(item.path))
    return code


def _save(path: Path, reporter: Reporter) -> None:
    import bpy

    path = path.expanduser().resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        bpy.ops.wm.save_as_mainfile(filepath=str(path), copy=True, check_existing=False)
    except (OSError, RuntimeError) as error:
        raise CommandError(
            ExitCode.disk, f"{path} could not be saved: {str(error).strip()}", "Name another file."
        ) from None
    reporter.say(f"Saved {path}")


def _pick_shots(scene: Any, wanted: str) -> list[Shot]:
    """The shots that are named; of "all" those that are switched on."""
    from .core.shots import ShotError, pick_shots

    shots = _read_shots(scene)
    try:
        return pick_shots(shots, wanted)
    except ShotError as error:
        code = ExitCode.usage
        if not shots or wanted.strip().lower() == "all":
            code = ExitCode.nothing_to_draw
        raise CommandError(code, str(error)) from None


def _read_shots(scene: Any) -> list[Shot]:
    from .scene.errors import SceneError
    from .scene.shots import read_shots

    try:
        return list(read_shots(scene))
    except SceneError as error:
        raise CommandError(ExitCode.nothing_to_draw, error.message, error.fix) from None


def _shot_data(shot: Shot) -> dict[str, Any]:
    return {
        "name": shot.name,
        "enabled": shot.enabled,
        "start": shot.start,
        "end": shot.end,
        "camera": shot.camera,
        "keyframes": list(shot.keyframes),
        "prompt": shot.prompt,
    }


# --- output and registration ---------------------------------------------------------------------


def _write_json(data: Any) -> None:
    results.write(json.dumps(data, indent=1))


_registered: list[Any] = []


def register() -> None:
    """Makes `blender --command onmodel` known."""
    import bpy

    _registered.append(bpy.utils.register_cli_command("onmodel", _from_blender))


def unregister() -> None:
    """Takes the command away again."""
    import bpy

    while _registered:
        bpy.utils.unregister_cli_command(_registered.pop())


def _from_blender(argv: list[str]) -> int:
    return main(argv, program="blender --command onmodel")

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
import enum
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .core.client import Client, ClientError, ServerGone, WrongVersion
from .core.server_process import Address, ServerProcess, ServerState, find_server

if TYPE_CHECKING:
    from .core.shots import Shot
    from .render.session import RenderSession

log = logging.getLogger(__name__)


class ExitCode(enum.IntEnum):
    """How a command ended."""

    ok = 0
    crashed = 1
    """An error of Onmodel's own; the traceback is on stderr."""
    usage = 2
    """The command line is wrong, or names a shot or a file that is not there."""
    nothing_to_draw = 3
    """The scene has no keyframe to draw, or problems that have to be put right first."""
    no_server = 4
    """No server could be reached or started, or it does not fit."""
    some_failed = 5
    """Some keyframes could not be drawn; the others are."""
    cancelled = 6
    """Stopped by Ctrl-C; what was drawn by then is kept."""
    disk = 7
    """Results could not be written (disk full, no rights); what was written is whole."""


class CommandError(Exception):
    """Ends the command with this exit code; message and fix are sentences."""

    def __init__(self, code: ExitCode, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fix = fix


class Reporter:
    """Progress on stderr: one line that renews itself on a terminal, else a line per news."""

    bar_width = 24

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._last = ""
        self._shown_at = 0.0

    def say(self, text: str) -> None:
        """One line of its own."""
        self._clear()
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def progress(self, share: float, text: str) -> None:
        """How far it is, 0..1, and what is being done."""
        now = time.monotonic()
        if not self._tty:
            if text != self._last and now - self._shown_at > 1.0:
                sys.stderr.write(f"{share:4.0%} {text}\n")
                sys.stderr.flush()
                self._last, self._shown_at = text, now
            return
        if now - self._shown_at < 0.1:
            return
        full = round(share * self.bar_width)
        bar = "#" * full + "-" * (self.bar_width - full)
        line = f"[{bar}] {share:4.0%} {text}"[:110]
        sys.stderr.write(f"\r{line:<{len(self._last)}}")
        sys.stderr.flush()
        self._last, self._shown_at = line, now

    def _clear(self) -> None:
        if self._tty and self._last:
            sys.stderr.write("\r" + " " * len(self._last) + "\r")
            self._last = ""


class Interrupts:
    """Counts Ctrl-C and SIGTERM instead of dying of them.

    Blender in the background takes Ctrl-C for itself, so no KeyboardInterrupt would come.
    """

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None: a handler that Python did not set, which only its owner can set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, *_: object) -> None:
        self.count += 1


class Results:
    """The way out for results: the real stdout, while Blender's own chatter goes to stderr.

    Blender writes lines about files and renders to stdout, in the middle of any JSON.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def __enter__(self) -> Results:
        sys.stdout.flush()
        try:
            kept = os.dup(1)
        except OSError:
            return self  # no stdout at all, as in a Windows program without a console
        self._file = os.fdopen(kept, "w", encoding="utf-8")
        os.dup2(2, 1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            sys.stdout.flush()
            self._file.flush()
            os.dup2(self._file.fileno(), 1)
            self._file.close()
            self._file = None

    def write(self, text: str) -> None:
        """A line."""
        file = self._file or sys.stdout
        file.write(f"{text}\n")
        file.flush()


results = Results()


class Parser(argparse.ArgumentParser):
    """An argument parser that never ends Blender by itself."""

    def error(self, message: str) -> Any:
        raise CommandError(
            ExitCode.usage, f"{message[:1].upper()}{message[1:]}.", self.format_usage()
        )


class HelpWanted(Exception):
    """--help was given and has been answered."""


class HelpAction(argparse.Action):
    """--help that raises instead of ending the process."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show this help")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        sys.stdout.write(parser.format_help())
        raise HelpWanted


def build_parser(with_file: bool, program: str) -> argparse.ArgumentParser:
    """The command line. with_file: the .blend is an argument (python -m addon)."""
    codes = ", ".join(f"{c.value} {c.name.replace('_', ' ')}" for c in ExitCode)
    parser = Parser(
        prog=program,
        description="Draw the keyframes of a storyboard.",
        epilog=f"Exit codes: {codes}.",
        add_help=False,
    )
    parser.add_argument("-h", "--help", action=HelpAction)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    render = commands.add_parser("render", help="capture shots and have them drawn", add_help=False)
    shots = commands.add_parser("shots", help="list the shots of the film", add_help=False)
    check = commands.add_parser("check", help="say what is wrong with the film", add_help=False)
    for sub in (render, shots, check):
        sub.add_argument("-h", "--help", action=HelpAction)
        if with_file:
            sub.add_argument("file", type=Path, help="the .blend file")
        sub.add_argument("--scene", help="the scene; left out: the file's active one")
        sub.add_argument("--json", action="store_true", help="data on stdout")
    render.add_argument("--shots", default="all", help="all, or names with commas: 010,030 [all]")
    render.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the results [the film's]"
    )
    render.add_argument("--takes", type=takes_number, help="takes of each keyframe [as set]")
    render.add_argument("--model", help="model of the server [the film's]")
    render.add_argument("--dry-run", action="store_true", help="say what would be drawn, and stop")
    render.add_argument("--redraw", action="store_true", help="also what is drawn already")
    render.add_argument("--maps", action="store_true", help="keep the maps beside the results")
    render.add_argument("--no-planes", action="store_true", help="put no image planes in the scene")
    render.add_argument("--save", type=Path, metavar="FILE", help="save the scene with its planes")
    render.add_argument("--server", metavar="URL", help="a running server [start one here]")
    render.add_argument("--token", help="its token")
    render.add_argument(
        "--wait", type=float, default=20.0, metavar="SECONDS", help="for a lost server [20]"
    )
    render.add_argument("--server-command", default="", metavar="PATH", help="the server's program")
    return parser


def takes_number(text: str) -> int:
    """A number of takes, 1 to 99."""
    value = int(text)
    if not 1 <= value <= 99:
        raise argparse.ArgumentTypeError("takes are 1 to 99")
    return value


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
        connect, process = _server(options, reporter)
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
        patience=options.wait,
    )
    return RenderSession(scene, shots, settings, connect, options.out)


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


# --- server --------------------------------------------------------------------------------------


def _server(
    options: argparse.Namespace, reporter: Reporter
) -> tuple[Callable[[], Client], ServerProcess | None]:
    """A function that connects (called in threads), and the process if one was started here."""
    if options.server:
        try:
            Client(options.server, "").close()  # the address is looked at before anything is done
        except ClientError as error:
            raise CommandError(ExitCode.usage, error.message, error.fix) from None
        url, token = options.server, options.token or ""
        return (lambda: connected(Address(url, token))), None
    process = ServerProcess(find_server(options.server_command))
    if options.dry_run:
        return (lambda: connected(None)), None
    reporter.say("Starting the server.")
    if process.start() is ServerState.not_installed:
        raise CommandError(ExitCode.no_server, process.message, process.fix)
    return (lambda: connect_local(process)), process


def connected(address: Address | None) -> Client:
    """A client of this address whose server has answered and fits. Raises ClientError."""
    if address is None:
        raise ServerGone("No Onmodel server runs.", "Start it, or name one with --server.")
    client = Client(address.url, address.token)
    client.info()
    return client


def connect_local(process: ServerProcess, patience: float = 150.0) -> Client:
    """A client of the local server, which is started where it does not run. Raises ClientError.

    Blocks; for a thread. A server that has just died is noticed by its refusal to answer, so a
    second look follows.
    """
    end = time.monotonic() + patience
    while True:
        state = process.poll()
        if state is ServerState.running:
            try:
                return connected(process.address)
            except WrongVersion as error:
                process.mismatch(error.message, error.fix)
                raise
            except ServerGone:
                if time.monotonic() > end:
                    raise
        elif state in (ServerState.failed, ServerState.not_installed, ServerState.update_required):
            if process.tripped or state is not ServerState.failed:
                raise ServerGone(process.message, process.fix)
            process.start()
        elif state is ServerState.stopped:
            process.start()
        if time.monotonic() > end:
            raise ServerGone("The server did not start in time.", f"Its log: {process.log_file}.")
        time.sleep(0.05)


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

# SPDX-License-Identifier: GPL-3.0-or-later
"""The words of the command line, and how a command ends. No bpy."""

from __future__ import annotations

import argparse
import enum
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .core.retakes import default_takes


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
    render.add_argument(
        "--retake-until",
        type=score_number,
        metavar="SCORE",
        help="draw further takes until all faces score so much, a cosine [as set]",
    )
    render.add_argument(
        "--at-most",
        type=takes_number,
        metavar="TAKES",
        help=f"takes of a keyframe, with those that are drawn [as set, or {default_takes}]",
    )
    render.add_argument("--no-retakes", action="store_true", help="not even where they are set")
    render.add_argument("--no-face-pass", action="store_true", help="leave faces as first drawn")
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


def score_number(text: str) -> float:
    """A score, -1 to 1."""
    value = float(text)
    if not -1.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError("scores are -1 to 1")
    return value

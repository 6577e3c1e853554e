# SPDX-License-Identifier: GPL-3.0-or-later
"""`onmodel report FOLDER`: how well a film's characters are themselves.

Only the arguments are here, so that `onmodel --help` imports neither numpy nor Pillow.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_report_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `onmodel report` to the command line."""
    parser = commands.add_parser("report", help="a film's characters: scores, worst frames, sheets")
    parser.set_defaults(run=_run)
    parser.add_argument("folder", type=Path, help="drawn keyframes with their sidecars, and below")
    parser.add_argument(
        "--takes",
        choices=["best", "last", "all"],
        default="best",
        help="which take of a frame counts [best: its least good head scores highest]",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="the page [report.html in the folder]"
    )
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="write the contact sheet, too")
    parser.add_argument(
        "--before",
        type=Path,
        metavar="FOLDER",
        help="the same film drawn without the face pass; for --heads, and to stand beside each "
        "drawing of --sheet",
    )
    parser.add_argument("--shots", metavar="NAMES", help="for --sheet: only these, 010,020")
    parser.add_argument(
        "--heads", type=Path, metavar="PNG", help="write the sheet of heads before and after"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="the server's data folder, for --sheet's maps"
    )


def _run(options: argparse.Namespace) -> int:
    from onmodel.report.command import run

    return run(options)

# SPDX-License-Identifier: GPL-3.0-or-later
"""`onmodel faces …`: embedders, how like a character a picture's head is, a cast's thresholds.

Only the arguments are here, so that `onmodel --help` imports neither numpy nor Pillow.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from onmodel.faces.fix_cli import add_fix_parser


def head_box(text: str) -> tuple[float, float, float, float]:
    """X0,Y0,X1,Y1 in pixels. Raises ArgumentTypeError where it is none."""
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no box; write X0,Y0,X1,Y1.") from error
    if x1 <= x0 or y1 <= y0:
        raise argparse.ArgumentTypeError(f"{text} has no area; write X0,Y0,X1,Y1.")
    return (x0, y0, x1, y1)


def add_faces_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `onmodel faces` to the command line."""
    parser = commands.add_parser("faces", help="score, calibrate and fix heads")
    parser.set_defaults(run=_run)
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="embedders, and what each lacks here")
    scoring = actions.add_parser("score", help="score pictures against a character's references")
    scoring.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    scoring.add_argument(
        "--reference", type=Path, action="append", required=True, help="repeatable; three are usual"
    )
    scoring.add_argument(
        "--head",
        type=head_box,
        action="append",
        default=[],
        help="X0,Y0,X1,Y1 in the image, one for each IMAGE in order; left out: the largest found",
    )
    scoring.add_argument(
        "--reference-head",
        type=head_box,
        action="append",
        default=[],
        help="one for each --reference, in order; left out: as the file says, or the largest found",
    )
    scoring.add_argument(
        "--embedder",
        default="",
        help="rehearsal for the embedded model's drawings; left out: that where all boxes are "
        "given, else dlib",
    )
    scoring.add_argument("--provider", action="append", help="ONNX Runtime's, for insightface")
    scoring.add_argument("--accept-licence", action="store_true", help="for insightface's packs")
    calibrating = actions.add_parser(
        "calibrate", help="measure a film's cast, so that scores are read by thresholds of its own"
    )
    calibrating.add_argument("folder", type=Path, help="the film's drawn keyframes")
    calibrating.add_argument(
        "--good",
        type=Path,
        action="append",
        default=[],
        metavar="PNG",
        help="a drawn keyframe of it whose every head is right; repeatable",
    )
    calibrating.add_argument(
        "--data", type=Path, metavar="DIR", help="data folder [ONMODEL_HOME or the platform's]"
    )
    calibrating.add_argument("--json", action="store_true", help="print JSON")
    add_fix_parser(actions)
    for one in (listing, scoring):
        one.add_argument("--pack", type=Path, help="folder of an InsightFace pack")
        one.add_argument("--json", action="store_true", help="print JSON")


def _run(options: argparse.Namespace) -> int:
    from onmodel.faces.command import run

    return run(options)

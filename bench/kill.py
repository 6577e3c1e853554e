# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGKILL of the worker or the server in 20 random moments; python -m bench.kill [SEED]."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bench.harness import Figure, line
from tests.support.killing import kill_at_random

moments = 20


def run(seed: int = 20261122) -> list[Figure]:
    """Draws a job of the fake artist through 20 kills and counts what was lost or drawn twice."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = kill_at_random(Path(folder), moments, seed)
    note = (
        f"{outcome.keyframes} keyframes, {outcome.server_kills} kills of the server and "
        f"{moments - outcome.server_kills} of the worker, {outcome.finished_at_kills[-1]} done at "
        f"the last one, {outcome.seconds:.0f} s, seed {seed}"
    )
    return [
        Figure("kill: finished keyframes lost", outcome.lost, "", 0, "==", note),
        Figure("kill: finished keyframes drawn again", outcome.drawn_twice, "", 0, "=="),
        Figure("kill: keyframes not done in the end", outcome.unfinished, "", 0, "=="),
        Figure("kill: unfinished drawings begun anew", outcome.repeated),
    ]


if __name__ == "__main__":
    for figure in run(*(int(a) for a in sys.argv[1:])):
        sys.stdout.write(f"{line(figure)}\n")

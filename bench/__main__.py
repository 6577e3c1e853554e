# SPDX-License-Identifier: GPL-3.0-or-later
"""run.py bench [NAME ...] [--json]: prints figures with their bars; exits 1 where one is short."""

from __future__ import annotations

import argparse
import sys
import time

from bench.harness import Figure, all_ok, line, measure, to_json

groups = {
    "bridge": [
        "demo",
        "joints",
        "pose_drawing",
        "masks",
        "planes",
        "capture",
        "ticks",
        "transfer",
        "pipeline",
        "kill",
        "blenders",
    ],
    "cast": ["faces", "people", "leak", "seams", "bindings", "retakes", "ways", "regions"],
    "rehearsal": ["drawings", "identity", "training"],
}


def main(argv: list[str] | None = None) -> int:
    """Runs the named benches or groups (all groups when none is named)."""
    known = sorted({*groups, *(b for g in groups.values() for b in g)})
    parser = argparse.ArgumentParser(prog="run.py bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    unknown = [n for n in options.names if n not in known]
    if unknown:
        parser.error(f"no bench is called {', '.join(unknown)}; there are: {', '.join(known)}")
    wanted = [b for n in options.names or groups for b in groups.get(n, [n])]
    figures: list[Figure] = []
    for name in dict.fromkeys(wanted):
        started = time.monotonic()
        new = measure(name)
        figures += new
        if not options.json:
            for figure in new:
                print(line(figure), flush=True)
            print(f"      ({name}: {time.monotonic() - started:.0f} s)", flush=True)
    if options.json:
        print(to_json(figures))
    return 0 if all_ok(figures) else 1


if __name__ == "__main__":
    sys.exit(main())

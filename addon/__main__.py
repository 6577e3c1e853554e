# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m addon render film.blend ...`: the commands in plain Python with bpy as a module."""

from __future__ import annotations

import os
import sys


def run() -> int:
    """Registers the add-on's data in bpy and runs the command; returns its exit code."""
    try:
        import bpy
    except ImportError:
        sys.stderr.write(
            "onmodel: This Python has no Blender (the package bpy). "
            "Run `python3 run.py setup`, or use blender -b FILE --command onmodel.\n"
        )
        return 2
    from . import commands, registration

    if not hasattr(bpy.types.Scene, "onmodel"):
        registration.register()
    return commands.main(sys.argv[1:], open_file=True, program="python -m addon")


if __name__ == "__main__":
    code = run()
    sys.stdout.flush()
    sys.stderr.flush()
    # bpy 4.2 and 4.5 may hang or crash while the interpreter ends.
    os._exit(code)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The sidebar in a real Blender with a window, from Start Server to drawn keyframes, as a picture.

    python -m tools.sidebar_picture [--blender 5.2.2 | PATH] [--shot NAME ...]
        [--open PANEL ...] [--film BLEND] [--out PNG]

Needs no display (Xvfb is its own). In a Blender of the test matrix, which lives in a folder of its
own, the server is the one of this checkout; it is started and stopped by the panel. Prints what
tests/blender/sidebar_picture.py saw.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .blenders import BlenderMissing, DebianBlender, blenders, root

log = logging.getLogger(__name__)
default_out = root / "docs" / "images" / "sidebar.png"
screen = "-screen 0 1600x1300x24"
window = ["--window-geometry", "0", "0", "1600", "1300"]


def outer_line(blender: DebianBlender, inner: list[str], folder: Path) -> list[str]:
    """The command that runs `inner` inside the Blender's folder.

    The checkout and `folder` are found there under their own paths; /host is the whole machine, so
    that the server, which the Blender in there starts, runs out here.
    """
    place = shlex.quote(str(blender.folder))
    mounts = [f"mkdir -p {place}/host", f"mount --rbind / {place}/host"]
    for shared in (root, folder):
        at = shlex.quote(str(blender.folder) + str(shared))
        mounts += [f"mkdir -p {at}", f"mount --bind {shlex.quote(str(shared))} {at}"]
    program = folder / "server-program"
    server = [sys.executable, "-m", "onmodel.cli"]
    program.write_text(f'#!/bin/sh\nexec chroot /host env {shlex.join(server)} "$@"\n')
    program.chmod(0o755)
    settings = [
        *("HOME=/root", "XDG_RUNTIME_DIR=/tmp", "LIBGL_ALWAYS_SOFTWARE=1"),
        *("PYTHONDONTWRITEBYTECODE=1", f"ONMODEL_SERVER={program}"),
    ]
    enter = ["chroot", str(blender.folder), "env", *settings, *inner]
    script = " && ".join([*mounts, f"exec {shlex.join(enter)}"])
    return ["unshare", "-m", "sh", "-c", script]


def command(blender: str, folder: Path, arguments: list[str]) -> list[str]:
    """The command line for a Blender of the matrix by its version, or for an executable."""
    driver = [str(root / "tests" / "blender" / "sidebar_picture.py"), "--", *arguments]
    display = ["xvfb-run", "-a", "-s", screen]
    known = {b.version: b for b in blenders if isinstance(b, DebianBlender)}
    inner = [*display, "blender", "--factory-startup", *window, "--python", *driver]
    if blender in known:
        known[blender].prepare()
        return outer_line(known[blender], inner, folder)
    program = shutil.which(blender)
    if program is None:
        raise BlenderMissing(f"{blender} is neither one of {', '.join(known)} nor a program here.")
    inner[inner.index("blender")] = program
    return inner


def main(argv: list[str] | None = None) -> int:
    """python -m tools.sidebar_picture: see the module."""
    parser = argparse.ArgumentParser(prog="tools.sidebar_picture", description=__doc__)
    parser.add_argument("--blender", default="5.2.2", help="a version of the matrix, or a program")
    parser.add_argument("--shot", action="append", default=[], help="draw these only [all]")
    parser.add_argument("--open", action="append", default=[], help="open these panels only [all]")
    parser.add_argument("--film", type=Path, default=root / "samples" / "storyboard.blend")
    parser.add_argument("--out", type=Path, default=default_out)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="onmodel-window-") as name:
        folder = Path(name)
        film = shutil.copy(options.film, folder)  # its drawings go into a folder beside it
        picture = folder / "sidebar.png"
        arguments = [str(film), str(picture)]
        for shot in options.shot:
            arguments += ["--shot", shot]
        for label in options.open:
            arguments += ["--open", label]
        environment = {**os.environ, "ONMODEL_HOME": str(folder / "server")}
        try:
            line = command(options.blender, folder, arguments)
        except BlenderMissing as error:
            log.error("%s", error)
            return 1
        done = subprocess.run(
            line, cwd=root, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode or not picture.is_file():
            log.error("%s", (done.stdout + done.stderr)[-6000:])
            return done.returncode or 1
        options.out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, options.out)
    log.info("%s", next(line for line in done.stdout.splitlines() if line.startswith("{")))
    log.info("Picture: %s", options.out)
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())

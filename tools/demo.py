# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job on the sample: storyboard in, drawn keyframes, contact sheet and planes out.

Starts the server, runs the add-on's own `render` command on samples/storyboard.blend in the
Blender that is given, else in bpy, and lays contact_sheet.png and report.html beside the
keyframes in out/demo.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from onmodel.jobs.folders import default_data_folder
from onmodel.report.command import map_reader, write_page
from onmodel.report.output import lora_words
from onmodel.report.results import ReportError, sheet_of

log = logging.getLogger(__name__)
root = Path(__file__).resolve().parents[1]
start_limit = 120.0


class DemoError(RuntimeError):
    """The demo cannot go on; the message says why."""


@contextmanager
def running_server(data: Path, extra: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """A server on `data` for as long as the block runs: its URL and token."""
    with tempfile.TemporaryDirectory() as folder:
        ready, said = Path(folder) / "ready.json", Path(folder) / "server.log"
        line = [sys.executable, "-m", "onmodel.cli", "serve", "--data", str(data)]
        line += ["--parent-pid", str(os.getpid()), "--ready-file", str(ready), *extra]
        with said.open("wb") as output:
            process = subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT, cwd=root)
        try:
            limit = time.monotonic() + start_limit
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > limit:
                    words = said.read_text(errors="replace").strip()[-600:]
                    raise DemoError(f"The server did not start:\n{words}")
                time.sleep(0.05)
            address = json.loads(ready.read_text(encoding="utf-8"))
            yield address["url"], address["token"]
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


def render_command(blender: str | None, rest: list[str]) -> list[str]:
    """The command line that runs the add-on's `render` on the sample, in Blender or bpy."""
    if blender is None:
        return [sys.executable, "-m", "addon", "render", *rest]
    script = str(root / "tools" / "in_blender.py")
    return [blender, "-b", "--factory-startup", "--python", script, "--", "render", *rest]


def draw(output: Path, blender: str | None, data: Path, film: Path, extra: list[str]) -> int:
    """Renders the film into `output`; returns the command's exit code."""
    with running_server(data) as (url, token):
        rest = [str(film), "--shots", "all", "--out", str(output)]
        rest += ["--save", str(output / "demo.blend"), "--server", url, "--token", token, *extra]
        return subprocess.run(render_command(blender, rest), cwd=root, check=False).returncode


def lay_sheet(output: Path, data: Path) -> Path:
    """Writes the contact sheet and the page of what lies in `output`; returns the sheet's path."""
    path = output / "contact_sheet.png"
    sheet_of(output, map_reader(data)).save(path)
    _, _, table = write_page(output, output / "report.html")
    for row in table:
        words = lora_words(row)
        log.info(
            "%s: drawn with %s", row.character, f"the LoRA {words}" if words else "words alone"
        )
    return path


def main(argv: list[str] | None = None) -> int:
    """Command line: run.py demo [--blender PATH] [--output DIR] [--redraw] ..."""
    parser = argparse.ArgumentParser(prog="run.py demo", description=__doc__)
    parser.add_argument("--blender", help="a Blender to run in, instead of bpy")
    parser.add_argument("--output", type=Path, default=root / "out" / "demo")
    parser.add_argument("--film", type=Path, default=root / "samples" / "storyboard.blend")
    parser.add_argument("--data", type=Path, help="the server's data folder [the person's own]")
    options, extra = parser.parse_known_args(argv)
    output, data = options.output.resolve(), options.data or default_data_folder()
    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        code = draw(output, options.blender, data, options.film.resolve(), extra)
        if code:
            return code
        sheet = lay_sheet(output, data)
    except (DemoError, ReportError) as error:
        log.error("%s", error)
        return 1
    log.info("Contact sheet: %s", sheet)
    log.info("Scores of the characters: %s", output / "report.html")
    log.info("Scene with image planes: %s", output / "demo.blend")
    log.info("Done in %.0f s.", time.monotonic() - started)
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())

# SPDX-License-Identifier: GPL-3.0-or-later
"""The Blenders the add-on is held to, made where they are missing, and the Blender tier in each.

bpy wheels live in a virtual environment each; real Blenders are Debian's, in a folder each
(Linux, root, mmdebstrap). All of them are kept in the cache folder, outside the checkout.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)
root = Path(__file__).resolve().parents[1]


def cache_folder() -> Path:
    """Where big things are kept between runs: $ONMODEL_CACHE, else ~/.cache/onmodel."""
    return Path(os.environ.get("ONMODEL_CACHE") or Path.home() / ".cache" / "onmodel")


class BlenderMissing(RuntimeError):
    """A Blender is not here and cannot be made here; the message says why."""


@dataclass(frozen=True)
class TierResult:
    """The end of one pytest run: counts, and the tail of its output."""

    passed: int
    failed: int
    skipped: int
    tail: str


@dataclass(frozen=True)
class BpyWheel:
    """bpy from the package index, in its own virtual environment."""

    version: str
    python: str = "3.11"

    @property
    def name(self) -> str:
        return f"bpy {self.version}"

    @property
    def folder(self) -> Path:
        return cache_folder() / "blender" / f"bpy-{self.version}"

    def prepare(self) -> None:
        python = self.folder / "bin" / "python"
        if not python.exists():
            maker = shutil.which(f"python{self.python}")
            if sys.version.startswith(self.python):
                maker = sys.executable
            if maker is None:
                raise BlenderMissing(f"{self.name} needs Python {self.python}, not found here.")
            call([maker, "-m", "venv", str(self.folder)])
        wanted = [f"bpy=={self.version}", "requests", "pytest"]
        call([str(python), "-m", "pip", "install", "-q", *wanted])

    def run_tier(self, args: Sequence[str]) -> TierResult:
        python = str(self.folder / "bin" / "python")
        line = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *args]
        return tier_result(line, cwd=root)


@dataclass(frozen=True)
class DebianBlender:
    """A real Blender out of a Debian suite, in a folder, run by chroot."""

    version: str
    suite: str
    extra: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"Blender {self.version}"

    @property
    def folder(self) -> Path:
        return cache_folder() / "blender" / f"debian-{self.version}"

    def prepare(self) -> None:
        if (self.folder / "usr" / "bin" / "blender").exists():
            return
        if not sys.platform.startswith("linux") or os.geteuid() or not shutil.which("mmdebstrap"):
            raise BlenderMissing(f"{self.name} is made here by mmdebstrap, as root on Linux.")
        packages = "ca-certificates,blender,python3-numpy,python3-requests,python3-zstandard,"
        packages += "python3-pytest,xvfb,xauth,xdotool,imagemagick,libgl1-mesa-dri,libegl1,"
        packages += ",".join(["libglx-mesa0", *self.extra])
        line = ["mmdebstrap", "--variant=apt", f"--include={packages}", *self.options]
        call([*line, self.suite, str(self.folder)])

    def run_tier(self, args: Sequence[str]) -> TierResult:
        (self.folder / "repo").mkdir(exist_ok=True)
        inner = "blender -b --factory-startup --python /repo/tests/blender/runner.py -- -q "
        inner += " ".join(shlex.quote(a) for a in args)
        place = shlex.quote(str(self.folder))
        script = (
            f"mount --bind {shlex.quote(str(root))} {place}/repo && exec chroot {place} "
            "env HOME=/root LIBGL_ALWAYS_SOFTWARE=1 PYTHONDONTWRITEBYTECODE=1 "
            f"sh -c {shlex.quote('cd /repo && ' + inner)}"
        )
        return tier_result(["unshare", "-m", "sh", "-c", script], cwd=root)


Blender = BpyWheel | DebianBlender
blenders: tuple[Blender, ...] = (
    BpyWheel("4.2.23"),
    BpyWheel("4.5.15"),
    BpyWheel("5.0.1"),
    DebianBlender("4.3.2", "trixie"),
    DebianBlender(
        "5.2.2",
        "sid",
        extra=("python3-cattr",),
        options=('--aptopt=Acquire::Check-Valid-Until "false"',),
    ),
)


def call(args: list[str]) -> None:
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BlenderMissing(f"{args[0]} failed: {(done.stderr or done.stdout).strip()[-400:]}")


def tier_result(line: list[str], cwd: Path) -> TierResult:
    """Runs pytest by `line` and reads its closing counts. Raises BlenderMissing without any."""
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr

    def count(word: str) -> int:
        found = re.findall(rf"(\d+) {word}", output)
        return int(found[-1]) if found else 0

    passed, failed = count("passed"), count("failed") + count("errors?")
    if not passed and not failed:
        raise BlenderMissing(f"no test ran: {output.strip()[-400:]}")
    if done.returncode and not failed:
        failed = 1  # it ended badly after the last count, for instance by a crash
    return TierResult(passed, failed, count("skipped"), output[-6000:])


def main(argv: list[str] | None = None) -> int:
    """python -m tools.blenders [VERSION ...] [-- pytest args]: the tier in each Blender."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("versions", nargs="*", help="e.g. 4.2.23 5.2.2; all when none is named")
    arguments = list(sys.argv[1:] if argv is None else argv)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:cut])
    tests = arguments[cut + 1 :] or ["tests/blender"]
    bad = 0
    for blender in blenders:
        if options.versions and blender.version not in options.versions:
            continue
        try:
            blender.prepare()
            result = blender.run_tier(tests)
        except BlenderMissing as error:
            log.info("%-14s not run: %s", blender.name, error)
            bad += 1
            continue
        counts = f"{result.passed} passed, {result.failed} failed, {result.skipped} skipped"
        log.info("%-14s %s", blender.name, counts)
        if result.failed:
            log.info("%s", result.tail)
            bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())

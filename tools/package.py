# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the Blender extension: dist/onmodel-VERSION.zip, checked by Blender's own validator."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

log = logging.getLogger(__name__)
root = Path(__file__).resolve().parents[1]


class PackageError(RuntimeError):
    """The extension could not be built; the message says why."""


def extension_command(blender: str | None) -> list[str]:
    """The start of Blender's `extension` command line, which also ships inside bpy."""
    if blender:
        return [blender, "--factory-startup", "--command", "extension"]
    spec = importlib.util.find_spec("bpy")
    if spec is None or spec.origin is None:
        raise PackageError("Neither Blender nor bpy is here: name your Blender with --blender.")
    found = sorted(Path(spec.origin).parent.rglob("blender_ext.py"))
    if not found:
        raise PackageError("This bpy ships no extension command: name a Blender with --blender.")
    return [sys.executable, str(found[0])]


def stage(folder: Path) -> None:
    """Copies what the zip holds: addon/ as its root, the manifest, the licence."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(root / "addon", folder, dirs_exist_ok=True, ignore=ignore)
    for name in ("blender_manifest.toml", "LICENSE"):
        shutil.copy2(root / name, folder / name)


def build(output: Path, blender: str | None = None) -> Path:
    """Builds and validates the zip in `output`; returns its path. Raises PackageError."""
    tool = extension_command(blender)
    output.mkdir(parents=True, exist_ok=True)
    manifest = tomllib.loads((root / "blender_manifest.toml").read_text(encoding="utf-8"))
    path = output / f"{manifest['id']}-{manifest['version']}.zip"
    with tempfile.TemporaryDirectory() as temporary:
        stage(Path(temporary))
        call([*tool, "build", "--source-dir", temporary, "--output-filepath", str(path)])
    call([*tool, "validate", str(path)])
    return path


def call(args: list[str]) -> None:
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PackageError(f"{' '.join(args)}\n{done.stdout}{done.stderr}")


def main(argv: list[str] | None = None) -> int:
    """Command line: run.py package [--blender PATH] [--output DIR]."""
    parser = argparse.ArgumentParser(prog="run.py package", description=__doc__)
    parser.add_argument("--blender")
    parser.add_argument("--output", type=Path, default=root / "dist")
    options = parser.parse_args(argv)
    try:
        path = build(options.output, options.blender)
    except PackageError as error:
        log.error("%s", error)
        return 1
    log.info("%s (%d kB), valid", path, path.stat().st_size // 1024)
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())

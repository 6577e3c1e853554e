#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Onmodel from a fresh checkout: sets itself up in .venv, then runs one of its jobs.

    python3 run.py demo       draw the sample storyboard; results in out/demo
    python3 run.py test       ruff, the type checker, all tests
    python3 run.py serve      the server for your own Blender
    python3 run.py bench ...  the measured figures, each with its bar
    python3 run.py package    build and check the Blender extension in dist/
    python3 run.py setup      set up only

Standard library only, since it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parent
venv = root / ".venv"
stamp = venv / "onmodel-setup.json"
requirements = root / "requirements"
torch_version = "2.13.0"
blender_pythons = {(3, 11), (3, 13)}


class SetupError(RuntimeError):
    """Set-up cannot go on; the message says what to do."""


def say(text: str) -> None:
    """One line to the person, at once."""
    print(text, flush=True)


def venv_python() -> Path:
    """The interpreter of .venv on this system."""
    if os.name == "nt":
        return venv / "Scripts" / "python.exe"
    return venv / "bin" / "python"


def command(args: list[str], what: str) -> None:
    """Runs a step of the set-up; its own progress bars show."""
    done = subprocess.run(args, cwd=root, check=False)
    if done.returncode:
        raise SetupError(
            f"{what} failed (exit code {done.returncode}); the lines above say why. "
            "Nothing else was changed: mend that and run the same command again."
        )


def pip(*args: str, what: str) -> None:
    command([str(venv_python()), "-m", "pip", "install", "-q", "--progress-bar=on", *args], what)


def found_gpu() -> str:
    """The kind of accelerator in this machine: "cuda", "rocm", "mps" or "cpu"."""
    if sys.platform == "darwin":
        return "mps" if platform.machine() == "arm64" else "cpu"
    for program, kind in (("nvidia-smi", "cuda"), ("rocminfo", "rocm")):
        path = shutil.which(program)
        if path and subprocess.run([path], capture_output=True, check=False).returncode == 0:
            return kind
    return "cpu"


def offered_torch() -> str:
    """The build of torch that pip's own index serves to this machine: "cuda" or "cpu"."""
    args = [str(venv_python()), "-m", "pip", "install", "-q", "--dry-run", "--no-deps"]
    args += ["--ignore-installed", "--report", "-", f"torch=={torch_version}"]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"pip finds no torch {torch_version} here:\n{done.stderr.strip()}")
    metadata = json.loads(done.stdout)["install"][0]["metadata"]
    needs = " ".join(metadata.get("requires_dist", []))
    return "cuda" if "nvidia-" in needs or "cuda-" in needs else "cpu"


def install_torch() -> str:
    """Installs the torch build for the GPU found, else the CPU one. Returns the kind."""
    gpu = os.environ.get("ONMODEL_TORCH") or found_gpu()
    offered = offered_torch()
    say(f"  torch {torch_version} for {gpu}")
    if gpu == "mps" or gpu == offered:
        pip(f"torch=={torch_version}", what="Installing torch")
        return gpu
    # uv knows the index of every torch build, so none needs to be named here.
    pip("uv", what="Installing uv, which finds the right build of torch")
    backend = {"cpu": "cpu"}.get(gpu, "auto")
    args = [str(venv_python()), "-m", "uv", "pip", "install", "--python", str(venv_python())]
    command([*args, f"--torch-backend={backend}", f"torch=={torch_version}"], "Installing torch")
    return gpu


def pins() -> str:
    """A hash of everything that decides what .venv holds."""
    text = torch_version + sys.version.split()[0]
    for path in (*sorted(requirements.glob("*.txt")), root / "pyproject.toml"):
        text += path.read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def check_python(needs_bpy: bool) -> None:
    """Refuses a Python that the pinned packages do not exist for, with what to do."""
    version = sys.version_info[:2]
    if version < (3, 11):
        raise SetupError(f"This is Python {version[0]}.{version[1]}; use Python 3.11 or 3.13.")
    if version not in blender_pythons and needs_bpy:
        raise SetupError(
            f"Blender as a module exists for Python 3.11 and 3.13, and this is "
            f"{version[0]}.{version[1]}. Run this with one of those "
            "(python3.11 run.py ..., on Windows py -3.11 run.py ...), "
            "or name your Blender with --blender PATH."
        )


def set_up(parts: list[str]) -> None:
    """Makes .venv hold these parts as the pins say. Does nothing where it already does."""
    wanted = pins()
    have = json.loads(stamp.read_text()) if stamp.exists() else {}
    if have.get("pins") == wanted and set(parts) <= set(have.get("parts", [])):
        return
    check_python("blender" in parts)
    say("Setting up Onmodel in .venv (once; some minutes and about 3 GB)")
    if not venv_python().exists():
        command([sys.executable, "-m", "venv", str(venv)], "Making .venv")
    stamp.unlink(missing_ok=True)  # absent while incomplete, so that a stop here is made good
    pip("--upgrade", "pip", what="Updating pip")
    gpu = install_torch()
    for part in parts:
        say(f"  {part}")
        constraints = str(requirements / "constraints.txt")
        pip("-r", str(requirements / f"{part}.txt"), "-c", constraints, what=f"Installing {part}")
    say("  onmodel")
    pip("--no-deps", "-e", str(root), what="Installing onmodel")
    if "blender" in parts:
        check_bpy()
    known = set(have.get("parts", [])) if have.get("pins") == wanted else set()
    data = {"pins": wanted, "parts": sorted(known | set(parts)), "torch": gpu}
    stamp.write_text(json.dumps(data, indent=1))
    say("Set up.")


def check_bpy() -> None:
    """Blender as a module needs a few system libraries on a bare Linux; says which."""
    args = [str(venv_python()), "-c", "import bpy"]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    message = f"Blender as a module does not start here:\n{done.stderr.strip()}\n"
    if sys.platform.startswith("linux"):
        message += (
            "On Debian or Ubuntu this helps:\n  sudo apt-get install libgl1 libegl1 libxi6 "
            "libsm6 libxkbcommon0 libxrender1 libxfixes3"
        )
    raise SetupError(message)


def run_module(*args: str) -> int:
    """Runs a module of the project in .venv, in the project's folder."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "server")])}
    return subprocess.run([str(venv_python()), *args], cwd=root, env=environment).returncode


def run_tests(extra: list[str]) -> int:
    """ruff, mypy, the plain tests, then those in Blender, each in a process of its own."""
    if extra:
        return run_module("-m", "pytest", *extra)
    code = 0
    for name, args in (
        ("ruff", ["-m", "ruff", "check", "."]),
        ("format", ["-m", "ruff", "format", "--check", "."]),
        ("types", ["-m", "mypy"]),
        ("tests", ["-m", "pytest", "-q", "tests", "--ignore=tests/blender"]),
        ("tests in Blender", ["-m", "pytest", "-q", "tests/blender"]),
    ):
        say(f"\n== {name}")
        code = run_module(*args) or code
    return code


def main(argv: list[str]) -> int:
    """Sets up and runs one job; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    jobs = ("demo", "test", "serve", "bench", "package", "setup")
    parser.add_argument("job", choices=jobs)
    parser.add_argument("--blender", help="the Blender to use; found on PATH when not given")
    options, rest = parser.parse_known_args(argv)
    blender = options.blender or shutil.which("blender")
    if options.blender and not shutil.which(options.blender):
        raise SetupError(f"There is no Blender at {options.blender}.")
    parts = ["server"]
    if options.job in ("test", "bench") or (options.job != "serve" and not blender):
        parts.append("blender")
    if options.job in ("test", "bench"):
        parts.append("test")
    set_up(parts)
    if options.job == "setup":
        return 0
    if options.job == "test":
        return run_tests(rest)
    if options.job == "serve":
        return run_module("-m", "onmodel.cli", "serve", *rest)
    if options.job == "bench":
        return run_module("-m", "bench", *rest)
    given = ["--blender", blender] if blender else []
    return run_module("-m", f"tools.{options.job}", *given, *rest)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SetupError as error:
        say(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        say("Stopped. The same command goes on from here.")
        sys.exit(130)

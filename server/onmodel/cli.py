# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `onmodel`: serve, models, loras, jobs, train, faces, report, rehearsal.

Everything heavy is imported by the subcommand that needs it, so `onmodel --help` is instant.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onmodel.faces.cli import add_faces_parser
from onmodel.jobs.folders import DataFolder, default_data_folder
from onmodel.report.cli import add_report_parser
from onmodel.train.cli import add_train_parser
from onmodel.version import version

exit_ok, exit_failed, exit_usage = 0, 1, 2
default_artist = "onmodel.generate.artist:Artist"
default_trainer = "onmodel.train.job:Trainer"


def write(text: str) -> None:
    """A line to the standard output."""
    sys.stdout.write(f"{text}\n")


def complain(message: str, fix: str = "") -> None:
    """A sentence to the standard error."""
    sys.stderr.write(f"onmodel: {message} {fix}".rstrip() + "\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="onmodel", description="Keyframes from a storyboard.")
    parser.add_argument("--version", action="version", version=f"onmodel {version}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the server that Blender talks to")
    add_data(serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on [127.0.0.1]")
    serve.add_argument("--port", type=int, default=0, help="0: one that the system gives [0]")
    serve.add_argument("--token", help="session token; or ONMODEL_TOKEN; left out: a new one")
    serve.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name or address people use for a server that other machines reach; repeatable",
    )
    serve.add_argument("--parent-pid", type=int, metavar="PID", help="end when this process ends")
    serve.add_argument(
        "--ready-file", type=Path, metavar="FILE", help="write url, token and pid there when ready"
    )
    serve.add_argument(
        "--idle-exit", type=float, metavar="SECONDS", help="end when nobody called for so long"
    )
    serve.add_argument(
        "--keep-days", type=float, default=30.0, help="remember finished jobs so long [30]"
    )
    serve.add_argument(
        "--attempts", type=int, default=3, help="crashes after which a keyframe fails [3]"
    )
    serve.add_argument("--artist", default=default_artist, metavar="MODULE:CLASS", help="who draws")
    serve.add_argument(
        "--trainer", default=default_trainer, metavar="MODULE:CLASS", help="who trains"
    )
    serve.add_argument(
        "--train-root",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder whose pictures may be trained on; repeatable [the home folder]",
    )
    serve.set_defaults(run=run_serve)

    models = commands.add_parser("models", help="list the models that the server can draw with")
    add_data(models)
    models.add_argument("--artist", default=default_artist, metavar="MODULE:CLASS")
    add_json(models)
    models.set_defaults(run=run_models)

    loras = commands.add_parser("loras", help="list LoRAs, or check a LoRA file before using it")
    loras.add_argument("action", choices=["list", "check"])
    loras.add_argument("file", type=Path, nargs="?")
    add_data(loras)
    loras.add_argument("--artist", default=default_artist, metavar="MODULE:CLASS")
    add_json(loras)
    loras.set_defaults(run=run_loras)

    jobs = commands.add_parser(
        "jobs", help="list jobs and trainings of a data folder, server running or not"
    )
    add_data(jobs)
    add_json(jobs)
    jobs.set_defaults(run=run_jobs)

    add_train_parser(commands)
    add_faces_parser(commands)
    add_report_parser(commands)

    # Its program needs torch to know its options, so they are handed on unread (see `main`).
    rehearsal = commands.add_parser(
        "rehearsal", help="train and inspect the embedded model", add_help=False
    )
    rehearsal.set_defaults(run=run_rehearsal, rest=[])
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    """--data, with the platform's folder as its default."""
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="data folder [ONMODEL_HOME or the platform's]"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_serve(options: argparse.Namespace) -> int:
    """`onmodel serve`; exit codes in onmodel/api/serve.py."""
    from onmodel.api.serve import ServeError, ServeOptions, serve

    try:
        return serve(
            ServeOptions(
                data=options.data or default_data_folder(),
                host=options.host,
                port=options.port,
                token=options.token or os.environ.get("ONMODEL_TOKEN") or None,
                allow_hosts=tuple(options.allow_host),
                parent_pid=options.parent_pid,
                ready_file=options.ready_file,
                artist=options.artist,
                trainer=options.trainer,
                train_roots=tuple(options.train_root),
                idle_exit=options.idle_exit,
                keep_days=options.keep_days,
                max_crashes=max(1, options.attempts),
            )
        )
    except ServeError as error:
        complain(str(error))
        return error.code


def make_artist(options: argparse.Namespace) -> Any:
    """The artist of the command line, or None after a complaint."""
    name = options.artist
    module, _, attribute = name.partition(":")
    if options.data is not None:
        os.environ["ONMODEL_HOME"] = str(options.data)  # models lie in the data folder
    try:
        return getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        complain(f"The artist {name} cannot be loaded: {error}.", "Check the installation.")
        return None


def run_models(options: argparse.Namespace) -> int:
    """`onmodel models`."""
    artist = make_artist(options)
    if artist is None:
        return exit_failed
    models = artist.models()
    if options.json:
        write(json.dumps(models, indent=1))
    for model in [] if options.json else models:
        side = round(model["native_pixels"] ** 0.5)
        write(f"{model['name']:24} {model['family']:8} about {side} x {side}  {model['title']}")
    if not models:
        complain("There are no models.", "Put one into the models folder; see the README.")
        return exit_failed
    return exit_ok


def run_loras(options: argparse.Namespace) -> int:
    """`onmodel loras list` and `onmodel loras check FILE`."""
    if options.action == "check":
        return check_lora(options.file)
    artist = make_artist(options)
    if artist is None:
        return exit_failed
    loras = artist.loras()
    write(json.dumps(loras, indent=1)) if options.json else None
    for lora in [] if options.json else loras:
        write(f"{lora['name']:32} {lora['hash'][:16]}  {lora.get('title', '')}")
    return exit_ok


def check_lora(file: Path | None) -> int:
    """Says whether a LoRA file is sound; exit code 1 where it is not."""
    if file is None:
        complain("Which file?", "Write: onmodel loras check FILE.safetensors")
        return exit_usage
    from onmodel.models import lora_file
    from onmodel.models.errors import ModelError

    try:
        found = lora_file.check(file)
    except ModelError as error:
        complain(error.message, error.fix)
        return exit_failed
    except OSError as error:
        complain(f"{file} cannot be read: {error.strerror}.")
        return exit_failed
    trigger = f", trigger “{found.trigger}”" if found.trigger else ""
    family = found.family or "unknown"
    write(f"{file.name} is sound: {found.title}, {family} family{trigger}")
    return exit_ok


def run_jobs(options: argparse.Namespace) -> int:
    """`onmodel jobs`."""
    from onmodel.jobs import listing
    from onmodel.jobs.database import DatabaseError

    folder = DataFolder(options.data or default_data_folder())
    if not folder.database.exists():
        complain(f"There is no queue in {folder.root}.", "Start a server there first.")
        return exit_failed
    try:
        jobs = listing.rows(folder)
    except DatabaseError as error:
        complain(error.message, error.fix)
        return exit_failed
    if options.json:
        write(json.dumps(jobs, indent=1))
        return exit_ok
    for job in jobs:
        write(listing.text(job))
    return exit_ok


def run_rehearsal(options: argparse.Namespace) -> int:
    """`onmodel rehearsal …`: everything after it is that program's own."""
    try:
        program = importlib.import_module("onmodel.rehearsal.__main__")
    except ImportError as error:
        complain(f"The rehearsal model cannot be loaded: {error}.", "Install the whole server.")
        return exit_failed
    return int(program.main(options.rest) or 0)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = build_parser()
    options, rest = parser.parse_known_args(argv)
    if options.command == "rehearsal":
        options.rest = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)


if __name__ == "__main__":
    raise SystemExit(main())

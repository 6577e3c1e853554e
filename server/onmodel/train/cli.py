# SPDX-License-Identifier: GPL-3.0-or-later
"""`onmodel train`: a LoRA from a folder of pictures, without a server.

A run's folder holds plan.toml (what runs), preflight.txt, preflight.json, masks.png (look at it!)
and what the engine writes. Ctrl+C stops after the step that runs, with the state saved; --resume
goes on from there.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onmodel.models.errors import ModelError
from onmodel.train import plan_file, progress
from onmodel.train.plan import PlanError, TrainingPlan, check

if TYPE_CHECKING:
    from onmodel.train.preflight import Report

exit_ok, exit_failed, exit_usage, exit_cancelled = 0, 1, 2, 130
tools = ("kohya", "simpletuner", "ai-toolkit", "onetrainer")
shortcuts = {
    "name": "name",
    "images": "data.images",
    "regularisation": "data.regularisation",
    "trigger": "data.trigger",
    "noun": "data.noun",
    "base": "base.model",
}


def add_train_parser(commands: Any) -> None:
    """Add `train` to the command's subparsers. Imports nothing heavy."""
    parser = commands.add_parser(
        "train",
        help="train a character's LoRA",
        description="Train a character's LoRA. See docs/train.md.",
    )
    parser.add_argument("plan", type=Path, nargs="?", metavar="PLAN.toml", help="a plan file")
    parser.add_argument("--preset", metavar="NAME", help=", ".join(plan_file.preset_names()))
    parser.add_argument("--images", metavar="DIR", help="pictures with captions [data.images]")
    parser.add_argument("--regularisation", metavar="DIR", help="pictures of others of that noun")
    parser.add_argument("--trigger", metavar="WORD", help="the character's invented word")
    parser.add_argument("--noun", metavar="WORD", help="what it is: woman, man, robot …")
    parser.add_argument("--base", metavar="MODEL", help="registry name, folder or .safetensors")
    parser.add_argument("--name", metavar="NAME", help="of the LoRA's files")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any key of the plan, as adapter.rank=16; repeatable",
    )
    parser.add_argument("--preflight", action="store_true", help="only look, train nothing")
    parser.add_argument(
        "--no-measure", action="store_true", help="preflight without measured seconds per step"
    )
    parser.add_argument(
        "--export",
        nargs=2,
        metavar=("TOOL", "DIR"),
        help=f"write the plan for another trainer: {', '.join(tools)}",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument(
        "--server",
        metavar="URL",
        help="train on a running server (its address or ready file) and follow it there",
    )
    parser.add_argument("--token", metavar="T", help="the server's; or ONMODEL_TOKEN")
    parser.add_argument("--json", action="store_true", help="print JSON, one event a line")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """`onmodel train`; returns the exit code."""
    from onmodel.train.preflight import preflight

    try:
        _usage(options)
        plan = make_plan(options)
        if options.server:
            return _at_server(options, plan)
        if options.export:
            return _export(options, plan)
        if not options.preflight:
            return _train(options, plan)
        measure = None if options.no_measure else _measuring(plan)
        report = preflight(plan, measure, out=options.out)
        if options.out is not None:
            _keep(report, options.out)
        _show(report, options.json)
        return exit_ok if report.ok else exit_failed
    except _Usage as error:
        _complain(error)
        return exit_usage
    except (PlanError, ModelError) as error:
        _complain(error)
        return exit_failed
    except KeyboardInterrupt:  # before the run could save anything, or for the second time
        return exit_cancelled
    except OSError as error:
        _complain(PlanError(f"{error.filename or 'A file'}: {error.strerror or error}."))
        return exit_failed


class _Usage(PlanError):
    """The command line itself is wrong."""


def _complain(error: PlanError | ModelError) -> None:
    sys.stderr.write(f"onmodel train: {error.message} {error.fix}".rstrip() + "\n")


def _usage(options: argparse.Namespace) -> None:
    if options.resume:
        if options.plan or options.preset:
            raise _Usage(
                "A run is resumed with the plan that it began with.",
                "Write --resume --out DIR, and --set for what may change: run.* and validation.*.",
            )
    elif (options.plan is None) == (options.preset is None):
        raise _Usage(
            "Which plan?",
            "Write onmodel train PLAN.toml, or --preset and one of "
            f"{', '.join(plan_file.preset_names())}.",
        )
    if options.export and options.export[0] not in tools:
        raise _Usage(f"There is no export for {options.export[0]}.", f"Take {', '.join(tools)}.")
    if options.server and (options.out or options.export or options.resume):
        raise _Usage(
            "The server keeps the run, and goes on with it by itself.",
            "With --server, leave --out, --resume and --export out.",
        )
    apart = options.preflight or options.export or options.server
    if options.out is None and (options.resume or not apart):
        raise _Usage("Where to?", "Add --out and the folder of the run.")


def make_plan(options: argparse.Namespace) -> TrainingPlan:
    """The plan of the command line: file or preset, then the options, then --set. PlanError."""
    if options.resume:
        return plan_file.read(_plan_of(options.out))
    if options.plan is not None:
        plan = plan_file.read(options.plan)
    else:
        plan = plan_file.load_preset(options.preset)
    table: dict[str, Any] = {}
    for option, key in shortcuts.items():
        value = getattr(options, option)
        if value is not None:
            part, _, sub = key.rpartition(".")
            table.setdefault(part, {})[sub] = value
    table |= table.pop("", {})
    return plan_file.with_overrides(plan_file.from_table(table, plan), options.set)


def _plan_of(out: Path) -> Path:
    path: Path = out / "plan.toml"
    if not path.is_file():
        raise PlanError(f"There is no run in {out}.", "Leave --resume out to start one.")
    return path


def _at_server(options: argparse.Namespace, plan: TrainingPlan) -> int:
    """The plan to a server, whose folders are those of its own machine."""
    from onmodel.train import remote

    plan = check(plan_file.with_folders(plan, _whole))
    server = remote.find_server(options.server, options.token)
    if options.preflight:
        return remote.preflight(server, plan, options.json)
    return remote.train(server, plan, options.json, remote.at_the_terminal)


def _export(options: argparse.Namespace, plan: TrainingPlan) -> int:
    from onmodel.train.buckets import Order
    from onmodel.train.dataset import scan
    from onmodel.train.export_configs import export

    tool, folder = options.export
    check(plan)
    data = scan(plan.data)
    written = export(plan, data, Order(data.pictures, plan), tool, Path(folder))
    if options.json:
        progress.line({"files": [p.name for p in written.files], "missing": list(written.missing)})
        return exit_ok
    lines = [f"Written to {folder}: {', '.join(p.name for p in written.files)}"]
    lines += [f"{len(data.refused)} refused pictures are left out."] if data.refused else []
    lines += [f"Start it with: {written.command}"]
    lines += [f"{tool} cannot do this part of the plan:"] if written.missing else []
    lines += [f"  {missing}" for missing in written.missing]
    sys.stdout.write("\n".join(lines) + "\n")
    return exit_ok


def _train(options: argparse.Namespace, plan: TrainingPlan) -> int:
    from onmodel.train.preflight import preflight

    out: Path = options.out
    if not options.resume and (out / "plan.toml").exists():
        raise PlanError(
            f"There is a run in {out} already.", "Add --resume to go on with it, or take another."
        )
    report = preflight(plan, out=out)
    if not options.json or not report.ok:
        _show(report, options.json)
    if not report.ok:
        return exit_failed
    _keep(report, out)
    from onmodel.train.engine import train

    show = progress.events(options.json)
    with _interrupt() as cancelled:
        result = train(_absolute(plan), out, show, cancelled, resume=options.resume)
    if not result.finished:
        sys.stderr.write(f"Stopped. Go on with: onmodel train --resume --out {out}\n")
        return exit_cancelled
    return exit_ok


def _whole(folder: str) -> str:
    return str(Path(folder).expanduser().absolute())


def _absolute(plan: TrainingPlan) -> TrainingPlan:
    """The plan with absolute folders: a run is resumed from anywhere."""
    from onmodel.train.estimates import model_path

    plan = plan_file.with_folders(plan, _whole)
    model = model_path(plan.base)
    if model is None:
        return plan
    return replace(plan, base=replace(plan.base, model=str(model.absolute())))


def _measuring(plan: TrainingPlan) -> Callable[[], Any]:
    def measure() -> Any:
        from onmodel.train import engine

        return engine.measure(plan)

    return measure


def _show(report: Report, as_json: bool) -> None:
    from onmodel.train.report_text import text

    if as_json:
        progress.line({"type": "preflight", **report.json()})
    else:
        progress.say(text(report))


def _keep(report: Report, out: Path) -> None:
    """The report and the sheet of masks into the run's folder."""
    from onmodel.train.report_text import overlay_sheet, text

    out.mkdir(parents=True, exist_ok=True)
    _write(out / "preflight.txt", text(report) + "\n")
    _write(out / "preflight.json", json.dumps(report.json(), indent=1, ensure_ascii=False) + "\n")
    sheet = overlay_sheet(report)
    if sheet is not None:
        sheet.save(out / "masks.png")


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(content, "utf-8")
    part.replace(path)


@contextmanager
def _interrupt() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl+C or SIGTERM came. A second Ctrl+C ends the program at once."""
    came = False

    def stop(number: int, frame: object) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = True
        sys.stderr.write("Stopping after this step; once more to end at once.\n")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

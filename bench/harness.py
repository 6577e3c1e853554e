# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures with their bars, and the table that `run.py bench` prints.

A bench is a module in this folder with `run() -> list[Figure]`. A group (bench bridge) is a list
of benches. A figure that could not be taken is short, with the reason: it is never left out.
"""

from __future__ import annotations

import json
import operator
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

compare: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Figure:
    """One measured number.

    bar and op: what it must reach, e.g. op "<=", bar 20; bar None: printed for information.
    value None: it could not be measured; note says why.
    """

    name: str
    value: float | None
    unit: str = ""
    bar: float | None = None
    op: str = "<="
    note: str = ""

    @property
    def verdict(self) -> str:
        """ "ok", "short", or "info" where there is no bar."""
        if self.bar is None:
            return "info" if self.value is not None else "short"
        if self.value is None:
            return "short"
        return "ok" if compare[self.op](self.value, self.bar) else "short"


def line(figure: Figure) -> str:
    """One line of the table: verdict, name, value, bar, note."""
    value = "not measured" if figure.value is None else f"{figure.value:.4g} {figure.unit}".strip()
    bar = "" if figure.bar is None else f"bar {figure.op} {figure.bar:g} {figure.unit}".strip()
    text = f"{figure.verdict:5} {figure.name:58} {value:>18}   {bar:22}"
    return (text + (f" {figure.note}" if figure.note else "")).rstrip()


def to_json(figures: Iterable[Figure]) -> str:
    """All figures as a JSON list, verdict included."""
    return json.dumps([{**asdict(f), "verdict": f.verdict} for f in figures], indent=1)


def all_ok(figures: Iterable[Figure]) -> bool:
    """True where no figure is short."""
    return all(f.verdict != "short" for f in figures)


def write_figures(path: Path, figures: list[dict[str, Any]]) -> None:
    """Figures as JSON in a file, for the process that asked."""
    path.write_text(json.dumps(figures), encoding="utf-8")


def measure(name: str) -> list[Figure]:
    """The figures of one bench, run in a process of its own.

    A bench that breaks is a short figure with its last words, never a missing one.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "figures.json"
        line = [sys.executable, "-m", "bench.one", name, str(result)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if not result.exists():
            words = (done.stderr or done.stdout).strip().splitlines()
            last = words[-1] if words else f"exit code {done.returncode}"
            return [Figure(f"{name} did not run", None, note=last)]
        return [Figure(**f) for f in json.loads(result.read_text(encoding="utf-8"))]

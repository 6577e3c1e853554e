# SPDX-License-Identifier: GPL-3.0-or-later
"""What a training tells a person at the command line, or a program that reads lines of JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

seconds_between_lines = 5.0


def line(data: dict[str, Any]) -> None:
    """A line of JSON to the standard output."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """Text to the standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def events(as_json: bool) -> Callable[[str, dict[str, Any]], None]:
    """What the engine reports, as lines; in text, steps at most every five seconds."""
    shown = begun = time.monotonic()
    first: int | None = None

    def show(kind: str, values: dict[str, Any]) -> None:
        nonlocal shown, begun, first
        now = time.monotonic()
        if as_json:
            line({"type": kind, **values})
        elif kind == "step":
            step, of = int(values["step"]), int(values["of"])
            if first is None:
                first, begun = step, now
            elif now - shown >= seconds_between_lines or step == of:
                left = (now - begun) / max(1, step - first) * (of - step)
                say(f"step {step} of {of}, loss {_short(values['loss'])}, {duration(left)} left")
                shown = now
        elif kind == "caching":
            if now - shown >= seconds_between_lines or values["done"] == values["of"]:
                say(f"caching {values['done']} of {values['of']}")
                shown = now
        elif kind == "chosen":
            say(values["sentence"])
        elif "message" in values:
            say(f"{kind}: {values['message']} {values.get('fix', '')}".rstrip())
        else:
            say(f"{kind}: " + ", ".join(f"{key} {_short(v)}" for key, v in values.items()))

    return show


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_short(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

# SPDX-License-Identifier: GPL-3.0-or-later
"""Stopping a training politely."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def stoppable() -> Iterator[list[int]]:
    """A list that gets the signal's number when the run is asked to stop (SIGTERM, SIGINT)."""
    asked: list[int] = []
    before = {
        s: signal.signal(s, lambda number, _: asked.append(number))
        for s in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

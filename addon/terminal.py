# SPDX-License-Identifier: GPL-3.0-or-later
"""What a command tells the person: progress on stderr, results on stdout, Ctrl-C. No bpy."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import IO, Any


class Reporter:
    """Progress on stderr: one line that renews itself on a terminal, else a line per news."""

    bar_width = 24

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._last = ""
        self._shown_at = 0.0

    def say(self, text: str) -> None:
        """One line of its own."""
        self._clear()
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def progress(self, share: float, text: str) -> None:
        """How far it is, 0..1, and what is being done."""
        now = time.monotonic()
        if not self._tty:
            if text != self._last and now - self._shown_at > 1.0:
                sys.stderr.write(f"{share:4.0%} {text}\n")
                sys.stderr.flush()
                self._last, self._shown_at = text, now
            return
        if now - self._shown_at < 0.1:
            return
        full = round(share * self.bar_width)
        bar = "#" * full + "-" * (self.bar_width - full)
        line = f"[{bar}] {share:4.0%} {text}"[:110]
        sys.stderr.write(f"\r{line:<{len(self._last)}}")
        sys.stderr.flush()
        self._last, self._shown_at = line, now

    def _clear(self) -> None:
        if self._tty and self._last:
            sys.stderr.write("\r" + " " * len(self._last) + "\r")
            self._last = ""


class Interrupts:
    """Counts Ctrl-C and SIGTERM instead of dying of them.

    Blender in the background takes Ctrl-C for itself, so no KeyboardInterrupt would come.
    """

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None: a handler that Python did not set, which only its owner can set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, *_: object) -> None:
        self.count += 1


class Results:
    """The way out for results: the real stdout, while Blender's own chatter goes to stderr.

    Blender writes lines about files and renders to stdout, in the middle of any JSON.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def __enter__(self) -> Results:
        sys.stdout.flush()
        try:
            kept = os.dup(1)
        except OSError:
            return self  # no stdout at all, as in a Windows program without a console
        self._file = os.fdopen(kept, "w", encoding="utf-8")
        os.dup2(2, 1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            sys.stdout.flush()
            self._file.flush()
            os.dup2(self._file.fileno(), 1)
            self._file.close()
            self._file = None

    def write(self, text: str) -> None:
        """A line."""
        file = self._file or sys.stdout
        file.write(f"{text}\n")
        file.flush()


results = Results()

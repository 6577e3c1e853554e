# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks and lifelines between processes, the same on Linux, macOS and Windows.

A lock is the operating system's own on an open file: it ends with the process, however that ends,
so there is nothing stale to clean up.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from pathlib import Path

log = logging.getLogger(__name__)


class LockTaken(Exception):
    """Another process holds the lock."""


class FileLock:
    """An exclusive lock on a file, held until `release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1

    def acquire(self, timeout: float = 0.0) -> None:
        """Takes the lock, waiting up to `timeout` seconds. Raises LockTaken."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        deadline = time.monotonic() + timeout
        while True:
            try:
                _lock(descriptor)
                break
            except OSError as error:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    raise LockTaken(str(self.path)) from error
                time.sleep(0.02)
        self._descriptor = descriptor

    def release(self) -> None:
        """Gives the lock back; harmless when it is not held."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def die_with_parent(parent: int) -> None:
    """Has Linux kill this process when its parent ends; elsewhere the worker's pipe must do.

    parent: the process id of the parent as the parent told it.
    """
    if not sys.platform.startswith("linux"):
        return
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG, linux/prctl.h
    with contextlib.suppress(OSError):  # a libc without prctl: the pipe remains
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        # The parent ended before the call above could take effect.
        os.kill(os.getpid(), signal.SIGKILL)

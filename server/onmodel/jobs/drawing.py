# SPDX-License-Identifier: GPL-3.0-or-later
"""The runner of drawings: takes keyframes, has the artist draw them, hands them in."""

from __future__ import annotations

import logging
import sqlite3
import time
from typing import Any

from onmodel.jobs.artist import Artist, DrawError
from onmodel.jobs.blobs import BlobError, BlobStore, disk_full_error, is_disk_full
from onmodel.jobs.database import is_full
from onmodel.jobs.leases import Leased, Leases

log = logging.getLogger(__name__)

report_interval = 0.1
"""Seconds between two progress events of one keyframe; more would only be noise."""


class DrawingRunner:
    """Draws the keyframes of a queue."""

    def __init__(self, artist: Artist, leases: Leases, blobs: BlobStore) -> None:
        self.artist = artist
        self.leases = leases
        self.blobs = blobs
        self._reported: dict[str, float] = {}

    def run_next(self) -> bool:
        """Draws the next batch; False if nothing could be taken."""
        batch = self.leases.claim(self.artist.batch_key, self.artist.max_batch)
        if batch:
            self._draw(batch)
        return bool(batch)

    def _draw(self, batch: list[Leased]) -> None:
        open_tasks = {leased.task.id: leased for leased in batch}

        def report(task_id: str, kind: str, data: dict[str, Any]) -> None:
            leased = open_tasks.get(task_id)
            if leased is not None:
                self._report(leased, kind, data)

        def cancelled(task_id: str) -> bool:
            leased = open_tasks.get(task_id)
            return leased is None or not self.leases.holds(leased)

        try:
            tasks = [leased.task for leased in batch]
            for task_id, drawn in self.artist.draw(tasks, self.blobs, report, cancelled):
                leased = open_tasks.pop(task_id)
                self._hand_in(leased, drawn.png, drawn.record)
        except DrawError as error:
            for task_id in error.task_ids or list(open_tasks):
                failed = open_tasks.pop(task_id, None)
                if failed is not None:
                    self.leases.fail(failed, error.message, error.fix)
        except BlobError as error:
            self._fail_or_split(open_tasks, error.message, error.fix)
        except sqlite3.OperationalError:
            raise
        except Exception as error:
            # The one door for an artist's bugs: each becomes a sentence at its keyframe, and the
            # queue goes on.
            log.exception("The artist failed.")
            message = f"Drawing failed: {type(error).__name__}: {error}"
            self._fail_or_split(
                open_tasks, message[:500], "Retry it; if it fails again, see the server's log."
            )
        else:
            self._fail_or_split(
                open_tasks if len(batch) == 1 else {},
                "The artist ended without a drawing.",
                "Retry it; if it fails again, see the server's log.",
            )
        self._reported.clear()
        for leased in open_tasks.values():
            if self.leases.give_back(leased, alone=True):
                log.warning("Keyframe %s came back undrawn; it is queued alone.", leased.task.id)

    def _fail_or_split(self, open_tasks: dict[str, Leased], message: str, fix: str) -> None:
        """Fails the task that was drawn alone; of a batch, nobody knows whose fault it was."""
        if len(open_tasks) == 1:
            _, leased = open_tasks.popitem()
            self.leases.fail(leased, message, fix)

    def _report(self, leased: Leased, kind: str, data: dict[str, Any]) -> None:
        step, steps = data.get("step"), data.get("steps")
        if kind == "loading":
            self.leases.report(leased, kind, message=data.get("message"))
            return
        now = time.monotonic()
        if kind == "preview":
            self.leases.report(
                leased, kind, step=step, steps=steps, blob=self.blobs.put(data["png"])
            )
        elif now - self._reported.get(leased.task.id, 0.0) >= report_interval or step == steps:
            self._reported[leased.task.id] = now
            self.leases.report(leased, kind, step=step, steps=steps)

    def _hand_in(self, leased: Leased, png: bytes, record: dict[str, Any]) -> None:
        if not self.leases.holds(leased):
            return
        try:
            blob = self.blobs.put(png)
            self.leases.commit(leased, blob, record)
        except (OSError, sqlite3.OperationalError, BlobError) as error:
            full = (
                (isinstance(error, OSError) and is_disk_full(error))
                or (isinstance(error, sqlite3.OperationalError) and is_full(error))
                or (isinstance(error, BlobError) and error.code == "disk_full")
            )
            if full:
                sentence = disk_full_error()
                self.leases.fail(leased, sentence.message, "Free some space on it, then retry.")
            elif isinstance(error, BlobError):
                self.leases.fail(leased, error.message, error.fix)
            else:
                raise

# SPDX-License-Identifier: GPL-3.0-or-later
"""The queue as a worker sees it: take keyframes under a lease, report, hand in, give back.

Everything a worker writes asks for its lease's token in the same transaction (table_leases.py), so
there is one commit for each drawing.
"""

from __future__ import annotations

import json
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onmodel.jobs.artist import Task
from onmodel.jobs.blobs import BlobStore
from onmodel.jobs.database import Database
from onmodel.jobs.events import add_event
from onmodel.jobs.queue import Change, end_keyframe
from onmodel.jobs.table_leases import TableLeases, lease_seconds

log = logging.getLogger(__name__)

look_ahead = 64
"""How many waiting keyframes are looked at to fill a batch."""


@dataclass(frozen=True)
class Leased:
    """A task with the token that allows its commit."""

    task: Task
    token: str


class Leases(TableLeases):
    """What the worker called `worker` does to the queue."""

    table, key = "keyframe", "id"

    def __init__(
        self, database: Database, blobs: BlobStore, worker: str, max_crashes: int = 3
    ) -> None:
        super().__init__(database, worker, max_crashes)
        self.blobs = blobs

    def claim(
        self,
        batch_key: Callable[[dict[str, Any]], str],
        max_batch: Callable[[dict[str, Any]], int],
    ) -> list[Leased]:
        """Takes the next keyframe and those waiting that may be drawn with it; [] if none wait.

        Never takes a key that is being drawn: its drawing will do for both. Takes nothing while a
        training is held: the machine does one or the other.
        """
        chosen = self._choose(batch_key, max_batch)
        if not chosen:
            return []
        leased = []
        with self.database.write() as connection:
            for row, request in chosen:
                token = secrets.token_hex(16)
                now = time.time()
                # The row may have been cancelled or taken since it was chosen.
                taken = connection.execute(
                    "UPDATE keyframe SET state = 'loading', lease = ?, worker = ?,"
                    " lease_until = ?, started_at = ?, step = 0, steps = 0"
                    " WHERE id = ? AND state = 'queued' AND NOT EXISTS (SELECT 1 FROM keyframe k"
                    " WHERE k.draw_key = keyframe.draw_key AND k.lease IS NOT NULL)"
                    " AND NOT EXISTS (SELECT 1 FROM training WHERE lease IS NOT NULL)",
                    (token, self.worker, now + lease_seconds, now, row["id"]),
                ).rowcount
                if taken:
                    add_event(connection, row["job"], "loading", row["id"])
                    leased.append(Leased(Task(row["id"], request), token))
        return leased

    def _choose(
        self,
        batch_key: Callable[[dict[str, Any]], str],
        max_batch: Callable[[dict[str, Any]], int],
    ) -> list[tuple[sqlite3.Row, dict[str, Any]]]:
        rows = (
            self.database.connection()
            .execute(
                "SELECT id, job, draw_key, request, alone, priority FROM keyframe"
                " WHERE state = 'queued' AND draw_key NOT IN"
                " (SELECT draw_key FROM keyframe WHERE lease IS NOT NULL)"
                " ORDER BY priority DESC, queued_at, position LIMIT ?",
                (look_ahead,),
            )
            .fetchall()
        )
        if not rows:
            return []
        first = rows[0]
        request = json.loads(first["request"])
        chosen = [(first, request)]
        limit = 1 if first["alone"] else max(1, max_batch(request))
        if limit > 1:
            key, draw_keys = batch_key(request), {first["draw_key"]}
            for row in rows[1:]:
                if len(chosen) == limit:
                    break
                if row["alone"] or row["priority"] != first["priority"]:
                    continue
                request = json.loads(row["request"])
                if row["draw_key"] not in draw_keys and batch_key(request) == key:
                    draw_keys.add(row["draw_key"])
                    chosen.append((row, request))
        return chosen

    def holds(self, leased: Leased) -> bool:
        """Whether the keyframe is still this worker's to draw."""
        return self._held(self.database.connection(), leased.task.id, leased.token)

    def report(self, leased: Leased, kind: str, **data: Any) -> bool:
        """Tells of progress: kind loading, sampling or preview; False if the lease is lost."""
        with self.database.write() as connection:
            row = self._row(connection, leased)
            if row is None:
                return False
            if kind != "loading":
                connection.execute(
                    "UPDATE keyframe SET state = 'sampling', step = ?, steps = ? WHERE id = ?",
                    (data.get("step", 0), data.get("steps", 0), row["id"]),
                )
            add_event(connection, row["job"], kind, row["id"], **data)
        return True

    def commit(self, leased: Leased, blob: str, record: dict[str, Any]) -> bool:
        """Hands a drawing in; its blob is stored durably already. False if the lease is lost.

        Waiting keyframes of the same key are done with it.
        """
        data = json.dumps(record, separators=(",", ":"))
        with self.database.write(durable=True) as connection:
            row = self._row(connection, leased)
            if row is None:
                return False
            connection.execute(
                "INSERT INTO result (draw_key, blob, record, created) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (draw_key) DO UPDATE SET blob = excluded.blob,"
                " record = excluded.record, created = excluded.created",
                (row["draw_key"], blob, data, time.time()),
            )
            end_keyframe(connection, row, Change("done", blob, data))
            for twin in connection.execute(
                "SELECT id, job FROM keyframe WHERE draw_key = ? AND state = 'queued'",
                (row["draw_key"],),
            ).fetchall():
                end_keyframe(connection, twin, Change("done", blob, data, reused=True))
        return True

    def fail(self, leased: Leased, message: str, fix: str) -> bool:
        """Ends a keyframe with a sentence; False if the lease is lost."""
        with self.database.write(durable=True) as connection:
            row = self._row(connection, leased)
            if row is None:
                return False
            end_keyframe(connection, row, Change("failed", message=message, fix=fix))
        return True

    def give_back(self, leased: Leased, alone: bool) -> bool:
        """Queues a keyframe again at its old place; False if the lease is lost."""
        with self.database.write(durable=True) as connection:
            row = self._row(connection, leased)
            if row is None:
                return False
            self._queue_again(connection, row, alone)
        return True

    def recover(self, crashed: bool) -> int:
        """Queues again what this worker held when it ended; how many keyframes that were.

        Only for when the worker is known to be gone. crashed: it died by itself while drawing, so
        each keyframe it held is suspect: drawn alone from now on, and failed at max_crashes.
        """
        with self.database.write(durable=True) as connection:
            rows = connection.execute(
                "SELECT id, job, crashes, alone FROM keyframe"
                " WHERE worker = ? AND lease IS NOT NULL ORDER BY position",
                (self.worker,),
            ).fetchall()
            for row in rows:
                crashes = row["crashes"] + int(crashed)
                connection.execute(
                    "UPDATE keyframe SET crashes = ? WHERE id = ?", (crashes, row["id"])
                )
                if crashed and crashes >= self.max_crashes:
                    message = (
                        f"The drawing process died {crashes} times while drawing this keyframe."
                    )
                    fix = (
                        "It may have run out of memory: draw at a smaller size or close other "
                        "programs, then retry. The server's log has the details."
                    )
                    end_keyframe(connection, row, Change("failed", message=message, fix=fix))
                else:
                    self._queue_again(connection, row, bool(row["alone"]) or crashed)
        return len(rows)

    def _expired(self, connection: sqlite3.Connection, row: sqlite3.Row) -> None:
        self._queue_again(connection, row, alone=True)

    def _queue_again(self, connection: sqlite3.Connection, row: sqlite3.Row, alone: bool) -> None:
        connection.execute(
            "UPDATE keyframe SET state = 'queued', lease = NULL, worker = NULL,"
            " lease_until = NULL, alone = ?, step = 0, steps = 0 WHERE id = ?",
            (int(alone), row["id"]),
        )
        add_event(connection, row["job"], "queued", row["id"])

    def _row(self, connection: sqlite3.Connection, leased: Leased) -> sqlite3.Row | None:
        row: sqlite3.Row | None = connection.execute(
            "SELECT id, job, draw_key FROM keyframe WHERE id = ? AND lease = ?",
            (leased.task.id, leased.token),
        ).fetchone()
        return row

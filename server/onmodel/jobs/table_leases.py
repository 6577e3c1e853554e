# SPDX-License-Identifier: GPL-3.0-or-later
"""What leases on the rows of a table have in common, whatever kind of work the rows are.

A lease is a random token in the row, with the worker's name and the time until which it holds.
Everything a worker writes asks for its token in the same transaction, so a worker that lost a row
(cancelled, lease run out, taken for dead) can change nothing of it any more.
"""

from __future__ import annotations

import sqlite3
import time
from abc import ABC, abstractmethod

from onmodel.jobs.database import Database
from onmodel.jobs.kinds import Turn

lease_seconds = 120.0
"""A worker that gives no sign of life for so long has lost what it held."""


class TableLeases(ABC):
    """The leases that one worker holds on rows of one table; see `kinds.Holding`.

    table, key: the table's name, and the column that names a row. max_crashes: work during which
    a worker died so often fails.
    """

    table: str
    key: str

    def __init__(self, database: Database, worker: str, max_crashes: int = 3) -> None:
        self.database = database
        self.worker = worker
        self.max_crashes = max_crashes

    def turn(self) -> Turn | None:
        """When the next waiting row's turn is; None if none waits."""
        row = (
            self.database.connection()
            .execute(
                f"SELECT -priority, queued_at FROM {self.table} WHERE state = 'queued'"
                " ORDER BY priority DESC, queued_at LIMIT 1"
            )
            .fetchone()
        )
        return None if row is None else (row[0], row[1])

    def finished_since(self, moment: float) -> bool:
        """Whether a row was done or failed after this time (seconds of the epoch)."""
        row = (
            self.database.connection()
            .execute(
                f"SELECT 1 FROM {self.table} WHERE finished_at > ? AND state IN ('done', 'failed')",
                (moment,),
            )
            .fetchone()
        )
        return row is not None

    def renew(self) -> None:
        """The sign of life: extends all leases of this worker."""
        with self.database.write() as connection:
            connection.execute(
                f"UPDATE {self.table} SET lease_until = ? WHERE worker = ? AND lease IS NOT NULL",
                (time.time() + lease_seconds, self.worker),
            )

    def expire(self) -> int:
        """Queues again what other workers held over their leases; how many rows that were.

        Not its own: whoever asks knows whether it lives, also after the machine has slept.
        """
        overdue = f"SELECT * FROM {self.table} WHERE worker != ? AND lease_until < ?"
        now = time.time()
        if not self.database.connection().execute(overdue, (self.worker, now)).fetchone():
            return 0
        with self.database.write() as connection:
            rows = connection.execute(overdue, (self.worker, now)).fetchall()
            for row in rows:
                self._expired(connection, row)
        return len(rows)

    @abstractmethod
    def _expired(self, connection: sqlite3.Connection, row: sqlite3.Row) -> None:
        """Queues a row again whose worker gave no sign of life."""

    def _held(self, connection: sqlite3.Connection, key: str, token: str) -> bool:
        """Whether a row still has this lease."""
        row = connection.execute(
            f"SELECT 1 FROM {self.table} WHERE {self.key} = ? AND lease = ?", (key, token)
        ).fetchone()
        return row is not None

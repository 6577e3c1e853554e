# SPDX-License-Identifier: GPL-3.0-or-later
"""The queue's SQLite file: its tables, their versions, and connections to it.

WAL mode lets the API read while the worker writes, and a transaction is either whole or absent
after a SIGKILL of either. Each thread has a connection of its own.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

busy_seconds = 15.0
"""How long a writer waits for another; transactions here take milliseconds."""

migrations = [
    """
    CREATE TABLE job (
        id TEXT PRIMARY KEY,
        client_key TEXT NOT NULL UNIQUE,
        digest TEXT NOT NULL,
        title TEXT NOT NULL,
        priority INTEGER NOT NULL,
        created REAL NOT NULL,
        finished REAL,
        last_event INTEGER NOT NULL DEFAULT 0
    ) STRICT;

    CREATE TABLE keyframe (
        id TEXT PRIMARY KEY,
        job TEXT NOT NULL REFERENCES job(id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        draw_key TEXT NOT NULL,
        shot TEXT NOT NULL,
        frame INTEGER NOT NULL,
        take INTEGER NOT NULL,
        request TEXT NOT NULL,
        priority INTEGER NOT NULL,
        state TEXT NOT NULL DEFAULT 'queued'
            CHECK (state IN ('queued','loading','sampling','done','failed','cancelled')),
        alone INTEGER NOT NULL DEFAULT 0,
        crashes INTEGER NOT NULL DEFAULT 0,
        lease TEXT,
        worker TEXT,
        lease_until REAL,
        step INTEGER NOT NULL DEFAULT 0,
        steps INTEGER NOT NULL DEFAULT 0,
        result TEXT,
        reused INTEGER NOT NULL DEFAULT 0,
        record TEXT NOT NULL DEFAULT '{}',
        error_message TEXT,
        error_fix TEXT,
        queued_at REAL NOT NULL,
        started_at REAL,
        finished_at REAL
    ) STRICT;
    CREATE UNIQUE INDEX keyframe_of_job ON keyframe(job, position);
    CREATE INDEX keyframe_queue ON keyframe(priority DESC, queued_at, position)
        WHERE state = 'queued';
    CREATE INDEX keyframe_open ON keyframe(job) WHERE state IN ('queued', 'loading', 'sampling');
    CREATE INDEX keyframe_key ON keyframe(draw_key);
    CREATE INDEX keyframe_lease ON keyframe(worker) WHERE lease IS NOT NULL;

    CREATE TABLE keyframe_blob (
        keyframe TEXT NOT NULL REFERENCES keyframe(id) ON DELETE CASCADE,
        blob TEXT NOT NULL,
        PRIMARY KEY (keyframe, blob)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE result (
        draw_key TEXT PRIMARY KEY,
        blob TEXT NOT NULL,
        record TEXT NOT NULL,
        created REAL NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE event (
        job TEXT NOT NULL REFERENCES job(id) ON DELETE CASCADE,
        id INTEGER NOT NULL,
        keyframe TEXT,
        type TEXT NOT NULL,
        data TEXT NOT NULL,
        PRIMARY KEY (job, id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX event_of_keyframe ON event(keyframe, type);

    CREATE TABLE setting (
        name TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
    """
    ALTER TABLE job ADD COLUMN kind TEXT NOT NULL DEFAULT 'drawing'
        CHECK (kind IN ('drawing', 'training'));

    CREATE TABLE training (
        job TEXT PRIMARY KEY REFERENCES job(id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        plan TEXT NOT NULL,
        model_hash TEXT NOT NULL,
        priority INTEGER NOT NULL,
        state TEXT NOT NULL DEFAULT 'queued' CHECK (state IN
            ('queued','preparing','caching','training','done','failed','cancelled')),
        crashes INTEGER NOT NULL DEFAULT 0,
        lease TEXT,
        worker TEXT,
        lease_until REAL,
        step INTEGER NOT NULL DEFAULT 0,
        steps INTEGER NOT NULL DEFAULT 0,
        saved INTEGER NOT NULL DEFAULT 0,
        loss REAL,
        seconds REAL,
        lora_hash TEXT,
        record TEXT NOT NULL DEFAULT '{}',
        error_message TEXT,
        error_fix TEXT,
        queued_at REAL NOT NULL,
        started_at REAL,
        finished_at REAL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX training_queue ON training(priority DESC, queued_at) WHERE state = 'queued';
    CREATE INDEX training_lease ON training(worker) WHERE lease IS NOT NULL;

    CREATE TABLE training_blob (
        training TEXT NOT NULL REFERENCES training(job) ON DELETE CASCADE,
        role TEXT NOT NULL CHECK (role IN ('masks', 'validation')),
        step INTEGER NOT NULL,
        position INTEGER NOT NULL,
        blob TEXT NOT NULL,
        PRIMARY KEY (training, role, step, position)
    ) STRICT, WITHOUT ROWID;
    """,
]
"""One script per schema version, applied in order; never changed once released."""


class DatabaseError(Exception):
    """The queue's file cannot be used; the message is a sentence, fix says what to do."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(f"{message} {fix}")
        self.message = message
        self.fix = fix


def is_full(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the disk is full."""
    return isinstance(error, sqlite3.OperationalError) and "full" in str(error).lower()


class Database:
    """The file at `path`, made and brought up to date when opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        path.touch(mode=0o600, exist_ok=True)
        self._migrate()

    def connection(self) -> sqlite3.Connection:
        """This thread's connection; no transaction is open unless `write` opened it."""
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = sqlite3.connect(self.path, timeout=busy_seconds, isolation_level=None)
            found.row_factory = sqlite3.Row
            found.execute("PRAGMA journal_mode = WAL")
            found.execute("PRAGMA foreign_keys = ON")
            found.execute("PRAGMA synchronous = NORMAL")
            self._local.connection = found
        return found

    def close(self) -> None:
        """Closes this thread's connection."""
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is not None:
            found.close()
            self._local.connection = None

    @contextlib.contextmanager
    def write(self, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """A write transaction, committed at the end of the block, undone by an exception.

        Always whole after a SIGKILL; durable: after a power cut as well, once the block has ended.
        """
        connection = self.connection()
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _migrate(self) -> None:
        if sqlite3.sqlite_version_info < (3, 37):
            raise DatabaseError(
                f"This Python's SQLite is {sqlite3.sqlite_version}; Onmodel needs 3.37.",
                "Use a newer build of Python 3.11 or later.",
            )
        try:
            connection = self.connection()
            with self.write(durable=True):
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version > len(migrations):
                    raise DatabaseError(
                        f"{self.path} was written by a newer Onmodel.",
                        "Update Onmodel, or choose another data folder.",
                    )
                for number, script in enumerate(migrations[version:], version + 1):
                    # Not executescript: it would commit the transaction.
                    for statement in script.split(";"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {number}")
                    log.info("Queue schema is now version %d.", number)
        except sqlite3.DatabaseError as error:
            if is_full(error):
                raise DatabaseError(
                    "The disk of the Onmodel data folder is full.", "Free some space on it."
                ) from error
            raise DatabaseError(
                f"{self.path} is not a queue of Onmodel or is damaged ({error}).",
                "Move it away to start with an empty queue, or choose another data folder.",
            ) from error

# SPDX-License-Identifier: GPL-3.0-or-later
"""The queue as the API sees it: submit, look, cancel, retry, follow, tidy up.

Every change of a keyframe's state and the event that tells of it are one transaction, so what a
client was told is what is true. A cancel takes effect in that transaction: it takes the lease
away, and whatever the worker still draws for it cannot be committed any more.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from dataclasses import dataclass
from typing import Any

from onmodel.jobs.blobs import BlobStore
from onmodel.jobs.database import Database
from onmodel.jobs.events import (
    add_event,
    add_final_event,
    add_waiting,
    final_states,
    state_of,
)


class QueueError(Exception):
    """What was asked cannot be done. code: "not_found", "client_key_taken", "lora_taken"."""

    def __init__(self, code: str, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fix = fix


@dataclass(frozen=True)
class NewKeyframe:
    """A keyframe to queue.

    request: KeyframeRequest JSON, pinned. draw_key: equal keys are one drawing. blobs: hashes that
    the request names.
    """

    request: dict[str, Any]
    draw_key: str
    blobs: frozenset[str]


@dataclass(frozen=True)
class NewJob:
    """A job to queue. digest: SHA-256 of the job as sent, to know a repeated submit by."""

    client_key: str
    digest: str
    title: str
    priority: int
    keyframes: list[NewKeyframe]


@dataclass(frozen=True)
class Change:
    """One state change of a keyframe (a row of the queue) to a final state."""

    state: str
    result: str | None = None
    record: str = "{}"
    message: str | None = None
    fix: str | None = None
    reused: bool = False


def submitted(connection: sqlite3.Connection, client_key: str, digest: str) -> str | None:
    """The job, of whatever kind, that was submitted under this client_key; None if none was.

    Raises QueueError "client_key_taken" where that one differs.
    """
    known = connection.execute(
        "SELECT id, digest FROM job WHERE client_key = ?", (client_key,)
    ).fetchone()
    if known is None:
        return None
    if known["digest"] != digest:
        raise QueueError(
            "client_key_taken",
            "Something else was already submitted under this client_key.",
            "Give each new job a client_key of its own.",
        )
    return str(known["id"])


def no_job() -> QueueError:
    """The error for an id that no job has."""
    return QueueError(
        "not_found",
        "The server knows no such job.",
        "It may be of another server, or so old that it was cleared away; submit it again.",
    )


def end_keyframe(connection: sqlite3.Connection, row: sqlite3.Row, change: Change) -> None:
    """Puts a keyframe into a final state, lease gone, with its event, in the caller's transaction.

    row: has id and job.
    """
    connection.execute(
        "UPDATE keyframe SET state = ?, result = ?, record = ?, reused = ?, error_message = ?,"
        " error_fix = ?, lease = NULL, worker = NULL, lease_until = NULL, finished_at = ?"
        " WHERE id = ?",
        (
            change.state,
            change.result,
            change.record,
            int(change.reused),
            change.message if change.state == "failed" else None,
            change.fix if change.state == "failed" else None,
            time.time(),
            row["id"],
        ),
    )
    add_final_event(
        connection,
        row["job"],
        change.state,
        row["id"],
        message=change.message,
        fix=change.fix,
        blob=change.result,
        reused=True if change.reused else None,
    )


class Queue:
    """The queue in `database`, whose results lie in `blobs`. Safe to use from any thread."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self.database = database
        self.blobs = blobs

    # Submit

    def submit(self, new: NewJob) -> tuple[dict[str, Any], bool]:
        """Queues a job. Returns {"id", "keyframes": [{"id", "state"}]} and whether it is new.

        The same client_key again gives the same job, or QueueError "client_key_taken" where the
        job differs. A keyframe whose drawing exists is done at once.
        """
        now = time.time()
        with self.database.write(durable=True) as connection:
            known = submitted(connection, new.client_key, new.digest)
            if known is not None:
                return self._receipt(connection, known), False
            job = uuid.uuid4().hex
            connection.execute(
                "INSERT INTO job (id, client_key, digest, title, priority, created)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (job, new.client_key, new.digest, new.title, new.priority, now),
            )
            rows = [
                self._insert(connection, job, new.priority, position, now, keyframe)
                for position, keyframe in enumerate(new.keyframes)
            ]
            for row in rows:
                self._reuse(connection, row)
            add_waiting(connection, job)
            return self._receipt(connection, job), True

    def _insert(
        self,
        connection: sqlite3.Connection,
        job: str,
        priority: int,
        position: int,
        now: float,
        new: NewKeyframe,
    ) -> sqlite3.Row:
        request = new.request
        keyframe = uuid.uuid4().hex
        row: sqlite3.Row = connection.execute(
            "INSERT INTO keyframe (id, job, position, draw_key, shot, frame, take, request,"
            " priority, queued_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " RETURNING id, job, draw_key",
            (
                keyframe,
                job,
                position,
                new.draw_key or keyframe,
                request["shot"],
                request["frame"],
                request["take"],
                json.dumps(request, separators=(",", ":")),
                priority,
                now,
            ),
        ).fetchone()
        connection.executemany(
            "INSERT INTO keyframe_blob (keyframe, blob) VALUES (?, ?)",
            [(keyframe, blob) for blob in sorted(new.blobs)],
        )
        add_event(connection, job, "queued", keyframe)
        return row

    def _reuse(self, connection: sqlite3.Connection, row: sqlite3.Row) -> bool:
        """Ends a queued keyframe with the drawing that exists for its key, if one does."""
        found = connection.execute(
            "SELECT blob, record FROM result WHERE draw_key = ?", (row["draw_key"],)
        ).fetchone()
        if found is None:
            return False
        if not self.blobs.has(found["blob"]):
            connection.execute("DELETE FROM result WHERE draw_key = ?", (row["draw_key"],))
            return False
        change = Change("done", found["blob"], found["record"], reused=True)
        end_keyframe(connection, row, change)
        return True

    def _receipt(self, connection: sqlite3.Connection, job: str) -> dict[str, Any]:
        rows = connection.execute(
            "SELECT id, state FROM keyframe WHERE job = ? ORDER BY position", (job,)
        ).fetchall()
        return {"id": job, "keyframes": [dict(row) for row in rows]}

    # Look

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs, oldest first: id, title, state, priority, created, and counts of keyframes."""
        connection = self.database.connection()
        counts: dict[str, dict[str, int]] = {}
        for row in connection.execute(
            "SELECT job, state, count(*) AS n FROM keyframe GROUP BY 1, 2"
        ):
            counts.setdefault(row["job"], {})[row["state"]] = row["n"]
        return [
            {
                "id": row["id"],
                "title": row["title"],
                "priority": row["priority"],
                "created": row["created"],
                "finished": row["finished"],
                "state": state_of(counts.get(row["id"], {})),
                "counts": counts.get(row["id"], {}),
            }
            for row in connection.execute(
                "SELECT * FROM job WHERE kind = 'drawing' ORDER BY created, rowid"
            )
        ]

    def job(self, job: str) -> dict[str, Any]:
        """A job and its keyframes. Raises QueueError "not_found"."""
        connection = self.database.connection()
        head = self._job_row(connection, job)
        rows = connection.execute(
            "SELECT * FROM keyframe WHERE job = ? ORDER BY position", (job,)
        ).fetchall()
        counts: dict[str, int] = {}
        for row in rows:
            counts[row["state"]] = counts.get(row["state"], 0) + 1
        return {
            "id": head["id"],
            "title": head["title"],
            "priority": head["priority"],
            "created": head["created"],
            "finished": head["finished"],
            "state": state_of(counts),
            "last_event": head["last_event"],
            "keyframes": [keyframe_data(row) for row in rows],
        }

    def _job_row(self, connection: sqlite3.Connection, job: str) -> sqlite3.Row:
        row: sqlite3.Row | None = connection.execute(
            "SELECT * FROM job WHERE id = ? AND kind = 'drawing'", (job,)
        ).fetchone()
        if row is None:
            raise no_job()
        return row

    def events_after(self, job: str, after: int, limit: int = 500) -> tuple[list[str], bool]:
        """The events (JSON) of a job numbered over `after`, and whether the job has ended.

        Of a job of any kind. Raises QueueError "not_found".
        """
        connection = self.database.connection()
        # Read in this order: a job that had ended before has no events after these.
        head = connection.execute("SELECT finished FROM job WHERE id = ?", (job,)).fetchone()
        if head is None:
            raise no_job()
        finished = head["finished"] is not None
        rows = connection.execute(
            "SELECT data FROM event WHERE job = ? AND id > ? ORDER BY id LIMIT ?",
            (job, after, limit),
        ).fetchall()
        return [row["data"] for row in rows], finished and len(rows) < limit

    def version(self) -> int:
        """A number that changes when another connection has changed the file; cheap to ask."""
        return int(self.database.connection().execute("PRAGMA data_version").fetchone()[0])

    def unfinished(self) -> int:
        """How many keyframes are queued or being drawn."""
        (count,) = (
            self.database.connection()
            .execute(
                "SELECT count(*) FROM keyframe WHERE state IN ('queued', 'loading', 'sampling')"
            )
            .fetchone()
        )
        return int(count)

    # Cancel and retry

    def cancel_job(self, job: str) -> list[str]:
        """Cancels what of the job has not ended; the ids. Harmless to repeat."""
        with self.database.write() as connection:
            self._job_row(connection, job)
            rows = connection.execute(
                "SELECT id, job FROM keyframe WHERE job = ?"
                " AND state IN ('queued', 'loading', 'sampling') ORDER BY position",
                (job,),
            ).fetchall()
            for row in rows:
                end_keyframe(connection, row, Change("cancelled"))
        return [row["id"] for row in rows]

    def cancel_keyframe(self, keyframe: str) -> bool:
        """Cancels one keyframe; whether it had not ended. Raises QueueError "not_found"."""
        with self.database.write() as connection:
            row = self._keyframe_row(connection, keyframe)
            if row["state"] in final_states:
                return False
            end_keyframe(connection, row, Change("cancelled"))
        return True

    def _keyframe_row(self, connection: sqlite3.Connection, keyframe: str) -> sqlite3.Row:
        row: sqlite3.Row | None = connection.execute(
            "SELECT id, job, state, draw_key FROM keyframe WHERE id = ?", (keyframe,)
        ).fetchone()
        if row is None:
            raise QueueError("not_found", "The server knows no such keyframe.", "")
        return row

    def retry_job(self, job: str) -> list[str]:
        """Queues the failed (each to be drawn alone) and cancelled keyframes again; their ids."""
        with self.database.write(durable=True) as connection:
            self._job_row(connection, job)
            rows = connection.execute(
                "SELECT id, job, state, draw_key FROM keyframe WHERE job = ?"
                " AND state IN ('failed', 'cancelled') ORDER BY position",
                (job,),
            ).fetchall()
            self._queue_again(connection, rows)
        return [row["id"] for row in rows]

    def retry_keyframe(self, keyframe: str) -> bool:
        """Queues one failed or cancelled keyframe again; whether it was such a one."""
        with self.database.write(durable=True) as connection:
            row = self._keyframe_row(connection, keyframe)
            if row["state"] not in ("failed", "cancelled"):
                return False
            self._queue_again(connection, [row])
        return True

    def _queue_again(self, connection: sqlite3.Connection, rows: list[sqlite3.Row]) -> None:
        now = time.time()
        for row in rows:
            # What failed may fail again and must not take others of a batch with it.
            connection.execute(
                "UPDATE keyframe SET state = 'queued', alone = ?, crashes = 0, step = 0, steps = 0,"
                " error_message = NULL, error_fix = NULL, queued_at = ?, started_at = NULL,"
                " finished_at = NULL WHERE id = ?",
                (int(row["state"] == "failed"), now, row["id"]),
            )
            connection.execute("UPDATE job SET finished = NULL WHERE id = ?", (row["job"],))
            connection.execute(
                "DELETE FROM event WHERE job = ? AND type = 'job_done'", (row["job"],)
            )
            add_event(connection, row["job"], "queued", row["id"])
        for row in rows:
            self._reuse(connection, row)

    # Settings that the worker leaves for the API

    def setting(self, name: str) -> Any:
        """A value that was stored under `name`, or None."""
        row = (
            self.database.connection()
            .execute("SELECT value FROM setting WHERE name = ?", (name,))
            .fetchone()
        )
        return None if row is None else json.loads(row["value"])

    def set_setting(self, name: str, value: Any) -> None:
        """Stores JSON data under `name`."""
        with self.database.write() as connection:
            connection.execute(
                "INSERT INTO setting (name, value) VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (name, json.dumps(value)),
            )

    # Tidy up

    def prune(self, keep_days: float, blob_grace: float = 86400.0) -> tuple[int, int]:
        """Forgets jobs that ended over `keep_days` days ago and their drawings, then blobs that
        nothing names and nobody asked for within `blob_grace` seconds. Returns (jobs, blobs) gone.
        """
        limit = time.time() - keep_days * 86400.0
        with self.database.write() as connection:
            jobs = connection.execute("DELETE FROM job WHERE finished < ?", (limit,)).rowcount
            connection.execute(
                "DELETE FROM result WHERE created < ?"
                " AND draw_key NOT IN (SELECT draw_key FROM keyframe)",
                (limit,),
            )
        keep = {
            row[0]
            for row in self.database.connection().execute(
                "SELECT blob FROM keyframe_blob UNION SELECT blob FROM result"
                " UNION SELECT result FROM keyframe WHERE result IS NOT NULL"
                " UNION SELECT blob FROM training_blob"
                " UNION SELECT json_extract(data, '$.blob') FROM event WHERE type = 'preview'"
            )
        }
        return jobs, self.blobs.prune(keep, blob_grace)


def keyframe_data(row: sqlite3.Row) -> dict[str, Any]:
    """A keyframe's row as the API gives it. timings: seconds; "waiting" and "drawing" are ours,
    the others the artist's."""
    record = json.loads(row["record"])
    timings = dict(record.get("timings") or {})
    if row["started_at"] is not None:
        timings["waiting"] = round(row["started_at"] - row["queued_at"], 4)
        if row["finished_at"] is not None:
            timings["drawing"] = round(row["finished_at"] - row["started_at"], 4)
    error = None
    if row["error_message"] is not None:
        error = {"message": row["error_message"], "fix": row["error_fix"] or ""}
    return {
        "id": row["id"],
        "shot": row["shot"],
        "frame": row["frame"],
        "take": row["take"],
        "state": row["state"],
        "step": row["step"],
        "steps": row["steps"],
        "result": row["result"],
        "reused": bool(row["reused"]),
        "error": error,
        "timings": timings,
        "record": record,
    }

# SPDX-License-Identifier: GPL-3.0-or-later
"""Trainings in the queue as the API sees them: submit, look, cancel, retry, tidy up.

A training is a job of its own with one piece of work, so it has a client_key, numbered events and
an age like the jobs that draw. Events: queued, preparing (message; masks: a blob), caching (done,
of), step (step, steps, loss, seconds), saved (step), validation (step, blobs), chosen (step of the
checkpoint that the LoRA is made of; message), done (name, hash of the LoRA), failed (message, fix),
cancelled, and job_done at the end. Steps before a save are removed once the next save is there.

A cancel takes the lease away at once; the trainer sees it at its next step and saves its state, so
a retry goes on from there.
"""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onmodel.jobs.database import Database
from onmodel.jobs.events import add_event, final_states
from onmodel.jobs.queue import QueueError, submitted

log = logging.getLogger(__name__)

_open = "('queued', 'preparing', 'caching', 'training')"


@dataclass(frozen=True)
class NewTraining:
    """A training to queue.

    digest: SHA-256 of the request as sent. name: of the LoRA. plan: the whole plan as nested
    tables, folders absolute. model_hash: of the base model now.
    """

    client_key: str
    digest: str
    name: str
    priority: int
    plan: dict[str, Any]
    model_hash: str


def end_training(
    connection: sqlite3.Connection,
    job: str,
    state: str,
    *,
    message: str | None = None,
    fix: str | None = None,
    record: dict[str, Any] | None = None,
) -> None:
    """Puts a training into a final state, lease gone, with its events, in the caller's transaction.

    record: of a finished one; its "lora" goes into the event.
    """
    now = time.time()
    connection.execute(
        "UPDATE training SET state = ?, error_message = ?, error_fix = ?, lease = NULL,"
        " worker = NULL, lease_until = NULL, finished_at = ?, record = coalesce(?, record)"
        " WHERE job = ?",
        (state, message, fix, now, None if record is None else json.dumps(record), job),
    )
    lora = None if record is None else record["lora"]
    add_event(connection, job, state, message=message, fix=fix, lora=lora)
    connection.execute(
        "DELETE FROM event WHERE job = ? AND type IN ('step', 'caching')",
        (job,),
    )
    connection.execute("UPDATE job SET finished = ? WHERE id = ?", (now, job))
    add_event(connection, job, "job_done", message=state)


class Trainings:
    """The trainings in `database`. Safe to use from any thread."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def submit(self, new: NewTraining, taken: Iterable[str] = ()) -> tuple[dict[str, Any], bool]:
        """Queues a training. Returns {"id", "name", "state"} and whether it is new.

        taken: names of the LoRAs that there are. The same client_key again gives the same
        training. Raises QueueError "client_key_taken" where that one differs, "lora_taken" where
        a LoRA of the name is there or on its way.
        """
        now = time.time()
        with self.database.write(durable=True) as connection:
            known = submitted(connection, new.client_key, new.digest)
            if known is not None:
                return self._receipt(connection, known), False
            self._check_name(connection, new.name, taken)
            job = uuid.uuid4().hex
            connection.execute(
                "INSERT INTO job (id, client_key, digest, title, priority, created, kind)"
                " VALUES (?, ?, ?, ?, ?, ?, 'training')",
                (job, new.client_key, new.digest, new.name, new.priority, now),
            )
            connection.execute(
                "INSERT INTO training (job, name, plan, model_hash, priority, queued_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (job, new.name, json.dumps(new.plan), new.model_hash, new.priority, now),
            )
            add_event(connection, job, "queued")
            return self._receipt(connection, job), True

    def _check_name(self, connection: sqlite3.Connection, name: str, taken: Iterable[str]) -> None:
        rows = connection.execute(f"SELECT name FROM training WHERE state IN {_open}").fetchall()
        # Some file systems know no difference between upper and lower case.
        if name.casefold() in {n.casefold() for n in [*taken, *(row["name"] for row in rows)]}:
            raise QueueError(
                "lora_taken",
                f"There is a LoRA “{name}” already, or one is being trained.",
                "Give this one another name, or move the other file away first.",
            )

    def _receipt(self, connection: sqlite3.Connection, job: str) -> dict[str, Any]:
        row = connection.execute(
            "SELECT job AS id, name, state FROM training WHERE job = ?", (job,)
        ).fetchone()
        return dict(row)

    # Look

    def all(self) -> list[dict[str, Any]]:
        """All trainings, newest last, without their plans and drawings."""
        rows = self.database.connection().execute(
            "SELECT t.*, j.created, j.last_event FROM training t JOIN job j ON j.id = t.job"
            " ORDER BY j.created, j.rowid"
        )
        return [training_data(row) for row in rows]

    def one(self, job: str) -> dict[str, Any]:
        """A training with its plan, the sheet of its masks and its validation drawings.

        Raises QueueError "not_found".
        """
        connection = self.database.connection()
        row = connection.execute(
            "SELECT t.*, j.created, j.last_event FROM training t JOIN job j ON j.id = t.job"
            " WHERE t.job = ?",
            (job,),
        ).fetchone()
        if row is None:
            raise no_training()
        masks = None
        drawings: dict[int, list[str]] = {}
        for found in connection.execute(
            "SELECT role, step, blob FROM training_blob WHERE training = ?"
            " ORDER BY role, step, position",
            (job,),
        ):
            if found["role"] == "masks":
                masks = found["blob"]
            else:
                drawings.setdefault(found["step"], []).append(found["blob"])
        return {
            **training_data(row),
            "plan": json.loads(row["plan"]),
            "masks": masks,
            "validation": [{"step": step, "blobs": blobs} for step, blobs in drawings.items()],
        }

    def running(self) -> dict[str, Any] | None:
        """The training that holds the machine now, if one does."""
        row = (
            self.database.connection()
            .execute(
                "SELECT t.*, j.created, j.last_event FROM training t JOIN job j ON j.id = t.job"
                " WHERE t.lease IS NOT NULL"
            )
            .fetchone()
        )
        return None if row is None else training_data(row)

    def unfinished(self) -> int:
        """How many are queued or running."""
        (count,) = (
            self.database.connection()
            .execute(f"SELECT count(*) FROM training WHERE state IN {_open}")
            .fetchone()
        )
        return int(count)

    # Cancel and retry

    def cancel(self, job: str) -> bool:
        """Cancels a training; whether it had not ended. Raises QueueError "not_found"."""
        with self.database.write(durable=True) as connection:
            if self._state(connection, job) in final_states:
                return False
            end_training(connection, job, "cancelled")
        return True

    def retry(self, job: str) -> bool:
        """Queues a failed or cancelled training again, to go on from its last save; whether it
        was such a one. Raises QueueError "not_found", "lora_taken"."""
        with self.database.write(durable=True) as connection:
            if self._state(connection, job) not in ("failed", "cancelled"):
                return False
            (name,) = connection.execute(
                "SELECT name FROM training WHERE job = ?", (job,)
            ).fetchone()
            self._check_name(connection, name, ())
            connection.execute(
                "UPDATE training SET state = 'queued', crashes = 0, error_message = NULL,"
                " error_fix = NULL, queued_at = ?, finished_at = NULL WHERE job = ?",
                (time.time(), job),
            )
            connection.execute("UPDATE job SET finished = NULL WHERE id = ?", (job,))
            connection.execute("DELETE FROM event WHERE job = ? AND type = 'job_done'", (job,))
            add_event(connection, job, "queued")
        return True

    def _state(self, connection: sqlite3.Connection, job: str) -> str:
        row = connection.execute("SELECT state FROM training WHERE job = ?", (job,)).fetchone()
        if row is None:
            raise no_training()
        return str(row["state"])

    # Tidy up

    def prune(self, folder: Path) -> int:
        """Removes the folders in `folder` of trainings that the queue has forgotten; how many.

        A finished LoRA lies elsewhere and stays.
        """
        # In this order: a folder is made after its training is in the queue.
        found = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
        rows = self.database.connection().execute("SELECT job FROM training")
        known = {row["job"] for row in rows}
        gone = [path for path in found if path.name not in known]
        for path in gone:
            shutil.rmtree(path)
            log.info("Removed the files of the forgotten training %s.", path.name)
        return len(gone)


def no_training() -> QueueError:
    """The error for an id that no training has."""
    return QueueError(
        "not_found",
        "The server knows no such training.",
        "It may be of another server, or so old that it was cleared away.",
    )


def training_data(row: sqlite3.Row) -> dict[str, Any]:
    """A training's row as the API gives it.

    saved: a stop now goes on from this step, or, after a cancel, from the later one it stopped at.
    seconds_left: of the steps alone, None while it cannot be told.
    """
    error = None
    if row["error_message"] is not None:
        error = {"message": row["error_message"], "fix": row["error_fix"] or ""}
    record = json.loads(row["record"])
    left = None
    if row["state"] == "training" and row["seconds"] is not None:
        left = round((row["steps"] - row["step"]) * row["seconds"], 1)
    return {
        "id": row["job"],
        "name": row["name"],
        "state": row["state"],
        "priority": row["priority"],
        "created": row["created"],
        "started": row["started_at"],
        "finished": row["finished_at"],
        "last_event": row["last_event"],
        "step": row["step"],
        "steps": row["steps"],
        "saved": row["saved"],
        "loss": row["loss"],
        "seconds_per_step": row["seconds"],
        "seconds_left": left,
        "lora": record.get("lora"),
        "record": record,
        "error": error,
    }

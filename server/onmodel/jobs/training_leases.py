# SPDX-License-Identifier: GPL-3.0-or-later
"""Trainings as a worker sees them: one long lease, progress, hand in, give back.

As for keyframes, everything a worker writes asks for its token in the same transaction. A training
is taken only where nothing else is held, and nothing else is taken while it is.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
import sqlite3
import time
from dataclasses import dataclass
from typing import Any

from onmodel.jobs.events import add_event, add_waiting
from onmodel.jobs.table_leases import TableLeases, lease_seconds
from onmodel.jobs.trainings import end_training

log = logging.getLogger(__name__)

smoothing = 0.1
"""Share of the newest step in the mean seconds of a step."""


@dataclass(frozen=True)
class HeldTraining:
    """A training with the token that allows to write of it.

    lora_hash: SHA-256 of the finished file, where an earlier start had come so far.
    """

    id: str
    name: str
    plan: dict[str, Any]
    model_hash: str
    lora_hash: str | None
    token: str


class TrainingLeases(TableLeases):
    """What the worker called `worker` does to the trainings of a queue.

    A save clears a training of its crashes: only those with nothing new in between count.
    """

    table, key = "training", "job"

    def claim(self) -> HeldTraining | None:
        """Takes the next training, unless something is being drawn or trained; None if none."""
        token, now = secrets.token_hex(16), time.time()
        with self.database.write() as connection:
            row = connection.execute(
                "UPDATE training SET state = 'preparing', lease = ?, worker = ?, lease_until = ?,"
                " started_at = coalesce(started_at, ?), seconds = NULL WHERE job ="
                " (SELECT job FROM training WHERE state = 'queued'"
                " ORDER BY priority DESC, queued_at LIMIT 1)"
                " AND NOT EXISTS (SELECT 1 FROM training WHERE lease IS NOT NULL)"
                " AND NOT EXISTS (SELECT 1 FROM keyframe WHERE lease IS NOT NULL) RETURNING *",
                (token, self.worker, now + lease_seconds, now),
            ).fetchone()
            if row is None:
                return None
            add_waiting(connection)
        plan = json.loads(row["plan"])
        return HeldTraining(
            row["job"], row["name"], plan, row["model_hash"], row["lora_hash"], token
        )

    def holds(self, held: HeldTraining) -> bool:
        """Whether the training is still this worker's."""
        return self._held(self.database.connection(), held.id, held.token)

    def preparing(self, held: HeldTraining, message: str, masks: str | None = None) -> bool:
        """Tells what is being made ready. masks: the blob of the sheet. False: lease lost."""
        with self.database.write() as connection:
            if not self._held(connection, held.id, held.token):
                return False
            if masks is not None:
                self._put_blobs(connection, held, "masks", 0, [masks])
            add_event(connection, held.id, "preparing", message=message, masks=masks)
        return True

    def caching(self, held: HeldTraining, done: int, of: int) -> bool:
        """Tells how many pictures are encoded; False: lease lost."""
        with self.database.write() as connection:
            if not self._held(connection, held.id, held.token):
                return False
            connection.execute("UPDATE training SET state = 'caching' WHERE job = ?", (held.id,))
            add_event(connection, held.id, "caching", done=done, of=of)
        return True

    def stepped(self, held: HeldTraining, step: int, steps: int, loss: float, took: float) -> bool:
        """Tells of the last step. took: its seconds. False: lease lost."""
        told = loss if math.isfinite(loss) else None  # JSON knows no other numbers
        with self.database.write() as connection:
            row = connection.execute(
                "UPDATE training SET state = 'training', step = ?, steps = ?, loss = ?,"
                " seconds = round(coalesce(seconds + (? - seconds) * ?, ?), 4)"
                " WHERE job = ? AND lease = ? RETURNING seconds",
                (step, steps, told, took, smoothing, took, held.id, held.token),
            ).fetchone()
            if row is None:
                return False
            add_event(
                connection,
                held.id,
                "step",
                step=step,
                steps=steps,
                loss=told,
                seconds=row["seconds"],
            )
        return True

    def saved(self, held: HeldTraining, step: int) -> bool:
        """Tells that a stop goes on from `step`; False: lease lost.

        It also clears the training of earlier crashes: it gets on.
        """
        with self.database.write(durable=True) as connection:
            if not self._held(connection, held.id, held.token):
                return False
            connection.execute(
                "UPDATE training SET saved = ?, crashes = 0 WHERE job = ?", (step, held.id)
            )
            connection.execute(
                "DELETE FROM event WHERE job = ? AND type IN ('step', 'caching')", (held.id,)
            )
            add_event(connection, held.id, "saved", step=step)
        return True

    def validation(self, held: HeldTraining, step: int, blobs: list[str]) -> bool:
        """Tells of the drawings of a step, stored already; False: lease lost."""
        with self.database.write() as connection:
            if not self._held(connection, held.id, held.token):
                return False
            self._put_blobs(connection, held, "validation", step, blobs)
            add_event(connection, held.id, "validation", step=step, blobs=blobs)
        return True

    def chosen(self, held: HeldTraining, step: int, sentence: str) -> bool:
        """Tells which checkpoint the LoRA is made of, and why; False: lease lost."""
        with self.database.write() as connection:
            if not self._held(connection, held.id, held.token):
                return False
            add_event(connection, held.id, "chosen", step=step, message=sentence)
        return True

    def landing(self, held: HeldTraining, lora_hash: str) -> bool:
        """Notes which file is about to become the LoRA, so that a later start knows it for its
        own; False: lease lost."""
        with self.database.write(durable=True) as connection:
            return bool(
                connection.execute(
                    "UPDATE training SET lora_hash = ? WHERE job = ? AND lease = ?",
                    (lora_hash, held.id, held.token),
                ).rowcount
            )

    def commit(self, held: HeldTraining, record: dict[str, Any]) -> bool:
        """Ends a training whose LoRA is in its place; False: lease lost."""
        with self.database.write(durable=True) as connection:
            if not self._held(connection, held.id, held.token):
                return False
            end_training(connection, held.id, "done", record=record)
        return True

    def fail(self, held: HeldTraining, message: str, fix: str) -> bool:
        """Ends a training with a sentence; what was saved stays. False: lease lost."""
        with self.database.write(durable=True) as connection:
            if not self._held(connection, held.id, held.token):
                return False
            end_training(connection, held.id, "failed", message=message, fix=fix)
        return True

    def give_back(self, held: HeldTraining) -> bool:
        """Queues a training again at its old place; False: lease lost."""
        with self.database.write(durable=True) as connection:
            if not self._held(connection, held.id, held.token):
                return False
            self._queue_again(connection, held.id)
        return True

    def recover(self, crashed: bool) -> int:
        """Queues again what this worker held when it ended; see `kinds.Holding`."""
        with self.database.write(durable=True) as connection:
            rows = connection.execute(
                "UPDATE training SET crashes = crashes + ? WHERE worker = ? AND lease IS NOT NULL"
                " RETURNING job, crashes",
                (int(crashed), self.worker),
            ).fetchall()
            for row in rows:
                if crashed and row["crashes"] >= self.max_crashes:
                    end_training(
                        connection,
                        row["job"],
                        "failed",
                        message=f"The training process died {row['crashes']} times with nothing "
                        "saved in between.",
                        fix="It may have run out of memory: train at a smaller resolution or with "
                        "run.gradient_checkpointing, or close other programs, then retry. The "
                        "server's log has the details.",
                    )
                else:
                    self._queue_again(connection, row["job"])
        return len(rows)

    def _expired(self, connection: sqlite3.Connection, row: sqlite3.Row) -> None:
        self._queue_again(connection, row["job"])

    def _queue_again(self, connection: sqlite3.Connection, job: str) -> None:
        connection.execute(
            "UPDATE training SET state = 'queued', lease = NULL, worker = NULL, lease_until = NULL"
            " WHERE job = ?",
            (job,),
        )
        add_event(connection, job, "queued")

    def _put_blobs(
        self,
        connection: sqlite3.Connection,
        held: HeldTraining,
        role: str,
        step: int,
        blobs: list[str],
    ) -> None:
        connection.execute(
            "DELETE FROM training_blob WHERE training = ? AND role = ? AND step = ?",
            (held.id, role, step),
        )
        connection.executemany(
            "INSERT INTO training_blob (training, role, step, position, blob)"
            " VALUES (?, ?, ?, ?, ?)",
            [(held.id, role, step, number, blob) for number, blob in enumerate(blobs)],
        )

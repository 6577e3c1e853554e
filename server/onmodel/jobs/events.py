# SPDX-License-Identifier: GPL-3.0-or-later
"""The numbered events of a job. A client that lost its connection asks for those after its last.

Types: queued, loading, sampling, preview, done, failed, cancelled (each of one keyframe), waiting
(a training holds the machine) and job_done; those of a training are in trainings.py. Numbers of a
job only grow; some may be missing, since the steps of what has ended are of no more use and are
removed.
"""

from __future__ import annotations

import json
import sqlite3
import time
from typing import Any

final_states = ("done", "failed", "cancelled")


def add_event(
    connection: sqlite3.Connection,
    job: str,
    kind: str,
    keyframe: str | None = None,
    **data: Any,
) -> None:
    """Adds an event within the caller's write transaction.

    data: plain JSON as the type has it (step, steps, message, …); None is left out.
    """
    (number,) = connection.execute(
        "UPDATE job SET last_event = last_event + 1 WHERE id = ? RETURNING last_event", (job,)
    ).fetchone()
    body = {"id": number, "type": kind, "keyframe": keyframe, "time": round(time.time(), 3)}
    body.update({name: value for name, value in data.items() if value is not None})
    connection.execute(
        "INSERT INTO event (job, id, keyframe, type, data) VALUES (?, ?, ?, ?, ?)",
        (job, number, keyframe, kind, json.dumps(body, separators=(",", ":"))),
    )
    if kind in final_states:
        connection.execute(
            "DELETE FROM event WHERE keyframe = ? AND type IN ('sampling', 'preview')", (keyframe,)
        )


def add_final_event(
    connection: sqlite3.Connection, job: str, kind: str, keyframe: str, **data: Any
) -> None:
    """Adds a keyframe's done, failed or cancelled, and job_done where it was the job's last."""
    add_event(connection, job, kind, keyframe, **data)
    (waiting,) = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM keyframe WHERE job = ?"
        " AND state IN ('queued', 'loading', 'sampling'))",
        (job,),
    ).fetchone()
    if not waiting:
        connection.execute("UPDATE job SET finished = ? WHERE id = ?", (time.time(), job))
        add_event(connection, job, "job_done", message=job_state(connection, job))


def add_waiting(connection: sqlite3.Connection, job: str | None = None) -> None:
    """Tells jobs with keyframes to draw which training they wait for, if one is held now.

    job: only this one; None: all. In the caller's write transaction.
    """
    held = connection.execute("SELECT job, name FROM training WHERE lease IS NOT NULL").fetchone()
    if held is None:
        return
    message = f"Waits for the training of “{held['name']}”."
    for row in connection.execute(
        "SELECT DISTINCT job FROM keyframe WHERE state = 'queued' AND job = coalesce(?, job)",
        (job,),
    ).fetchall():
        add_event(connection, row["job"], "waiting", message=message, training=held["job"])


def job_state(connection: sqlite3.Connection, job: str) -> str:
    """queued, running, or how it ended: done, failed (some keyframe did) or cancelled."""
    counts = dict(
        connection.execute(
            "SELECT state, count(*) FROM keyframe WHERE job = ? GROUP BY state", (job,)
        ).fetchall()
    )
    return state_of(counts)


def state_of(counts: dict[str, int]) -> str:
    """The state of a job with so many keyframes in each state."""
    if set(counts) <= set(final_states):
        return next((s for s in ("failed", "cancelled") if s in counts), "done")
    return "queued" if set(counts) == {"queued"} else "running"

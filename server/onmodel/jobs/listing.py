# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything in a queue as one list, for `onmodel jobs`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from onmodel.jobs.blobs import BlobStore
from onmodel.jobs.database import Database
from onmodel.jobs.folders import DataFolder
from onmodel.jobs.queue import Queue
from onmodel.jobs.trainings import Trainings


def rows(folder: DataFolder) -> list[dict[str, Any]]:
    """All jobs, oldest first, as the API gives them; kind: "drawing" or "training".

    Raises DatabaseError.
    """
    database = Database(folder.database)
    drawings = Queue(database, BlobStore(folder.blobs)).jobs()
    found = [{"kind": "drawing", **row} for row in drawings]
    found += [{"kind": "training", **row} for row in Trainings(database).all()]
    return sorted(found, key=lambda row: row["created"])


def text(row: dict[str, Any]) -> str:
    """A row as a line for people."""
    when = datetime.fromtimestamp(row["created"]).strftime("%Y-%m-%d %H:%M")
    if row["kind"] == "drawing":
        how = ", ".join(f"{n} {state}" for state, n in sorted(row["counts"].items()))
        title = row["title"]
    else:
        how, title = _course(row), f"LoRA {row['name']}"
    return f"{row['id'][:8]}  {when}  {row['state']:9}  {how:32}  {title}"


def _course(row: dict[str, Any]) -> str:
    """How far a training is."""
    if not row["steps"]:
        return "no step yet"
    done = f"step {row['step']} of {row['steps']}"
    left = row["seconds_left"]
    if left is None:
        return done
    return f"{done}, {left / 60:.0f} min left" if left >= 90 else f"{done}, {left:.0f} s left"

# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGKILL of the worker or of the whole server at random moments while keyframes are drawn.

Used by tests/server/test_jobs_kill.py (a few moments) and bench/kill.py (twenty).

How busy the machine is changes where a kill falls, never the outcome: a worker's life draws a few
keyframes and then waits until the last kill is through, so work is left at every kill, and the last
kill waits for a finished keyframe.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import keyframes
from tests.support.server import RunningServer, send_images, wait_for, wait_job

keyframes_per_life = 8
"""A worker draws so many, and the rest of its batch, before it waits for the gate."""
keyframes_per_moment = keyframes_per_life + 2
"""More than a life can finish, and each kill ends one life."""
stuck_seconds = 600.0
"""What has not come after so long will never come, however busy the machine is."""


@dataclass
class Outcome:
    """What came of it.

    lost: keyframes that were finished at a kill and were not, or not with the same drawing, at the
    end. drawn_twice: drawings that began after the keyframe's commit, and keyframes told done
    twice. repeated: drawings cut off by a kill that were drawn anew (they were not finished).
    unfinished: keyframes not done at the end. finished_at_kills: how many were done at each kill.
    """

    moments: int
    lost: int = 0
    drawn_twice: int = 0
    repeated: int = 0
    unfinished: int = 0
    keyframes: int = 0
    server_kills: int = 0
    seconds: float = 0.0
    finished_at_kills: list[int] = field(default_factory=list)


def finished(data: Path) -> dict[str, str]:
    """The keyframes that the queue's file says are done, with their drawings."""
    connection = sqlite3.connect(data / "queue.db", timeout=10)
    try:
        rows = connection.execute("SELECT id, result FROM keyframe WHERE state = 'done'")
        return dict(rows.fetchall())
    finally:
        connection.close()


def kill_at_random(folder: Path, moments: int, seed: int) -> Outcome:
    """Draws a job while it kills the worker or the server `moments` times; counts the damage."""
    rng = random.Random(seed)
    log, gate = folder / "draws.log", folder / "gate"
    begun = time.monotonic()
    outcome = Outcome(moments)
    environment = {
        "FAKE_LOG": str(log),
        "FAKE_STEP_SECONDS": "0.025",
        "FAKE_STEPS": "4",
        "FAKE_BATCH": "2",
        "FAKE_DRAWS": str(keyframes_per_life),
        "FAKE_GATE": str(gate),
    }
    # Kills from outside are no fault of the keyframes, however often they hit the same one.
    server = RunningServer(folder, environment, ["--attempts", "1000"])
    with server:
        client = server.client(stuck_seconds)
        wait_for(lambda: client.info()["models"], "the worker says nothing", stuck_seconds)
        send_images(client)
        wanted = keyframes.unique(moments * keyframes_per_moment)
        job = client.submit(keyframes.job(*wanted))["id"]
        outcome.keyframes = len(wanted)
        kept: dict[str, str] = {}
        logged = 0
        for moment in range(moments):
            if moment % 4:
                # Else most kills would hit a process that is still starting: that is every fourth.
                wait_for(
                    lambda logged=logged: log_size(log) > logged, "nothing is drawn", stuck_seconds
                )
            if moment == moments - 1:
                wait_for(lambda: finished(server.data), "nothing is finished", stuck_seconds)
            time.sleep(rng.uniform(0.0, 0.8))
            worker = server.worker_pid()
            # Before the kill: a new life may draw all it may while this process waits for its turn.
            logged = log_size(log)
            if moment % 2 and worker is not None:
                os.kill(worker, signal.SIGKILL)
            else:
                outcome.server_kills += 1
                server.kill()
            now = finished(server.data)
            outcome.lost += count_lost(kept, now)
            kept.update(now)
            outcome.finished_at_kills.append(len(now))
            if server.process is not None and server.process.poll() is not None:
                server.start()
        gate.touch()
        client = server.client(stuck_seconds)
        found = wait_job(client, job, stuck_seconds)
        now = {k["id"]: k["result"] for k in found["keyframes"] if k["state"] == "done"}
        outcome.lost += count_lost(kept, now)
        outcome.unfinished = len(wanted) - len(now)
        for sha256 in set(now.values()):
            client.blob(sha256)  # raises if it is gone or damaged
        events = Counter(e["keyframe"] for e in client.events(job) if e["type"] == "done")
        outcome.drawn_twice += sum(n - 1 for n in events.values())
    count_draws(outcome, log, server.data)
    outcome.seconds = time.monotonic() - begun
    return outcome


def log_size(log: Path) -> int:
    """Bytes of the artist's log so far."""
    return log.stat().st_size if log.exists() else 0


def count_lost(before: dict[str, str], now: dict[str, str]) -> int:
    """How many of `before` are not in `now` with the same drawing."""
    return sum(now.get(keyframe) != result for keyframe, result in before.items())


def count_draws(outcome: Outcome, log: Path, data: Path) -> None:
    """Reads the artist's own log against the moments of commit."""
    connection = sqlite3.connect(data / "queue.db", timeout=10)
    commits = dict(connection.execute("SELECT id, finished_at FROM keyframe").fetchall())
    connection.close()
    begins: Counter[str] = Counter()
    for line in log.read_text().splitlines():
        word, moment, task, _ = line.split()
        if word == "begin":
            begins[task] += 1
            outcome.drawn_twice += float(moment) > commits[task]
    outcome.repeated = sum(n - 1 for n in begins.values())

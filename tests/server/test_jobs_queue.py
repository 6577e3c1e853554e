# SPDX-License-Identifier: GPL-3.0-or-later
"""The queue without HTTP: leases, fencing, crashes, reuse, tidying up, a full disk."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from onmodel.jobs import blobs as blob_module
from onmodel.jobs import leases as lease_module
from onmodel.jobs.artist import Drawn
from onmodel.jobs.blobs import BlobError, BlobStore
from onmodel.jobs.database import Database, DatabaseError, migrations
from onmodel.jobs.folders import DataFolder
from onmodel.jobs.leases import Leased, Leases
from onmodel.jobs.queue import NewJob, NewKeyframe, Queue
from onmodel.jobs.worker import Worker

from addon.core import request as contract
from tests.support import keyframes
from tests.support.fake_artist import FakeArtist
from tests.support.fake_trainer import FakeTrainer


class Room:
    """A queue in a folder, with a worker's side to it."""

    def __init__(self, root: Path) -> None:
        self.folder = DataFolder(root)
        self.folder.make()
        self.blobs = BlobStore(self.folder.blobs)
        self.database = Database(self.folder.database)
        self.queue = Queue(self.database, self.blobs)
        self.leases = Leases(self.database, self.blobs, "local")
        self.count = 0

    def submit(self, *keys: str, priority: int = 0, **request: Any) -> dict[str, Any]:
        """A job with a keyframe for each key."""
        self.count += 1
        made = [
            NewKeyframe(
                contract.to_data(keyframes.keyframe(frame=i + 1, **request)), key, frozenset()
            )
            for i, key in enumerate(keys)
        ]
        new = NewJob(f"c{self.count}", f"d{self.count}", "title", priority, made)
        return self.queue.submit(new)[0]

    def claim(self, batch: int = 1) -> list[Leased]:
        return self.leases.claim(lambda _: "same", lambda _: batch)

    def states(self, job: dict[str, Any]) -> list[str]:
        return [k["state"] for k in self.queue.job(job["id"])["keyframes"]]

    def types(self, job: dict[str, Any]) -> list[str]:
        import json

        return [json.loads(e)["type"] for e in self.queue.events_after(job["id"], 0)[0]]

    def draw(self) -> str:
        """A stored drawing."""
        return self.blobs.put(keyframes.png(500).data)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path / "data")


def test_order_is_priority_then_age_then_place(room: Room) -> None:
    low, high = room.submit("a", "b"), room.submit("c", priority=1)
    order = [room.claim()[0].task.id for _ in range(3)]
    assert order == [k["id"] for k in [*high["keyframes"], *low["keyframes"]]]
    assert room.claim() == []


def test_batches_hold_only_what_may_be_drawn_together(room: Room) -> None:
    room.submit("a", "b", "b", "c", "d")
    room.submit("x", priority=-1)
    by_frame = room.leases.claim(lambda r: str(r["frame"] % 2), lambda _: 8)
    assert [x.task.request["frame"] for x in by_frame] == [1, 3, 5]
    # The twin of frame 3's key waits for it.
    assert [x.task.request["frame"] for x in room.claim(8)] == [4]
    assert [x.task.request["frame"] for x in room.claim(8)] == [1]


def test_a_lost_lease_changes_nothing(room: Room) -> None:
    job = room.submit("a")
    (stale,) = room.claim()
    assert room.leases.recover(crashed=False) == 1
    (fresh,) = room.claim()
    blob = room.draw()
    assert not room.leases.report(stale, "sampling", step=1, steps=2)
    assert not room.leases.fail(stale, "x", "y")
    assert not room.leases.give_back(stale, alone=False)
    assert not room.leases.commit(stale, blob, {})
    assert room.states(job) == ["loading"]
    assert room.leases.commit(fresh, blob, {"seed": 1})
    assert not room.leases.commit(fresh, blob, {"seed": 2})
    assert room.types(job).count("done") == 1
    assert room.queue.job(job["id"])["keyframes"][0]["record"] == {"seed": 1}


@pytest.mark.parametrize("stage", ["claimed", "sampling"])
def test_after_a_cancel_no_commit(room: Room, stage: str) -> None:
    job, other = room.submit("a"), room.submit("a")
    (leased,) = room.claim()
    if stage != "claimed":
        room.leases.report(leased, "sampling", step=1, steps=2)
    blob = room.draw()
    assert room.queue.cancel_job(job["id"]) == [leased.task.id]
    assert not room.leases.holds(leased)
    assert not room.leases.commit(leased, blob, {})
    assert room.states(job) == ["cancelled"] and room.types(job)[-1] == "job_done"
    # The twin of the other job was spared and is drawn for itself.
    assert room.states(other) == ["queued"]
    (twin,) = room.claim()
    assert room.leases.commit(twin, blob, {}) and room.states(other) == ["done"]


def test_leases_run_out(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "lease_seconds", -1.0)
    job = room.submit("a")
    room.claim()
    assert room.leases.expire() == 0  # one's own are not overdue: the machine may have slept
    keeper = Leases(room.database, room.blobs, "keeper")
    assert keeper.expire() == 1
    assert room.states(job) == ["queued"]
    monkeypatch.setattr(lease_module, "lease_seconds", 60.0)
    room.claim()
    room.leases.renew()
    assert keeper.expire() == 0


def test_crashes_are_counted_and_suspects_drawn_alone(room: Room) -> None:
    job = room.submit("a", "b")
    for held in (2, 1, 1):
        assert len(room.claim(2)) == held
        room.leases.recover(crashed=True)
    assert room.states(job) == ["failed", "queued"]
    found = room.queue.job(job["id"])["keyframes"][0]
    assert "died 3 times" in found["error"]["message"]
    # A kill of the whole server is nobody's fault.
    for _ in range(5):
        room.claim()
        room.leases.recover(crashed=False)
    assert room.states(job) == ["failed", "queued"]
    assert room.queue.retry_job(job["id"]) == [found["id"]]
    assert room.states(job) == ["queued", "queued"]
    assert len(room.claim(2)) == 1


def test_a_lost_drawing_is_drawn_again(room: Room) -> None:
    first = room.submit("a")
    (leased,) = room.claim()
    blob = room.draw()
    room.leases.commit(leased, blob, {})
    assert room.states(room.submit("a")) == ["done"]
    room.blobs.path_of(blob).unlink()
    assert room.states(room.submit("a")) == ["queued"]
    assert room.states(first) == ["done"]


def test_pruning_spares_what_is_wanted(room: Room) -> None:
    job = room.submit("a")
    (leased,) = room.claim()
    drawing, stray = room.draw(), room.blobs.put(keyframes.png(501).data)
    room.leases.commit(leased, drawing, {})
    waiting = room.submit("b")
    assert room.queue.prune(keep_days=1, blob_grace=3600) == (0, 0)
    long_ago = time.time() - 7200
    for blob in (drawing, stray):
        os.utime(room.blobs.path_of(blob), (long_ago, long_ago))
    assert room.queue.prune(keep_days=1, blob_grace=3600) == (0, 1)
    assert room.blobs.has(drawing) and not room.blobs.has(stray)
    assert room.queue.prune(keep_days=0, blob_grace=3600) == (1, 1)
    assert not room.blobs.has(drawing)
    assert [j["id"] for j in room.queue.jobs()] == [waiting["id"]]
    assert job["id"] != waiting["id"]


def test_a_blob_asked_for_is_kept_a_while(room: Room) -> None:
    stray = room.blobs.put(keyframes.png(502).data)
    os.utime(room.blobs.path_of(stray), (1.0, 1.0))
    assert room.blobs.has(stray, touch=True)
    assert room.queue.prune(keep_days=1, blob_grace=60) == (0, 0)


def test_a_newer_or_foreign_queue_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    Database(path).close()
    assert Database(path).connection().execute("PRAGMA user_version").fetchone()[0] == len(
        migrations
    )
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(DatabaseError, match="newer Onmodel"):
        Database(path)
    foreign = tmp_path / "foreign.db"
    foreign.write_bytes(b"not a database at all, but long enough to be read" * 20)
    with pytest.raises(DatabaseError, match="damaged"):
        Database(foreign)


def full_disk(*_: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_while_an_image_arrives(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = keyframes.png(503)
    with monkeypatch.context() as patch:
        patch.setattr(blob_module.os, "write", full_disk)
        with pytest.raises(BlobError, match=r"disk .* is full") as error:
            room.blobs.put(blob.data)
        assert error.value.code == "disk_full" and "Free some space" in error.value.fix
    assert list(room.blobs.incoming.iterdir()) == []
    assert room.blobs.put(blob.data) == blob.hash


def worker_of(room: Room, monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0")
    room.blobs.put(keyframes.depth.data)
    room.blobs.put(keyframes.mask.data)
    return Worker(room.folder, FakeArtist(), FakeTrainer([]), "local")


def test_a_full_disk_at_the_end_of_a_drawing(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = worker_of(room, monkeypatch)
    job = room.submit("a", model_hash="00" * 32)
    with monkeypatch.context() as patch:
        patch.setattr(blob_module.os, "write", full_disk)
        assert worker.do_next()
    (found,) = room.queue.job(job["id"])["keyframes"]
    assert found["state"] == "failed"
    assert "disk" in found["error"]["message"] and "retry" in found["error"]["fix"]
    # There is room again: the same job goes on.
    room.queue.retry_job(job["id"])
    assert worker.do_next()
    assert room.states(job) == ["done"]


def test_little_room_left_begins_nothing(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = worker_of(room, monkeypatch)
    worker.tell()
    job = room.submit("a")
    usage = type("usage", (), {"free": 1000})
    with monkeypatch.context() as patch:
        patch.setattr("onmodel.jobs.worker.shutil.disk_usage", lambda _: usage)
        assert not worker.do_next()
    assert room.states(job) == ["queued"]
    assert "disk" in room.queue.setting("worker")["notice"]
    assert worker.do_next()
    assert room.states(job) == ["done"]
    assert room.queue.setting("worker")["notice"] == ""


def test_a_drawing_that_is_no_image_is_refused(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = worker_of(room, monkeypatch)
    job = room.submit("a")
    monkeypatch.setattr(
        worker.artist, "draw", lambda tasks, *_: iter([(tasks[0].id, Drawn(b"<svg/>"))])
    )
    assert worker.do_next()
    (found,) = room.queue.job(job["id"])["keyframes"]
    assert "neither a PNG nor a JPEG" in found["error"]["message"]

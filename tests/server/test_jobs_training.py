# SPDX-License-Identifier: GPL-3.0-or-later
"""Trainings in the queue, without HTTP and model: turns, leases, cancel, crash, landing."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from onmodel.jobs import table_leases
from onmodel.jobs.blobs import BlobStore
from onmodel.jobs.database import Database, migrations
from onmodel.jobs.folders import DataFolder
from onmodel.jobs.leases import Leases
from onmodel.jobs.queue import NewJob, NewKeyframe, Queue, QueueError
from onmodel.jobs.roots import RootError, Roots
from onmodel.jobs.trainer import Trained
from onmodel.jobs.training_leases import TrainingLeases
from onmodel.jobs.trainings import NewTraining, Trainings
from onmodel.jobs.worker import Worker

from addon.core import request as contract
from tests.support import keyframes
from tests.support.fake_artist import FakeArtist
from tests.support.fake_trainer import FakeTrainer


class Room:
    """A queue in a folder with both sides of it, and a worker that runs by hand."""

    def __init__(self, root: Path) -> None:
        self.folder = DataFolder(root)
        self.folder.make()
        self.blobs = BlobStore(self.folder.blobs)
        self.database = Database(self.folder.database)
        self.queue = Queue(self.database, self.blobs)
        self.trainings = Trainings(self.database)
        self.leases = TrainingLeases(self.database, "local")
        self.drawings = Leases(self.database, self.blobs, "local")
        self.worker = Worker(self.folder, FakeArtist(), FakeTrainer([]), "local")
        self.count = 0
        for blob in (keyframes.depth, keyframes.mask):
            self.blobs.put(blob.data)

    def train(self, name: str = "mira", *, noun: str = "woman", priority: int = 0) -> str:
        """Queues a training of four steps that saves at every second; its id."""
        self.count += 1
        plan = {
            "name": name,
            "data": {"noun": noun},
            "schedule": {"steps": 4},
            "run": {"save_every": 2},
        }
        new = NewTraining(f"c{self.count}", f"d{self.count}", name, priority, plan, "ab" * 32)
        return str(self.trainings.submit(new)[0]["id"])

    def draw(self, key: str = "a", priority: int = 0) -> dict[str, Any]:
        """Queues a job of one keyframe."""
        self.count += 1
        request = contract.to_data(keyframes.keyframe(model_hash="00" * 32))
        made = [NewKeyframe(request, key, frozenset())]
        return self.queue.submit(NewJob(f"c{self.count}", f"d{self.count}", "", priority, made))[0]

    def events(self, job: str) -> list[dict[str, Any]]:
        return [json.loads(e) for e in self.queue.events_after(job, 0)[0]]

    def types(self, job: str) -> list[str]:
        return [e["type"] for e in self.events(job)]

    def file(self, job: str, name: str) -> Path:
        return self.folder.trainings / job / name


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path / "data")


def test_a_training_from_queue_to_lora(room: Room) -> None:
    job = room.train()
    assert room.trainings.one(job)["state"] == "queued"
    assert room.worker.do_next() and not room.worker.do_next()
    found = room.trainings.one(job)
    assert (found["state"], found["step"], found["saved"]) == ("done", 4, 4)
    lora = room.folder.loras / "mira.safetensors"
    assert lora.read_text() == "[1, 2, 3, 4] in abababab"
    assert [p.name for p in room.folder.loras.iterdir()] == ["mira.safetensors"]
    assert found["lora"]["name"] == "mira" and found["record"]["steps"] == 4
    assert [v["step"] for v in found["validation"]] == [2, 4]
    for blob in (found["masks"], *(b for v in found["validation"] for b in v["blobs"])):
        assert room.blobs.read(blob).startswith(b"\x89PNG")
    # Steps before the end are removed, what a client needs to know is not.
    told = room.types(job)
    assert list(dict.fromkeys(told)) == [
        "queued", "preparing", "saved", "validation", "done", "job_done"
    ]  # fmt: skip
    assert room.events(job)[-2]["lora"] == found["lora"]
    assert room.queue.setting("worker")["notice"] == ""


def test_turns_are_by_priority_then_age_whatever_the_kind(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_BATCH", "1")
    first, training, last = room.draw("a"), room.train(), room.draw("b")
    urgent = room.train("kay", priority=1)
    ended = []
    while room.worker.do_next():
        jobs = {j["id"]: j["state"] for j in room.queue.jobs()}
        jobs |= {t["id"]: t["state"] for t in room.trainings.all()}
        ended += [i for i, state in jobs.items() if state == "done" and i not in ended]
    assert ended == [urgent, first["id"], training, last["id"]]


def test_nothing_is_drawn_while_a_training_is_held_nor_trained_while_one_is_drawn(
    room: Room,
) -> None:
    training, before = room.train(), room.draw("a")
    held = room.leases.claim()
    assert held is not None and held.id == training
    assert room.drawings.claim(lambda _: "", lambda _: 1) == []
    other = TrainingLeases(room.database, "other")
    assert room.train("kay") and other.claim() is None
    # The jobs that wait are told what for, those that come later as well.
    after = room.draw("b")
    for job in (before, after):
        (waiting,) = [e for e in room.events(job["id"]) if e["type"] == "waiting"]
        assert waiting["training"] == training and "mira" in waiting["message"]
    assert room.trainings.running()["id"] == training
    assert room.leases.give_back(held)
    assert room.trainings.running() is None
    assert len(room.drawings.claim(lambda _: "", lambda _: 1)) == 1
    assert room.leases.claim() is None


def test_the_same_submit_is_the_same_training_and_names_are_unique(room: Room) -> None:
    new = NewTraining("key", "digest", "Mira", 0, {}, "ab" * 32)
    first, fresh = room.trainings.submit(new)
    assert fresh and room.trainings.submit(new, ["mira"]) == (first, False)
    for taken in ((), ("x",)):
        with pytest.raises(QueueError) as error:
            room.trainings.submit(NewTraining("k2", "d", "mira", 0, {}, ""), taken)
        assert error.value.code == "lora_taken"
    with pytest.raises(QueueError) as error:
        room.trainings.submit(NewTraining("k3", "d", "Kay", 0, {}, ""), ["kay"])
    assert error.value.code == "lora_taken"
    with pytest.raises(QueueError) as error:
        room.trainings.submit(NewTraining("key", "other", "kay", 0, {}, ""))
    assert error.value.code == "client_key_taken"
    # Trainings are no drawings: jobs do not list them.
    assert room.queue.jobs() == [] and room.trainings.unfinished() == 1
    with pytest.raises(QueueError):
        room.queue.cancel_job(first["id"])


def test_a_cancel_stops_at_the_next_step_and_a_retry_goes_on(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRAIN_GATE", str(tmp_path / "gate"))
    monkeypatch.setenv("FAKE_TRAIN_STEP", "4")
    job = room.train()
    worker = threading.Thread(target=room.worker.do_next)
    worker.start()
    wait((tmp_path / "gate.waits").exists)
    assert room.trainings.cancel(job) and not room.trainings.cancel(job)
    worker.join()
    assert room.trainings.one(job)["state"] == "cancelled"
    assert room.types(job)[-2:] == ["cancelled", "job_done"]
    assert not (room.folder.loras / "mira.safetensors").exists()
    assert json.loads(room.file(job, "state.json").read_text()) == [1, 2, 3]
    (tmp_path / "gate").touch()
    assert room.trainings.retry(job) and not room.trainings.retry(job)
    assert room.worker.do_next()
    assert room.trainings.one(job)["state"] == "done"
    assert room.file(job, "starts.txt").read_text().split() == ["0", "3"]
    assert (room.folder.loras / "mira.safetensors").read_text().startswith("[1, 2, 3, 4]")
    assert room.types(job).count("job_done") == 1


def test_a_queued_training_is_cancelled_without_a_start(room: Room) -> None:
    job = room.train()
    assert room.trainings.cancel(job)
    assert not room.worker.do_next() and room.trainings.one(job)["state"] == "cancelled"


def test_a_lost_lease_changes_nothing(room: Room) -> None:
    job = room.train()
    stale = room.leases.claim()
    assert stale is not None and room.leases.recover(crashed=False) == 1
    fresh = room.leases.claim()
    assert fresh is not None
    blob = room.blobs.put(keyframes.png(9).data)
    lost = room.leases
    assert not lost.preparing(stale, "x") and not lost.caching(stale, 1, 2)
    assert not lost.stepped(stale, 1, 4, 0.5, 1.0) and not lost.saved(stale, 1)
    assert not lost.validation(stale, 1, [blob]) and not lost.landing(stale, "00")
    assert not lost.commit(stale, {"lora": {}}) and not lost.fail(stale, "x", "y")
    assert not lost.give_back(stale)
    found = room.trainings.one(job)
    assert (found["state"], found["step"], found["validation"]) == ("preparing", 0, [])
    assert lost.commit(fresh, {"lora": {"name": "mira", "hash": "00"}})
    assert not lost.commit(fresh, {"lora": {}})


def test_progress_tells_what_is_left_and_no_number_that_json_lacks(room: Room) -> None:
    job = room.train()
    held = room.leases.claim()
    assert held is not None
    room.leases.stepped(held, 1, 10, 0.5, 2.0)
    room.leases.stepped(held, 2, 10, float("nan"), 2.0)
    found = room.trainings.one(job)
    assert (found["state"], found["seconds_per_step"], found["seconds_left"]) == (
        "training",
        2.0,
        16.0,
    )
    assert found["loss"] is None and "loss" not in room.events(job)[-1]


@pytest.mark.parametrize(("noun", "words"), [("failure", "asked to fail"), ("bug", "ZeroDivision")])
def test_failures_are_sentences_and_keep_what_was_saved(room: Room, noun: str, words: str) -> None:
    job, other = room.train(noun=noun), room.train("kay")
    assert room.worker.do_next()
    found = room.trainings.one(job)
    assert found["state"] == "failed" and words in found["error"]["message"]
    assert found["error"]["fix"] and room.types(job)[-2:] == ["failed", "job_done"]
    assert room.worker.do_next()
    assert room.trainings.one(other)["state"] == "done"


def test_crashes_count_until_something_is_saved(room: Room) -> None:
    job = room.train()
    for _ in range(2):
        assert room.leases.claim() is not None
        room.leases.recover(crashed=True)
    held = room.leases.claim()
    assert held is not None and room.leases.saved(held, 2)
    for state in ("queued", "queued", "failed"):
        room.leases.recover(crashed=True)
        assert room.trainings.one(job)["state"] == state
        room.leases.claim()
    assert "died 3 times" in room.trainings.one(job)["error"]["message"]


def test_a_silent_worker_loses_its_training(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    job = room.train()
    keeper = TrainingLeases(room.database, "keeper")
    held = room.leases.claim()
    assert held is not None and keeper.expire() == 0
    monkeypatch.setattr(table_leases, "lease_seconds", -1.0)
    room.leases.renew()
    assert room.leases.expire() == 0  # its own
    assert keeper.expire() == 1
    assert room.trainings.one(job)["state"] == "queued" and not room.leases.holds(held)


def test_a_foreign_lora_of_that_name_is_never_replaced(room: Room) -> None:
    job = room.train()
    room.folder.loras.mkdir()
    lora = room.folder.loras / "mira.safetensors"
    lora.write_text("of somebody else")
    assert room.worker.do_next()
    found = room.trainings.one(job)
    assert found["state"] == "failed" and "another mira.safetensors" in found["error"]["message"]
    assert lora.read_text() == "of somebody else"
    lora.unlink()
    assert room.trainings.retry(job) and room.worker.do_next()
    assert lora.read_text().startswith("[1, 2, 3, 4]")
    assert room.file(job, "starts.txt").read_text().split() == ["0", "4"]


@pytest.mark.parametrize("landed", [False, True])
def test_a_stop_around_the_landing_leaves_one_whole_lora(
    room: Room, landed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """landed: the worker dies after the file took its name, before the queue knew."""
    job = room.train()
    runner = room.worker._kinds[1][1]
    name = "commit" if landed else "landing"

    def die(*_: Any) -> bool:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(runner.leases, name, die)
        with pytest.raises(SystemExit):
            room.worker.do_next()
    lora = room.folder.loras / "mira.safetensors"
    assert lora.exists() is landed
    assert room.leases.recover(crashed=False) == 1
    with monkeypatch.context() as patch:
        if landed:  # nothing is left to train
            patch.setattr(FakeTrainer, "train", die)
        assert room.worker.do_next()
    assert room.trainings.one(job)["state"] == "done"
    assert lora.read_text().startswith("[1, 2, 3, 4]")


def test_the_worker_stops_a_training_for_its_own_end(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = room.train()
    room.worker.stop.set()
    assert room.worker.do_next()
    assert room.trainings.one(job)["state"] == "queued"
    monkeypatch.setattr(FakeTrainer, "train", lambda *_: Trained(Path("none")))
    room.worker.stop.clear()
    assert room.worker.do_next()
    assert "without a LoRA" in room.trainings.one(job)["error"]["message"]


def test_the_artist_makes_room_before_a_training(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    runner = room.worker._kinds[1][1]
    monkeypatch.setattr(runner, "_make_room", lambda: order.append("released"))
    monkeypatch.setattr(FakeTrainer, "train", lambda *_: order.append("trained"))
    room.train()
    room.worker.do_next()
    assert order == ["released", "trained"]


def test_forgotten_trainings_take_their_files_along(room: Room) -> None:
    old, new = room.train(), room.train("kay")
    assert room.worker.do_next() and room.worker.do_next()
    masks, drawing = (room.trainings.one(old)[k] for k in ("masks", "validation"))
    with room.database.write() as connection:
        connection.execute("UPDATE job SET finished = 0 WHERE id = ?", (old,))
    room.queue.prune(keep_days=1.0, blob_grace=-1.0)
    assert room.trainings.prune(room.folder.trainings) == 1
    assert [p.name for p in room.folder.trainings.iterdir()] == [new]
    assert (room.folder.loras / "mira.safetensors").exists()
    # The pictures of the other are the same in this fake, so they stay; nothing else does.
    kept = room.trainings.one(new)
    assert (kept["masks"], kept["validation"]) == (masks, drawing)
    assert room.blobs.has(masks) and not room.blobs.has(keyframes.depth.hash)


def test_a_queue_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onmodel.jobs.database.migrations", migrations[:1])
        first = Database(path)
        with first.write() as connection:
            connection.execute(
                "INSERT INTO job (id, client_key, digest, title, priority, created)"
                " VALUES ('1', '1', '', 'old', 0, 1.0)"
            )
        first.close()
    after = Database(path)
    (job,) = Queue(after, BlobStore(tmp_path / "blobs")).jobs()
    assert job["title"] == "old" and Trainings(after).all() == []


# Folders


@pytest.fixture
def home(tmp_path: Path) -> Path:
    pictures = tmp_path / "home" / "mira"
    (pictures / "10_mira").mkdir(parents=True)
    (pictures / "1.png").write_bytes(b"")
    (tmp_path / "home" / ".keys").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    return tmp_path / "home"


def test_folders_under_a_root_are_read(home: Path) -> None:
    assert Roots([home]).folder(str(home / "mira")) == (home / "mira").resolve()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("{outside}", "outside of the folders"),
        ("{home}/../outside", "not a whole path"),
        ("mira", "not a whole path"),
        ("~/mira", "not a whole path"),
        ("", "not a whole path"),
        ("{home}/mira\0x", "not a whole path"),
        ("{home}/mira\r\nx", "not a whole path"),
        ("{home}x", "outside of the folders"),
        ("{home}/.keys", "hidden"),
        ("{home}/nobody", "no folder"),
        ("{home}/mira/1.png", "no folder"),
        ("//server/share", "outside of the folders"),
        ("/etc", "outside of the folders"),
    ],
)
def test_other_folders_are_refused(home: Path, path: str, words: str) -> None:
    path = path.format(home=home, outside=home.parent / "outside")
    with pytest.raises(RootError) as error:
        Roots([home]).folder(path)
    assert words in error.value.message and error.value.fix


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_links_do_not_lead_out(home: Path) -> None:
    roots, mira, outside = Roots([home]), home / "mira", home.parent / "outside"
    (home / "door").symlink_to(outside)
    with pytest.raises(RootError, match="outside of the folders"):
        roots.folder(str(home / "door"))
    (home / "ring").symlink_to(home / "ring")
    with pytest.raises(RootError, match="no folder"):
        roots.folder(str(home / "ring"))
    (home / "key").symlink_to(home / ".keys")
    with pytest.raises(RootError, match="hidden"):
        roots.folder(str(home / "key"))
    for place, target in (
        (mira / "1.txt", outside / "secret.txt"),
        (mira / "10_mira" / "2.txt", outside / "secret.txt"),
        (mira / "masks", outside),
        (mira / "3.txt", outside / "nothing yet"),
    ):
        place.symlink_to(target)
        with pytest.raises(RootError, match=r"is a link"):
            roots.folder(str(mira))
        place.unlink()
    # Within the roots a link to a file is a file.
    (home / "shared.png").write_bytes(b"")
    (mira / "4.png").symlink_to(home / "shared.png")
    assert roots.folder(str(mira)) == mira.resolve()


def test_a_root_that_is_a_link_is_a_root(home: Path) -> None:
    (home.parent / "other").symlink_to(home)
    roots = Roots([home.parent / "other"])
    for named in (home.parent / "other", home):
        assert roots.folder(str(named / "mira")) == (home / "mira").resolve()


def wait(condition: Any) -> None:
    """Until it holds; the limit is only there for a hang."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)

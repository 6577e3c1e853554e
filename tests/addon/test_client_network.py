# SPDX-License-Identifier: GPL-3.0-or-later
"""The render session's threads against a server inside the test process."""

from __future__ import annotations

import dataclasses
import hashlib
import queue
import threading

import pytest

from addon.core.client import Client, ClientError, ServerGone
from addon.render import network as net
from addon.render.network import Network, Prepared, Shipment

from .fake_server import FakeServer, wait_for
from .test_client import keyframe


@pytest.fixture
def server():
    with FakeServer() as running:
        yield running


@dataclasses.dataclass(frozen=True)
class Image:
    data: bytes
    hash: str


def image(text: bytes) -> Image:
    return Image(text, hashlib.sha256(text).hexdigest())


def shipment(key: str, frames: tuple[int, ...], first: int = 0) -> Shipment:
    prepared = [
        Prepared(first + i, dataclasses.replace(keyframe(f), shot=key), (image(b"%d" % f),))
        for i, f in enumerate(frames)
    ]
    return Shipment(key, key, tuple(p.item for p in prepared), lambda: prepared)


class Hearing:
    """Collects a network's messages until it is through."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.all: list[net.Message] = []

    def next(self) -> net.Message:
        message = self.network.messages.get(timeout=10)
        self.all.append(message)
        return message

    def until(self, *kinds: type) -> net.Message:
        while True:
            message = self.next()
            if isinstance(message, kinds):
                return message

    def of(self, kind: type) -> list:
        return [m for m in self.all if isinstance(m, kind)]


@pytest.fixture
def start(server):
    made = []

    def start_one(connect=None, **options) -> tuple[Network, Hearing]:
        network = Network(connect or (lambda: Client(server.url, server.token)), **options)
        network.start()
        made.append(network)
        return network, Hearing(network)

    yield start_one
    for network in made:
        network.close()


def test_shots_are_drawn_and_fetched(start):
    network, heard = start()
    network.ship(shipment("a", (1, 2)))
    network.ship(shipment("b", (3,), first=2))
    network.no_more()
    heard.until(net.Finished)
    assert isinstance(heard.all[0], net.Connected)
    assert [m.item for m in heard.of(net.Drawn)] == [0, 1, 2]
    assert all(m.png.startswith(b"\x89PNG") for m in heard.of(net.Drawn))
    assert [m.image_bytes for m in heard.of(net.Sent)] == [2, 1]
    assert network.bytes_sent == 3


def test_a_failed_keyframe_is_tried_once_more_alone(start, server):
    server.fail_first = {2}
    network, heard = start()
    network.ship(shipment("a", (1, 2)))
    network.no_more()
    heard.until(net.Finished)
    assert sorted(m.item for m in heard.of(net.Drawn)) == [0, 1]
    assert heard.of(net.Ended) == []
    done = [e["keyframe"] for e in server.events["job1"] if e["type"] == "done"]
    assert sorted(done) == ["job1-0", "job1-1"]


def test_without_retries_a_failure_is_told_with_its_reason(start, server):
    server.fail_first = {2}
    network, heard = start(retries=0)
    network.ship(shipment("a", (1, 2)))
    network.no_more()
    heard.until(net.Finished)
    (ended,) = heard.of(net.Ended)
    assert (ended.item, ended.state, ended.fix) == (1, "failed", "Try again.")
    assert ended.message == "The artist broke a pencil."


def test_cancel_reaches_only_its_own_jobs(start, server):
    server.hold()
    other = server.add_job(
        {"client_key": "other", "title": "", "keyframes": [{"shot": "x", "frame": 1, "take": 1}]}
    )
    network, heard = start()
    network.ship(shipment("a", (1, 2)))
    heard.until(net.Sent)
    network.cancel()
    heard.until(net.Finished)
    assert sorted((m.item, m.state) for m in heard.of(net.Ended)) == [
        (0, "cancelled"),
        (1, "cancelled"),
    ]
    assert [j["state"] for j in server.jobs.values()] == ["queued", "cancelled"]
    assert other["state"] == "queued"


def test_cancel_while_maps_are_encoded_submits_nothing(start, server):
    encoding, go_on = threading.Event(), threading.Event()
    ready = shipment("a", (1,))

    def prepare():
        encoding.set()
        go_on.wait(5)
        return ready.prepare()

    network, heard = start()
    network.ship(dataclasses.replace(ready, prepare=prepare))
    assert encoding.wait(5)
    network.cancel()
    go_on.set()
    heard.until(net.Finished)
    assert [(m.item, m.state) for m in heard.of(net.Ended)] == [(0, "cancelled")]
    assert server.jobs == {}


def test_a_server_that_returns_finishes_the_job_and_draws_nothing_twice(start, server):
    address = [server.url]
    network, heard = start(lambda: Client(address[0], server.token))
    server.hold()
    network.ship(shipment("a", (1, 2)))
    network.no_more()
    heard.until(net.Sent)
    server.stop()
    heard.until(net.Trouble)
    with FakeServer() as second:  # a new port, and the queue that the first one kept
        second.blobs = server.blobs
        second.hold()
        old = server.requests["job1"]
        second.add_job(old)
        address[0] = second.url
        second.release()
        heard.until(net.Finished)
        assert sorted(m.item for m in heard.of(net.Drawn)) == [0, 1]
        assert len(second.jobs) == 1
        assert second.image_bytes() == 0


def test_a_server_gone_for_good_is_said_and_what_came_stays(start, server):
    network, heard = start(patience=0.3)
    network.ship(shipment("a", (1,)))
    wait_for(lambda: server.jobs and server.jobs["job1"]["state"] == "done" and not network.busy)
    network.look()
    heard.until(net.Drawn)
    wait_for(lambda: not network.busy)
    server.stop()
    network.ship(shipment("b", (2,), first=1))
    broken = heard.until(net.Broken)
    assert isinstance(broken.error, ServerGone)
    wait_for(lambda: not network.alive)
    assert [m.item for m in heard.of(net.Drawn)] == [0]


def test_no_server_from_the_start_is_said(start):
    def connect() -> Client:
        raise ClientError("No server is connected.", "Start it.")

    network, heard = start(connect)
    assert heard.until(net.Broken).error.fix == "Start it."
    wait_for(lambda: not network.alive)


def test_a_refused_job_fails_alone(start, server):
    network, heard = start()
    bad = shipment("a", (1,))
    damaged = Image(b"other bytes", bad.prepare()[0].images[0].hash)
    network.ship(
        dataclasses.replace(
            bad, prepare=lambda: [dataclasses.replace(bad.prepare()[0], images=(damaged,))]
        )
    )
    network.ship(shipment("b", (2,), first=1))
    network.no_more()
    heard.until(net.Finished)
    assert [(m.item, m.message) for m in heard.of(net.Ended)] == [
        (0, "These bytes have another hash.")
    ]
    assert [m.item for m in heard.of(net.Drawn)] == [1]


def test_close_ends_the_threads_silently(start, server):
    server.hold()
    network, heard = start()
    network.ship(shipment("a", (1,)))
    heard.until(net.Sent)
    network.close()
    wait_for(lambda: not network.alive)
    assert server.jobs["job1"]["state"] == "queued"
    with pytest.raises(queue.Empty):
        while True:
            assert not isinstance(network.messages.get_nowait(), net.Broken)

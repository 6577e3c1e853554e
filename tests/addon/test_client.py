# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP client against a server inside the test process."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from dataclasses import dataclass

import pytest

from addon.core import client as client_module
from addon.core.client import (
    Client,
    ClientError,
    Refused,
    ServerGone,
    WrongToken,
    WrongVersion,
    check_url,
    parse_events,
)
from addon.core.request import Box, Camera, Canvas, JobRequest, KeyframeRequest, Size

from .fake_server import FakeServer


@dataclass(frozen=True)
class Picture:
    data: bytes

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@pytest.fixture
def server():
    with FakeServer() as running:
        yield running


@pytest.fixture
def client(server):
    with Client(server.url, server.token, timeout=5) as made:
        yield made


def keyframe(frame: int) -> KeyframeRequest:
    return KeyframeRequest(
        film="film",
        shot="010",
        frame=frame,
        take=1,
        seed=7,
        frame_size=Size(16, 8),
        canvas=Canvas(32, 32, Box(0, 0, 16, 8)),
        camera=Camera("cam", "perspective", [1.0] * 16, [-1.0, 1.0, -1.0, 1.0], 0.1, 100.0),
        model="rehearsal",
        prompt="a street",
    )


def job(key: str = "key", frames: tuple[int, ...] = (1, 2)) -> JobRequest:
    return JobRequest(client_key=key, keyframes=[keyframe(f) for f in frames])


def test_handshake_gives_the_models(client):
    assert client.info()["models"][0]["name"] == "rehearsal"


@pytest.mark.parametrize(
    ("change", "who"),
    [
        ({"api": 2}, "Update the Onmodel add-on"),
        ({"request_versions": [3, 4]}, "Update the Onmodel add-on"),
        ({"api": 0}, "Update the Onmodel server"),
        ({"request_versions": [1]}, "Update the Onmodel server"),
    ],
)
def test_a_wrong_version_says_who_must_update(server, client, change, who):
    server.info.update(change)
    with pytest.raises(WrongVersion) as raised:
        client.info()
    assert raised.value.fix.startswith(who)
    assert "version 0.1.0" in raised.value.message


def test_a_wrong_token_is_said(server):
    with pytest.raises(WrongToken) as raised:
        Client(server.url, "wrong").info()
    assert "token" in raised.value.message
    assert raised.value.fix


def test_another_product_is_said(server, client):
    server.info["product"] = "toaster"
    with pytest.raises(Refused, match="not an Onmodel server"):
        client.info()


def test_no_server_is_said():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServerGone, match="does not answer") as raised:
        Client(f"http://127.0.0.1:{port}", "t", timeout=1).info()
    assert "Start it" in raised.value.fix


def test_a_silent_server_is_said():
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with pytest.raises(ServerGone, match=r"within 0\.2 seconds"):
            Client(f"http://127.0.0.1:{deaf.getsockname()[1]}", "t", timeout=0.2).info()


def test_a_server_that_dies_in_the_middle_of_an_answer_is_said():
    with socket.socket() as dying:
        dying.bind(("127.0.0.1", 0))
        dying.listen()

        def answer():
            for _ in range(2):
                connection, _ = dying.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ServerGone, match="does not answer"):
            Client(f"http://127.0.0.1:{dying.getsockname()[1]}", "t").job("a")


def test_the_servers_own_reason_comes_through(client):
    with pytest.raises(Refused) as raised:
        client.job("nonesuch")
    assert (raised.value.message, raised.value.fix) == ("There is no such job.", "Mend it.")
    assert (raised.value.code, raised.value.status) == ("no_such_job", 404)


def test_proxies_and_netrc_of_the_machine_are_ignored(server, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert Client(server.url, server.token).info()["product"] == "onmodel"


def test_only_missing_blobs_are_sent_and_the_second_time_none(server, client):
    pictures = [Picture(bytes([i]) * 1000) for i in range(3)]
    server.put_blob(pictures[0].data)
    assert client.send_blobs([*pictures, pictures[1]]) == 2000
    assert server.image_bytes() == 2000
    assert client.send_blobs(pictures) == 0
    assert server.image_bytes() == client.bytes_sent == 2000


def test_a_damaged_picture_is_refused(server, client):
    name = server.put_blob(b"whole")
    assert client.blob(name) == b"whole"
    server.blobs[name] = b"half"
    with pytest.raises(Refused, match="arrived damaged"):
        client.blob(name)


def test_a_repeated_submit_is_one_job(server, client):
    assert client.submit(job())["id"] == client.submit(job())["id"]
    assert len(client.jobs()) == 1


def test_events_come_in_order_to_the_end(client):
    events = list(client.events(client.submit(job())["id"]))
    assert [e["id"] for e in events] == list(range(1, len(events) + 1))
    assert [e["type"] for e in events] == ["sampling", "done", "sampling", "done", "job_done"]
    assert client.blob(events[1]["blob"]).startswith(b"\x89PNG")


def test_a_broken_stream_goes_on_after_the_last_event(server, client):
    server.drop_after = 2
    events = list(client.events(client.submit(job())["id"]))
    assert [e["id"] for e in events] == [1, 2, 3, 4, 5]
    opened = [path for _, path, _ in server.calls if "/events" in path]
    assert [path.partition("after=")[2] for path in opened] == ["0", "2"]


def test_events_after_a_number_leave_out_the_earlier_ones(server, client):
    job_id = client.submit(job())["id"]
    list(client.events(job_id))
    assert [e["id"] for e in client.events(job_id, after=3)] == [4, 5]


def test_a_server_gone_mid_stream_is_said_after_some_patience(server, client):
    server.hold()
    job_id = client.submit(job())["id"]
    threading.Timer(0.1, server.stop).start()
    with pytest.raises(ServerGone):
        list(client.events(job_id, patience=0.5))


def test_a_server_that_comes_back_is_found_again(server, client):
    server.hold()
    job_id = client.submit(job())["id"]
    server.add_event(job_id, "loading")
    seen = []

    def replace():
        server.stop()
        with FakeServer(server.port) as second:
            second.jobs, second.events = server.jobs, server.events
            second.add_event(job_id, "job_done")
            threading.Event().wait(2)

    for event in client.events(job_id, patience=10):
        seen.append(event["type"])
        if event["type"] == "loading":
            threading.Thread(target=replace, daemon=True).start()
    assert seen == ["loading", "job_done"]


def test_events_end_when_told_to_stop(server, client):
    server.hold()
    stop = threading.Event()
    job_id = client.submit(job())["id"]
    server.add_event(job_id, "loading")
    for event in client.events(job_id, stop=stop):
        assert event["type"] == "loading"
        stop.set()
    assert client.job(job_id)["state"] == "queued"


def test_a_kept_connection_that_died_is_no_error(server, client):
    client.info()
    server.stop()
    with FakeServer(server.port):
        assert client.info()["product"] == "onmodel"


def test_cancel_and_retry_reach_only_their_job(server, client):
    server.hold()
    first, second = client.submit(job("a"))["id"], client.submit(job("b"))["id"]
    client.cancel(first)
    client.cancel(first)
    assert client.job(first)["state"] == "cancelled"
    assert client.job(second)["state"] == "queued"
    server.release()
    client.retry(first)
    assert [e["type"] for e in client.events(second)][-1] == "job_done"


@pytest.mark.parametrize(
    ("url", "checked"),
    [
        ("http://localhost:8188/", "http://127.0.0.1:8188"),
        (" http://127.0.0.1:80 ", "http://127.0.0.1:80"),
        ("https://studio.example/onmodel/", "https://studio.example/onmodel"),
        ("http://[::1]:9", "http://[::1]:9"),
    ],
)
def test_addresses(url, checked):
    assert check_url(url) == checked


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:80", "file:///etc/passwd", "http://", "http://a:b@host", "http://h:99999"],
)
def test_what_is_no_address_is_said(url):
    with pytest.raises(ClientError, match="server address") as raised:
        check_url(url)
    assert "http://127.0.0.1" in raised.value.fix


def test_event_stream_cut_anywhere_reads_the_same():
    text = b': beat\r\n\r\nid: 4\r\nevent: done\r\ndata: {"type":\r\ndata: "done"}\r\n\r\nid: 5\n\n'
    for step in (1, 2, 7, len(text)):
        chunks = [text[i : i + step] for i in range(0, len(text), step)]
        assert list(parse_events(chunks)) == [{"type": "done", "id": 4}]


def test_the_body_of_a_submit_is_the_canonical_request(server, client):
    client.submit(job("canonical"))
    request = server.requests["job1"]
    assert json.loads(client_module.dumps(job("canonical"))) == request

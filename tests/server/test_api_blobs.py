# SPDX-License-Identifier: GPL-3.0-or-later
"""Images over HTTP: what arrives, what is refused and in which words."""

from __future__ import annotations

import hashlib
import http.client
import struct
import zlib
from collections.abc import Iterator

import pytest
import requests

from addon.core.client import Client, Refused
from tests.support import keyframes
from tests.support.server import RunningServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("blobs")) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with server.client() as made:
        yield made


def put(server: RunningServer, name: str, data: bytes) -> requests.Response:
    headers = {"Authorization": f"Bearer {server.ready['token']}"}
    url = f"{server.ready['url']}/v1/blobs/{name}"
    return requests.put(url, data=data, headers=headers, timeout=20)


def header_only_png(width: int, height: int) -> bytes:
    """A small file that says it is a large picture."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + ihdr
    return data + struct.pack(">I", zlib.crc32(ihdr)) + bytes(64)


def test_a_second_send_sends_nothing(client: Client) -> None:
    blobs = [keyframes.png(100 + i) for i in range(4)]
    assert client.send_blobs(blobs) == sum(len(b.data) for b in blobs)
    assert client.send_blobs(blobs) == 0
    assert client.blob(blobs[0].hash) == blobs[0].data
    assert client.missing([blobs[0].hash, "00" * 32]) == ["00" * 32]


def test_the_same_blob_twice_is_harmless(server: RunningServer) -> None:
    blob = keyframes.png(110)
    assert put(server, blob.hash, blob.data).json()["stored"] is True
    assert put(server, blob.hash, blob.data).json()["stored"] is False
    # What is stored under a name stays, whatever is sent to it later.
    put(server, blob.hash, keyframes.png(111).data)
    assert server.client().blob(blob.hash) == blob.data


def test_other_bytes_than_announced_are_refused(server: RunningServer, client: Client) -> None:
    blob = keyframes.png(120)
    answer = put(server, blob.hash, keyframes.png(121).data)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "hash_mismatch"
    assert client.missing([blob.hash]) == [blob.hash]


def test_a_transfer_cut_short_leaves_nothing(server: RunningServer, client: Client) -> None:
    blob = keyframes.png(130)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.putrequest("PUT", f"/v1/blobs/{blob.hash}")
    connection.putheader("Authorization", f"Bearer {server.ready['token']}")
    connection.putheader("Content-Length", str(len(blob.data)))
    connection.endheaders(blob.data[: len(blob.data) // 2])
    connection.close()
    assert client.missing([blob.hash]) == [blob.hash]
    client.send_blobs([blob])
    assert client.blob(blob.hash) == blob.data
    assert list((server.data / "blobs" / "incoming").iterdir()) == []


@pytest.mark.parametrize("size", [(20000, 20000), (20000, 10), (10, 20000), (0, 10)])
def test_a_picture_too_large_is_refused_before_it_is_decoded(
    server: RunningServer, size: tuple[int, int]
) -> None:
    data = header_only_png(*size)
    answer = put(server, hashlib.sha256(data).hexdigest(), data)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "bad_image"
    if min(size):
        assert f"{size[0]} x {size[1]} pixels" in error["message"]
        assert "Scale it down" in error["fix"]


def test_a_file_too_large_is_refused(server: RunningServer) -> None:
    data = bytes(64 * 1024 * 1024 + 1)
    answer = put(server, hashlib.sha256(data).hexdigest(), data)
    assert answer.status_code == 413
    assert "64 MB" in answer.json()["error"]["message"]


def test_too_large_without_a_length_is_refused_too(server: RunningServer) -> None:
    def stream() -> Iterator[bytes]:
        for _ in range(66):
            yield bytes(1024 * 1024)

    headers = {"Authorization": f"Bearer {server.ready['token']}"}
    url = f"{server.ready['url']}/v1/blobs/{'ab' * 32}"
    answer = requests.put(url, data=stream(), headers=headers, timeout=20)
    assert answer.status_code == 413
    assert list((server.data / "blobs" / "incoming").iterdir()) == []


def test_what_the_server_lacks_is_a_sentence(client: Client) -> None:
    with pytest.raises(Refused, match="no image 010101010101"):
        client.blob("01" * 32)


def test_a_file_damaged_on_the_disk_is_found(server: RunningServer, client: Client) -> None:
    blob = keyframes.png(140)
    client.send_blobs([blob])
    path = server.data / "blobs" / blob.hash[:2] / blob.hash[2:]
    path.write_bytes(blob.data[:-1] + b"x")
    with pytest.raises(Refused, match="damaged"):
        client.blob(blob.hash)
    assert client.missing([blob.hash]) == [blob.hash]

# SPDX-License-Identifier: GPL-3.0-or-later
"""What local generation servers have been attacked with, tried on ours (see docs/api.md)."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from onmodel.api.guard import host_name

from tests.support import keyframes
from tests.support.server import RunningServer, send_images, wait_job


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("guard")) as running:
        send_images(running.client())
        yield running


def call(
    server: RunningServer,
    path: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    token: str | None = "right",
) -> tuple[int, dict[str, str], bytes]:
    """One raw request; the path is sent as it stands."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    sent = {"Host": f"127.0.0.1:{server.port}", **(headers or {})}
    if token is not None:
        given = server.ready["token"] if token == "right" else token
        sent.setdefault("Authorization", f"Bearer {given}")
    if body is not None:
        sent.setdefault("Content-Length", str(len(body)))
    for name, value in sent.items():
        if value != "":
            connection.putheader(name, value)
    connection.endheaders(body)
    response = connection.getresponse()
    found = (response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    connection.close()
    return found


def sentence(body: bytes) -> str:
    """The message of an error, which must be one for people."""
    error = json.loads(body)["error"]
    assert error["message"][0].isupper() and error["message"].endswith(".")
    return str(error["code"])


@pytest.mark.parametrize("token", [None, "", "wrong", "right"[:-1], "ü"])
@pytest.mark.parametrize("path", ["/v1/info", "/v1/openapi.json", "/v1/jobs", "/", "/docs"])
def test_nothing_without_the_token(server: RunningServer, path: str, token: str | None) -> None:
    status, _, body = call(server, path, token=token)
    assert (status, sentence(body)) == (401, "wrong_token")


def test_a_state_change_needs_the_token_even_from_the_own_origin(server: RunningServer) -> None:
    origin = {"Origin": f"http://127.0.0.1:{server.port}", "Cookie": "token=x"}
    status, _, _ = call(server, "/v1/jobs", "POST", origin, b"{}", token=None)
    assert status == 401


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "localhost@evil", "", "[::1",
     "127.0.0.1:x", "169.254.169.254"],
)  # fmt: skip
def test_a_rebound_name_is_refused(server: RunningServer, host: str) -> None:
    status, _, body = call(server, "/v1/info", headers={"Host": host})
    assert status in (400, 421)
    assert status == 400 or sentence(body) == "wrong_host"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:{port}", "LOCALHOST", "[::1]:{port}"])
def test_loopback_names_are_served(server: RunningServer, host: str) -> None:
    status, _, _ = call(server, "/v1/info", headers={"Host": host.format(port=server.port)})
    assert status == 200


def test_host_names() -> None:
    assert host_name("[::1]:80") == "::1"
    assert host_name("LocalHost.:80") == "localhost"
    assert host_name("[::1]evil") == ""
    assert host_name("a:b") == ""


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "https://127.0.0.1.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_foreign_pages_are_refused_even_with_the_token(
    server: RunningServer, headers: dict[str, str]
) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        status, found, body = call(server, "/v1/jobs", method, headers, b"")
        assert (status, sentence(body)) == (403, "wrong_origin")
        assert not any(name.startswith("access-control") for name in found)


def test_the_own_origin_passes_with_the_token(server: RunningServer) -> None:
    status, _, _ = call(server, "/v1/info", headers={"Origin": f"http://127.0.0.1:{server.port}"})
    assert status == 200


@pytest.mark.parametrize(
    "name",
    [
        "../../queue.db",
        "..%2f..%2fqueue.db",
        "%2e%2e/%2e%2e/queue.db",
        "....//queue.db",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "C:%5Cwindows%5Cwin.ini",
        "..%5c..%5cqueue.db",
        "ab%00cd",
        "incoming",
        "A" * 64,
        "ab" * 31 + "..",
        "ab" * 32 + "%0a",
        "ab" * 32 + "/",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_no_path_leads_out_of_the_store(server: RunningServer, name: str, method: str) -> None:
    before = sorted(p.name for p in server.data.rglob("*") if p.suffix != ".db-wal")
    body = keyframes.depth.data if method == "PUT" else None
    status, _, answer = call(server, f"/v1/blobs/{name}", method, body=body)
    assert status in (400, 404, 405, 422)
    assert b"root:" not in answer and b"SQLite" not in answer
    assert sorted(p.name for p in server.data.rglob("*") if p.suffix != ".db-wal") == before


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_links_in_the_store_are_not_followed(server: RunningServer, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(keyframes.png(99).data)
    sha = keyframes.png(99).hash
    folder = server.data / "blobs" / sha[:2]
    folder.mkdir(exist_ok=True)
    (folder / sha[2:]).symlink_to(secret)
    assert call(server, f"/v1/blobs/{sha}")[0] == 404
    (folder / sha[2:]).unlink()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / sha[2:]).write_bytes(secret.read_bytes())
    folder.rmdir()
    folder.symlink_to(outside)
    assert call(server, f"/v1/blobs/{sha}")[0] == 404
    status, _, _ = call(server, f"/v1/blobs/{sha}", "PUT", body=secret.read_bytes())
    assert status >= 400
    folder.unlink()


def test_pictures_are_downloads_of_a_fixed_type(server: RunningServer) -> None:
    status, headers, body = call(server, f"/v1/blobs/{keyframes.depth.hash}")
    assert (status, body) == (200, keyframes.depth.data)
    assert headers["content-type"] == "image/png"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-disposition"].startswith("attachment")
    assert "default-src 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    "data",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<?xml version='1.0'?><svg/>",
        b"<html><script>alert(1)</script></html>",
        b"GIF89a<script>alert(1)</script>",
        b"\x80\x04\x95pickle",
        b"PK\x03\x04zip",
        b"",
    ],
)
def test_only_png_and_jpeg_are_taken(server: RunningServer, data: bytes) -> None:
    blob = keyframes.Blob(data)
    status, _, body = call(server, f"/v1/blobs/{blob.hash}", "PUT", body=data)
    assert (status, sentence(body)) == (422, "bad_image")
    assert call(server, f"/v1/blobs/{blob.hash}")[0] == 404


def test_every_answer_is_safe_in_a_browser(server: RunningServer) -> None:
    for path, token in (("/v1/info", "right"), ("/v1/none", "right"), ("/", "wrong")):
        _, headers, _ = call(server, path, token=token)
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-type"] == "application/json"
        assert "server" not in headers


@pytest.mark.parametrize(
    "changes",
    [
        {"film": "../../etc"},
        {"shot": "..\\x"},
        {"shot": "010\r\nX-Evil: 1"},
        {"film": "a\x00b"},
        {"model": "/models/x"},
    ],
)
def test_paths_and_line_breaks_in_job_bodies_are_refused(
    server: RunningServer, changes: dict[str, str]
) -> None:
    text = keyframes.contract.dumps(keyframes.job(keyframes.keyframe(**changes)))
    status, headers, body = call(
        server, "/v1/jobs", "POST", {"Content-Type": "application/json"}, text.encode()
    )
    assert (status, sentence(body)) == (422, "invalid_request")
    assert next(iter(changes)) in json.loads(body)["error"]["message"]
    assert "x-evil" not in headers


def test_a_title_with_markup_comes_back_as_json_only(server: RunningServer) -> None:
    client = server.client()
    made = client.submit(keyframes.job(*keyframes.unique(1), title="<script>alert(1)</script>"))
    wait_job(client, made["id"])
    status, headers, body = call(server, f"/v1/jobs/{made['id']}")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(body)["title"] == "<script>alert(1)</script>"


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /v1/info\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    ],
)
def test_smuggled_and_broken_requests_do_no_harm(server: RunningServer, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(raw)
        answer = connection.recv(1000)
    assert answer == b"" or answer.split()[1] in (b"400", b"401", b"421")
    assert call(server, "/v1/info")[0] == 200


def test_the_body_of_a_job_is_limited(server: RunningServer) -> None:
    status, _, body = call(
        server, "/v1/jobs", "POST", {"Content-Length": str(10**10)}, b"{" + b" " * 1000
    )
    assert (status, sentence(body)) == (413, "too_large")


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_files_are_the_users_alone(server: RunningServer) -> None:
    for path in (server.data, server.data / "blobs", server.data / "logs"):
        assert path.stat().st_mode & 0o777 == 0o700
    for path in (server.ready_file, server.data / "queue.db"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_the_token_is_in_no_log(server: RunningServer) -> None:
    call(server, "/v1/info", token="wrong")
    for path in [*(server.data / "logs").iterdir(), server.folder / "output.txt"]:
        assert server.ready["token"] not in path.read_text()

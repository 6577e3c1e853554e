# SPDX-License-Identifier: GPL-3.0-or-later
"""A server of API v1 inside the test process: stdlib only, draws nothing, misbehaves on demand.

It answers each keyframe with one grey PNG, at once or when told, and keeps every call it got.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from addon.core.client import survive_broken_pipes


def grey_png(width: int, height: int, value: int = 128) -> bytes:
    """A grey RGB PNG of this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = (b"\0" + bytes([value]) * (3 * width)) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


class FakeServer:
    """`with FakeServer() as server:` serves on 127.0.0.1 at `server.url` with `server.token`.

    Knobs: drop_after (event number after which a stream breaks once), hold() and release()
    (keyframes are only drawn while released), fail_first (frames that fail the first time they
    are drawn), heads (the record of heads that goes with the drawing of a request).
    """

    def __init__(self, port: int = 0) -> None:
        self.token = "right-token"
        self.info: dict[str, Any] = {
            "product": "onmodel",
            "version": "0.1.0",
            "api": 1,
            "request_versions": [1, 2],
            "device": "none",
            "models": [
                {
                    "name": "rehearsal",
                    "family": "sdxl",
                    "title": "Rehearsal",
                    "native_pixels": 256 * 256,
                    "multiple": 32,
                    "map_kinds": ["pose", "depth", "normal", "lineart"],
                    "presets": ["default"],
                    "default_preset": "default",
                    "sampling": {"default": {"steps": 20, "guidance": 4.0, "method": "fake"}},
                    "hash": "0" * 64,
                    "embedded": True,
                }
            ],
            "ip_adapters": [],
        }
        self.calls: list[tuple[str, str, int]] = []
        self.blobs: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.requests: dict[str, dict[str, Any]] = {}
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.drop_after: int | None = None
        self.released = True
        self.paused = False
        self.fail_first: set[int] = set()
        self.heads: Callable[[dict[str, Any]], list[dict[str, Any]]] = lambda request: []
        self.changed = threading.Condition()
        self.connections: list[socket.socket] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", port), handler_for(self))
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.stopped = False

    def __enter__(self) -> FakeServer:
        threading.Thread(target=self._http.serve_forever, args=(5.0,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Goes away: nothing listens any more and open streams break."""
        if not self.stopped:
            self.stopped = True
            with self.changed:
                self.changed.notify_all()
            ending = threading.Thread(target=self._http.shutdown, daemon=True)
            ending.start()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                pass  # wakes the loop, which looks only rarely by itself
            ending.join()
            self._http.server_close()
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def hold(self) -> None:
        """Draws nothing until `release`. Its threads sleep then, and disturb no capture."""
        self.released = False

    def release(self) -> None:
        """Draws on."""
        with self.changed:
            self.released = True
            self.changed.notify_all()

    def pause(self, paused: bool) -> None:
        """Holds besides `hold`: for a Blender that captures in this very process."""
        if self.paused != paused:
            with self.changed:
                self.paused = paused
                self.changed.notify_all()

    def put_blob(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        self.blobs[name] = data
        return name

    def add_event(self, job_id: str, kind: str, **fields: Any) -> None:
        with self.changed:
            events = self.events.setdefault(job_id, [])
            events.append({"id": len(events) + 1, "type": kind, **fields})
            self.changed.notify_all()

    def add_job(self, request: dict[str, Any]) -> dict[str, Any]:
        key = request["client_key"]
        for job in self.jobs.values():
            if job["client_key"] == key:
                return job
        job_id = f"job{len(self.jobs) + 1}"
        keyframes = [
            {
                "id": f"{job_id}-{i}",
                "shot": r["shot"],
                "frame": r["frame"],
                "take": r["take"],
                "state": "queued",
                "step": 0,
                "steps": 4,
                "result": None,
                "error": None,
                "timings": {},
                "record": {},
            }
            for i, r in enumerate(request["keyframes"])
        ]
        job = {
            "id": job_id,
            "client_key": key,
            "title": request["title"],
            "state": "queued",
            "keyframes": keyframes,
        }
        self.jobs[job_id] = job
        self.requests[job_id] = request
        self.events[job_id] = []
        threading.Thread(target=self.draw, args=(job_id,), daemon=True).start()
        return job

    def draw(self, job_id: str) -> None:
        """Draws what is queued in a job, after `release`."""
        job = self.jobs[job_id]
        for keyframe, request in zip(
            job["keyframes"], self.requests[job_id]["keyframes"], strict=True
        ):
            if keyframe["state"] != "queued":
                continue
            with self.changed:
                self.changed.wait_for(
                    lambda: (
                        (self.released and not self.paused)
                        or job["state"] == "cancelled"
                        or self.stopped
                    )
                )
            if job["state"] == "cancelled":
                return
            if keyframe["state"] == "cancelled" or self.stopped:
                continue
            keyframe["state"] = "sampling"
            self.add_event(job_id, "sampling", keyframe=keyframe["id"], step=2, steps=4)
            if request["frame"] in self.fail_first:
                self.fail_first.discard(request["frame"])
                keyframe["state"] = "failed"
                keyframe["error"] = {"message": "The artist broke a pencil.", "fix": "Try again."}
                self.add_event(
                    job_id,
                    "failed",
                    keyframe=keyframe["id"],
                    message="The artist broke a pencil.",
                    fix="Try again.",
                )
                continue
            size = request["frame_size"]
            grey = 40 + (request["seed"] + request["frame"]) % 180
            keyframe["result"] = self.put_blob(grey_png(size["width"], size["height"], grey))
            keyframe["state"] = "done"
            keyframe["timings"] = {"sampling": 0.01}
            keyframe["record"] = {"heads": self.heads(request)}
            self.add_event(job_id, "done", keyframe=keyframe["id"], blob=keyframe["result"])
        states = {k["state"] for k in job["keyframes"]}
        job["state"] = "failed" if "failed" in states else "done"
        self.add_event(job_id, "job_done", message=job["state"])

    def cancel(self, job_id: str) -> None:
        job = self.jobs[job_id]
        if job["state"] in ("done", "failed", "cancelled"):
            return
        with self.changed:
            job["state"] = "cancelled"
            self.changed.notify_all()
        for keyframe in job["keyframes"]:
            if keyframe["state"] in ("queued", "sampling"):
                keyframe["state"] = "cancelled"
                self.add_event(job_id, "cancelled", keyframe=keyframe["id"])
        self.add_event(job_id, "job_done", message="cancelled")

    def retry(self, job_id: str) -> None:
        job = self.jobs[job_id]
        for keyframe in job["keyframes"]:
            if keyframe["state"] in ("failed", "cancelled"):
                keyframe.update(state="queued", error=None)
                self.add_event(job_id, "queued", keyframe=keyframe["id"])
        job["state"] = "queued"
        threading.Thread(target=self.draw, args=(job_id,), daemon=True).start()

    def image_bytes(self) -> int:
        """Image bytes received by PUT so far."""
        return sum(n for method, _, n in self.calls if method == "PUT")


def handler_for(server: FakeServer) -> type[BaseHTTPRequestHandler]:  # noqa: C901
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            survive_broken_pipes()
            super().setup()
            server.connections.append(self.connection)

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, data: Any) -> None:
            body = data if isinstance(data, bytes) else json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def error(self, status: int, code: str, message: str) -> None:
            self.answer(status, {"error": {"code": code, "message": message, "fix": "Mend it."}})

        def handle_call(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.calls.append((self.command, self.path, len(body)))
            if self.headers.get("Authorization") != f"Bearer {server.token}":
                return self.error(401, "wrong_token", "Who are you?")
            path, _, query = self.path.partition("?")
            parts = path.strip("/").split("/")[1:]
            if parts == ["info"]:
                return self.answer(200, server.info)
            if parts == ["blobs", "missing"]:
                hashes = json.loads(body)["hashes"]
                return self.answer(200, {"missing": [h for h in hashes if h not in server.blobs]})
            if parts[0] == "blobs" and self.command == "PUT":
                if hashlib.sha256(body).hexdigest() != parts[1]:
                    return self.error(422, "wrong_hash", "These bytes have another hash.")
                server.blobs[parts[1]] = body
                return self.answer(201, {})
            if parts[0] == "blobs" and parts[1] in server.blobs:
                return self.answer(200, server.blobs[parts[1]])
            if parts[0] == "jobs":
                return self.jobs(parts[1:], query, body)
            return self.error(404, "not_found", "There is no such thing.")

        def jobs(self, parts: list[str], query: str, body: bytes) -> None:
            if not parts and self.command == "POST":
                job = server.add_job(json.loads(body))
                return self.answer(200, {"id": job["id"], "keyframes": job["keyframes"]})
            if not parts:
                return self.answer(200, {"jobs": list(server.jobs.values())})
            if parts[0] not in server.jobs:
                return self.error(404, "no_such_job", "There is no such job.")
            if parts[1:] == ["events"]:
                return self.stream(parts[0], int(query.partition("after=")[2] or 0))
            if parts[1:] == ["cancel"]:
                server.cancel(parts[0])
            if parts[1:] == ["retry"]:
                server.retry(parts[0])
            return self.answer(200, server.jobs[parts[0]])

        def stream(self, job_id: str, after: int) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.close_connection = True
            self.chunk(b": hello\n\n")
            while not server.stopped:
                for event in server.events[job_id][after:]:
                    text = f"id: {event['id']}\nevent: {event['type']}\ndata: {json.dumps(event)}"
                    self.chunk(text.encode() + b"\n\n")
                    after = event["id"]
                    if event["type"] == "job_done":
                        return self.chunk(b"")
                    if server.drop_after is not None and after >= server.drop_after:
                        server.drop_after = None
                        return self.chunk(b"id: 99\ndata: {")  # cut in the middle of an event
                with server.changed:
                    if len(server.events[job_id]) <= after:
                        server.changed.wait(1.0)
                self.chunk(b": beat\n\n")

        def chunk(self, data: bytes) -> None:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

        do_GET = do_POST = do_PUT = handle_call

    return Handler


def wait_for(condition: Any, seconds: float = 5.0) -> None:
    """Waits until `condition()` holds; fails the test after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The one door to the server: API v1 over HTTP, without bpy.

Every call blocks, so it belongs in a thread of its own (addon/render/network.py) or in a script,
never in drawing code. A Client keeps one connection alive and is used by one thread at a time;
`events` opens a connection of its own. Every failure is a ClientError with a sentence for the
person (`message`) and what to do about it (`fix`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Any, Protocol

import requests

from .request import JobRequest, dumps, request_version

log = logging.getLogger(__name__)

api_version = 1
"""The HTTP API this client speaks."""

max_blob_bytes = 512 * 1024 * 1024
"""A larger answer than this is no picture of ours."""

patience = 30.0
"""Seconds to wait for an answer: the server itself waits up to 20 for a new worker's first word."""

preflight_seconds = 250.0
"""How long the answer to a preflight may take; the server gives up a little earlier."""

first_pause, longest_pause = 0.1, 2.0
"""Seconds between attempts to reach a stream again: doubled from the first to the longest."""

silence = 30.0
"""Seconds without a byte (the server's heartbeat is far more frequent) that end a stream."""


class ClientError(RuntimeError):
    """Something went wrong between the add-on and the server.

    message: one sentence that says what is wrong; fix: what the person can do about it.
    """

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(f"{message} {fix}".strip())
        self.message = message
        self.fix = fix


class ServerGone(ClientError):
    """Nothing answers at the server's address, or it stopped answering."""


class WrongToken(ClientError):
    """The server does not accept this session's token."""


class WrongVersion(ClientError):
    """Add-on and server speak different versions; one of them has to be updated."""


class Refused(ClientError):
    """The server understood and said no. code: the server's short name of the reason."""

    def __init__(self, message: str, fix: str = "", code: str = "", status: int = 0) -> None:
        super().__init__(message, fix)
        self.code = code
        self.status = status


class BlobLike(Protocol):
    """The bytes of an image and the lower-case hex SHA-256 of them."""

    @property
    def data(self) -> bytes: ...

    @property
    def hash(self) -> str: ...


def check_url(url: str) -> str:
    """`url` without a trailing slash and with 127.0.0.1 for "localhost".

    "localhost" may mean ::1 first, where our server does not listen, and costs a look-up.
    Raises ClientError for anything that is not a plain http(s) address.
    """
    fix = "Write it like http://127.0.0.1:8188, as the server prints it when it starts."
    try:
        parts = urllib.parse.urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise ClientError(f"“{url}” is not a server address ({error}).", fix) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ClientError(f"“{url}” is not a server address.", fix)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ClientError(f"“{url}” holds more than a server address.", fix)
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


def survive_broken_pipes() -> None:
    """Has a write to a server that is gone raise an error in this thread, on every Blender.

    Some Blenders (4.3 of Debian) leave SIGPIPE deadly, where Python by itself ignores it: then
    such a write ends Blender. A thread that blocks the signal gets the error alone.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])


def new_session(token: str) -> requests.Session:
    """A session that ignores the machine's proxy settings and netrc, with the token on board."""
    session = requests.Session()
    session.trust_env = False
    session.headers.update({"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"})
    return session


class Client:
    """API v1 of one server.

    bytes_sent: image bytes sent so far, over all calls of send_blobs.
    timeout: seconds to wait for an answer.
    """

    def __init__(self, url: str, token: str, timeout: float = patience) -> None:
        self.url = check_url(url)
        self.token = token
        self.timeout = timeout
        self.bytes_sent = 0
        self._session = new_session(token)

    def again(self) -> Client:
        """Another client of the same server: each thread needs one of its own."""
        return Client(self.url, self.token, self.timeout)

    def close(self) -> None:
        """Closes the kept connection."""
        self._session.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def info(self) -> dict[str, Any]:
        """What the server is and which models it has; also the version handshake.

        Raises WrongVersion where the two sides cannot work together.
        """
        info = self._json("GET", "/v1/info")
        if not isinstance(info, dict) or info.get("product") != "onmodel":
            raise Refused(
                f"What answers at {self.url} is not an Onmodel server.",
                "Check the address in Onmodel's preferences.",
            )
        check_versions(info)
        return info

    def missing(self, hashes: Iterable[str]) -> list[str]:
        """Which of these blobs the server does not have yet."""
        wanted = sorted(set(hashes))
        if not wanted:
            return []
        answer = self._json("POST", "/v1/blobs/missing", {"hashes": wanted})
        return [str(h) for h in answer["missing"]]

    def send_blobs(self, blobs: Iterable[BlobLike]) -> int:
        """Sends those blobs that the server lacks, raw; returns the image bytes sent."""
        by_hash = {b.hash: b for b in blobs}
        sent = 0
        for name in self.missing(by_hash):
            data = by_hash[name].data
            self._call(
                "PUT",
                f"/v1/blobs/{name}",
                data=data,
                headers={"Content-Type": "application/octet-stream"},
            )
            sent += len(data)
            self.bytes_sent += len(data)
        return sent

    def submit(self, job: JobRequest) -> dict[str, Any]:
        """Queues a job; its blobs must be there. The answer has "id" and "keyframes".

        Harmless to repeat: the server knows the job by its client_key.
        """
        return self._object("POST", "/v1/jobs", dumps(job).encode())

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs of the server, newest last."""
        answer = self._json("GET", "/v1/jobs")
        return answer["jobs"] if isinstance(answer, dict) else answer

    def job(self, job_id: str) -> dict[str, Any]:
        """A job's state and that of each of its keyframes."""
        return self._object("GET", f"/v1/jobs/{quote(job_id)}")

    def cancel(self, job_id: str) -> None:
        """Cancels this job and no other. Harmless to repeat."""
        self._call("POST", f"/v1/jobs/{quote(job_id)}/cancel")

    def cancel_keyframe(self, keyframe_id: str) -> None:
        """Cancels one keyframe. Harmless to repeat."""
        self._call("POST", f"/v1/keyframes/{quote(keyframe_id)}/cancel")

    def retry(self, job_id: str) -> None:
        """Queues the failed and cancelled keyframes of this job again."""
        self._call("POST", f"/v1/jobs/{quote(job_id)}/retry")

    def preflight(self, plan: dict[str, Any]) -> dict[str, Any]:
        """What a training plan (docs/train.md) would do, and whether it can start ("ok").

        Takes seconds to minutes: the server looks at every picture.
        """
        return self._object("POST", "/v1/trainings/preflight", {"plan": plan}, preflight_seconds)

    def train(self, plan: dict[str, Any], client_key: str) -> dict[str, Any]:
        """Queues a training; the answer has "id", with which `events` follows it.

        Folders in the plan are whole paths on the server's machine. Harmless to repeat: the
        server knows the training by its client_key.
        """
        return self._object("POST", "/v1/trainings", {"client_key": client_key, "plan": plan})

    def training(self, training_id: str) -> dict[str, Any]:
        """How far a training is, its plan, and the blobs of its validation drawings."""
        return self._object("GET", f"/v1/trainings/{quote(training_id)}")

    def cancel_training(self, training_id: str) -> None:
        """Cancels a training, its state saved. Harmless to repeat."""
        self._call("POST", f"/v1/trainings/{quote(training_id)}/cancel")

    def retry_training(self, training_id: str) -> None:
        """Queues a failed or cancelled training again, to go on from its last save."""
        self._call("POST", f"/v1/trainings/{quote(training_id)}/retry")

    def blob(self, name: str) -> bytes:
        """The bytes of a blob, checked against their hash."""
        data = self._call("GET", f"/v1/blobs/{quote(name)}").content
        if len(data) > max_blob_bytes or hashlib.sha256(data).hexdigest() != name:
            raise Refused(
                f"The picture {name[:12]} arrived damaged.",
                "Draw this keyframe again; if it happens again, check the server's disk.",
            )
        return data

    def events(
        self,
        job_id: str,
        after: int = 0,
        patience: float = 10.0,
        stop: threading.Event | None = None,
    ) -> Iterator[dict[str, Any]]:
        """The events of a job in order, each once, from number `after` + 1 to "job_done".

        Reaches the server again when the connection breaks and goes on after the last event seen.
        Raises ServerGone after `patience` seconds without a server; ends early where `stop` is set.
        """
        last, pause, lost_at = after, first_pause, 0.0
        with new_session(self.token) as session:
            while not (stop and stop.is_set()):
                try:
                    for event in self._stream(session, job_id, last, stop):
                        pause, lost_at = first_pause, 0.0
                        if event["id"] <= last:
                            continue
                        last = event["id"]
                        yield event
                        if event["type"] == "job_done":
                            return
                        if stop and stop.is_set():
                            return
                    reason = "the stream ended early"
                except (requests.RequestException, ValueError, KeyError, TypeError) as error:
                    reason = f"{type(error).__name__}: {error}"
                now = time.monotonic()
                lost_at = lost_at or now
                log.info("events of job %s after %d: %s", job_id, last, reason)
                if now - lost_at >= patience:
                    raise gone(self.url)
                if stop:
                    stop.wait(pause)
                else:
                    time.sleep(pause)
                pause = min(pause * 2, longest_pause)

    def _stream(
        self, session: requests.Session, job_id: str, last: int, stop: threading.Event | None
    ) -> Iterator[dict[str, Any]]:
        """One connection's worth of events after number `last`; looks at `stop` at heartbeats."""
        survive_broken_pipes()
        with session.get(
            f"{self.url}/v1/jobs/{quote(job_id)}/events",
            params={"after": last},
            headers={"Accept": "text/event-stream", "Last-Event-ID": str(last)},
            stream=True,
            timeout=(self.timeout, silence),
            allow_redirects=False,
        ) as response:
            check_answer(response, self.url)
            # A body without chunks would only be handed over when it is complete.
            size = None if getattr(response.raw, "chunked", False) else 1
            chunks = response.iter_content(chunk_size=size)
            yield from parse_events(takewhile(lambda _: not (stop and stop.is_set()), chunks))

    def _object(
        self, method: str, path: str, body: Any = None, timeout: float | None = None
    ) -> dict[str, Any]:
        answer = self._json(method, path, body, timeout)
        if not isinstance(answer, dict):
            raise not_ours(self.url)
        return answer

    def _json(self, method: str, path: str, body: Any = None, timeout: float | None = None) -> Any:
        """A call with a JSON body (data, or bytes that are JSON already) and a JSON answer."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data is not None else {}
        response = self._call(method, path, data=data, headers=headers, timeout=timeout)
        try:
            return response.json()
        except ValueError:
            raise not_ours(self.url) from None

    def _call(
        self,
        method: str,
        path: str,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> requests.Response:
        """One call; raises the ClientError that fits.

        Tried a second time on a fresh connection, since the kept one may have died meanwhile:
        every call of this API is harmless to repeat.
        """
        url = self.url + path
        timeout = timeout or self.timeout
        survive_broken_pipes()
        for attempt in (1, 2):
            try:
                response = self._session.request(
                    method,
                    url,
                    data=data,
                    headers=headers,
                    timeout=timeout,
                    allow_redirects=False,
                )
                break
            except requests.Timeout as error:
                log.info("%s %s: %s", method, path, error)
                raise ServerGone(
                    f"The Onmodel server at {self.url} did not answer within {timeout:g} seconds.",
                    "It may be overloaded: try again, or restart the server.",
                ) from None
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                # The latter is requests' name for an answer that breaks off in the middle.
                log.info("%s %s, attempt %d: %s", method, path, attempt, error)
                if attempt == 2:
                    raise gone(self.url) from None
            except requests.RequestException as error:
                raise ClientError(
                    f"The request to {self.url} failed: {error}.", "Check the server's address."
                ) from None
        check_answer(response, self.url)
        return response


def quote(part: str) -> str:
    """One path segment of a URL."""
    return urllib.parse.quote(part, safe="")


def gone(url: str) -> ServerGone:
    """The error for a server that is not there."""
    return ServerGone(
        f"The Onmodel server at {url} does not answer.",
        "Start it from the Onmodel panel, or check the address in the preferences.",
    )


def not_ours(url: str) -> Refused:
    """The error for an answer in no form of ours."""
    return Refused(
        f"What answers at {url} is not an Onmodel server.",
        "Check the address in Onmodel's preferences.",
    )


def check_answer(response: requests.Response, url: str) -> None:
    """Raises the ClientError that an answer of 300 or above stands for."""
    if response.status_code < 300:
        return
    if response.status_code == 401:
        raise WrongToken(
            f"The server at {url} does not accept this session's token.",
            "Restart the server from the Onmodel panel, "
            "or copy the token it printed into the preferences.",
        )
    code, message, fix = "", "", ""
    try:
        error = response.json()["error"]
        code, message, fix = (str(error.get(k, "") or "") for k in ("code", "message", "fix"))
    except (ValueError, KeyError, TypeError, AttributeError, requests.RequestException):
        raise Refused(
            f"The server at {url} answered {response.status_code} and no reason.",
            "Check that the address is that of an Onmodel server.",
            status=response.status_code,
        ) from None
    raise Refused(
        message or f"The server answered {response.status_code}.", fix, code, response.status_code
    )


def check_versions(info: dict[str, Any]) -> None:
    """The version handshake on the answer of /v1/info; raises WrongVersion with what to update."""
    server = info.get("version", "unknown")
    api = info.get("api")
    known = info.get("request_versions", [])
    newer_server = (isinstance(api, int) and api > api_version) or (
        api == api_version and bool(known) and min(known) > request_version
    )
    if api == api_version and request_version in known:
        return
    update = "Update the Onmodel add-on" if newer_server else "Update the Onmodel server"
    spoken = ", ".join(str(v) for v in known) or "none"
    raise WrongVersion(
        f"The server (version {server}) speaks API {api} and requests {spoken}; "
        f"this add-on speaks API {api_version} and requests {request_version}.",
        f"{update} so that both are of one release.",
    )


def parse_events(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Server-sent events out of a byte stream: their JSON data, with "id" from the id line.

    Comments (heartbeats) and events without data are skipped; an unfinished last one is dropped,
    as the standard (WHATWG HTML, 9.2.6) says.
    """
    rest = b""
    fields: dict[str, list[str]] = {}
    for chunk in chunks:
        rest += chunk
        *lines, rest = rest.split(b"\n")
        for line in lines:
            text = line.rstrip(b"\r").decode("utf-8", "replace")
            if text:
                name, _, value = text.partition(":")
                fields.setdefault(name, []).append(value.removeprefix(" "))
                continue
            if "data" in fields:
                event = json.loads("\n".join(fields["data"]))
                if "id" in fields:
                    event["id"] = int(fields["id"][-1])
                yield event
            fields = {}

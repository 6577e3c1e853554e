# SPDX-License-Identifier: GPL-3.0-or-later
"""The add-on's talk with the server, away from Blender's main thread. Never touches bpy.

Two threads: the sender encodes captured keyframes, sends what the server lacks and submits one
job per shot; the follower listens to those jobs in turn and fetches the drawings. The main thread
hands over Shipments and takes Messages; neither side ever waits for the other.

No Python of these threads runs while the main thread captures: the sender works only when it was
given something, and the main thread waits with the next capture step until it is through (`busy`);
the follower begins after `no_more`, until then the sender looks for results when told to (`look`).
Blender's operators release the interpreter's lock, and on Python 3.11 (Blender 4.2 to 5.0) Blender
then reads context overrides and scripted drivers without it as long as any other thread runs,
which crashed it in about one of 100 renders.

A server that goes away is looked for again through `connect`; jobs are then submitted once more
under their client_key, which the durable queue knows, so nothing is drawn twice.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.blob import Blob
from ..core.client import Client, ClientError, Refused, ServerGone, WrongToken, WrongVersion
from ..core.request import JobRequest, KeyframeRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A keyframe ready to be sent. item: the session's own number of it."""

    item: int
    request: KeyframeRequest
    images: tuple[Blob, ...] = ()


@dataclass
class Shipment:
    """One job to be. prepare: encodes maps and builds requests (no bpy); runs in the sender.

    items: the session's numbers of its keyframes. client_key: unique to this submit.
    """

    client_key: str
    title: str
    items: tuple[int, ...]
    prepare: Callable[[], list[Prepared]]
    prepared: list[Prepared] = field(default_factory=list)
    job_id: str = ""
    keyframe_ids: dict[str, int] = field(default_factory=dict)
    last_event: int = 0
    ended: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Connected:
    """The server answered and fits. info: its GET /v1/info."""

    info: dict[str, Any]


@dataclass(frozen=True)
class Sent:
    """A shot's maps are with the server and its job is queued.

    image_bytes: sent for it. prepare, send: seconds for encoding and for transfer with submit.
    """

    job_id: str
    items: tuple[int, ...]
    image_bytes: int
    prepare: float
    send: float
    requests: dict[int, KeyframeRequest]


@dataclass(frozen=True)
class Kept:
    """A keyframe is drawn and on disk already, at path; put by a shipment's `prepare`."""

    item: int
    request: KeyframeRequest
    path: Path


@dataclass(frozen=True)
class Unwritable:
    """The run's folder cannot be written; put by a shipment's `prepare`. See OutputError."""

    message: str
    fix: str
    full: bool


@dataclass(frozen=True)
class Progress:
    """A keyframe's state on the server: queued, loading or sampling, at step of steps."""

    item: int
    state: str
    step: int = 0
    steps: int = 0
    preview: bytes | None = None


@dataclass(frozen=True)
class Drawn:
    """A keyframe is drawn. keyframe: its entry in GET /v1/jobs/{id}. fetch: seconds."""

    item: int
    png: bytes
    keyframe: dict[str, Any]
    fetch: float


@dataclass(frozen=True)
class Ended:
    """A keyframe will not be drawn: state "failed", "cancelled" or (checked only) "changed"."""

    item: int
    state: str
    message: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Waiting:
    """What is queued waits for something else on the server, a training. message: a sentence."""

    message: str


@dataclass(frozen=True)
class Trouble:
    """The server cannot be reached just now; the search goes on."""

    message: str


@dataclass(frozen=True)
class Broken:
    """No server can be had, so nothing more will come."""

    error: ClientError


@dataclass(frozen=True)
class Finished:
    """All shipments are through; nothing more will come."""


Message = (
    Connected
    | Sent
    | Kept
    | Unwritable
    | Progress
    | Drawn
    | Ended
    | Waiting
    | Trouble
    | Broken
    | Finished
)


class _Look:
    """Asks the sender to look for results once."""


class Network:
    """Sender and follower of one render session.

    connect: gives a Client of a server that answers, starting one where that is its way; called
    in the threads, again whenever the server is lost; raises ClientError when there is none.
    retries: how often a job's failed keyframes are queued again by themselves.
    patience: seconds to look for a lost server.
    """

    def __init__(
        self,
        connect: Callable[[], Client],
        retries: int = 1,
        patience: float = 20.0,
        previews: bool = False,
    ) -> None:
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.bytes_sent = 0
        self._connect_once = connect
        self._connecting = threading.Lock()
        self._retries = retries
        self._patience = patience
        self._previews = previews
        self._to_send: queue.SimpleQueue[Shipment | _Look | None] = queue.SimpleQueue()
        self._to_follow: queue.SimpleQueue[Shipment | None] = queue.SimpleQueue()
        self._shipped: list[Shipment] = []
        self._given = 0
        self._through = 0
        self._closed = False
        self._captured = threading.Event()
        self._stop = threading.Event()
        self._cancelled = threading.Event()
        self._broken = threading.Event()
        self._threads = [
            threading.Thread(target=self._send_all, name="onmodel-sender", daemon=True),
            threading.Thread(target=self._follow_all, name="onmodel-follower", daemon=True),
        ]

    def start(self) -> None:
        """Starts both threads; a Connected or a Broken follows."""
        for thread in self._threads:
            thread.start()

    @property
    def started(self) -> bool:
        return self._threads[0].ident is not None

    @property
    def alive(self) -> bool:
        """Whether the follower, which ends last, still works."""
        return self._threads[1].is_alive()

    def ship(self, shipment: Shipment) -> None:
        """Hands a shot over."""
        self._given += 1
        self._to_send.put(shipment)

    def look(self) -> None:
        """Has the sender fetch what is drawn by now; for the time before `no_more`."""
        if not self.busy and self._shipped:
            self._given += 1
            self._to_send.put(_Look())

    @property
    def busy(self) -> bool:
        """Whether the sender works, so that nothing may be captured."""
        return self._through < self._given and self._threads[0].is_alive()

    def listen(self) -> None:
        """All is captured: the follower may begin. Further shipments may still come."""
        self._captured.set()

    def no_more(self) -> None:
        """No further shipment will come; Finished follows the last one's end. Said once or more."""
        self._captured.set()
        if not self._closed:
            self._closed = True
            self._to_send.put(None)

    def cancel(self) -> None:
        """Cancels the jobs of this session and no others; Finished follows."""
        if not self._cancelled.is_set():
            self._cancelled.set()
            threading.Thread(target=self._cancel_jobs, daemon=True).start()
            self.no_more()

    def close(self) -> None:
        """Ends both threads soon and silently; jobs on the server go on."""
        self._stop.set()
        self._captured.set()
        self._to_send.put(None)
        self._to_follow.put(None)

    # --- in the threads --------------------------------------------------------------------------

    def _connect(self) -> Client:
        """A client, after some patience where the server was lost. Raises ClientError."""
        with self._connecting:
            return self._connect_once()

    def _recover(self) -> Client:
        """A client of a server that is to be found again. Raises ClientError at last."""
        give_up, pause = time.monotonic() + self._patience, 0.2
        while True:
            try:
                client = self._connect()
                client.info()
                return client
            except WrongVersion:
                raise
            except ClientError as error:
                if time.monotonic() >= give_up or self._stop.is_set() or self._cancelled.is_set():
                    raise
                self.messages.put(Trouble(error.message))
                self._stop.wait(pause)
                pause = min(pause * 2, 2.0)

    def _break(self, error: ClientError) -> None:
        if not self._broken.is_set():
            self._broken.set()
            self.messages.put(Broken(error))
        self._to_follow.put(None)

    def _send_all(self) -> None:
        try:
            client = self._connect()
            self.messages.put(Connected(client.info()))
            while not self._stop.is_set():
                shipment = self._to_send.get()
                if shipment is None:
                    break
                if isinstance(shipment, _Look):
                    self._look(client)
                else:
                    client = self._send(client, shipment)
                self._through += 1
            client.close()
        except ClientError as error:
            self._break(error)
        finally:
            self._captured.set()
            self._to_follow.put(None)

    def _send(self, client: Client, shipment: Shipment) -> Client:
        """Prepares and submits a shipment. Raises ClientError when no server can be had."""
        start = time.perf_counter()
        if not self._cancelled.is_set():
            shipment.prepared = shipment.prepare()
        ready = time.perf_counter()
        left_out = set(shipment.items) - {p.item for p in shipment.prepared}
        shipment.ended |= left_out
        if self._cancelled.is_set():
            self._end(shipment, "cancelled")
            return client
        if not shipment.prepared:
            return client
        before = client.bytes_sent
        try:
            try:
                self._submit(client, shipment)
            except (ServerGone, WrongToken) as error:
                self.messages.put(Trouble(error.message))
                client.close()
                client, before = self._recover(), 0
                self._submit(client, shipment)
        except Refused as error:
            self._end(shipment, "failed", error.message, error.fix)
            return client
        sent = client.bytes_sent - before
        self.bytes_sent += sent
        self.messages.put(
            Sent(
                shipment.job_id,
                tuple(p.item for p in shipment.prepared),
                sent,
                ready - start,
                time.perf_counter() - ready,
                {p.item: p.request for p in shipment.prepared},
            )
        )
        if self._cancelled.is_set():
            client.cancel(shipment.job_id)  # asked for while the job was on its way
        self._to_follow.put(shipment)
        return client

    def _look(self, client: Client) -> None:
        """Fetches what is drawn by now. What went wrong is the follower's to find."""
        try:
            for shipment in self._shipped:
                if len(shipment.ended) == len(shipment.items):
                    continue
                for keyframe in client.job(shipment.job_id)["keyframes"]:
                    item = shipment.keyframe_ids[str(keyframe["id"])]
                    if keyframe["state"] == "done" and item not in shipment.ended:
                        self._fetch(client, shipment, item, keyframe)
        except (ClientError, KeyError) as error:
            log.info("looking for results: %s", error)

    def _submit(self, client: Client, shipment: Shipment) -> None:
        images = {i.hash: i for p in shipment.prepared for i in p.images}
        client.send_blobs(images.values())
        requests = [p.request for p in shipment.prepared]
        answer = client.submit(JobRequest(shipment.client_key, requests, shipment.title))
        job_id = str(answer["id"])
        if job_id != shipment.job_id:
            shipment.job_id, shipment.last_event = job_id, 0
        ids = [str(k["id"]) for k in answer["keyframes"]]
        shipment.keyframe_ids = dict(zip(ids, [p.item for p in shipment.prepared], strict=True))
        if shipment not in self._shipped:
            self._shipped.append(shipment)

    def _cancel_jobs(self) -> None:
        """Tells the server to cancel what is submitted. What is on its way, the sender cancels."""
        try:
            client = self._connect()
            for shipment in list(self._shipped):
                client.cancel(shipment.job_id)
            client.close()
        except ClientError as error:
            self.messages.put(Trouble(f"The server could not be told to cancel. {error.message}"))
            self._stop.set()
            self._to_follow.put(None)

    def _follow_all(self) -> None:
        client: Client | None = None
        self._captured.wait()
        try:
            while not self._stop.is_set():
                shipment = self._to_follow.get()
                if shipment is None:
                    break
                client = self._follow(client or self._connect(), shipment)
        except ClientError as error:
            self._break(error)
        finally:
            if client:
                client.close()
        if not self._broken.is_set():
            self.messages.put(Finished())

    def _follow(self, client: Client, shipment: Shipment) -> Client:
        """Follows a job to its end. Raises ClientError when no server can be had."""
        retries, lost = self._retries, False
        while not self._stop.is_set():
            if lost:
                client = self._recover()
            try:
                if lost:
                    self._submit(client, shipment)
                    lost = False
                if not self._listen(client, shipment, retries > 0):
                    break
                retries -= 1
                client.retry(shipment.job_id)
            except (ServerGone, WrongToken) as error:
                lost = True
                client.close()
                self.messages.put(Trouble(error.message))
            except Refused as error:
                self._end(shipment, "failed", error.message, error.fix)
                break
        if not self._stop.is_set() and not self._cancelled.is_set():
            self._end(shipment, "failed", "The server said nothing of it.", "Draw it again.")
        shipment.prepared = []  # the maps of a finished shot need no memory
        return client

    def _listen(self, client: Client, shipment: Shipment, retry: bool) -> bool:
        """Hears events to the job's end; True where it ended with failures to be tried again."""
        failed: dict[int, Ended] = {}
        last = shipment.last_event
        for event in client.events(shipment.job_id, last, patience=2.0, stop=self._stop):
            item = shipment.keyframe_ids.get(str(event.get("keyframe")))
            if item is not None and item not in shipment.ended:
                ended = self._hear(client, shipment, item, event)
                if ended and ended.state == "failed" and retry:
                    failed[item] = ended
                elif ended:
                    shipment.ended.add(item)
                    self.messages.put(ended)
            elif event["type"] == "waiting":
                self.messages.put(Waiting(str(event.get("message", ""))))
            shipment.last_event = event["id"]
        if self._cancelled.is_set() or self._stop.is_set():
            for item, ended in failed.items():
                shipment.ended.add(item)
                self.messages.put(ended)
            return False
        return bool(failed)

    def _hear(
        self, client: Client, shipment: Shipment, item: int, event: dict[str, Any]
    ) -> Ended | None:
        """Passes one event of an unfinished keyframe on; the Ended of one that will not come."""
        kind = event["type"]
        if kind in ("failed", "cancelled"):
            return Ended(item, kind, str(event.get("message", "")), str(event.get("fix", "")))
        if kind == "done":
            job = client.job(shipment.job_id)
            keyframe = next(k for k in job["keyframes"] if str(k["id"]) == str(event["keyframe"]))
            self._fetch(client, shipment, item, keyframe)
            return None
        preview = None
        if kind == "preview" and self._previews and event.get("blob"):
            preview = client.blob(str(event["blob"]))
        steps = int(event.get("steps", 0) or 0)
        self.messages.put(Progress(item, kind, int(event.get("step", 0) or 0), steps, preview))
        return None

    def _fetch(
        self, client: Client, shipment: Shipment, item: int, keyframe: dict[str, Any]
    ) -> None:
        start = time.perf_counter()
        png = client.blob(str(keyframe["result"]))
        shipment.ended.add(item)
        self.messages.put(Drawn(item, png, keyframe, time.perf_counter() - start))

    def _end(self, shipment: Shipment, state: str, message: str = "", fix: str = "") -> None:
        """No keyframe of this shipment that is not through yet will come."""
        for item in sorted(set(shipment.items) - shipment.ended):
            shipment.ended.add(item)
            self.messages.put(Ended(item, state, message, fix))

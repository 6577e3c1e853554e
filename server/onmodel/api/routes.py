# SPDX-License-Identifier: GPL-3.0-or-later
"""API v1: what each address does. The rules that hold for all are in guard.py and errors.py."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from onmodel.api import check, schemas
from onmodel.api.errors import ApiError
from onmodel.api.state import ServerState
from onmodel.jobs import images
from onmodel.jobs.blobs import BlobError, max_blob_bytes
from onmodel.version import version

api_version = 1
first_word_seconds = 20.0
"""How long /v1/info waits for a new worker to say which models there are."""
poll_seconds = 0.03
heartbeat_seconds = 10.0
max_drain_bytes = 4 * max_blob_bytes

router = APIRouter(prefix="/v1")
Id = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")]
Sha = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


def state_of(request: Request) -> ServerState:
    """The server's one state."""
    found: ServerState = request.app.state.onmodel
    return found


async def worker_word(state: ServerState) -> dict[str, Any]:
    """What the worker left word of: models (None: nothing yet), loras, ip_adapters, device, notice.

    Word that a worker of an older version left has no ip_adapters.
    """
    deadline = time.monotonic() + first_word_seconds
    while True:
        told: dict[str, Any] | None = await run_in_threadpool(state.queue.setting, "worker")
        if told is not None:
            return told
        worker = state.supervisor
        if worker is None or worker.state == "broken" or time.monotonic() > deadline:
            notice = "The server is still looking at its models."
            return {
                "models": None,
                "loras": [],
                "ip_adapters": [],
                "device": "",
                "notice": notice,
            }
        await asyncio.sleep(0.05)


async def ready_worker(state: ServerState) -> dict[str, Any]:
    """What the worker left word of, once it knows its models. Raises ApiError "not_ready"."""
    told = await worker_word(state)
    if told["models"] is None:
        worker = state.supervisor
        broken = worker is not None and worker.state == "broken"
        message = worker.message if worker is not None and broken else told["notice"]
        fix = worker.fix if worker is not None and broken else "Try again in a moment."
        raise ApiError(503, "not_ready", message, fix)
    return told


@router.get("/info", response_model=schemas.Info)
async def info(request: Request) -> dict[str, Any]:
    """What this server is, which models it has, and whether it can draw now."""
    state = state_of(request)
    told = await worker_word(state)
    worker = state.supervisor
    broken = worker is not None and worker.state == "broken"
    return {
        "product": "onmodel",
        "version": version,
        "api": api_version,
        "request_versions": list(schemas.request_versions),
        "device": told["device"],
        "models": told["models"] or [],
        "loras": told["loras"],
        "ip_adapters": told.get("ip_adapters", []),
        "worker": {
            "state": worker.state if worker is not None else "stopped",
            "pid": worker.pid if worker is not None else None,
            "message": worker.message if worker is not None and broken else told["notice"],
            "fix": worker.fix if worker is not None and broken else "",
        },
        "unfinished": await run_in_threadpool(state.queue.unfinished),
        "training": await run_in_threadpool(state.trainings.running),
    }


@router.post("/blobs/missing")
def missing(request: Request, asked: schemas.Hashes) -> dict[str, list[str]]:
    """Which of these blobs the server lacks; it keeps the others for at least a day."""
    blobs = state_of(request).blobs
    return {"missing": [h for h in asked.hashes if not blobs.has(h, touch=True)]}


@router.put("/blobs/{sha256}", status_code=201)
async def put_blob(request: Request, sha256: Sha) -> dict[str, Any]:
    """Takes a PNG or JPEG, raw, whose SHA-256 is its address."""
    blobs = state_of(request).blobs
    stream = request.stream()
    length = int(request.headers.get("content-length", 0))
    if length > max_blob_bytes:
        await drain(stream)
        raise ApiError(
            413,
            "too_large",
            f"This file is over {max_blob_bytes >> 20} MB, the most the server takes.",
            "Send a smaller image.",
        )
    if blobs.has(sha256, touch=True):
        await drain(stream)
        return {"hash": sha256, "stored": False}
    # On the event loop on purpose: hashing and the page cache take less than a change of thread.
    writer = blobs.writer(sha256)
    try:
        async for chunk in stream:
            writer.write(chunk)
        writer.commit()
    except BlobError:
        await drain(stream)
        raise
    except ClientDisconnect as error:
        raise ApiError(400, "cut_short", "The transfer was cut short.", "Send it again.") from error
    finally:
        writer.close()
    return {"hash": sha256, "stored": True}


async def drain(stream: AsyncIterator[bytes]) -> None:
    """Reads what is left of a body, so that a client that is still sending gets the answer."""
    seen = 0
    async for chunk in stream:
        seen += len(chunk)
        if seen > max_drain_bytes:
            return


@router.get("/blobs/{sha256}", response_class=Response)
def get_blob(request: Request, sha256: Sha) -> Response:
    """The bytes of a blob, always as a download of a fixed type."""
    data = state_of(request).blobs.read(sha256)
    kind = images.media_type(data[:16])
    ending = {"image/png": "png", "image/jpeg": "jpg"}.get(kind, "bin")
    return Response(
        data,
        media_type=kind,
        headers={
            "Content-Disposition": f'attachment; filename="{sha256}.{ending}"',
            "Cache-Control": "private, max-age=31536000, immutable",
        },
    )


@router.post("/jobs", status_code=201)
async def submit(request: Request, response: Response, job: schemas.JobRequest) -> dict[str, Any]:
    """Queues a job; 200 and the same job where its client_key was submitted before."""
    state = state_of(request)
    told = await ready_worker(state)

    def put() -> tuple[dict[str, Any], bool]:
        return state.queue.submit(check.new_job(job, told, state.blobs))

    receipt, new = await run_in_threadpool(put)
    if not new:
        response.status_code = 200
    state.wake()
    return receipt


@router.get("/jobs")
def jobs(request: Request) -> dict[str, Any]:
    """All jobs, newest last."""
    return {"jobs": state_of(request).queue.jobs()}


@router.get("/jobs/{job}")
def job(request: Request, job: Id) -> dict[str, Any]:
    """A job and each of its keyframes."""
    return state_of(request).queue.job(job)


@router.post("/jobs/{job}/cancel")
def cancel_job(request: Request, job: Id) -> dict[str, Any]:
    """Cancels what of this job has not ended; the ids of what that was."""
    return {"id": job, "cancelled": state_of(request).queue.cancel_job(job)}


@router.post("/jobs/{job}/retry")
def retry_job(request: Request, job: Id) -> dict[str, Any]:
    """Queues the failed and cancelled keyframes of this job again."""
    state = state_of(request)
    queued = state.queue.retry_job(job)
    state.wake()
    return {"id": job, "queued": queued}


@router.post("/keyframes/{keyframe}/cancel")
def cancel_keyframe(request: Request, keyframe: Id) -> dict[str, Any]:
    """Cancels one keyframe; "cancelled" is false where it had ended already."""
    return {"id": keyframe, "cancelled": state_of(request).queue.cancel_keyframe(keyframe)}


@router.post("/keyframes/{keyframe}/retry")
def retry_keyframe(request: Request, keyframe: Id) -> dict[str, Any]:
    """Queues one failed or cancelled keyframe again; "queued" is false where it is neither."""
    state = state_of(request)
    queued = state.queue.retry_keyframe(keyframe)
    state.wake()
    return {"id": keyframe, "queued": queued}


@router.get("/jobs/{job}/events", response_class=StreamingResponse)
async def events(
    request: Request,
    job: Id,
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
    last_event_id: Annotated[str | None, Header(max_length=20)] = None,
) -> StreamingResponse:
    """The job's events numbered over `after` (or Last-Event-ID) as server-sent events.

    A training is a job too; its events are here as well as at its own address. Ends after the last
    event of a job that has ended. A comment every 10 s shows that it lives.
    """
    state = state_of(request)
    if last_event_id and last_event_id.isascii() and last_event_id.isdecimal():
        after = max(after, int(last_event_id))
    await run_in_threadpool(state.queue.events_after, job, after, 1)  # 404 before the stream
    return StreamingResponse(follow(state, job, after), media_type="text/event-stream")


async def follow(state: ServerState, job: str, after: int) -> AsyncIterator[bytes]:
    """The text of the stream."""
    seen, spoke = -1, time.monotonic()
    yield b": onmodel\n\n"
    while not state.stopping.is_set():
        now = state.queue.version()
        if now == seen:
            if time.monotonic() - spoke > heartbeat_seconds:
                spoke = time.monotonic()
                yield b": alive\n\n"
            await asyncio.sleep(poll_seconds)
            continue
        seen = now
        try:
            found, ended = state.queue.events_after(job, after)
        except sqlite3.OperationalError:
            return  # the client comes back and goes on after its last event
        if found:
            seen, spoke = -1, time.monotonic()  # there may be more than one answer holds
            numbers = [int(text[6 : text.index(",")]) for text in found]
            after = numbers[-1]
            pairs = zip(numbers, found, strict=True)
            yield "".join(f"id: {n}\ndata: {text}\n\n" for n, text in pairs).encode()
        if ended:
            return
        state.touch()

# SPDX-License-Identifier: GPL-3.0-or-later
"""API v1: the addresses of trainings. The rules that hold for all are in guard.py and errors.py."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from onmodel.api import routes, schemas, training_check
from onmodel.api.routes import Id, ready_worker, state_of

router = APIRouter(prefix="/v1/trainings")


@router.post("", status_code=201)
async def submit(
    request: Request, response: Response, training: schemas.TrainingRequest
) -> dict[str, Any]:
    """Queues a training; 200 and the same one where its client_key was submitted before."""
    state = state_of(request)
    told = await ready_worker(state)

    def put() -> tuple[dict[str, Any], bool]:
        new = training_check.new_training(training, told, state.roots)
        return state.trainings.submit(new, [lora["name"] for lora in told["loras"]])

    receipt, new = await run_in_threadpool(put)
    if not new:
        response.status_code = 200
    state.wake()
    return receipt


@router.post("/preflight")
async def preflight(request: Request, asked: schemas.PreflightRequest) -> dict[str, Any]:
    """What the plan would do with each picture, what it needs, and whether it can start.

    Takes seconds; nothing is measured and nothing is queued.
    """
    state = state_of(request)
    told = await ready_worker(state)

    def look() -> dict[str, Any]:
        plan = training_check.plan_of(asked.plan, state.roots)
        training_check.model_of(plan, told["models"])
        return training_check.preflight(plan, state.folder.root, state.preflights)

    return await run_in_threadpool(look)


@router.get("")
def trainings(request: Request) -> dict[str, Any]:
    """All trainings, newest last."""
    return {"trainings": state_of(request).trainings.all()}


@router.get("/{training}")
def one(request: Request, training: Id) -> dict[str, Any]:
    """A training: how far it is, its plan and its drawings."""
    return state_of(request).trainings.one(training)


@router.post("/{training}/cancel")
def cancel(request: Request, training: Id) -> dict[str, Any]:
    """Cancels a training, its state saved; "cancelled" is false where it had ended already."""
    return {"id": training, "cancelled": state_of(request).trainings.cancel(training)}


@router.post("/{training}/retry")
def retry(request: Request, training: Id) -> dict[str, Any]:
    """Queues a failed or cancelled training again, to go on from its last save."""
    state = state_of(request)
    queued = state.trainings.retry(training)
    state.wake()
    return {"id": training, "queued": queued}


@router.get("/{training}/events", response_class=StreamingResponse)
async def events(
    request: Request,
    training: Id,
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
    last_event_id: Annotated[str | None, Header(max_length=20)] = None,
) -> StreamingResponse:
    """The training's events as server-sent events, numbered like those of any job."""
    return await routes.events(request, training, after, last_event_id)

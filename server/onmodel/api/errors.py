# SPDX-License-Identifier: GPL-3.0-or-later
"""Every error leaves as {"error": {"code", "message", "fix"}}: a sentence, and what to do."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from onmodel.api import schemas
from onmodel.jobs.blobs import BlobError, disk_full_error, is_disk_full
from onmodel.jobs.database import is_full
from onmodel.jobs.queue import QueueError

log = logging.getLogger(__name__)

blob_status = {
    "no_blob": 404,
    "bad_hash": 400,
    "too_large": 413,
    "hash_mismatch": 422,
    "bad_image": 422,
    "disk_full": 507,
}
queue_status = {"not_found": 404, "client_key_taken": 409, "lora_taken": 409}


class ApiError(HTTPException):
    """An answer other than success. extra: more fields of "error", plain JSON."""

    def __init__(self, status: int, code: str, message: str, fix: str = "", **extra: Any) -> None:
        super().__init__(status, message)
        self.body = {"error": {"code": code, "message": message, "fix": fix, **extra}}


def answer(status: int, code: str, message: str, fix: str = "") -> JSONResponse:
    """An error as a response."""
    return JSONResponse({"error": {"code": code, "message": message, "fix": fix}}, status)


def place(parts: Sequence[int | str]) -> str:
    """Where in the request: ("body", "keyframes", 3, "seed") is "keyframes[3].seed"."""
    text = ""
    for part in parts:
        if part == "body":
            continue
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "the body"


def install(app: FastAPI) -> None:
    """Adds the handlers to the app."""

    @app.exception_handler(ApiError)
    async def on_api_error(_: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, error.status_code)

    @app.exception_handler(HTTPException)
    async def on_http(_: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return answer(
                404,
                "no_such_address",
                "This server has nothing at this address; it speaks API v1.",
                "Check the address, and that add-on and server are of one release.",
            )
        return answer(error.status_code, "http", str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return invalid(error)

    @app.exception_handler(QueueError)
    async def on_queue(_: Request, error: QueueError) -> JSONResponse:
        return answer(queue_status[error.code], error.code, error.message, error.fix)

    @app.exception_handler(BlobError)
    async def on_blob(_: Request, error: BlobError) -> JSONResponse:
        return answer(blob_status.get(error.code, 500), error.code, error.message, error.fix)

    @app.exception_handler(sqlite3.OperationalError)
    async def on_database(_: Request, error: sqlite3.OperationalError) -> JSONResponse:
        if is_full(error):
            return disk_full()
        log.error("The queue failed: %s", error, exc_info=error)
        return answer(503, "queue", "The server's queue cannot be used now.", "Try again.")

    @app.exception_handler(OSError)
    async def on_system(_: Request, error: OSError) -> JSONResponse:
        if is_disk_full(error):
            return disk_full()
        log.error("The system refused: %s", error, exc_info=error)
        return internal()

    @app.exception_handler(Exception)
    async def on_bug(_: Request, error: Exception) -> JSONResponse:
        log.error("A request failed.", exc_info=error)
        return internal()


def disk_full() -> JSONResponse:
    """507 with the sentence for a full disk."""
    error = disk_full_error()
    return answer(507, error.code, error.message, error.fix)


def internal() -> JSONResponse:
    """500; the log has the reason, which is no business of a client."""
    return answer(500, "internal", "The server made an error.", "Its log file says more.")


def invalid(error: RequestValidationError) -> JSONResponse:
    """409 where the request is of another version, else 422 with the first places named."""
    found = error.errors()
    if any(e["loc"] and e["loc"][-1] == "version" for e in found):
        return answer(
            409,
            "wrong_version",
            f"This server draws requests up to version {schemas.request_version}; "
            "the add-on sent another.",
            "Update the add-on and the server to the same release.",
        )
    # The values stay out of it: they may be long, and they are the sender's anyway.
    places = "; ".join(
        f"{place(e['loc'])}: {e['msg'].removeprefix('Value error, ')}" for e in found[:3]
    )
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return answer(
        422,
        "invalid_request",
        f"The request is not valid: {places}{more}.",
        "Correct these values; if the add-on made them, update it to the server's release.",
    )

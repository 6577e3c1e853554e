# SPDX-License-Identifier: GPL-3.0-or-later
"""The app: routes, errors and the guard put together. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from onmodel.api import errors, routes, training_routes
from onmodel.api.guard import Guard
from onmodel.api.state import ServerState
from onmodel.version import version


def create_app(state: ServerState, token: str, hosts: Iterable[str] = ()) -> FastAPI:
    """The ASGI app of a server. hosts: names it may be addressed by besides the loopback ones."""
    app = FastAPI(
        title="Onmodel",
        version=version,
        description="Keyframes from a storyboard. Everything needs the session's bearer token.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Off whatever the environment says; versions of FastAPI without it ignore the word.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.onmodel = state
    errors.install(app)
    app.include_router(routes.router)
    app.include_router(training_routes.router)

    @app.get("/v1/openapi.json", include_in_schema=False)
    def openapi(_: Request) -> dict[str, object]:
        return app.openapi()

    app.add_middleware(Attendance, state=state)
    app.add_middleware(Guard, token=token, hosts=list(hosts))
    return app


class Attendance:
    """ASGI middleware that notes when somebody with the token last called."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.state.touch()
        await self.app(scope, receive, send)

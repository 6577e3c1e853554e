# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands before every route: Host, Origin, token, size of the body, safe answers.

    Host    must be a name the server was told it has, or a web page could reach it under a name of
            its own (DNS rebinding): 421.
    Origin  a browser sends it with every request a foreign page makes; only the server's own
            origin passes, "null" never does: 403.
    token   compared in constant time: 401.

There is no CORS, no cookie and no page to embed.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onmodel.api.errors import ApiError, answer

loopback_names = frozenset({"127.0.0.1", "localhost", "::1"})
max_json_bytes = 64 * 1024 * 1024
safe_headers = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


def host_name(host: str) -> str:
    """The bare, lower-case name in a Host header; "" if it is malformed."""
    host = host.strip().lower()
    if host.startswith("["):
        name, bracket, rest = host[1:].partition("]")
        return name if bracket and (not rest or _is_port(rest)) else ""
    name, colon, _ = host.partition(":")
    if colon and not _is_port(host[len(name) :]):
        return ""
    return name.removesuffix(".")


def _is_port(text: str) -> bool:
    return text[0] == ":" and text[1:].isdecimal() and text[1:].isascii()


class Guard:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, token: str, hosts: Iterable[str] = ()) -> None:
        self.app = app
        self._authorization = b"Bearer " + token.encode()
        self._hosts = loopback_names | {host_name(h) for h in hosts if host_name(h)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)

        async def safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                for name, value in safe_headers.items():
                    out.setdefault(name, value)
            await send(message)

        refusal = self._refusal(headers)
        if refusal is not None:
            # What the body would hold is not read; the connection cannot be used again.
            refusal.headers["Connection"] = "close"
            await refusal(scope, receive, safely)
            return
        await self.app(scope, self._limited(scope, headers, receive), safely)

    def _refusal(self, headers: Headers) -> JSONResponse | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or host_name(hosts[0]) not in self._hosts:
            return answer(
                421,
                "wrong_host",
                "This server was addressed by a name it does not know.",
                "Use http://127.0.0.1 and its port, or start it with --allow-host NAME.",
            )
        origins = headers.getlist("origin")
        own = (f"http://{hosts[0].lower()}", f"https://{hosts[0].lower()}")
        foreign = [o for o in origins if o.lower() not in own]
        if foreign or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return answer(403, "wrong_origin", "Web pages may not use this server.", "")
        given = headers.get("authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, self._authorization):
            return answer(
                401,
                "wrong_token",
                "The token is missing or is not the one of this server's session.",
                "Connect again from Blender, or copy the token that the server printed.",
            )
        length = headers.get("content-length")
        if length is not None and not (length.isascii() and length.isdecimal()):
            return answer(400, "http", "The Content-Length header is malformed.", "")
        return None

    def _limited(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """Bodies are counted as they come; blobs have their own, lower limit."""
        if scope["path"].startswith("/v1/blobs/") and scope["method"] == "PUT":
            return receive
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > max_json_bytes or int(headers.get("content-length", 0)) > max_json_bytes:
                raise ApiError(
                    413,
                    "too_large",
                    f"This request is over {max_json_bytes >> 20} MB.",
                    "Submit fewer keyframes at once.",
                )
            return message

        return counted

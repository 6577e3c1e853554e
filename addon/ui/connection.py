# SPDX-License-Identifier: GPL-3.0-or-later
"""The one server this Blender draws with: start or find it, shake hands, keep an eye on it.

`tick` moves on and never waits: a timer calls it in the window, `wait` in scripts. The handshake
is a request, so a thread makes it; the thread knows nothing of bpy.
"""

from __future__ import annotations

import enum
import ipaddress
import logging
import queue
import threading
import time
import urllib.parse
from typing import Any

import bpy

from ..core.client import Client, ClientError, WrongVersion, check_url
from ..core.server_process import Address, ServerProcess, ServerState, find_server
from ..scene import server_words
from . import text

log = logging.getLogger(__name__)

slow, quick = 1.0, 0.1
"""Seconds between looks: while all is well or off, and while something is under way."""


class Link(enum.Enum):
    """How the connection is."""

    off = "off"
    starting = "starting"
    shaking_hands = "connecting"
    ready = "ready"
    stopping = "stopping"
    failed = "failed"


class Connection:
    """See the module. message and fix: sentences for the panel. info: of the ready server."""

    def __init__(self) -> None:
        self.link = Link.off
        self.message = ""
        self.fix = ""
        self.info: dict[str, Any] = {}
        self.address: Address | None = None
        self.process: ServerProcess | None = None
        self.since = 0.0
        self._answers: queue.SimpleQueue[tuple[Address, dict[str, Any] | ClientError]] = (
            queue.SimpleQueue()
        )

    @property
    def busy(self) -> bool:
        return self.link in (Link.starting, Link.shaking_hands, Link.stopping)

    @property
    def device(self) -> str:
        return str(self.info.get("device", ""))

    def begin(self, preferences: Any, again: bool = False) -> None:
        """Start to get ready: a server here, or a handshake with the one named.

        again: not the person but a run asks, whose server went away; a server that crashed too
        often lately is then left alone.
        """
        if self.busy or self.link is Link.ready:
            return
        self.message = self.fix = ""
        self.since = time.monotonic()
        if preferences.mode == "remote":
            try:
                self._shake_hands(_remote_address(preferences))
            except ClientError as error:
                self._fail(error.message, error.fix)
            return
        if self.process is None or self.process.state is ServerState.not_installed:
            self.process = ServerProcess(find_server(preferences.command))
        if self.link is Link.failed and not again:
            self.process.reset()
        self.process.start()
        self.link = Link.starting
        self.tick()

    def end(self, wait: float = 0.0) -> None:
        """Disconnect; a server that was started here is stopped."""
        self.info, self.address = {}, None
        server_words.remember(None)
        self.message = self.fix = ""
        self.link = Link.off
        if self.process is not None:
            state = self.process.stop(wait)
            self.link = Link.stopping if state is ServerState.stopping else Link.off

    def tick(self) -> Link:
        """Look how things are, without waiting."""
        self._take_answers()
        if self.process is not None and (self.address is None or self.address.pid):
            self._follow(self.process.poll())
        return self.link

    def wait(self, seconds: float = 120.0) -> Client:
        """For scripts: tick until ready. Raises ClientError when it fails or takes too long."""
        end = time.monotonic() + seconds
        while self.tick() is not Link.ready:
            if self.link in (Link.failed, Link.off):
                raise ClientError(self.message or "No server is connected.", self.fix)
            if time.monotonic() > end:
                raise ClientError(
                    f"The server was not ready within {seconds:g} seconds.", "Try again."
                )
            time.sleep(0.05)
        return self.client()

    def client(self) -> Client:
        """A client of the ready server. Raises ClientError when none is ready."""
        if self.address is None or self.link is not Link.ready:
            raise ClientError("No server is connected.", "Start it in the Server panel.")
        return Client(self.address.url, self.address.token)

    def lost(self, error: ClientError) -> None:
        """Someone who talked to the server found it gone."""
        self._fail(error.message, error.fix)

    def _follow(self, state: ServerState) -> None:
        """What the state of the local server means for the connection."""
        process = self.process
        assert process is not None
        if state is ServerState.running and self.link is Link.starting and process.address:
            self._shake_hands(process.address)
        elif state in (ServerState.failed, ServerState.not_installed):
            if self.link not in (Link.failed, Link.off):
                self._fail(process.message, process.fix)
        elif state is ServerState.stopped and self.link is not Link.failed:
            if self.link in (Link.ready, Link.shaking_hands):
                self._fail(process.message or "The server has ended.", "Start it again.")
            else:
                self.link = Link.off

    def _shake_hands(self, address: Address) -> None:
        self.link = Link.shaking_hands
        self.address = address

        def ask() -> None:
            try:
                with Client(address.url, address.token) as client:
                    self._answers.put((address, client.info()))
            except ClientError as error:
                self._answers.put((address, error))

        threading.Thread(target=ask, name="onmodel handshake", daemon=True).start()

    def _take_answers(self) -> None:
        while not self._answers.empty():
            address, answer = self._answers.get()
            if address != self.address or self.link is not Link.shaking_hands:
                continue  # of a connection that was given up meanwhile
            if isinstance(answer, ClientError):
                if isinstance(answer, WrongVersion) and self.process is not None:
                    self.process.mismatch(answer.message, answer.fix)
                self._fail(answer.message, answer.fix)
            else:
                self.link, self.info = Link.ready, answer
                server_words.remember(answer)

    def _fail(self, message: str, fix: str) -> None:
        self.link, self.message, self.fix = Link.failed, message, fix
        self.info, self.address = {}, None
        server_words.remember(None)


connection = Connection()


def _remote_address(preferences: Any) -> Address:
    """The address in the preferences. Raises ClientError when it may not or cannot be used."""
    if not preferences.url.strip():
        raise ClientError(
            "No server address is set.", "Enter its address and token in the preferences."
        )
    url = check_url(preferences.url)
    if not is_loopback(url) and not bpy.app.online_access:
        raise ClientError(
            "Blender may not go online, and the server is on another computer.",
            "Switch on Allow Online Access (Preferences > System > Network).",
        )
    return Address(url, preferences.token.strip())


def is_loopback(url: str) -> bool:
    """Whether the address is of this computer itself."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _look() -> float:
    before = (connection.link, connection.message)
    connection.tick()
    if before != (connection.link, connection.message):
        text.redraw_twice()
    elif connection.busy:
        text.redraw()
    return quick if connection.busy else slow


def watch() -> None:
    """Have a timer look after the connection (there is none in the background)."""
    if bpy.app.timers.is_registered(_look):
        bpy.app.timers.unregister(_look)
    bpy.app.timers.register(_look, first_interval=quick, persistent=True)


def close() -> None:
    """Stop the timer and a server that was started here: the add-on goes."""
    if bpy.app.timers.is_registered(_look):
        bpy.app.timers.unregister(_look)
    connection.end(wait=2.0)

# SPDX-License-Identifier: GPL-3.0-or-later
"""One run of the panel: keeps the server connected, steps the session, tells the panel.

Scripts run it to the end (`run`); the window calls `tick` from a modal operator's timer. Undo in
the middle of a run exchanges Blender's data under it, so the session holds the scene only as long
as it captures (the operator keeps input away then); after each undo the scene is looked up again
by its name, and at the end every result that undo took away is put back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import bpy

from ..core.client import Client, ClientError, ServerGone
from ..core.server_process import ServerState
from ..core.shots import Shot
from ..render.items import ItemState
from ..render.session import RenderSession, State
from ..render.settings import TakeSettings
from ..scene import settings_hash, shots
from ..scene.errors import SceneError
from . import status, text
from .connection import Link, connection

log = logging.getLogger(__name__)

connect_limit = 150.0
"""Seconds that a thread of the session waits for a server that is being started."""

restart_pause = 2.0
"""Seconds between attempts to start a server that went away in the middle of a run."""

_words = {
    State.planning: "Connecting",
    State.capturing: "Capturing maps",
    State.sending: "Sending maps",
    State.drawing: "Drawing",
    State.placing: "Placing",
    State.cancelling: "Cancelling",
}

_live_states = {
    ItemState.waiting: "queued",
    ItemState.capturing: "drawing",
    ItemState.sending: "drawing",
    ItemState.queued: "queued",
    ItemState.drawing: "drawing",
    ItemState.done: "done",
    ItemState.kept: "done",
    ItemState.changed: "stale",
    ItemState.failed: "failed",
    ItemState.cancelled: "new",
}


@dataclass(frozen=True)
class Order:
    """What to draw."""

    shots: list[Shot]
    settings: TakeSettings


class Drawing:
    """See the module. Raises SceneError or OutputError for what cannot be drawn."""

    def __init__(self, scene: bpy.types.Scene, order: Order, preferences: object) -> None:
        shots.sync(scene)
        self._scene_name = scene.name
        self._preferences = preferences
        self._order = order
        self._restarted = time.monotonic()
        self.session = RenderSession(scene, order.shots, order.settings, self._connect)
        status.live.clear()
        self._tell()
        connection.begin(preferences)

    @property
    def holds_input(self) -> bool:
        """Whether the scene must not be touched just now: maps are being captured (seconds)."""
        return self.session.state is State.capturing

    def tick(self) -> bool:
        """Move on a little. True when the run has ended."""
        self._keep_connected()
        self.session.step()
        self._tell()
        return self.session.ended

    def run(self) -> None:
        """To the end, for scripts."""
        self.session.run(tick=self._keep_connected)
        self._tell()

    def cancel(self) -> None:
        """Stop; keep ticking until it has ended."""
        self.session.cancel()
        self._tell()

    def scene_exchanged(self) -> None:
        """Blender undid or redid: take the scene anew."""
        scene = bpy.data.scenes.get(self._scene_name)
        if scene is None:
            self.session.close()
        else:
            self.session.scene = scene

    def finish(self) -> None:
        """After the end: note which shots are drawn, and say what came of it."""
        scene = self.session.scene
        through = {s.shot for s in self.session.statuses if s.state in _through}
        whole = {s.uid for s in self._order.shots if s.name in through and self._was_whole(s)}
        found_changed = self._found_changed()
        for placed in shots.place(scene):
            if placed.row is None:
                continue
            if placed.uid in whole:
                placed.row.drawn = settings_hash.of_shot(scene, placed)
            elif placed.uid in found_changed and placed.row.drawn:
                placed.row.drawn = settings_hash.changed
        self._tell()
        for uid in [
            u for u, standing in status.live.items() if standing.state in ("done", "stale")
        ]:
            del status.live[uid]  # from here on the rows say it, which undo takes along
        self.session.put_back()
        run = status.run
        run.active = False
        run.outcome = " ".join([self.session.message, *self.session.notes])
        run.troubles = _troubles(self.session)
        if self.session.state is State.failed and not run.troubles:
            run.troubles = [status.Trouble(self.session.message, self.session.fix)]
        if run.troubles:
            done = sum(i.state in (ItemState.done, ItemState.kept) for i in self.session.items)
            run.outcome = f"{done} of {len(self.session.items)} keyframes are drawn."
        run.retryable = bool(run.troubles)
        run.order = self._order

    def close(self) -> None:
        """The window or the file goes: stop here, results on the server stay."""
        self.session.close()
        status.run.active = False

    def _found_changed(self) -> set[str]:
        """The uids of shots of which something is not drawn as the run captured it."""
        names = {
            i.shot
            for i in self.session.items
            if i.state is ItemState.changed or (i.request is not None and i.state not in _through)
        }
        return {s.uid for s in self._order.shots if s.name in names}

    def _was_whole(self, shot: Shot) -> bool:
        """Whether all keyframes of the shot were in this run."""
        only = self._order.settings.frames
        if self._order.settings.only_take is not None:
            return False
        return only is None or {(shot.name, f) for f in shot.keyframes} <= only

    def _connect(self) -> Client:
        """For the session's threads: a client as soon as the main thread's ticks have a server."""
        end = time.monotonic() + connect_limit
        while time.monotonic() < end:
            address = connection.address
            if connection.link is Link.ready and address is not None:
                return Client(address.url, address.token)
            if connection.link is Link.failed:
                raise ServerGone(connection.message, connection.fix)
            time.sleep(0.05)
        raise ClientError(
            f"No server was ready within {connect_limit:g} seconds.", "See the Server panel."
        )

    def _keep_connected(self) -> None:
        """Look after the connection; start a server again that went away during the run."""
        connection.tick()
        process = connection.process
        lost = connection.link in (Link.failed, Link.off) and not self.session.ended
        if not lost or self.session.state is State.cancelling or process is None:
            return
        hopeless = process.tripped or process.state is ServerState.not_installed
        if not hopeless and time.monotonic() - self._restarted > restart_pause:
            self._restarted = time.monotonic()
            connection.begin(self._preferences, again=True)

    def _tell(self) -> None:
        """Bring the panel's words up to date."""
        by_name = {s.name: s.uid for s in self._order.shots}
        for s in self.session.statuses:
            status.live[by_name[s.shot]] = status.Standing(
                _live_states[s.state], s.through, s.total, s.message
            )
        session, run = self.session, status.run
        run.active = not session.ended
        run.share = session.progress
        through = sum(s.through for s in session.statuses)
        now = next((s for s in session.statuses if s.state is ItemState.drawing), None)
        doing = _words.get(session.state, "")
        if session.state is State.planning and connection.link is not Link.ready:
            doing = "Starting the server"
        if session.waiting and session.state is State.drawing:
            doing = "Waiting"
        where = f" {now.shot}" if now and session.state is State.drawing else ""
        run.words = f"{doing}{where}  \N{BULLET}  {through} of {len(session.items)}"
        run.detail = f"{session.message} Esc cancels." if self.holds_input else session.waiting


_through = (ItemState.done, ItemState.kept)

current: Drawing | None = None
"""The run of this Blender, while it runs."""


def begin(scene: bpy.types.Scene, order: Order, preferences: object) -> Drawing:
    """Start a run. Raises SceneError when one runs already, or as Drawing does."""
    global current
    if current is not None and not current.session.ended:
        raise SceneError("Onmodel is drawing already.", "Wait for it, or cancel it.")
    current = Drawing(scene, order, preferences)
    text.redraw()
    return current


def end() -> None:
    """Forget the run."""
    global current
    current = None


def _troubles(session: RenderSession) -> list[status.Trouble]:
    """What failed, each sentence once with the keyframes that it is true of."""
    where: dict[tuple[str, str], list[str]] = {}
    for item in session.items:
        if item.state is ItemState.failed:
            where.setdefault((item.message, item.fix), []).append(f"{item.shot}/{item.frame}")
    return [
        status.Trouble(f"{', '.join(places[:3])}{' and more' * (len(places) > 3)}: {message}", fix)
        for (message, fix), places in where.items()
    ]


@bpy.app.handlers.persistent
def after_undo(*_: object) -> None:
    """Handler of undo and redo."""
    if current is not None:
        current.scene_exchanged()


@bpy.app.handlers.persistent
def before_load(*_: object) -> None:
    """Handler before another file is opened; also for when the add-on goes: leave the run."""
    if current is not None:
        current.close()
        end()
    status.forget()


def shots_named(scene: bpy.types.Scene, names: Sequence[str]) -> list[Shot]:
    """The shots of these names, in film order."""
    return [s for s in shots.read_shots(scene) if s.name in names]

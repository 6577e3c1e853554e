# SPDX-License-Identifier: GPL-3.0-or-later
"""The stepper that takes shots through capture, sending, drawing and placing.

Panel, command line, scripts and tests all drive the same `RenderSession.step`. A step is short:
what talks to the server or encodes pictures runs in threads that know no bpy (network.py); only
one capture sub-step or one placing happens per call, on the thread that calls.

Seconds by stage in `Item.timings`: "capture" (the shot's, shared by its keyframes), "encode" and
"send" (the shot's), "wait" (from sent to drawn, with the queue, loading and sampling of
`Item.server_timings` in it), "fetch", "write", "place", and "click_to_plane", from the start of
the session to the plane in the scene.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import bpy

from ..capture.errors import CaptureError
from ..core.client import Client
from ..core.shots import Shot, file_name
from ..scene.cast import CastMember, read_cast
from ..scene.film import Film, read_film
from . import network as net
from . import results, sources
from .hearing import Hearing, Lost
from .items import Item, ItemState, ShotStatus, final_states, overall, shot_statuses
from .placing import Placer
from .preparing import Preparer
from .requests import BuildError, pick_model
from .retakes import Retakes
from .settings import TakeSettings
from .states import Failure, State, ended, ending

__all__ = ["Failure", "RenderSession", "State"]

log = logging.getLogger(__name__)

cancel_patience = 15.0
"""Seconds to wait for the server to confirm a cancel."""

look_every = 1.0
"""Seconds between looks for results while shots are still being captured."""


class RenderSession:
    """One run over some shots of a scene.

    client: a Client, or what connects one; called in threads, again when the server is lost, and
    then allowed to take long or to start a server. It must not touch bpy. Raises ClientError.
    out_dir: where the files go; None takes the film's folder.
    Raises SceneError or OutputError at once for a scene or a folder that cannot be worked with.
    `message` and `fix` are sentences for the person; `items` are the keyframes.
    """

    def __init__(
        self,
        scene: bpy.types.Scene,
        shots: Sequence[Shot],
        take_settings: TakeSettings,
        client: Client | Callable[[], Client],
        out_dir: Path | None = None,
    ) -> None:
        self.scene = scene
        self.shots = list(shots)
        self.settings = take_settings
        self.film: Film = sources.as_asked(read_film(scene), take_settings)
        self.cast: list[CastMember] = read_cast(scene)
        self.out_dir = sources.output_root(self.film, out_dir)
        self.state = State.planning
        self.failure = Failure.none
        self.message, self.fix = "Connecting to the server.", ""
        self.items: list[Item] = sources.plan_items(
            scene, self.film, self.shots, take_settings, self.out_dir
        )
        self._notes: list[str] = []
        self.run_folder = results.new_run_folder(self.out_dir / file_name(self.film.name))
        self._network = net.Network(
            client.again if isinstance(client, Client) else client,
            take_settings.retries,
            take_settings.patience,
            take_settings.previews,
        )
        self.retakes = Retakes(None if take_settings.check else self.film.retakes)
        self._preparer = Preparer(
            take_settings,
            sources.actors_of(self.cast),
            self.out_dir,
            self.run_folder,
            self._network.messages.put,
            self.retakes.rule is not None,
        )
        self._work: Iterator[None] = self._run()
        self._started = time.perf_counter()
        self._placer = Placer(
            self.shots,
            self.film.retakes is not None,
            take_settings.only_take is not None,
            self._started,
        )
        self._heard = Hearing(
            self._network, self.items, self._placer if self._places else None, self._say
        )
        self._give_up_at = 0.0
        self._look_at = 0.0
        self._furthest = 0.0

    # --- for whoever drives it -------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        return self.state in ended

    @property
    def info(self) -> dict[str, Any]:
        """The server's, once it is connected."""
        return self._heard.info

    @property
    def waiting(self) -> str:
        """Why nothing is drawn just now, or ""."""
        return self._heard.waiting

    @property
    def progress(self) -> float:
        """How much of the whole way is behind, 0..1; 1 only when all is through.

        Never less than before, though a retake makes the way longer.
        """
        share = overall(self.items)
        self._furthest = max(self._furthest, min(share, 0.99))
        return share if self.ended else self._furthest

    @property
    def statuses(self) -> list[ShotStatus]:
        """How each shot stands."""
        return shot_statuses(self.items)

    @property
    def notes(self) -> list[str]:
        """What else is to be said of the run, in sentences."""
        return [*self._notes, *self._placer.notes]

    @property
    def bytes_sent(self) -> int:
        """Image bytes sent to the server by this session."""
        return self._network.bytes_sent

    def step(self) -> State:
        """Moves on a little and returns the state; call it until `ended`."""
        if self.ended:
            return self.state
        try:
            self._hear()
            if not self.ended:
                next(self._work, None)
        except results.OutputError as error:
            self._fail(Failure.disk, error.message, error.fix)
        return self.state

    def run(self, pause: float = 0.01, tick: Callable[[], None] | None = None) -> State:
        """Steps to the end, for scripts. tick: called after every step."""
        while not self.ended:
            before = self.state
            self.step()
            if tick:
                tick()
            if self.state is before and self.state not in (State.capturing, State.placing):
                time.sleep(pause)
        return self.state

    def cancel(self) -> None:
        """Stops here: leaves the scene as it was, cancels this session's jobs and no others.

        What is drawn stays. Keep stepping until `ended`.
        """
        if self.ended or self.state is State.cancelling:
            return
        self.state, self.message, self.fix = State.cancelling, "Cancelling.", ""
        self._give_up_at = time.monotonic() + cancel_patience
        self._stop_capture()
        self._network.cancel()
        self._work = self._wait_for_cancel()

    def close(self) -> None:
        """Ends the session where it stands, without a word to the server."""
        self._stop_capture()
        self._network.close()
        if not self.ended:
            self.state, self.message = State.cancelled, "Left unfinished."

    def save_again(self) -> None:
        """Writes what could not be written for want of space. Raises OutputError if still not."""
        self._heard.save_again()
        while self._placer.waiting:
            self._placer.next(self.scene)

    def put_back(self) -> int:
        """Places drawn results whose planes are not in the scene (any more, after an undo).

        Returns how many were placed. The scene may have been exchanged (`session.scene`).
        """
        return self._placer.put_back(self.scene, self.items) if self._places else 0

    def to_data(self) -> dict[str, Any]:
        """The run as plain data, for its record and for --json."""
        return {
            "film": self.film.name,
            "state": self.state.value,
            "failure": self.failure.value,
            "message": self.message,
            "fix": self.fix,
            "notes": self.notes,
            "seconds": round(time.perf_counter() - self._started, 3),
            "image_bytes_sent": self.bytes_sent,
            "draws": sum(i.state is ItemState.done for i in self.items),
            "retakes": self.retakes.to_data(self.items),
            "server": {k: v for k, v in self.info.items() if k != "models"},
            "keyframes": [item.to_data() for item in self.items],
        }

    # --- the work --------------------------------------------------------------------------------

    def _run(self) -> Iterator[None]:
        if not self.items:
            self._fail(
                Failure.scene, "There is no keyframe to draw.", "Switch on a shot or mark a frame."
            )
            return
        self._network.start()
        while not self.info:
            yield
        try:
            model = pick_model(self.info, self.film.model)
            unknown = ", ".join(sources.unknown_maps(self.film, model))
            if unknown:
                self._notes.append(
                    f"The model {model['name']} takes no {unknown} map; it draws without."
                )
            self.state = State.capturing
            for shot in self.shots:
                own = [i for i in self.items if i.shot == shot.name]
                if own:
                    yield from self._capture(shot, own, model)
        except BuildError as error:
            self._fail(Failure.scene, error.message, error.fix)
            return
        self._network.listen()
        self.state = State.sending
        while not self._heard.finished or self._placer.waiting:
            if not self._order_retakes():
                self._network.no_more()
            self._settle_state()
            self._placer.next(self.scene)
            yield
        self._conclude()

    def _hear(self) -> None:
        """Takes in what the threads have told."""
        try:
            self._heard.drain()
        except Lost as lost:
            # While cancelling, a server that is gone has nothing left to cancel.
            if lost.ours or self.state is not State.cancelling:
                self._fail(Failure.server, lost.message, lost.fix)

    def _say(self, sentence: str) -> None:
        self.message = sentence

    def _order_retakes(self) -> bool:
        """Has further takes drawn where the rule wants them; False: none will be wanted any more.

        Only once all shots are captured: the sender rests before that.
        """
        wanted = self.retakes.due(self.items, self._pinned)
        new = []
        for item, take in wanted:
            again = sources.take_item(
                self.scene, self.film, self._shot_of(item), item.frame, take, self.out_dir
            )
            again.number = len(self.items)
            again.state = ItemState.sending
            self.items.append(again)
            new.append(again)
        if new:
            self._network.ship(
                net.Shipment(
                    client_key=uuid.uuid4().hex,
                    title=f"{self.film.name} retakes",
                    items=tuple(i.number for i in new),
                    prepare=lambda: self._preparer.retakes(new),
                )
            )
        return self.retakes.rule is not None and any(
            i.state not in final_states for i in self.items
        )

    def _pinned(self, item: Item) -> bool:
        """Whether the artist has picked a take of this keyframe."""
        return bool(sources.artists_take(self.scene, self._shot_of(item), item.frame))

    def _capture(self, shot: Shot, own: list[Item], model: dict[str, Any]) -> Iterator[None]:
        """Captures a shot, sub-step by sub-step, and hands it to the sender."""
        start = time.perf_counter()
        settings = sources.shot_settings(shot, self.film, model)
        for item in own:
            item.state = ItemState.capturing
        frames = sorted({i.frame for i in own})
        yield from self._rest()
        capture = sources.open_capture(self.scene, shot, frames, self.film, self.cast, model)
        try:
            for text in capture.steps():
                self.message = f"Capturing shot {text}."
                if time.monotonic() > self._look_at:
                    self._network.look()
                    self._look_at = time.monotonic() + look_every
                yield from self._rest()
            keyframes = list(capture.keyframes)
        except CaptureError as error:
            # One shot that cannot be captured does not keep the others from being drawn.
            for item in own:
                item.state, item.message, item.fix = ItemState.failed, error.message, error.fix
            return
        finally:
            capture.close()
        seconds = time.perf_counter() - start
        for item in own:
            item.state = ItemState.sending
            item.timings["capture"] = seconds
        self._network.ship(
            net.Shipment(
                client_key=uuid.uuid4().hex,
                title=f"{self.film.name} {shot.name}",
                items=tuple(i.number for i in own),
                prepare=lambda: self._preparer.shot(settings, own, keyframes),
            )
        )
        yield

    def _rest(self) -> Iterator[None]:
        """Lets go of the main thread until nothing of ours runs beside it; see network.py."""
        yield
        while self._network.busy or self._placer.waiting:
            self._placer.next(self.scene)
            yield

    def _wait_for_cancel(self) -> Iterator[None]:
        while not self._heard.finished and time.monotonic() < self._give_up_at:
            self._placer.next(self.scene)
            yield
        while self._placer.waiting:
            self._placer.next(self.scene)
            yield
        if not self._heard.finished:
            self._notes.append("The server did not confirm the cancel.")
        for item in self.items:
            if item.state not in final_states:
                item.state = ItemState.cancelled
        through = sum(i.state in (ItemState.done, ItemState.kept) for i in self.items)
        self.message = f"Cancelled; {through} of {len(self.items)} keyframes are drawn."
        self.state = State.cancelled
        self._end()

    def _settle_state(self) -> None:
        """The state that the keyframes are in, once all shots are captured."""
        if any(i.state is ItemState.sending for i in self.items):
            self.state = State.sending
            self.message = "Sending maps."
            return
        self.state = State.placing if self._placer.waiting else State.drawing
        through = sum(i.state in final_states for i in self.items)
        self.message = self.waiting or f"{through} of {len(self.items)} keyframes are through."

    def _conclude(self) -> None:
        self._notes += self.retakes.notes(self.items)
        end = ending(self.items, self.settings.check)
        if end.state is State.failed:
            self._fail(Failure.keyframes, end.message, end.fix)
            return
        self.state, self.message, self.fix = end.state, end.message, end.fix
        self._end()

    def _fail(self, failure: Failure, message: str, fix: str) -> None:
        """Ends with a sentence. What is drawn stays; what waits on the server is cancelled."""
        self._stop_capture()
        if self._network.started and not self._heard.finished:
            self._network.cancel()
        self.failure, self.message, self.fix = failure, message, fix
        for item in self.items:
            if item.state not in final_states:
                item.state, item.message, item.fix = ItemState.cancelled, message, fix
        self.state = State.failed
        self._end()

    def _end(self) -> None:
        """Writes the run's record."""
        if not self.settings.check:
            trouble = results.write_run(self.run_folder, self.to_data())
            self._notes += [trouble] if trouble else []

    def _stop_capture(self) -> None:
        """Closes the capture that is open, which puts the scene back."""
        work, self._work = self._work, iter(())
        close = getattr(work, "close", None)
        if close and not getattr(work, "gi_running", False):
            close()

    @property
    def _places(self) -> bool:
        return self.settings.place and not self.settings.check

    def _shot_of(self, item: Item) -> Shot:
        return next(s for s in self.shots if s.name == item.shot)

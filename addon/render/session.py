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

import json
import logging
import queue
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import bpy

from ..capture.errors import CaptureError
from ..core.client import Client
from ..core.scores import heads_of_record, heads_of_sidecar
from ..core.shots import Shot, file_name
from ..scene.cast import CastMember, read_cast
from ..scene.film import Film, read_film
from . import network as net
from . import results, sources
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

drain_budget = 0.02
"""Seconds a step may spend on messages of the threads."""


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
        self.info: dict[str, Any] = {}
        self._notes: list[str] = []
        self.run_folder = results.new_run_folder(self.out_dir / file_name(self.film.name))
        self._network = net.Network(
            _connector(client),
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
        self._sent_at: dict[int, float] = {}
        self._placer = Placer(
            self.shots,
            self.film.retakes is not None,
            take_settings.only_take is not None,
            self._started,
        )
        self._unsaved: list[net.Drawn] = []
        self._finished = False
        self._give_up_at = 0.0
        self._look_at = 0.0
        self._furthest = 0.0
        self.waiting = ""

    # --- for whoever drives it -------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        return self.state in ended

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
            self._drain()
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
        while self._unsaved:
            self._save(self._unsaved[0])
            self._unsaved.pop(0)
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
            self._note_unknown_maps(model)
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
        while not self._finished or self._placer.waiting:
            if not self._order_retakes():
                self._network.no_more()
            self._settle_state()
            if self._placer.waiting:
                self._placer.next(self.scene)
            yield
        self._conclude()

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
        settings = sources.shot_settings(shot, self.film, model)
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
            if self._placer.waiting:
                self._placer.next(self.scene)
            yield

    def _wait_for_cancel(self) -> Iterator[None]:
        while not self._finished and time.monotonic() < self._give_up_at:
            if self._placer.waiting:
                self._placer.next(self.scene)
            yield
        while self._placer.waiting:
            self._placer.next(self.scene)
            yield
        if not self._finished:
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
        if self._network.started and not self._finished:
            self._network.cancel()
        self.failure, self.message, self.fix = failure, message, fix
        for item in self.items:
            if item.state not in final_states:
                item.state, item.message, item.fix = ItemState.cancelled, message, fix
        self.state = State.failed
        self._end()

    def _end(self) -> None:
        """Writes the run's record."""
        if self.settings.check:
            return
        path = self.run_folder / "run.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            record = json.dumps(self.to_data(), indent=1).encode()
            results.write_atomic(path, record, durable=False)
        except OSError as error:
            self._notes.append(results.output_error(error, path).message)

    def _stop_capture(self) -> None:
        """Closes the capture that is open, which puts the scene back."""
        work, self._work = self._work, iter(())
        close = getattr(work, "close", None)
        if close and not getattr(work, "gi_running", False):
            close()

    # --- what the threads tell -------------------------------------------------------------------

    def _drain(self) -> None:
        until = time.perf_counter() + drain_budget
        while time.perf_counter() < until and not self.ended:
            works = self._network.alive or not self._network.started
            try:
                message = self._network.messages.get_nowait()
            except queue.Empty:
                if not works and not self._finished:
                    self._fail(
                        Failure.server,
                        "The talk with the server broke off by an error of Onmodel's.",
                        "Blender's console says more. Draw again: what is drawn stays.",
                    )
                return
            self._hear(message)

    def _hear(self, message: net.Message) -> None:
        """Takes one message in; see network.py for each."""
        if isinstance(message, net.Connected):
            self.info = message.info
        elif isinstance(message, net.Sent):
            self._hear_sent(message)
        elif isinstance(message, net.Progress):
            self._hear_progress(message)
        elif isinstance(message, net.Kept):
            self._hear_kept(message)
        elif isinstance(message, net.Drawn):
            try:
                self._save(message)
            except results.OutputError:
                self._unsaved.append(message)
                raise
        elif isinstance(message, net.Ended):
            item = self.items[message.item]
            item.state = ItemState(message.state)
            item.message, item.fix = message.message, message.fix
        elif isinstance(message, net.Trouble):
            self.message = message.message
        elif isinstance(message, net.Waiting):
            self.waiting = message.message
        elif isinstance(message, net.Unwritable):
            raise results.OutputError(message.message, message.fix, message.full)
        elif isinstance(message, net.Broken):
            self._finished = True
            self._network.close()
            if self.state is not State.cancelling:
                self._fail(Failure.server, message.error.message, message.error.fix)
        elif isinstance(message, net.Finished):
            self._finished = True

    def _hear_kept(self, message: net.Kept) -> None:
        item = self.items[message.item]
        item.state, item.request, item.path = ItemState.kept, message.request, message.path
        sidecar = results.read_sidecar(item.path)
        item.heads = heads_of_sidecar(sidecar)
        if sidecar and self._places:
            self._placer.waiting.append((item, sidecar))

    def _hear_sent(self, message: net.Sent) -> None:
        for number in message.items:
            item = self.items[number]
            item.request = message.requests[number]
            if item.state is ItemState.sending:
                item.state = ItemState.queued
            item.timings["encode"] = message.prepare
            item.timings["send"] = message.send
            self._sent_at[number] = time.perf_counter()

    def _hear_progress(self, message: net.Progress) -> None:
        item = self.items[message.item]
        if item.state in final_states:
            return
        item.state = ItemState.queued if message.state == "queued" else ItemState.drawing
        if item.state is ItemState.drawing:
            self.waiting = ""
        item.progress = message.step / message.steps if message.steps else 0.0
        item.preview = message.preview or item.preview

    def _save(self, drawn: net.Drawn) -> None:
        """Writes a drawn keyframe. Raises OutputError; then it is still in hand."""
        item = self.items[drawn.item]
        assert item.request is not None, "a drawing of a request that was never sent"
        start = time.perf_counter()
        item.timings["fetch"] = drawn.fetch
        item.timings["wait"] = start - self._sent_at.get(item.number, start)
        item.server_timings = dict(drawn.keyframe.get("timings") or {})
        record = {
            "server": {k: self.info.get(k) for k in ("version", "device")},
            "keyframe": {k: v for k, v in drawn.keyframe.items() if k != "error"},
            "timings": item.timings,
        }
        sidecar = results.write_result(item.path, drawn.png, item.request, record)
        item.timings["write"] = time.perf_counter() - start
        item.heads = heads_of_record(drawn.keyframe.get("record"))
        item.state, item.preview, self.waiting = ItemState.done, None, ""
        if self._places:
            self._placer.waiting.append((item, sidecar))

    @property
    def _places(self) -> bool:
        return self.settings.place and not self.settings.check

    def _shot_of(self, item: Item) -> Shot:
        return next(s for s in self.shots if s.name == item.shot)

    def _note_unknown_maps(self, model: dict[str, Any]) -> None:
        unknown = [m.kind for m in self.film.maps if m.kind not in model.get("map_kinds", [])]
        if unknown:
            self._notes.append(
                f"The model {model['name']} takes no {', '.join(unknown)} map; it draws without."
            )


def _connector(client: Client | Callable[[], Client]) -> Callable[[], Client]:
    """A function that connects, of a Client too: each thread needs a connection of its own."""
    if isinstance(client, Client):
        url, token, timeout = client.url, client.token, client.timeout
        return lambda: Client(url, token, timeout)
    return client

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

import enum
import json
import logging
import queue
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import bpy

from ..capture.errors import CaptureError
from ..core.client import Client
from ..core.request import JobRequest, dumps, to_data
from ..core.shots import Shot, file_name
from ..planes.errors import PlaneError
from ..scene.cast import CastMember, read_cast
from ..scene.film import Film, read_film
from . import network as net
from . import results, sources
from .items import Item, ItemState, ShotStatus, final_states, overall, shot_statuses
from .requests import BuildError, ShotSettings, build, encode, pick_model, read_references
from .settings import TakeSettings

log = logging.getLogger(__name__)

cancel_patience = 15.0
"""Seconds to wait for the server to confirm a cancel."""

look_every = 1.0
"""Seconds between looks for results while shots are still being captured."""

drain_budget = 0.02
"""Seconds a step may spend on messages of the threads."""


class State(enum.Enum):
    """Where the session is."""

    planning = "planning"
    capturing = "capturing"
    sending = "sending"
    drawing = "drawing"
    placing = "placing"
    cancelling = "cancelling"
    done = "done"
    failed = "failed"
    cancelled = "cancelled"


ended = (State.done, State.failed, State.cancelled)


class Failure(enum.Enum):
    """Why a session failed; the command line makes exit codes of it."""

    none = "none"
    scene = "scene"
    server = "server"
    keyframes = "keyframes"
    disk = "disk"


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
        self.film: Film = read_film(scene)
        self.cast: list[CastMember] = read_cast(scene)
        self._actors = sources.actors_of(self.cast)
        self.out_dir = sources.output_root(self.film, out_dir)
        self.state = State.planning
        self.failure = Failure.none
        self.message, self.fix = "Connecting to the server.", ""
        self.items: list[Item] = sources.plan_items(
            scene, self.film, self.shots, take_settings, self.out_dir
        )
        self.info: dict[str, Any] = {}
        self.notes: list[str] = []
        self.run_folder = self.out_dir / file_name(self.film.name) / "runs" / _run_name()
        self._network = net.Network(
            _connector(client),
            take_settings.retries,
            take_settings.patience,
            take_settings.previews,
        )
        self._work: Iterator[None] = self._run()
        self._started = time.perf_counter()
        self._sent_at: dict[int, float] = {}
        self._placeable: deque[tuple[Item, dict[str, Any]]] = deque()
        self._unsaved: list[net.Drawn] = []
        self._finished = False
        self._give_up_at = 0.0
        self._look_at = 0.0

    # --- for whoever drives it -------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        return self.state in ended

    @property
    def progress(self) -> float:
        """How much of the whole way is behind, 0..1; 1 only when all is through."""
        share = overall(self.items)
        return share if self.ended else min(share, 0.99)

    @property
    def statuses(self) -> list[ShotStatus]:
        """How each shot stands."""
        return shot_statuses(self.items)

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
        while self._placeable:
            self._place_next()

    def put_back(self) -> int:
        """Places drawn results whose planes are not in the scene (any more, after an undo).

        Returns how many were placed. The scene may have been exchanged (`session.scene`).
        """
        if not self._places:
            return 0
        drawn = (ItemState.done, ItemState.kept)
        missing = [
            i
            for i in self.items
            if i.state in drawn
            and i.request
            and not sources.is_placed(self.scene, self._shot_of(i), i)
        ]
        for item in missing:
            self._place(item)
        return len(missing)

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
        self._network.no_more()
        self.state = State.sending
        while not self._finished or self._placeable:
            self._settle_state()
            if self._placeable:
                self._place_next()
            yield
        self._conclude()

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
                prepare=lambda: self._prepare(settings, own, keyframes),
            )
        )
        yield

    def _rest(self) -> Iterator[None]:
        """Lets go of the main thread until nothing of ours runs beside it; see network.py."""
        yield
        while self._network.busy or self._placeable:
            if self._placeable:
                self._place_next()
            yield

    def _prepare(
        self, settings: ShotSettings, own: list[Item], keyframes: list[Any]
    ) -> list[net.Prepared]:
        """Encodes and builds a shot's requests, and leaves out what is drawn. In the sender."""
        put = self._network.messages.put
        actors = self._actors
        try:
            references = read_references(actors)
        except BuildError as error:
            for item in own:
                put(net.Ended(item.number, "failed", error.message, error.fix))
            return []
        prepared = []
        for captured in keyframes:
            encoded = encode(captured, [m.kind for m in settings.maps], references)
            if self.settings.keep_maps and not self.settings.check:
                self._write(sources.map_files(self.out_dir, settings, encoded))
            for item in own:
                if item.frame != captured.frame:
                    continue
                request, blobs = build(encoded, settings, actors, item.take)
                there = results.drawn_at(item.path, item.former, request)
                if there is not None and not self.settings.redraw:
                    put(net.Kept(item.number, request, there))
                elif self.settings.check:
                    put(net.Ended(item.number, "changed"))
                else:
                    prepared.append(net.Prepared(item.number, request, blobs))
        if prepared:
            self._record_job(settings, prepared)
        return prepared

    def _record_job(self, settings: ShotSettings, prepared: list[net.Prepared]) -> None:
        """Keeps a shot's requests in the run's folder. In the sender."""
        job = JobRequest("", [p.request for p in prepared], f"{settings.film} {settings.shot}")
        path = self.run_folder / f"{file_name(settings.shot)}.json"
        self._write({path: json.dumps(to_data(job), indent=1).encode()})

    def _write(self, files: Mapping[Path, bytes]) -> None:
        """Writes files of the run; tells the main thread where one cannot be. In the sender."""
        for path, data in files.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                results.write_atomic(path, data)
            except OSError as error:
                wrong = results.output_error(error, path)
                self._network.messages.put(net.Unwritable(wrong.message, wrong.fix, wrong.full))
                return

    def _wait_for_cancel(self) -> Iterator[None]:
        while not self._finished and time.monotonic() < self._give_up_at:
            if self._placeable:
                self._place_next()
            yield
        while self._placeable:
            self._place_next()
            yield
        if not self._finished:
            self.notes.append("The server did not confirm the cancel.")
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
        self.state = State.placing if self._placeable else State.drawing
        through = sum(i.state in final_states for i in self.items)
        self.message = f"{through} of {len(self.items)} keyframes are through."

    def _conclude(self) -> None:
        for item in self.items:
            if item.state not in final_states:
                item.state = ItemState.failed
                item.message, item.fix = "The server said nothing of it.", "Draw it again."
        failed = [i for i in self.items if i.state is ItemState.failed]
        cancelled = [i for i in self.items if i.state is ItemState.cancelled]
        if failed:
            first = failed[0]
            self._fail(
                Failure.keyframes,
                f"{len(failed)} of {len(self.items)} keyframes could not be drawn. "
                f"Shot {first.shot}, frame {first.frame}: {first.message}",
                first.fix or "Draw again: only these are tried.",
            )
            return
        if cancelled:
            self.state = State.cancelled
            self.message = f"{len(cancelled)} of {len(self.items)} keyframes were cancelled."
            self.fix = "Draw again: only these are drawn."
        elif self.settings.check:
            changed = sum(i.state is ItemState.changed for i in self.items)
            self.state, self.fix = State.done, ""
            self.message = "Nothing changed since it was drawn."
            if changed:
                self.message = f"{changed} of {len(self.items)} keyframes are to be drawn."
        else:
            kept = sum(i.state is ItemState.kept for i in self.items)
            drawn = len(self.items) - kept
            self.state, self.fix = State.done, ""
            self.message = f"{drawn} keyframes drawn" + (
                f", {kept} were drawn already." if kept else "."
            )
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
            self.notes.append(results.output_error(error, path).message)

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
            item = self.items[message.item]
            item.state, item.request, item.path = ItemState.kept, message.request, message.path
            sidecar = results.read_sidecar(item.path)
            if sidecar and self._places:
                self._placeable.append((item, sidecar))
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
        elif isinstance(message, net.Unwritable):
            raise results.OutputError(message.message, message.fix, message.full)
        elif isinstance(message, net.Broken):
            self._finished = True
            self._network.close()
            if self.state is not State.cancelling:
                self._fail(Failure.server, message.error.message, message.error.fix)
        elif isinstance(message, net.Finished):
            self._finished = True

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
        item.state, item.preview = ItemState.done, None
        if self._places:
            self._placeable.append((item, sidecar))

    def _place_next(self) -> None:
        """Puts one result before its camera, and the timings of its way into the sidecar."""
        item, sidecar = self._placeable.popleft()
        start = time.perf_counter()
        self._place(item)
        if item.state is not ItemState.done:
            return
        item.timings["place"] = time.perf_counter() - start
        item.timings["click_to_plane"] = time.perf_counter() - self._started
        sidecar["record"]["timings"] = {k: round(v, 5) for k, v in item.timings.items()}
        try:
            results.write_sidecar(item.path, sidecar)
        except OSError as error:
            raise results.output_error(error, item.path) from error

    def _place(self, item: Item) -> None:
        try:
            sources.place(self.scene, self._shot_of(item), item, dumps(item.request))
        except (PlaneError, CaptureError) as error:
            # The drawing is on disk; that it cannot be shown is said, and undoes nothing.
            self.notes.append(f"Shot {item.shot}, frame {item.frame} is drawn. {error}")

    @property
    def _places(self) -> bool:
        return self.settings.place and not self.settings.check

    def _shot_of(self, item: Item) -> Shot:
        return next(s for s in self.shots if s.name == item.shot)

    def _note_unknown_maps(self, model: dict[str, Any]) -> None:
        unknown = [m.kind for m in self.film.maps if m.kind not in model.get("map_kinds", [])]
        if unknown:
            self.notes.append(
                f"The model {model['name']} takes no {', '.join(unknown)} map; it draws without."
            )


def _connector(client: Client | Callable[[], Client]) -> Callable[[], Client]:
    """A function that connects, of a Client too: each thread needs a connection of its own."""
    if isinstance(client, Client):
        url, token, timeout = client.url, client.token, client.timeout
        return lambda: Client(url, token, timeout)
    return client


def _run_name() -> str:
    return time.strftime("%Y%m%d-%H%M%S-") + uuid.uuid4().hex[:6]

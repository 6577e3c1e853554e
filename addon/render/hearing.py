# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session's threads tell, taken into its keyframes. Runs on the thread that steps."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..core.scores import heads_of_record, heads_of_sidecar
from . import network as net
from . import results
from .items import Item, ItemState, final_states
from .placing import Placer

drain_budget = 0.02
"""Seconds a step may spend on messages of the threads."""


class Lost(Exception):
    """Nothing more will be heard of the server. message, fix: sentences for the person.

    ours: not the server went away, but an error of Onmodel's ended the talk.
    """

    def __init__(self, message: str, fix: str, ours: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.ours = ours


class Hearing:
    """Takes the messages of a network in; see network.py for each.

    items: the session's own list, by number. placer: gets the results, or None where nothing is
    placed. say: told a sentence for the person.

    info: the server's, once it is connected. waiting: why nothing is drawn just now, or "".
    finished: all was said. unsaved: drawings that could not be written.
    """

    def __init__(
        self,
        network: net.Network,
        items: Sequence[Item],
        placer: Placer | None,
        say: Callable[[str], None],
    ) -> None:
        self.info: dict[str, Any] = {}
        self.waiting = ""
        self.finished = False
        self.unsaved: list[net.Drawn] = []
        self._network = network
        self._items = items
        self._placer = placer
        self._say = say
        self._sent_at: dict[int, float] = {}

    def drain(self) -> None:
        """Takes in what was told, for `drain_budget` at most. Raises Lost and OutputError."""
        until = time.perf_counter() + drain_budget
        while time.perf_counter() < until:
            works = self._network.alive or not self._network.started
            try:
                message = self._network.messages.get_nowait()
            except queue.Empty:
                if not works and not self.finished:
                    raise Lost(
                        "The talk with the server broke off by an error of Onmodel's.",
                        "Blender's console says more. Draw again: what is drawn stays.",
                        ours=True,
                    ) from None
                return
            self._hear(message)

    def save_again(self) -> None:
        """Writes what could not be written. Raises OutputError if it still cannot."""
        while self.unsaved:
            self._save(self.unsaved[0])
            self.unsaved.pop(0)

    def _hear(self, message: net.Message) -> None:
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
                self.unsaved.append(message)
                raise
        elif isinstance(message, net.Ended):
            item = self._items[message.item]
            item.state = ItemState(message.state)
            item.message, item.fix = message.message, message.fix
        elif isinstance(message, net.Trouble):
            self._say(message.message)
        elif isinstance(message, net.Waiting):
            self.waiting = message.message
        elif isinstance(message, net.Unwritable):
            raise results.OutputError(message.message, message.fix, message.full)
        elif isinstance(message, net.Broken):
            self.finished = True
            self._network.close()
            raise Lost(message.error.message, message.error.fix)
        elif isinstance(message, net.Finished):
            self.finished = True

    def _hear_kept(self, message: net.Kept) -> None:
        item = self._items[message.item]
        item.state, item.request, item.path = ItemState.kept, message.request, message.path
        sidecar = results.read_sidecar(item.path)
        item.heads = heads_of_sidecar(sidecar)
        if sidecar and self._placer is not None:
            self._placer.waiting.append((item, sidecar))

    def _hear_sent(self, message: net.Sent) -> None:
        for number in message.items:
            item = self._items[number]
            item.request = message.requests[number]
            if item.state is ItemState.sending:
                item.state = ItemState.queued
            item.timings["encode"] = message.prepare
            item.timings["send"] = message.send
            self._sent_at[number] = time.perf_counter()

    def _hear_progress(self, message: net.Progress) -> None:
        item = self._items[message.item]
        if item.state in final_states:
            return
        item.state = ItemState.queued if message.state == "queued" else ItemState.drawing
        if item.state is ItemState.drawing:
            self.waiting = ""
        item.progress = message.step / message.steps if message.steps else 0.0
        item.preview = message.preview or item.preview

    def _save(self, drawn: net.Drawn) -> None:
        """Writes a drawn keyframe. Raises OutputError; then it is still in hand."""
        item = self._items[drawn.item]
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
        if self._placer is not None:
            self._placer.waiting.append((item, sidecar))

# SPDX-License-Identifier: GPL-3.0-or-later
"""A session's results into the scene, one at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import bpy

from ..capture.errors import CaptureError
from ..core.request import dumps
from ..core.shots import Shot
from ..planes.errors import PlaneError
from . import results, sources
from .items import Item, ItemState


class Placer:
    """Places the results of some shots.

    best: whether the take with the highest score is shown, and not the newest. asked_for: whether
    the artist asked for the very takes that come, and so wants to see them.
    began: `time.perf_counter` at the session's start. The scene is given anew with each call: an
    undo exchanges it.
    """

    def __init__(self, shots: Sequence[Shot], best: bool, asked_for: bool, began: float) -> None:
        self.waiting: deque[tuple[Item, dict[str, Any]]] = deque()
        self.notes: list[str] = []
        self._shots = {s.name: s for s in shots}
        self._best = best
        self._asked_for = asked_for
        self._began = began

    def next(self, scene: bpy.types.Scene) -> None:
        """Puts a result, if one waits, before its camera and its way's timings into its sidecar."""
        if not self.waiting:
            return
        item, sidecar = self.waiting.popleft()
        start = time.perf_counter()
        self.place(scene, item)
        if item.state is not ItemState.done:
            return
        item.timings["place"] = time.perf_counter() - start
        item.timings["click_to_plane"] = time.perf_counter() - self._began
        sidecar["record"]["timings"] = {k: round(v, 5) for k, v in item.timings.items()}
        try:
            results.write_sidecar(item.path, sidecar)
        except OSError as error:
            raise results.output_error(error, item.path) from error

    def place(self, scene: bpy.types.Scene, item: Item) -> None:
        """Puts a result before its camera, shown if it is the take to be shown."""
        shot = self._shots[item.shot]
        try:
            sources.place(scene, shot, item, dumps(item.request), self._asked_for)
            if self._best:
                sources.show_best(scene, shot, item)
        except (PlaneError, CaptureError) as error:
            # The drawing is on disk; that it cannot be shown is said, and undoes nothing.
            self.notes.append(f"Shot {item.shot}, frame {item.frame} is drawn. {error}")

    def put_back(self, scene: bpy.types.Scene, items: Sequence[Item]) -> int:
        """Places those results whose planes are not in the scene; returns how many."""
        drawn = (ItemState.done, ItemState.kept)
        missing = [
            i
            for i in items
            if i.state in drawn
            and i.request
            and not sources.is_placed(scene, self._shots[i.shot], i)
        ]
        for item in missing:
            self.place(scene, item)
        return len(missing)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Captured keyframes into requests, in the sender's thread. No bpy.

What is drawn already is left out here: the requests are complete, so the files on disk can be
compared with them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.blob import Blob
from ..core.request import JobRequest, KeyframeRequest, to_data
from ..core.shots import file_name, seed_for
from . import network as net
from . import results
from .items import Item
from .requests import (
    Actor,
    BuildError,
    Encoded,
    ShotSettings,
    build,
    encode,
    map_files,
    read_references,
)
from .settings import TakeSettings

log = logging.getLogger(__name__)


class Preparer:
    """Makes the requests of one session.

    say: takes what the main thread is told. retakes: whether further takes may be asked for, so
    that what they need is kept.
    """

    def __init__(
        self,
        settings: TakeSettings,
        actors: Sequence[Actor],
        out_dir: Path,
        run_folder: Path,
        say: Callable[[net.Message], None],
        retakes: bool,
    ) -> None:
        self._settings = settings
        self._actors = actors
        self._out_dir = out_dir
        self._run_folder = run_folder
        self._say = say
        self._retakes = retakes
        self._kept: dict[tuple[str, int], tuple[KeyframeRequest, tuple[Blob, ...], int]] = {}

    def shot(
        self, settings: ShotSettings, own: Sequence[Item], keyframes: Sequence[Any]
    ) -> list[net.Prepared]:
        """A shot's captured keyframes. own: its items; keyframes: see `requests.Captured`."""
        try:
            references = read_references(self._actors)
        except BuildError as error:
            for item in own:
                self._say(net.Ended(item.number, "failed", error.message, error.fix))
            return []
        prepared = []
        for captured in keyframes:
            encoded = encode(captured, [m.kind for m in settings.maps], references)
            if self._settings.keep_maps and not self._settings.check:
                self._write(map_files(self._out_dir, settings, encoded))
            prepared += self._takes(settings, own, encoded)
        if prepared:
            self._record(settings.film, settings.shot, prepared)
        return prepared

    def retakes(self, items: Sequence[Item]) -> list[net.Prepared]:
        """Further takes of keyframes that went through `shot`."""
        prepared = []
        for item in items:
            base, blobs, seed = self._kept[item.shot, item.frame]
            request = replace(base, take=item.take, seed=seed_for(seed, item.frame, item.take))
            prepared += self._unless_drawn(item, request, blobs)
        if prepared:
            first = prepared[0].request
            self._record(first.film, f"retakes {items[0].number}", prepared)
        return prepared

    def _takes(
        self, settings: ShotSettings, own: Sequence[Item], encoded: Encoded
    ) -> list[net.Prepared]:
        prepared = []
        for item in own:
            if item.frame != encoded.captured.frame:
                continue
            request, blobs = build(encoded, settings, self._actors, item.take)
            if self._retakes:
                self._kept[item.shot, item.frame] = (request, blobs, settings.seed)
            prepared += self._unless_drawn(item, request, blobs)
        return prepared

    def _unless_drawn(
        self, item: Item, request: KeyframeRequest, blobs: tuple[Blob, ...]
    ) -> list[net.Prepared]:
        """The request to be sent, or nothing where it is drawn or only to be checked."""
        there = results.drawn_at(item.path, item.former, request)
        if there is not None and not self._settings.redraw:
            self._say(net.Kept(item.number, request, there))
            return []
        if self._settings.check:
            self._say(net.Ended(item.number, "changed"))
            return []
        return [net.Prepared(item.number, request, blobs)]

    def _record(self, film: str, what: str, prepared: Sequence[net.Prepared]) -> None:
        """Keeps the requests of a job in the run's folder."""
        job = JobRequest("", [p.request for p in prepared], f"{film} {what}")
        path = self._run_folder / f"{file_name(what)}.json"
        self._write({path: json.dumps(to_data(job), indent=1).encode()})

    def _write(self, files: Mapping[Path, bytes]) -> None:
        """Writes files of the run; tells the main thread where one cannot be."""
        for path, data in files.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                results.write_atomic(path, data)
            except OSError as error:
                wrong = results.output_error(error, path)
                self._say(net.Unwritable(wrong.message, wrong.fix, wrong.full))
                return

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the queue asks of whoever draws: the `Artist` protocol and the values that pass through it.

The worker process makes one artist and keeps it for its life, so an artist may hold warm models.
Nothing here imports torch; an artist imports it when it first draws, never in `models()`.

Requests are KeyframeRequest JSON (see addon/core/request.py), already validated by the server and
pinned: `model_hash` and each LoRA's `hash` name the content that was current at submit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Task:
    """One keyframe to draw. id: the keyframe's id in the queue. request: KeyframeRequest JSON."""

    id: str
    request: dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """A finished keyframe.

    png: the whole PNG file, 8-bit RGB, of the canvas crop's size.
    record: plain JSON data to keep beside it: seed, steps, model_hash, timings (seconds by stage).
    """

    png: bytes
    record: dict[str, Any] = field(default_factory=dict)


class DrawError(Exception):
    """A failure that a person can understand.

    message: a sentence that says what is wrong. fix: a sentence that says what to do.
    task_ids: the tasks that failed; none given means every task of the call not yet yielded.
    Tasks of the batch that are not named go back to the queue and are drawn one by one.
    """

    def __init__(self, message: str, fix: str = "", task_ids: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.task_ids = tuple(task_ids)


class BlobReader(Protocol):
    """Read access to the blob store. `sha256` is 64 lower-case hex digits."""

    def read(self, sha256: str) -> bytes:
        """The bytes, checked against their hash. Raises BlobError (a sentence) if lost."""

    def path(self, sha256: str) -> Path:
        """The file that holds the bytes, for readers that want a file; do not write to it."""


Report = Callable[[str, str, dict[str, Any]], None]
"""report(task_id, type, data), cheap enough to call at every step. Types and their data:
    "loading"   {"message": str}                    models are being loaded for this task
    "sampling"  {"step": int, "steps": int}         step is 1..steps, after the step is done
    "preview"   {"step", "steps", "png": bytes}     a small PNG of the picture so far
"""

Cancelled = Callable[[str], bool]
"""cancelled(task_id): the task is no longer wanted; ask between steps. Nothing drawn for it is
kept, so an artist may drop it from the batch or draw on, and need not yield it."""


class Artist(Protocol):
    """Draws keyframes. Made once per worker process, without arguments, by the worker's thread."""

    def models(self) -> list[dict[str, Any]]:
        """ModelInfo dicts of all models found now; cheap, no torch import.

        Each: name, family, title, native_pixels, multiple, map_kinds, presets, default_preset,
        sampling, hash (SHA-256 hex of the weights), embedded. sampling: for each preset its usual
        "steps" and "guidance", and "method", which changes with whatever else in the model's own
        settings changes its drawings. The server pins requests to them.
        """

    def loras(self) -> list[dict[str, Any]]:
        """LoRA files found now: name, hash (SHA-256 hex of the file), title; cheap, no torch.

        The server pins a request's LoRA of that name to the hash. [] where there are none.
        """

    def ip_adapters(self) -> list[dict[str, Any]]:
        """IP-Adapters found now, which hold characters by their portraits; cheap, no torch.

        Each: name, hash, kind ("plus", "plain", "faceid", "" where it cannot be told), problem
        (why it cannot be used, or ""), fits (names of models), chosen (of these, those whose
        characters it holds: each model has one at most).
        """

    def device(self) -> str:
        """What it draws on, for people: "cpu", "NVIDIA L4"... Asked once, after models()."""

    def release(self) -> None:
        """Lets go of warm models: a training needs the device's memory. They come back by use."""

    def batch_key(self, request: dict[str, Any]) -> str:
        """Requests with equal keys may be drawn in one call of draw()."""

    def max_batch(self, request: dict[str, Any]) -> int:
        """The most tasks in one call of draw() for requests like this one; at least 1."""

    def draw(
        self,
        tasks: list[Task],
        blobs: BlobReader,
        report: Report,
        cancelled: Cancelled,
    ) -> Iterator[tuple[str, Drawn]]:
        """Draws tasks of one batch key; yields (task id, Drawn) as each is finished.

        Yield early: what was yielded is committed at once and survives any crash. Raises DrawError.
        """

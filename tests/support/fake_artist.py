# SPDX-License-Identifier: GPL-3.0-or-later
"""An artist without a model: composes each frame from its own maps, always the same, at will slow.

    onmodel serve --artist tests.support.fake_artist:FakeArtist

Environment: FAKE_STEP_SECONDS (0.02), FAKE_STEPS (4), FAKE_LOAD_SECONDS (0), FAKE_ENCODE_SECONDS
(0), FAKE_BATCH (2), FAKE_DRAWS and FAKE_GATE (after so many draws it waits for that file),
FAKE_LOG (a file that gets one line "begin|end TIME TASK KEY" a draw, synced).
Words in a prompt: [fail] a DrawError, [bug] an exception, [crash] the process dies, [silent] no
drawing, [preview] a preview at every step.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onmodel.jobs.artist import BlobReader, Cancelled, DrawError, Drawn, Report, Task
from PIL import Image


def number(name: str, default: float) -> float:
    """A number from the environment."""
    return float(os.environ.get(name, default))


class FakeArtist:
    """Draws what `compose` makes of the request."""

    def __init__(self) -> None:
        self._loaded = False
        self._drawn = 0

    def models(self) -> list[dict[str, Any]]:
        steps = int(number("FAKE_STEPS", 4))
        return [
            {
                "name": "rehearsal",
                "family": "sdxl",
                "title": "Fake rehearsal",
                "native_pixels": 65536,
                "multiple": 32,
                "map_kinds": ["pose", "depth", "normal", "lineart"],
                "presets": ["default", "fast"],
                "default_preset": "default",
                "sampling": {
                    "default": {"steps": steps, "guidance": 4.0, "method": "fake"},
                    "fast": {"steps": steps, "guidance": 1.0, "method": "fake"},
                },
                "hash": hashlib.sha256(b"fake rehearsal").hexdigest(),
                "embedded": True,
            }
        ]

    def loras(self) -> list[dict[str, Any]]:
        names = ("ink", "Mara", "Jonas")  # the sample's cast too
        return [
            {"name": n, "title": n.title(), "hash": hashlib.sha256(n.encode()).hexdigest()}
            for n in names
        ]

    def ip_adapters(self) -> list[dict[str, Any]]:
        found = {"name": "plus-face", "hash": hashlib.sha256(b"plus-face").hexdigest()}
        fitting = ["rehearsal"]
        return [{**found, "kind": "plus", "problem": "", "fits": fitting, "chosen": fitting}]

    def device(self) -> str:
        return "fake"

    def release(self) -> None:
        self._loaded = False

    def batch_key(self, request: dict[str, Any]) -> str:
        canvas = request["canvas"]
        return f"{request['model']} {canvas['width']}x{canvas['height']}"

    def max_batch(self, request: dict[str, Any]) -> int:
        return int(number("FAKE_BATCH", 2))

    def draw(
        self, tasks: list[Task], blobs: BlobReader, report: Report, cancelled: Cancelled
    ) -> Iterator[tuple[str, Drawn]]:
        if not self._loaded:
            for task in tasks:
                report(task.id, "loading", {"message": "loading the fake model"})
            wait(number("FAKE_LOAD_SECONDS", 0.0), tasks, cancelled)
            self._loaded = True
        if self._drawn >= int(number("FAKE_DRAWS", 10**9)):
            wait_for_gate(tasks, cancelled)
        for task in tasks:
            note("begin", task)
            misbehave(task)
        tasks = [t for t in tasks if "[silent]" not in t.request["prompt"]]
        steps = tasks[0].request["sampling"]["steps"] if tasks else None
        # A queue's tests put requests in that nobody pinned.
        steps = steps or int(number("FAKE_STEPS", 4))
        pictures = {t.id: compose(t.request, blobs) for t in tasks}
        for step in range(1, steps + 1):
            time.sleep(number("FAKE_STEP_SECONDS", 0.02))
            tasks = [t for t in tasks if not cancelled(t.id)]
            if not tasks:
                return
            for task in tasks:
                report(task.id, "sampling", {"step": step, "steps": steps})
                if "[preview]" in task.request["prompt"]:
                    small = pictures[task.id].resize((32, 32))
                    preview = {"step": step, "steps": steps, "png": to_png(small)}
                    report(task.id, "preview", preview)
        for task in tasks:
            time.sleep(number("FAKE_ENCODE_SECONDS", 0.0))
            record = {
                "seed": task.request["seed"],
                "steps": steps,
                "model_hash": task.request["model_hash"],
                "timings": {"sampling": steps * number("FAKE_STEP_SECONDS", 0.02)},
            }
            png = to_png(pictures[task.id])
            note("end", task)
            self._drawn += 1
            yield task.id, Drawn(png, record)


def wait(seconds: float, tasks: list[Task], cancelled: Cancelled) -> None:
    """Sleeps, but not for tasks that nobody wants."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not all(cancelled(t.id) for t in tasks):
        time.sleep(0.02)


def wait_for_gate(tasks: list[Task], cancelled: Cancelled) -> None:
    """Waits for the file that lets it go on; not for tasks that nobody wants."""
    gate = Path(os.environ["FAKE_GATE"])
    while not gate.exists() and not all(cancelled(t.id) for t in tasks):
        time.sleep(0.02)


def misbehave(task: Task) -> None:
    """Does what the prompt asks for."""
    prompt = task.request["prompt"]
    if "[fail]" in prompt:
        raise DrawError("The fake artist was asked to fail.", "Ask for less.", [task.id])
    if "[bug]" in prompt:
        raise ZeroDivisionError("asked for")
    if "[crash]" in prompt:
        os._exit(9)


def note(word: str, task: Task) -> None:
    """Writes a line that survives a SIGKILL."""
    path = os.environ.get("FAKE_LOG")
    if not path:
        return
    text = json.dumps(task.request, sort_keys=True, separators=(",", ":"))
    key = hashlib.sha256(text.encode()).hexdigest()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{word} {time.time():.6f} {task.id} {key}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def compose(request: dict[str, Any], blobs: BlobReader) -> Image.Image:
    """A frame of the crop's size: depth as light, masks in flat colours by name, pose on top."""
    canvas = request["canvas"]
    size = (canvas["width"], canvas["height"])
    rng = np.random.default_rng(request["seed"] % 2**32)
    picture: np.ndarray = np.full((size[1], size[0], 3), rng.integers(40, 90), np.float32)
    maps = {m["kind"]: read(blobs, m["blob"], "RGB") for m in request["maps"]}
    if "depth" in maps:
        picture += maps["depth"] * 0.5
    for character in request["characters"]:
        digest = hashlib.sha256(character["name"].encode()).digest()
        mask = read(blobs, character["mask"], "L")[..., None] / 255.0
        picture = picture * (1 - mask) + np.array(list(digest[:3]), np.float32) * mask
    if "pose" in maps:
        drawn = maps["pose"].max(axis=2) > 0
        picture[drawn] = maps["pose"][drawn]
    box = canvas["crop"]
    left, top = round(box["x"]), round(box["y"])
    right, bottom = round(box["x"] + box["width"]), round(box["y"] + box["height"])
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8)).crop((left, top, right, bottom))


def read(blobs: BlobReader, sha256: str, mode: str) -> np.ndarray:
    """An image of the request as floats 0..255."""
    with Image.open(io.BytesIO(blobs.read(sha256))) as image:
        return np.asarray(image.convert(mode), np.float32)


def to_png(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()

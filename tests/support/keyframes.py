# SPDX-License-Identifier: GPL-3.0-or-later
"""Small valid requests and their images, for tests of the server."""

from __future__ import annotations

import hashlib
import io
import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from addon.core import request as contract

counter = itertools.count()


@dataclass(frozen=True)
class Blob:
    """Bytes with their SHA-256."""

    data: bytes

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def png(value: int = 128, width: int = 64, height: int = 64, mode: str = "L") -> Blob:
    """A PNG whose pixels depend on `value`."""
    rng = np.random.default_rng(value)
    shape = (height, width) if mode == "L" else (height, width, 3)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(out, "PNG")
    return Blob(out.getvalue())


depth, mask = png(1), png(2)


def keyframe(**changes: Any) -> contract.KeyframeRequest:
    """A keyframe of 64 x 64 with a depth map and one character; needs blobs `depth`, `mask`."""
    base = contract.KeyframeRequest(
        film="film",
        shot="010",
        frame=1,
        take=1,
        seed=7,
        frame_size=contract.Size(1920, 1080),
        canvas=contract.Canvas(64, 64, contract.Box(0.0, 14.0, 64.0, 36.0)),
        camera=contract.Camera(
            "Camera",
            "perspective",
            [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0],
            [-0.5, 0.5, -0.5, 0.5],
            0.1,
            100.0,
        ),
        model="rehearsal",
        prompt="a room",
        maps=[contract.MapImage("depth", depth.hash)],
        characters=[contract.Character("Ana", "woman", mask.hash)],
    )
    return replace(base, **changes)


def job(*keyframes: contract.KeyframeRequest, **changes: Any) -> contract.JobRequest:
    """A job under a client_key of its own."""
    made = contract.JobRequest(f"test-{next(counter)}", list(keyframes), "test")
    return replace(made, **changes)


def unique(count: int, **changes: Any) -> list[contract.KeyframeRequest]:
    """Keyframes that no other call gave: each has a seed of its own."""
    return [keyframe(frame=i + 1, seed=next(counter) + 1000, **changes) for i in range(count)]

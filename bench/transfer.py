# SPDX-License-Identifier: GPL-3.0-or-later
"""Bench: four 1080p maps from the add-on's client to a real local server, and a second submit.

The server is the real one, started as the add-on starts it, with an artist that never draws. The
maps are those of a plain scene (a ground, two bodies), encoded as the add-on encodes them. The
time runs from the encoded maps to the server's last answer: asking what it lacks, sending,
hashing and storing.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from addon.core import png
from addon.core.blob import Blob
from addon.core.client import Client
from addon.core.server_process import ServerProcess, ServerState
from addon.render.requests import png_level

from .harness import Figure

width, height = 1920, 1080
rounds = 15


class IdleArtist:
    """Knows no model and draws nothing."""

    def models(self) -> list[dict[str, Any]]:
        return []

    def loras(self) -> list[dict[str, Any]]:
        return []

    def ip_adapters(self) -> list[dict[str, Any]]:
        return []

    def device(self) -> str:
        return "none"


def plain_maps(seed: int) -> list[np.ndarray]:
    """Pose, depth, normals and lines of a ground and two bodies; `seed` moves the bodies."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    ground = np.clip((y - 500) / 580, 0, 1)
    depth = ground * 200
    normal = np.zeros((height, width, 3), np.float32)
    normal[..., 1] = ground > 0
    body = np.zeros((height, width), bool)
    pose = np.zeros((height, width, 3), np.uint8)
    for k, centre in enumerate((600 + seed, 1300 - seed)):
        u, v = (x - centre) / 150, (y - 560) / 400
        inside = u * u + v * v < 1
        bulge = np.sqrt(np.clip(1 - u * u - v * v, 0, 1))
        depth = np.where(inside, 180 + 40 * bulge, depth)
        normal[inside] = np.stack([u, -v, bulge], -1)[inside]
        body |= inside
        for joint in range(18):
            box = np.s_[200 + 40 * joint : 236 + 40 * joint, centre - 6 : centre + 6]
            pose[box] = (255 * k, 14 * joint, 255 - 14 * joint)
    lines = body ^ np.roll(body, 1, 1) | body ^ np.roll(body, 1, 0)
    return [
        pose,
        depth.astype(np.uint8),
        np.rint((normal + 1) * 127.5).astype(np.uint8),
        lines.astype(np.uint8) * 255,
    ]


def start_server(folder: Path) -> ServerProcess:
    """The local server on this data folder, ready. Raises RuntimeError with its reason."""
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(root), str(root / "server")])
    process = ServerProcess(
        [sys.executable, "-m", "onmodel.cli"],
        folder,
        extra=("--artist", "bench.transfer:IdleArtist"),
        environment={**os.environ, "PYTHONPATH": path},
    )
    process.start()
    end = time.monotonic() + 60
    while process.poll() is ServerState.starting and time.monotonic() < end:
        time.sleep(0.02)
    if process.state is not ServerState.running:
        process.stop(wait=2)
        raise RuntimeError(f"{process.message} {process.log_tail(500)}")
    return process


def time_rounds(client: Client, level: int, first: int) -> tuple[list[float], int, list[Blob]]:
    """Milliseconds of each round of new maps; the bytes of the last; its blobs."""
    times: list[float] = []
    sent, blobs = 0, []
    for k in range(rounds):
        maps = [png.encode(m, level) for m in plain_maps(first + k)]
        start = time.perf_counter()
        blobs = [Blob(data) for data in maps]
        sent = client.send_blobs(blobs)
        times.append((time.perf_counter() - start) * 1e3)
    return times, sent, blobs


def run() -> list[Figure]:
    """The figures of the transfer, medians over the rounds."""
    with tempfile.TemporaryDirectory(prefix="onmodel-transfer-") as folder:
        process = start_server(Path(folder))
        try:
            assert process.address is not None
            with Client(process.address.url, process.address.token) as client:
                client.info()
                times, sent, blobs = time_rounds(client, png_level, 0)
                again = client.send_blobs(blobs)
                stored, stored_bytes, _ = time_rounds(client, 0, 100)
        finally:
            process.stop(wait=5)
    spread = f"{sent / 1e6:.2f} MB as the add-on sends them, worst {max(times):.1f} ms"
    return [
        Figure(
            "four 1080p maps to the local server", statistics.median(times), "ms", 20, "<=", spread
        ),
        Figure("image bytes of a second submit", float(again), "bytes", 0, "=="),
        Figure(
            "the same maps uncompressed",
            statistics.median(stored),
            "ms",
            note=f"{stored_bytes / 1e6:.1f} MB, SHA-256 on both sides included",
        ),
    ]

# SPDX-License-Identifier: GPL-3.0-or-later
"""A keyframe of the sample with both characters, captured on a canvas of 1024 x 1024 pixels."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from typing import Any

import numpy as np

from bench.harness import Figure
from bench.sample import open_sample

_times = 5
_parts = ("stage", "render", "gather", "read", "masks", "heads", "joints", "pose", "normal")
_bar, _tick_bar = 2.0, 50.0


def run() -> list[Figure]:
    """Seconds for the whole (median of five, after a first one) and for each part, and how long
    the steps besides the render hold up a window."""
    from addon.capture.capture import ShotCapture, capture_keyframe
    from addon.core.request import Size

    scene, shots, cast = open_sample()
    size = Size(1024, 1024)
    shot, frame = _with_both(scene, shots, cast)
    camera = scene.objects[shot.camera]
    totals: list[float] = []
    busy: list[float] = []
    parts: list[dict[str, float]] = []
    for _ in range(_times + 1):
        began, worked = time.perf_counter(), time.process_time()
        keyframe = capture_keyframe(scene, camera, frame, cast, 1024 * 1024, 64, size)
        totals.append(time.perf_counter() - began)
        busy.append(time.process_time() - worked)
        parts.append(keyframe.timings)
    vertices = sum(len(m.data.vertices) for c in cast for m in c.meshes)
    note = f"shot {shot.name} frame {frame}, {vertices} vertices in the cast{_load()}"
    first, totals, parts = totals[0], totals[1:], parts[1:]
    figures = [
        Figure("capture at 1024 x 1024, two characters", _middle(totals), "s", _bar, note=note),
        Figure("capture, processor time of all threads", _middle(busy), "s"),
        Figure("capture, best", min(totals), "s"),
        Figure("capture, the first after Blender's start", first, "s"),
    ]
    for part in (*_parts, "lineart", "depth"):
        seconds = _middle([p.get(part, 0.0) for p in parts])
        figures.append(Figure(f"capture, part: {part}", seconds * 1000, "ms"))
    wanted = dataclasses.replace(shot, keyframes=[frame, shot.end], frame_size=size)
    ticks = []
    with ShotCapture(scene, wanted, cast, 1024 * 1024, 64) as capture:
        steps = capture.steps()
        while True:
            began = time.perf_counter()
            what = next(steps, None)
            if what is None:
                break
            if not what.endswith("rendered"):
                ticks.append((time.perf_counter() - began) * 1000)
    figures.append(
        Figure(
            "capture, tick besides the render, 95th percentile",
            float(np.percentile(ticks, 95)),
            "ms",
            _tick_bar,
            note=f"{len(ticks)} ticks, longest {max(ticks):.0f} ms",
        )
    )
    return figures


def _load() -> str:
    """How busy the machine is with other things, where that is known."""
    if not hasattr(os, "getloadavg"):
        return ""
    return f", load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"


def _middle(values: list[float]) -> float:
    return statistics.median(values)


def _with_both(scene: Any, shots: list[Any], cast: list[Any]) -> tuple[Any, int]:
    """The first shot and keyframe that show the whole cast."""
    from addon.capture.capture import capture_keyframe

    for shot in shots:
        for frame in shot.keyframes:
            camera = scene.objects[shot.camera]
            if len(capture_keyframe(scene, camera, frame, cast, 65536, 32).present) == len(cast):
                return shot, frame
    raise ValueError("No keyframe of the sample shows the whole cast.")

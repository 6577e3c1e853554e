# SPDX-License-Identifier: GPL-3.0-or-later
"""How long the render session holds up the main thread, over the whole sample.

The server is the real one with the tests' artist, which draws at once, so that submitting,
receiving, writing and placing come as thick as they ever can.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from bench.harness import Figure
from bench.sample import open_sample
from tools.demo import running_server


def run() -> list[Figure]:
    """Longest and usual step besides the capture's renders (their own figure is in `capture`)."""
    from addon.core.client import Client
    from addon.render.session import RenderSession
    from addon.render.settings import TakeSettings

    scene, shots, _ = open_sample()
    capturing: list[float] = []
    others: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        artist = ["--artist", "tests.support.fake_artist:FakeArtist"]
        with running_server(Path(folder) / "data", artist) as (url, token):
            out = Path(folder) / "out"
            session = RenderSession(scene, shots, TakeSettings(), Client(url, token), out)
            while not session.ended:
                before = session.state.value
                began = time.perf_counter()
                session.step()
                spent = (time.perf_counter() - began) * 1000
                capture = "capturing" in (before, session.state.value)
                (capturing if capture else others).append(spent)
                time.sleep(0.005)
            state, drawn = session.state.value, len(session.items)
    note = f"{len(others)} ticks to {state}, {drawn} keyframes; longest {max(others):.0f} ms"
    return [
        Figure(
            "main thread, tick of submit and receive, 99th percentile",
            pct(others),
            "ms",
            50,
            note=note,
        ),
        Figure(
            "main thread, longest step while capturing",
            max(capturing),
            "ms",
            note="a render of Cycles, which Blender cannot cut",
        ),
    ]


def pct(values: list[float]) -> float:
    """The 99th percentile; the machine's own stalls are not Onmodel's."""
    return float(np.percentile(values, 99))

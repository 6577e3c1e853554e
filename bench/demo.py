# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole demo, as `run.py demo` runs it, on an empty data folder."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.harness import Figure
from bench.sample import open_sample


def run() -> list[Figure]:
    """Exit code, keyframes drawn and by which LoRAs, seconds of the whole run and of drawing."""
    _, shots, _ = open_sample()
    wanted = sum(len(s.keyframes) for s in shots)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "demo"
        line = [sys.executable, "-m", "tools.demo", "--output", str(output)]
        line += ["--data", str(Path(folder) / "data")]
        started = time.monotonic()
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - started
        last = (done.stderr.strip().splitlines() or [""])[-1] if done.returncode else ""
        sidecars = [json.loads(p.read_text()) for p in output.rglob("*_*_*.json")]
        pictures = [p for p in output.rglob("*_*_*.png") if p.with_suffix(".json").exists()]
        made = [(output / n).exists() for n in ("demo.blend", "contact_sheet.png")]
    records = [s["record"]["keyframe"]["record"] for s in sidecars]
    loras = {(x["character"], x["name"]) for record in records for x in record["loras"]}
    drawing = sum(s["record"]["keyframe"]["timings"].get("drawing", 0.0) for s in sidecars)
    return [
        Figure("demo, exit code", done.returncode, bar=0, op="==", note=last),
        Figure("demo, keyframes drawn", len(pictures), "", wanted, "==", f"{wanted} in the sample"),
        Figure("demo, scene and contact sheet made", sum(made), bar=2, op="=="),
        Figure(
            "demo, characters drawn by a LoRA of their own",
            len({character for character, _ in loras} - {None}),
            "",
            2,
            "==",
            ", ".join(f"{character}: {name}" for character, name in sorted(loras, key=str)),
        ),
        Figure("demo, whole run after set-up", seconds, "s", 180),
        Figure("demo, of that waiting for drawings, keyframe by keyframe", drawing, "s"),
    ]

# SPDX-License-Identifier: GPL-3.0-or-later
"""A small set of held-out samples that ships with the benches: bench/data/held_out.zip.

    python -m bench.held_out SAMPLES [--count 32]

makes it anew of the samples of `python -m world.samples` whose people were never trained on: every
set in both looks, then what balances framings. For each sample it holds picture.webp (lossless),
pose.webp, depth.png and normal.webp as the model gets them (maps of the people themselves),
part.png, person.png and told.json: framing, set, look, and for each person the caption and the
body's 18 joints [x, y, state].
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray

archive = Path(__file__).parent / "data" / "held_out.zip"
first_held_out = 24576
_files = {
    "rgb": "picture.webp",
    "pose": "pose.webp",
    "depth": "depth.png",
    "normal": "normal.webp",
    "part": "part.png",
    "person": "person.png",
}


@dataclass(frozen=True)
class Sample:
    """One sample: rgb, pose, normal (H, W, 3), depth, part, person (H, W), all uint8; told: the
    description."""

    number: int
    rgb: Array
    pose: Array
    depth: Array
    normal: Array
    part: Array
    person: Array
    told: dict[str, Any]

    @property
    def shot(self) -> str:
        """The prompt of the whole picture."""
        words = (self.told["look"], self.told["framing"], self.told["set"])
        two = ["two people"] if len(self.told["people"]) > 1 else []
        return ", ".join([*two, *words])

    @property
    def joints(self) -> Array:
        """(n, 2) px: the body joints of all people that lie in the picture, ears and eyes too."""
        height, width = self.person.shape
        rows = [p for one in self.told["people"] for p in one["joints"]]
        points = np.array([p[:2] for p in rows if p[2] != "outside"]).reshape(-1, 2)
        inside = ((points >= 0) & (points < (width, height))).all(1)
        kept: Array = points[inside]
        return kept


def load(count: int | None = None, file: Path = archive) -> list[Sample]:
    """The first `count` samples of the set (None: all). Raises FileNotFoundError."""
    out = []
    with zipfile.ZipFile(file) as packed:
        numbers = json.loads(packed.read("order.json"))
        for number in numbers[:count]:
            arrays = {
                name: np.array(Image.open(io.BytesIO(packed.read(f"{number:06d}/{path}"))))
                for name, path in _files.items()
            }
            told = json.loads(packed.read(f"{number:06d}/told.json"))
            out.append(Sample(number=number, told=told, **arrays))
    return out


def choose(told: Sequence[dict[str, Any]], count: int) -> list[int]:
    """Places of `count` descriptions: sets and looks first, then framings and two-person shots.

    Any beginning of the list is about as balanced as the whole.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    left, out = list(range(len(told))), list[int]()

    def keys(one: dict[str, Any]) -> list[tuple[tuple[str, ...], float]]:
        people = str(min(2, len(one["people"])))
        return [
            (("set", one["set"]), 4.0),
            (("look", one["look"]), 4.0),
            (("set", one["set"], one["look"]), 6.0),
            (("framing", one["framing"]), 3.0),
            (("framing", one["framing"], one["look"]), 3.0),
            (("people", people), 1.0 if people == "1" else 3.0),
        ]

    while left and len(out) < count:
        best = min(left, key=lambda i: (sum(seen[k] * w for k, w in keys(told[i])), i))
        left.remove(best)
        out.append(best)
        seen.update(k for k, _ in keys(told[best]))
    return out


def make(samples: Path, count: int, file: Path = archive) -> int:
    """Write the archive; returns its size in bytes. Raises FileNotFoundError without samples."""
    from onmodel.rehearsal.data import maps_of, read_sample

    paths = [p for p in sorted(samples.glob("[0-9]*.json")) if int(p.stem) >= first_held_out]
    if not paths:
        raise FileNotFoundError(f"{samples} holds no samples from number {first_held_out} on.")
    chosen = choose([json.loads(p.read_text()) for p in paths], count)
    numbers = [int(paths[i].stem) for i in chosen]
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("order.json", json.dumps(numbers))
        for number in numbers:
            arrays, description = read_sample(samples, number)
            pictures = {**{k: arrays[k] for k in ("rgb", "part", "person")}}
            pictures |= maps_of(arrays, description)
            for name, path in _files.items():
                packed.writestr(f"{number:06d}/{path}", _encoded(pictures[name], path))
            told = {k: description[k] for k in ("framing", "set", "look")}
            told["people"] = [
                {
                    "caption": p["caption"],
                    "identity": p["identity"],
                    "joints": [[*row[:2], row[3]] for row in p["pose"]["body"]],
                }
                for p in description["people"]
            ]
            packed.writestr(f"{number:06d}/told.json", json.dumps(told))
    return file.stat().st_size


def _encoded(pixels: Array, path: str) -> bytes:
    out = io.BytesIO()
    if path.endswith("webp"):
        Image.fromarray(pixels).save(out, "WEBP", lossless=True, quality=80)
    else:
        Image.fromarray(pixels).save(out, "PNG", optimize=True)
    return out.getvalue()


def main(argv: list[str]) -> int:
    """The command line of the module's head."""
    parser = argparse.ArgumentParser(prog="python -m bench.held_out", description=main.__doc__)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--count", type=int, default=32)
    options = parser.parse_args(argv)
    size = make(options.samples, options.count)
    sys.stdout.write(f"{archive.name}: {size / 1e6:.2f} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: GPL-3.0-or-later
"""Fit the rule of onmodel/identity/find.py and say what it is worth.

    python -m onmodel.identity.find_fit SAMPLES --pack FOLDER

SAMPLES: a folder of `python -m world.samples`. FOLDER: where the judge's pack of it lies or will.
Fitted on the world's parts and on what the judge takes for them; measured, on people that neither
saw, by the overlap of the box and by the cosine of the embeddings of found and true box.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from onmodel.identity import find
from onmodel.identity.interface import Array, HeadBox, NoFace
from onmodel.identity.rehearsal import RehearsalFaces
from onmodel.rehearsal.judge import pack

log = logging.getLogger(__name__)

least_height, widest_yaw = 30.0, 100.0


def overlap(a: HeadBox, b: HeadBox) -> float:
    """Intersection over union of two boxes."""
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return across * down / (areas - across * down)


def _size(samples: Path, number: int) -> tuple[int, int]:
    """Width and height of a sample's picture, from its file's head alone."""
    with zipfile.ZipFile(samples / f"{number:06d}.npz") as arrays, arrays.open("rgb.npy") as file:
        np.lib.format.read_magic(file)
        height, width, _ = np.lib.format.read_array_header_1_0(file)[0]
    return width, height


def _usable(samples: Path, data: pack.Pack, kept: bool) -> list[tuple[int, int, int, HeadBox]]:
    """Place, width, height and head box of pictures of one person whose head is whole."""
    found = []
    for place in np.flatnonzero(data.kept == kept):
        people = data.told[place]["people"]
        if len(people) != 1 or not people[0]["face"] or abs(people[0]["yaw"]) >= widest_yaw:
            continue
        width, height = _size(samples, int(data.number[place]))
        x0, y0, x1, y1 = people[0]["face"]
        if min(x0, y0) > 0 and x1 < width and y1 < height and y1 - y0 >= least_height:
            found.append((int(place), width, height, (x0, y0, x1, y1)))
    return found


def fit_rule(samples: Path, data: pack.Pack) -> Array:
    """The rule from all people that may be trained on."""
    rows = _usable(samples, data, kept=False)
    places = [row[0] for row in rows]
    seen = find.judge().parts(data.rgb[places])
    examples = [(labels, *row[1:]) for labels, row in zip(seen, rows, strict=True)]
    examples += [(data.part[row[0]], *row[1:]) for row in rows]
    log.info("fitted on %d heads", len(rows))
    return find.fit(examples)


def measure(samples: Path, data: pack.Pack) -> dict[str, dict[str, float]]:
    """By framing, on held-out people: heads, mean overlap, mean cosine, share not found."""
    embedder = RehearsalFaces()
    rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for place, _, _, box in _usable(samples, data, kept=True):
        with np.load(samples / f"{data.number[place]:06d}.npz") as arrays:
            picture = arrays["rgb"]
        found, true = find.find_head(picture), embedder.embed(picture, box)
        if isinstance(true, NoFace):
            continue
        mine = found if isinstance(found, NoFace) else embedder.embed(picture, found)
        if isinstance(found, NoFace) or isinstance(mine, NoFace):
            rows[data.told[place]["framing"]].append((0.0, float("nan")))
        else:
            rows[data.told[place]["framing"]].append((overlap(found, box), float(mine @ true)))
    out = {}
    for framing, pairs in rows.items():
        numbers = np.array(pairs)
        lost = np.isnan(numbers[:, 1])
        out[framing] = {
            "heads": len(numbers),
            "overlap": round(float(numbers[~lost, 0].mean()), 3),
            "cosine": round(float(numbers[~lost, 1].mean()), 3),
            "not found": round(float(lost.mean()), 3),
        }
    return out


def main(argv: list[str]) -> int:
    """The command line of the module's head."""
    parser = argparse.ArgumentParser(prog="python -m onmodel.identity.find_fit")
    parser.add_argument("samples", type=Path)
    parser.add_argument("--pack", type=Path, default=Path.home() / ".cache" / "onmodel" / "judge")
    options = parser.parse_args(argv)
    data = pack.load_or_make(options.samples, options.pack)
    rule = [[round(float(v), 5) for v in row] for row in fit_rule(options.samples, data)]
    find.rule_file.write_text(json.dumps({"rule": rule}) + "\n")
    for framing, numbers in measure(options.samples, data).items():
        log.info("%-20s %s", framing, numbers)
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    raise SystemExit(main(sys.argv[1:]))

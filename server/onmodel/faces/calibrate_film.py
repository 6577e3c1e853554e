# SPDX-License-Identifier: GPL-3.0-or-later
"""`onmodel faces calibrate`: thresholds for a film's whole cast, out of its drawn keyframes.

The server measures the characters of one keyframe when it scores them, often too few. Here all of
the film are measured together, and heads that a person found right count as genuine. The server
finds the result by content and reads every keyframe of the film by it (faces/calibrations.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from onmodel.faces.calibrations import Calibrations
from onmodel.faces.scores import Scorer, shipped_strangers
from onmodel.faces.skull import skull_box
from onmodel.identity import registry
from onmodel.identity.calibrate import Calibration, CalibrationError, Member, calibrate_members
from onmodel.identity.interface import Embedding, NoFace
from onmodel.jobs.blobs import BlobStore
from onmodel.jobs.folders import DataFolder, default_data_folder
from onmodel.models.registry import embedded_name
from onmodel.report.results import find_results

Result = tuple[Path, dict[str, Any]]
"""PNG and sidecar of a drawn keyframe."""


def calibrate_film(options: argparse.Namespace) -> int:
    """Carry the command out; 0. Raises CalibrationError, ReportError or ModelError."""
    results = find_results(options.folder)
    data = DataFolder(options.data or default_data_folder())
    if not data.blobs.is_dir():
        raise CalibrationError(f"There are no portraits in {data.root}: draw the film there first.")
    models = {sidecar["request"]["model"] for _, sidecar in results}
    if len(models) > 1:
        raise CalibrationError(
            f"The film was drawn with {' and '.join(sorted(models))}: give the folder of one model."
        )
    scorer = Scorer(embedded=models == {embedded_name})
    made, cast, left_out = measure(results, scorer, BlobStore(data.blobs), options.good)
    assert scorer.embedder is not None
    state = registry.fingerprint(scorer.embedder)
    try:
        Calibrations(data.root / "calibrations").keep(state, cast, made)
    except OSError as error:
        raise CalibrationError(f"The thresholds cannot be kept: {error}.") from error
    for reason in left_out:
        sys.stderr.write(f"onmodel: {reason}\n")
    if options.json:
        sys.stdout.write(json.dumps(dataclasses.asdict(made), indent=1) + "\n")
        return 0
    low, high = sorted((made.equal, made.accept))
    sys.stdout.write(
        f"{', '.join(cast)}: on model from {high:.2f}, off model below {low:.2f}\n"
        f"AUC {made.auc:.3f}, equal errors {made.eer:.1%}; {made.genuine} genuine and "
        f"{made.impostors} impostor pairs by {made.embedder}, {made.source}\n"
    )
    return 0


def measure(
    results: Sequence[Result], scorer: Scorer, blobs: BlobStore, good: Sequence[Path] = ()
) -> tuple[Calibration, dict[str, tuple[str, ...]], list[str]]:
    """The calibration of a film's cast, the cast's portraits, and who or what was left out and why.

    good: drawn keyframes among the results whose every head is right. Raises CalibrationError.
    """
    if scorer.embedder is None:
        raise CalibrationError(scorer.why_not)
    characters: dict[str, dict[str, Any]] = {}
    for _, sidecar in results:
        for character in sidecar["request"].get("characters", []):
            if character.get("references"):
                characters[character["name"]] = character  # the latest portraits count
    heads, left_out = _good_heads(results, scorer, good)
    members: dict[str, Member] = {}
    for name, character in characters.items():
        found = scorer.member(character, blobs, heads.get(name, ()))
        if isinstance(found, Member):
            members[name] = found
        else:
            left_out.append(found)
    made = calibrate_members(scorer.name, members, shipped_strangers(scorer.embedder))
    count = sum(len(heads.get(name, ())) for name in members)
    if count:
        source = f"{made.source}, with {count} drawn head{'s' * (count != 1)} found right"
        made = dataclasses.replace(made, source=source)
    return made, {name: tuple(characters[name]["references"]) for name in members}, left_out


def _good_heads(
    results: Sequence[Result], scorer: Scorer, good: Sequence[Path]
) -> tuple[dict[str, list[Embedding]], list[str]]:
    """Embeddings of the heads in the good keyframes by character, and what could not be used."""
    assert scorer.embedder is not None
    known = {png.resolve(): sidecar for png, sidecar in results}
    found: dict[str, list[Embedding]] = {}
    left_out = []
    for path in good:
        sidecar = known.get(path.resolve())
        if sidecar is None:
            raise CalibrationError(f"{path} is no drawn keyframe of this film.")
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        crop = sidecar["request"]["canvas"]["crop"]
        for character in sidecar["request"].get("characters", []):
            box = skull_box(character)
            if box is None:
                continue
            left, top = box[0] - round(crop["x"]), box[1] - round(crop["y"])
            head = (left, top, left + box[2], top + box[3])
            seen = scorer.embedder.embed(pixels, head, float(character["head"]["yaw"]))
            if isinstance(seen, NoFace):
                left_out.append(f"{character['name']} in {path.name} does not count: {seen.reason}")
            else:
                found.setdefault(character["name"], []).append(seen)
    return found, left_out

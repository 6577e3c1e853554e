# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries out `onmodel faces …`; its arguments are in onmodel/identity/cli.py."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from onmodel.identity import registry
from onmodel.identity.calibrate import CalibrationError
from onmodel.identity.interface import Array, HeadBox, NoFace
from onmodel.identity.references import NoReferenceError, Reference, look_at, score
from onmodel.models.errors import ModelError


class FacesError(Exception):
    """The command cannot be carried out; the message says why."""


def run(options: argparse.Namespace) -> int:
    """Carry it out; 0, or 1 where there is no number to give."""
    try:
        return _list(options) if options.action == "list" else _score(options)
    except ModelError as error:
        sys.stderr.write(f"onmodel: {error.message} {error.fix}".rstrip() + "\n")
    except (FacesError, NoReferenceError, CalibrationError) as error:
        sys.stderr.write(f"onmodel: {error}\n")
    return 1


def _list(options: argparse.Namespace) -> int:
    found = registry.available(options.pack)
    if options.json:
        sys.stdout.write(json.dumps([vars(one) for one in found], indent=1) + "\n")
        return 0
    for one in found:
        sys.stdout.write(f"{one.name:12} {one.title}\n{'':12} {one.missing or 'ready'}\n")
    return 0


def _picture(path: Path) -> Array:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise FacesError(f"{path} cannot be read as a picture: {error}.") from error


def _score(options: argparse.Namespace) -> int:
    heads: list[HeadBox | None] = list(options.reference_head) or [None] * len(options.reference)
    if len(heads) != len(options.reference):
        raise FacesError(
            f"{len(options.reference)} references have {len(heads)} boxes. "
            "Write one --reference-head for each --reference, or none."
        )
    # Only the world's own embedder needs boxes, and only it knows the world's people.
    name = options.embedder or ("rehearsal" if options.head and all(heads) else "dlib")
    providers = options.provider or ["CPUExecutionProvider"]
    embedder = registry.get(name, options.pack, options.accept_licence, providers)
    shown = [
        Reference(_picture(path), head) for path, head in zip(options.reference, heads, strict=True)
    ]
    references = look_at(embedder, shown)
    for index, no in references.refused:
        sys.stderr.write(f"onmodel: {options.reference[index]} is left out: {no.reason}\n")
    calibration = registry.calibration(name)
    found = score(embedder, references, _picture(options.image), options.head, None, calibration)
    if isinstance(found, NoFace):
        told = {"face": False, "kind": found.kind, "reason": found.reason, "embedder": name}
        sys.stdout.write(json.dumps(told) + "\n" if options.json else f"no face: {found.reason}\n")
        return 1
    if options.json:
        sys.stdout.write(json.dumps({"face": True, **vars(found)}) + "\n")
    elif found.probability is None:
        sys.stdout.write(f"{found.value:.3f}  ({name}, not calibrated)\n")
    else:
        chance = f"{found.probability:.0%} likely"
        sys.stdout.write(f"{found.value:.3f}  {found.verdict}, {chance}  ({name})\n")
    return 0

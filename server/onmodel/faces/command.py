# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries out `onmodel faces …`; its arguments are in onmodel/faces/cli.py."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from onmodel.faces.calibrate_film import calibrate_film
from onmodel.faces.scores import with_head
from onmodel.identity import portrait, registry
from onmodel.identity.calibrate import CalibrationError
from onmodel.identity.interface import Embedder, HeadBox, NoFace
from onmodel.identity.references import NoReferenceError, Reference, Score, look_at, score
from onmodel.models.errors import ModelError
from onmodel.report.results import ReportError


class FacesError(Exception):
    """The command cannot be carried out; the message says why."""


def run(options: argparse.Namespace) -> int:
    """Carry it out; 0, or 1 where there is no number to give."""
    try:
        if options.action == "list":
            return _list(options)
        if options.action == "calibrate":
            return calibrate_film(options)
        return _score(options)
    except ModelError as error:
        sys.stderr.write(f"onmodel: {error.message} {error.fix}".rstrip() + "\n")
    except (FacesError, NoReferenceError, CalibrationError, ReportError) as error:
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


def _read(path: Path) -> Reference:
    """A picture with the head box that its file may hold."""
    try:
        return portrait.read(path.read_bytes())
    except OSError as error:
        raise FacesError(f"{path} cannot be read: {error.strerror or error}.") from error
    except portrait.PortraitError as error:
        raise FacesError(f"{path}: {error}") from error


def _check_boxes(paths: list[Path], heads: list[HeadBox], option: str) -> None:
    if heads and len(heads) != len(paths):
        raise FacesError(
            f"{len(paths)} pictures have {len(heads)} boxes. "
            f"Write one {option} for each picture, or none."
        )


def _pictures(
    embedder: Embedder, paths: list[Path], heads: list[HeadBox]
) -> list[Reference | NoFace]:
    """The pictures with their head boxes, or why there is no head."""
    found: list[Reference | NoFace] = []
    for place, path in enumerate(paths):
        read = _read(path)
        if heads:
            read = Reference(read.image, heads[place], read.yaw)
        try:
            found.append(with_head(embedder, read))
        except portrait.PortraitError as error:
            found.append(NoFace("undetected", str(error)))
    return found


def _score(options: argparse.Namespace) -> int:
    # Before an embedder is loaded, or asked for that is not installed.
    _check_boxes(options.reference, options.reference_head, "--reference-head")
    _check_boxes(options.images, options.head, "--head")
    boxes = options.head and len(options.reference_head) == len(options.reference)
    # Only the world's own embedder knows the world's people, and boxes are how renders come.
    name = options.embedder or ("rehearsal" if boxes else "dlib")
    providers = options.provider or ["CPUExecutionProvider"]
    embedder = registry.get(name, options.pack, options.accept_licence, providers)
    portraits = _pictures(embedder, options.reference, options.reference_head)
    images = _pictures(embedder, options.images, options.head)
    shown = [one for one in portraits if isinstance(one, Reference)]
    refused = [
        (path, one.reason)
        for path, one in zip(options.reference, portraits, strict=True)
        if isinstance(one, NoFace)
    ]
    references = look_at(embedder, shown)
    kept = zip(options.reference, portraits, strict=True)
    used = [path for path, one in kept if isinstance(one, Reference)]
    refused += [(used[index], no.reason) for index, no in references.refused]
    for path, reason in refused:
        sys.stderr.write(f"onmodel: {path} is left out: {reason}\n")
    calibration = registry.calibration(name)
    missing = 0
    for path, one in zip(options.images, images, strict=True):
        found: Score | NoFace = (
            one
            if isinstance(one, NoFace)
            else score(embedder, references, one.image, one.head, one.yaw, calibration)
        )
        missing += isinstance(found, NoFace)
        several = len(images) > 1
        if options.json:
            told = {"file": str(path), **_told(found, name)} if several else _told(found, name)
            sys.stdout.write(json.dumps(told) + "\n")
        else:
            sys.stdout.write((f"{path}: " if several else "") + _words(found, name) + "\n")
    return 1 if missing else 0


def _told(found: Score | NoFace, name: str) -> dict[str, Any]:
    if isinstance(found, NoFace):
        return {"face": False, "kind": found.kind, "reason": found.reason, "embedder": name}
    return {"face": True, **vars(found)}


def _words(found: Score | NoFace, name: str) -> str:
    if isinstance(found, NoFace):
        return f"no face: {found.reason}"
    if found.probability is None:
        return f"{found.value:.3f}  ({name}, not calibrated)"
    return f"{found.value:.3f}  {found.verdict}, {found.probability:.0%} likely  ({name})"

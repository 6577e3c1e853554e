# SPDX-License-Identifier: GPL-3.0-or-later
"""Which face embedders there are here, and how to get one by its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onmodel.identity import dlib_faces, insightface_faces, rehearsal
from onmodel.identity.calibrate import Calibration
from onmodel.identity.interface import Embedder
from onmodel.models.errors import ModelError


@dataclass(frozen=True)
class Availability:
    """An embedder's name, what it is for, and what it lacks here ("": nothing)."""

    name: str
    title: str
    missing: str


def available(pack: Path | None = None) -> list[Availability]:
    """All embedders. pack: folder of an InsightFace pack, where the person has one."""
    return [
        Availability(
            rehearsal.name, "people of the rehearsal world, both looks", rehearsal.missing()
        ),
        Availability(dlib_faces.name, "photographs of people (CC0)", dlib_faces.missing()),
        Availability(
            insightface_faces.name,
            "photographs of people (ArcFace; non-commercial packs)",
            insightface_faces.missing(pack),
        ),
    ]


def get(
    name: str,
    pack: Path | None = None,
    accept_licence: bool = False,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> Embedder:
    """The embedder of this name. Raises ModelError with what is missing or which there are."""
    if name == rehearsal.name:
        return rehearsal.RehearsalFaces()
    if name == dlib_faces.name:
        return dlib_faces.DlibFaces()
    if name == insightface_faces.name:
        if pack is None:
            reason = insightface_faces.missing(None)
            raise ModelError("The InsightFace embedder cannot be used.", reason)
        return insightface_faces.InsightFaces(pack, accept_licence, providers)
    names = ", ".join(one.name for one in available())
    raise ModelError(f"There is no face embedder called {name}.", f"There are: {names}.")


def fingerprint(embedder: Embedder) -> str:
    """Names the state of an embedder: numbers of two states are never compared."""
    if isinstance(embedder, rehearsal.RehearsalFaces):
        return f"{embedder.name} {embedder.fingerprint}"
    if isinstance(embedder, insightface_faces.InsightFaces):
        return f"{embedder.name} {embedder.pack.name}"
    return embedder.name


def calibration(name: str) -> Calibration | None:
    """The calibration that ships with an embedder; None: calibrate it on the cast."""
    path = rehearsal.folder / f"{name}_calibration.json"
    return Calibration.load(path) if path.is_file() else None

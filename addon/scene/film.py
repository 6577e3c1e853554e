# SPDX-License-Identifier: GPL-3.0-or-later
"""The film's settings as plain values: what render and the command line work with."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import bpy

from ..core.request import FacePass, Lora, Sampling, map_kinds
from ..core.retakes import RetakeRule
from .errors import SceneError


@dataclass(frozen=True)
class MapChoice:
    """A map to guide the drawing by. weight 0..2; start < end, parts of the drawing 0..1."""

    kind: str
    weight: float
    start: float
    end: float


@dataclass(frozen=True)
class Film:
    """Everything about the film that is not of one shot or one character.

    name: used in file names. output: absolute folder, None as long as it hangs on a .blend file
    that has never been saved. native_pixels: the drawing's area in pixels, None takes the model's.
    model: empty takes the server's first. maps: in the order of `core.request.map_kinds`.
    retakes: None draws no take that was not asked for.
    """

    name: str
    prompt: str
    negative_prompt: str
    seed: int
    takes: int
    handles: int
    model: str
    sampling: Sampling
    native_pixels: int | None
    maps: list[MapChoice]
    loras: list[Lora]
    output: Path | None
    face_pass: FacePass = field(default_factory=FacePass)
    retakes: RetakeRule | None = None


def read_film(scene: bpy.types.Scene) -> Film:
    """Read the film's settings. Raises SceneError for a map that ends before it starts."""
    s = scene.onmodel
    return Film(
        name=film_name(scene),
        prompt=s.prompt.strip(),
        negative_prompt=s.negative_prompt.strip(),
        seed=s.seed,
        takes=s.takes,
        handles=s.handles,
        model=s.model.strip(),
        sampling=Sampling(
            preset=s.preset.strip() or "default",
            steps=s.steps or None,
            guidance=round(s.guidance, 4) if s.use_guidance else None,
        ),
        native_pixels=s.native_side**2 if s.native_side else None,
        maps=_read_maps(s),
        loras=read_loras(s.loras),
        output=output_folder(scene),
        face_pass=read_face_pass(s.face_pass),
        retakes=read_retakes(s.retakes),
    )


def film_name(scene: bpy.types.Scene) -> str:
    """The film's name: the artist's, else the .blend file's, else "film"."""
    given = scene.onmodel.film.strip()
    stem = Path(bpy.data.filepath).stem
    return given or re.sub(r"\s+", "_", stem) or "film"


def output_folder(scene: bpy.types.Scene) -> Path | None:
    """The absolute output folder; None when it hangs on a file that was never saved."""
    text = scene.onmodel.output.strip() or "//onmodel"
    if text.startswith("//") and not bpy.data.filepath:
        return None
    return Path(bpy.path.abspath(text))


def read_loras(rows: bpy.types.bpy_prop_collection) -> list[Lora]:
    """The LoRAs that are switched on and have a name."""
    return [
        Lora(row.name.strip(), round(row.weight, 4)) for row in rows if row.enabled and row.name
    ]


def read_face_pass(group: bpy.types.PropertyGroup) -> FacePass:
    """How heads are drawn again. Switched off, its other settings make no difference."""
    if not group.enabled:
        return FacePass(enabled=False)
    return FacePass(
        enabled=group.enabled,
        first=round(group.first, 4),
        second=round(group.second, 4),
        size=group.size or None,
        min_height=round(group.min_height, 4),
        min_visible=round(group.min_visible, 4),
        max_yaw=round(group.max_yaw, 4),
        feather=round(group.feather, 4),
        keep_if_better=group.keep_if_better,
    )


def read_retakes(group: bpy.types.PropertyGroup) -> RetakeRule | None:
    """When further takes are drawn; None where they never are."""
    return RetakeRule(round(group.score, 4), group.most) if group.enabled else None


def _read_maps(settings: bpy.types.PropertyGroup) -> list[MapChoice]:
    chosen = []
    for kind in map_kinds:
        group = getattr(settings, kind)
        if not group.use:
            continue
        if group.start >= group.end:
            raise SceneError(
                f"The {kind} map stops guiding before it begins.",
                "Set its end after its start (Onmodel > Film > Maps).",
            )
        # Blender's floats have single precision; a request is compared by its decimals.
        chosen.append(
            MapChoice(kind, round(group.weight, 4), round(group.start, 4), round(group.end, 4))
        )
    return chosen

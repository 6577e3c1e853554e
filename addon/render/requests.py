# SPDX-License-Identifier: GPL-3.0-or-later
"""What was captured, and what the artist wrote, into requests and the images they name. No bpy.

Runs in the sender thread, so that encoding pictures costs Blender's window nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..core import png
from ..core import shots as core_shots
from ..core.blob import Blob
from ..core.portraits import Portrait, PortraitError
from ..core.request import (
    Box,
    Camera,
    Canvas,
    Character,
    FacePass,
    Head,
    KeyframeRequest,
    Lora,
    MapImage,
    Pose,
    Sampling,
    Size,
)

log = logging.getLogger(__name__)

png_level = 1
"""Maps are flat: the lowest level of zlib makes them ten times smaller for some milliseconds."""


class BuildError(ValueError):
    """A request cannot be made of this. message: what is wrong; fix: what to do about it."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(f"{message} {fix}")
        self.message = message
        self.fix = fix


class CapturedHead(Protocol):
    """A head as addon/capture hands it over: request.Head with its mask as an array."""

    @property
    def box(self) -> Box: ...
    @property
    def yaw(self) -> float: ...
    @property
    def pitch(self) -> float: ...
    @property
    def visible(self) -> float: ...
    @property
    def mask(self) -> np.ndarray: ...


class Captured(Protocol):
    """A keyframe as addon/capture hands it over; see CapturedKeyframe there."""

    @property
    def frame(self) -> int: ...
    @property
    def frame_size(self) -> Size: ...
    @property
    def canvas(self) -> Canvas: ...
    @property
    def camera(self) -> Camera: ...
    @property
    def maps(self) -> Mapping[str, np.ndarray]: ...
    @property
    def masks(self) -> Mapping[str, np.ndarray]: ...
    @property
    def heads(self) -> Mapping[str, CapturedHead]: ...
    @property
    def poses(self) -> Mapping[str, Pose]: ...


@dataclass(frozen=True)
class Actor:
    """A member of the cast without its objects: what a request says of it."""

    name: str
    noun: str
    trigger: str = ""
    prompt: str = ""
    loras: tuple[Lora, ...] = ()
    references: tuple[Portrait, ...] = ()
    reference_weight: float | None = None


@dataclass(frozen=True)
class MapSetting:
    """How a kind of map guides the drawing. weight 0..2; start < end, parts of it 0..1."""

    kind: str
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class ShotSettings:
    """What is the same for all keyframes of a shot.

    seed: the shot's; core.shots.seed_for makes the takes' of it.
    """

    film: str
    shot: str
    seed: int
    model: str
    prompt: str
    negative_prompt: str = ""
    model_hash: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    loras: tuple[Lora, ...] = ()
    maps: tuple[MapSetting, ...] = ()
    face_pass: FacePass = field(default_factory=FacePass)


@dataclass(frozen=True)
class Encoded:
    """A captured keyframe as blobs. References are by character name."""

    captured: Captured
    maps: dict[str, Blob]
    masks: dict[str, Blob]
    head_masks: dict[str, Blob]
    references: dict[str, tuple[Blob, ...]]


def encode(
    captured: Captured,
    kinds: Iterable[str],
    references: Mapping[str, tuple[Blob, ...]],
) -> Encoded:
    """Encodes the maps of these kinds and the masks of the characters that can be seen."""
    seen = {name: mask for name, mask in captured.masks.items() if np.any(mask)}
    return Encoded(
        captured,
        {k: _picture(captured.maps[k]) for k in kinds if k in captured.maps},
        {name: _picture(_as_mask(mask)) for name, mask in seen.items()},
        {
            name: _picture(_as_mask(head.mask))
            for name, head in captured.heads.items()
            if name in seen and np.any(head.mask)
        },
        dict(references),
    )


def build(
    encoded: Encoded, settings: ShotSettings, actors: Sequence[Actor], take: int
) -> tuple[KeyframeRequest, tuple[Blob, ...]]:
    """The request of one take of a captured keyframe, and all images that it names.

    Characters of whom nothing can be seen are left out.
    """
    captured = encoded.captured
    characters, blobs = [], list(encoded.maps.values())
    for actor in actors:
        mask = encoded.masks.get(actor.name)
        if mask is None:
            continue
        found, head_mask = captured.heads.get(actor.name), encoded.head_masks.get(actor.name)
        head = None
        if found is not None:
            mask_hash = head_mask.hash if head_mask else None
            head = Head(found.box, found.yaw, found.pitch, found.visible, mask_hash)
        references = encoded.references.get(actor.name, ())
        blobs += [mask, *references, *([head_mask] if head_mask else [])]
        characters.append(
            Character(
                name=actor.name,
                noun=actor.noun,
                mask=mask.hash,
                trigger=actor.trigger,
                prompt=actor.prompt,
                loras=list(actor.loras),
                pose=captured.poses.get(actor.name, Pose()),
                head=head,
                references=[r.hash for r in references],
                reference_weight=actor.reference_weight,
            )
        )
    maps = [
        MapImage(m.kind, encoded.maps[m.kind].hash, m.weight, m.start, m.end)
        for m in settings.maps
        if m.kind in encoded.maps
    ]
    request = KeyframeRequest(
        film=settings.film,
        shot=settings.shot,
        frame=captured.frame,
        take=take,
        seed=core_shots.seed_for(settings.seed, captured.frame, take),
        frame_size=captured.frame_size,
        canvas=captured.canvas,
        camera=captured.camera,
        model=settings.model,
        model_hash=settings.model_hash,
        prompt=settings.prompt,
        negative_prompt=settings.negative_prompt,
        sampling=settings.sampling,
        loras=list(settings.loras),
        maps=maps,
        characters=characters,
        face_pass=settings.face_pass,
    )
    return request, tuple(blobs)


def map_files(root: Path, settings: ShotSettings, encoded: Encoded) -> dict[Path, bytes]:
    """Where the maps and masks of a keyframe are kept: <root>/<film>/<shot>/maps."""
    frame = encoded.captured.frame
    any_take = core_shots.output_path(root, settings.film, settings.shot, 1, frame)
    folder = any_take.parent.parent / "maps"
    named = {**encoded.maps, **{f"mask_{name}": blob for name, blob in encoded.masks.items()}}
    return {
        folder / f"{any_take.stem}_{core_shots.file_name(name)}.png": blob.data
        for name, blob in named.items()
    }


def read_references(actors: Iterable[Actor]) -> dict[str, tuple[Blob, ...]]:
    """The portraits of the cast, as they lie on disk. Raises BuildError for one that cannot be."""
    found = {}
    for actor in actors:
        blobs = []
        for portrait in actor.references:
            try:
                blobs.append(Blob(portrait.read(actor.name)))
            except PortraitError as error:
                raise BuildError(error.message, error.fix) from None
        found[actor.name] = tuple(blobs)
    return found


def pick_model(info: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The server's model of this name, its first one for an empty name. Raises BuildError."""
    models = list(info.get("models", []))
    for model in models:
        if not name or model["name"] == name:
            return dict(model)
    if not models:
        raise BuildError("The server has no model to draw with.", "Install one on the server.")
    names = ", ".join(str(m["name"]) for m in models)
    raise BuildError(
        f"The server has no model named {name}.", f"Choose one of: {names} (Onmodel > Film)."
    )


def effective_sampling(asked: Sampling, model: Mapping[str, Any]) -> Sampling:
    """The artist's choice, and where it leaves something to the model what that means there now.

    A request that says it is another one once the model's own settings have changed, so that what
    was drawn by the former ones is drawn again. model: its ModelInfo. The rule is the server's
    (`onmodel.api.check.pinned_sampling`).
    Raises BuildError for a preset that the model lacks, and where the server does not tell.
    """
    told = model.get("sampling")
    if not told:
        raise BuildError(
            f"The server does not say how {model['name']} draws: its list of models is of an older "
            "release.",
            "Draw again in a moment; if it stays so, update the server to the add-on's release.",
        )
    name = str(model["default_preset"]) if asked.preset == "default" else asked.preset
    if name not in told:
        raise BuildError(
            f"The model {model['name']} has no preset {name}.",
            f"Choose one of: {', '.join(told)} (Onmodel > Film > Sampling).",
        )
    usual = told[name]
    return Sampling(
        name,
        int(usual["steps"]) if asked.steps is None else asked.steps,
        float(usual["guidance"]) if asked.guidance is None else asked.guidance,
        str(usual["method"]),
    )


def _as_mask(mask: np.ndarray) -> np.ndarray:
    """0 or 255, uint8."""
    return np.where(np.asarray(mask) != 0, np.uint8(255), np.uint8(0))


def _picture(array: np.ndarray) -> Blob:
    return Blob(png.encode(array, png_level))

# SPDX-License-Identifier: GPL-3.0-or-later
"""The contract: one complete, versioned request that states everything about a keyframe.

The add-on builds it, the server draws it, the image plane keeps it. Images never travel in it:
they are named by the SHA-256 of their bytes ("blobs") and sent beside it.

Frames of reference
    canvas   pixels, origin at the top left corner, x right, y down; pixel (0, 0) has its centre
             at (0.5, 0.5). Every map, mask, joint and box of one request is on its canvas.
    camera   Blender's: x right, y up, the camera looks along -z. Metres.
    world    Blender's: z up, right-handed. Metres.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

request_version = 2
"""Raised when the meaning or the shape of KeyframeRequest changes; `upgraded` reads older ones.

1: the first. 2: with a face pass, characters held by their references, and a method of sampling.
"""

map_kinds = ("pose", "depth", "normal", "lineart")
keypoint_states = ("visible", "hidden", "outside", "behind")
projections = ("perspective", "orthographic")


class RequestError(ValueError):
    """Data that is not a valid request; the message names the place and what is wrong."""


@dataclass(frozen=True)
class Size:
    """A size in pixels."""

    width: int
    height: int


@dataclass(frozen=True)
class Box:
    """A rectangle in canvas pixels: left top corner, width, height. May lie partly outside."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Camera:
    """The shot camera at this frame.

    matrix_world: 16 floats, row-major, camera to world, no scale.
    frustum: left, right, bottom, top of the canvas: for "perspective" on the plane 1 m before
        the camera, for "orthographic" in metres. It holds lens, shift, sensor fit, pixel aspect.
    """

    name: str
    projection: str
    matrix_world: list[float]
    frustum: list[float]
    clip_start: float
    clip_end: float


@dataclass(frozen=True)
class Canvas:
    """What the model draws: its size, and where the shot's frame lies in it.

    The canvas shows a little more than the frame where the model's size steps ask for it
    (overscan, rendered, never padded); the drawing is cropped to `crop` at the end.
    """

    width: int
    height: int
    crop: Box


@dataclass(frozen=True)
class MapImage:
    """One conditioning map: SHA-256 of a PNG of canvas size; weight 0..2; start < end, 0..1."""

    kind: str
    blob: str
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class Keypoint:
    """A joint on the canvas. z: distance along the view axis in metres, negative when behind.

    state: "visible"; "hidden" (something is before it); "outside" the canvas; "behind" the camera.
    """

    x: float
    y: float
    z: float
    state: str


@dataclass(frozen=True)
class Pose:
    """OpenPose points: body 18 (COCO-18), each hand 21, face 68 (iBUG) + 2 pupils, or empty lists.

    None: the rig has no such joint. Left and right are the subject's.
    """

    body: list[Keypoint | None] = field(default_factory=list)
    left_hand: list[Keypoint | None] = field(default_factory=list)
    right_hand: list[Keypoint | None] = field(default_factory=list)
    face: list[Keypoint | None] = field(default_factory=list)


@dataclass(frozen=True)
class Head:
    """A head on the canvas, hair and ears included.

    yaw, pitch: degrees from facing the camera; yaw > 0 when the subject looks to the picture's
        right, +-180 from behind; pitch > 0 when it looks up.
    visible: the share of the head's own pixels that nothing covers, 0..1.
    mask: SHA-256 of an 8-bit PNG of canvas size, 255 on the head's visible pixels; None if none.
    """

    box: Box
    yaw: float
    pitch: float
    visible: float
    mask: str | None = None


@dataclass(frozen=True)
class Lora:
    """A LoRA by the name the server knows it under. hash: SHA-256 of its file, to pin it."""

    name: str
    weight: float = 1.0
    hash: str | None = None


@dataclass(frozen=True)
class Character:
    """One member of the cast in this keyframe.

    prompt: what is true of the character only ("angry, red coat"); the drawn prompt for its region
        is "<trigger> <noun>, <prompt>".
    mask: SHA-256 of an 8-bit PNG of canvas size: 255 on its visible pixels. Masks are disjoint.
    references: SHA-256 of portraits (PNG or JPEG).
    reference_weight: 0..2, how strongly the server's IP-Adapter holds it by them; 0: not at all;
        None: the server's own rule, which holds those that have no LoRA.
    """

    name: str
    noun: str
    mask: str
    trigger: str = ""
    prompt: str = ""
    loras: list[Lora] = field(default_factory=list)
    pose: Pose = field(default_factory=Pose)
    head: Head | None = None
    references: list[str] = field(default_factory=list)
    reference_weight: float | None = None


@dataclass(frozen=True)
class Sampling:
    """How to denoise. preset: a scheduler preset of the server ("default" takes the model's own).

    steps and guidance: None takes the preset's. method: pins what else the model's own settings say
    of its drawings, as the server tells it (`sampling` of its ModelInfo); None takes what they say
    now.
    """

    preset: str = "default"
    steps: int | None = None
    guidance: float | None = None
    method: str | None = None


@dataclass(frozen=True)
class FacePass:
    """Heads drawn again, large, each with its own character's prompt and LoRAs; see docs/faces.md.

    first: denoise strength of the sampler that changes the head's mask only, above 0, to 1.
    second: of the one that then goes over the whole square, 0..1; 0 leaves it out.
    size: side of the square that is worked on, in the model's pixels; None takes the model's own.
    min_height: canvas pixels of the head without hanging hair, below which it is left as it is.
    min_visible: the least share of the head that nothing covers, 0..1.
    max_yaw: degrees from facing the camera, 0..180, beyond which no face is seen.
    feather: the soft edge of the mask, as a share of the head's height, 0..0.5.
    keep_if_better: a repaired head that scores lower against the character's references than the
        one before it is not kept.
    """

    enabled: bool = True
    first: float = 0.8
    second: float = 0.4
    size: int | None = None
    min_height: float = 24.0
    min_visible: float = 0.25
    max_yaw: float = 100.0
    feather: float = 0.04
    keep_if_better: bool = True


@dataclass(frozen=True)
class KeyframeRequest:
    """Everything about one keyframe. Two equal requests are one drawing.

    frame: the frame's number in the film. take: from 1; a take is one seed's drawing.
    frame_size: the shot's delivery size in pixels. seed: 0..2**63-1.
    model_hash: pins the weights; None takes what `model` names now.
    loras: of the whole picture (a style or a set), not of a character.
    """

    film: str
    shot: str
    frame: int
    take: int
    seed: int
    frame_size: Size
    canvas: Canvas
    camera: Camera
    model: str
    prompt: str
    negative_prompt: str = ""
    model_hash: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    loras: list[Lora] = field(default_factory=list)
    maps: list[MapImage] = field(default_factory=list)
    characters: list[Character] = field(default_factory=list)
    face_pass: FacePass = field(default_factory=FacePass)
    version: int = request_version

    def blobs(self) -> set[str]:
        """The hashes of all images that the request names."""
        found = {m.blob for m in self.maps}
        for c in self.characters:
            found.update([c.mask, *c.references])
            if c.head and c.head.mask:
                found.add(c.head.mask)
        return found

    def key(self) -> str:
        """SHA-256 of the canonical JSON: equal keys, equal drawings."""
        return hashlib.sha256(dumps(self).encode()).hexdigest()


@dataclass(frozen=True)
class JobRequest:
    """A batch of keyframes, queued in order. client_key makes a repeated submit harmless."""

    client_key: str
    keyframes: list[KeyframeRequest]
    title: str = ""
    priority: int = 0


T = TypeVar("T")


def to_data(value: Any) -> Any:
    """Dataclasses to plain JSON data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_data(v) for v in value]
    return value


def dumps(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, no NaN."""
    return json.dumps(to_data(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """A keyframe's request of an older version as one of this version that draws the same."""
    if data.get("version") == 1 and "face_pass" not in data:
        off = to_data(FacePass(enabled=False))
        return {**data, **_unheld(data), "face_pass": off, "version": 2}
    return data


def _unheld(data: dict[str, Any]) -> dict[str, Any]:
    """Characters of version 1, whose references were for scores alone."""
    characters = data.get("characters")
    if not isinstance(characters, list):
        return {}
    off = {"reference_weight": 0.0}
    return {"characters": [{**c, **off} if isinstance(c, dict) else c for c in characters]}


def from_data(cls: type[T], data: Any, where: str = "request") -> T:
    """Plain JSON data to the dataclass `cls`; requests of older versions are upgraded.

    Raises RequestError, which names the place, for a missing or unknown field or a wrong type.
    """
    return typing.cast(T, _read(cls, data, where))


def _read(kind: Any, data: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in typing.get_args(kind):
            return None
        inner = [k for k in typing.get_args(kind) if k is not type(None)]
        return _read(inner[0], data, where)
    if origin is list:
        if not isinstance(data, list):
            raise RequestError(f"{where} must be a list, not {type(data).__name__}.")
        (inner_kind,) = typing.get_args(kind)
        return [_read(inner_kind, v, f"{where}[{i}]") for i, v in enumerate(data)]
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, data, where)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise RequestError(f"{where} must be {kind.__name__}, not {type(data).__name__}.")
    return data


def _read_dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise RequestError(f"{where} must be an object, not {type(data).__name__}.")
    if kind is KeyframeRequest:
        data = upgraded(data)
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise RequestError(f"{where} has unknown fields: {', '.join(unknown)}.")
    values = {}
    for name, f in fields.items():
        if name in data:
            values[name] = _read(hints[name], data[name], f"{where}.{name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise RequestError(f"{where}.{name} is missing.")
    return kind(**values)

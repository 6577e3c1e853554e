# SPDX-License-Identifier: GPL-3.0-or-later
"""The contract as the server holds it: addon/core/request.py field by field, with ranges.

tests/test_contract.py holds the two together. The server takes nothing that is not described here:
unknown fields, other types, NaN and values out of range are refused with the place named.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    WithJsonSchema,
    model_validator,
)

from onmodel.train.plan import TrainingPlan

request_version: Literal[2] = 2
request_versions = (1, 2)
"""What is understood: a request of version 1 is drawn as version 2 without a face pass."""
max_canvas = 4096
max_frame_size = 16384
max_keyframes = 2000

_control = {chr(c) for c in range(32)} | {chr(127)}


def _check_text(value: str) -> str:
    """Prompts and titles may have lines; other control characters have no business in them."""
    if any(c in _control - set("\n\t") for c in value) or "\r" in value:
        raise ValueError("must not contain control characters")
    return value


def _check_name(value: str) -> str:
    """A name that people and files bear: one line, and no way to be taken for a path."""
    if any(c in _control for c in value):
        raise ValueError("must not contain control characters or line breaks")
    if "/" in value or "\\" in value or value in (".", ".."):
        raise ValueError("must be a name, not a path")
    if value != value.strip() or not value:
        raise ValueError("must not be empty or begin or end with a space")
    return value


Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_check_name)]
Text = Annotated[str, Field(max_length=8000), AfterValidator(_check_text)]
Number = Annotated[float, Field(ge=-1e9, le=1e9)]
Share = Annotated[float, Field(ge=0, le=1)]


class Model(BaseModel):
    """What all parts of the contract have in common."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Size(Model):
    """A size in pixels."""

    width: int = Field(ge=1, le=max_frame_size)
    height: int = Field(ge=1, le=max_frame_size)


class Box(Model):
    """A rectangle in canvas pixels: left top corner, width, height. May lie partly outside."""

    x: Number
    y: Number
    width: float = Field(gt=0, le=1e9)
    height: float = Field(gt=0, le=1e9)


class Camera(Model):
    """The shot camera at this frame; matrix_world row-major, frustum left, right, bottom, top."""

    name: Annotated[str, Field(max_length=200), AfterValidator(_check_text)]
    projection: Literal["perspective", "orthographic"]
    matrix_world: list[Number] = Field(min_length=16, max_length=16)
    frustum: list[Number] = Field(min_length=4, max_length=4)
    clip_start: Number
    clip_end: Number


class Canvas(Model):
    """What the model draws, and where the shot's frame lies in it."""

    width: int = Field(ge=16, le=max_canvas)
    height: int = Field(ge=16, le=max_canvas)
    crop: Box

    @model_validator(mode="after")
    def _crop_within(self) -> Self:
        crop, slack = self.crop, 1e-3
        if (
            min(crop.x, crop.y) < -slack
            or crop.x + crop.width > self.width + slack
            or crop.y + crop.height > self.height + slack
        ):
            raise ValueError("crop must lie within the canvas")
        return self


class MapImage(Model):
    """One conditioning map: a PNG of canvas size."""

    kind: Literal["pose", "depth", "normal", "lineart"]
    blob: Hash
    weight: float = Field(default=1.0, ge=0, le=2)
    start: Share = 0.0
    end: Share = 1.0

    @model_validator(mode="after")
    def _start_before_end(self) -> Self:
        if self.start >= self.end:
            raise ValueError("start must be before end")
        return self


class Keypoint(Model):
    """A joint on the canvas; z in metres along the view axis."""

    x: Number
    y: Number
    z: Number
    state: Literal["visible", "hidden", "outside", "behind"]


Keypoints = Annotated[list[Keypoint | None], Field(max_length=70)]


class Pose(Model):
    """OpenPose points: body 18, each hand 21, face 70, or empty lists."""

    body: Keypoints = []
    left_hand: Keypoints = []
    right_hand: Keypoints = []
    face: Keypoints = []

    @model_validator(mode="after")
    def _counts(self) -> Self:
        for name, count in (("body", 18), ("left_hand", 21), ("right_hand", 21), ("face", 70)):
            if len(getattr(self, name)) not in (0, count):
                raise ValueError(f"{name} must have {count} points or none")
        return self


class Head(Model):
    """A head on the canvas; yaw and pitch in degrees from facing the camera."""

    box: Box
    yaw: float = Field(ge=-360, le=360)
    pitch: float = Field(ge=-360, le=360)
    visible: Share
    mask: Hash | None = None


class Lora(Model):
    """A LoRA by the name the server knows it under."""

    name: Name
    weight: float = Field(default=1.0, ge=-2, le=2)
    hash: Hash | None = None


Loras = Annotated[list[Lora], Field(max_length=16)]


class Character(Model):
    """One member of the cast in this keyframe."""

    name: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_check_text)]
    noun: Text
    mask: Hash
    trigger: Text = ""
    prompt: Text = ""
    loras: Loras = []
    pose: Pose = Pose()
    head: Head | None = None
    references: list[Hash] = Field(default=[], max_length=16)
    reference_weight: float | None = Field(default=None, ge=0, le=2)


class Sampling(Model):
    """How to denoise; None takes the preset's, for method the model's present one."""

    preset: Name = "default"
    steps: int | None = Field(default=None, ge=1, le=200)
    guidance: float | None = Field(default=None, ge=0, le=50)
    method: Name | None = None


class FacePass(Model):
    """Heads drawn again, large, each with its own character's prompt and LoRAs; docs/faces.md."""

    enabled: bool = True
    first: float = Field(default=0.8, gt=0, le=1)
    second: float = Field(default=0.4, ge=0, le=1)
    size: int | None = Field(default=None, ge=64, le=max_canvas)
    min_height: float = Field(default=24.0, ge=0, le=max_canvas)
    min_visible: Share = 0.25
    max_yaw: float = Field(default=100.0, ge=0, le=180)
    feather: float = Field(default=0.04, ge=0, le=0.5)
    keep_if_better: bool = True


class KeyframeRequest(Model):
    """Everything about one keyframe. Two equal requests are one drawing."""

    film: Name
    shot: Name
    frame: int = Field(ge=-1_048_574, le=1_048_574)
    take: int = Field(ge=1, le=9999)
    seed: int = Field(ge=0, le=2**63 - 1)
    frame_size: Size
    canvas: Canvas
    camera: Camera
    model: Name
    prompt: Text
    negative_prompt: Text = ""
    model_hash: Hash | None = None
    sampling: Sampling = Sampling()
    loras: Loras = []
    maps: list[MapImage] = Field(default=[], max_length=8)
    characters: list[Character] = Field(default=[], max_length=32)
    face_pass: FacePass = FacePass()
    version: Literal[2] = request_version

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, data: Any) -> Any:
        """As `upgraded` of addon/core/request.py."""
        if isinstance(data, dict) and data.get("version") == 1 and "face_pass" not in data:
            found = data.get("characters")
            if isinstance(found, list):
                off = {"reference_weight": 0.0}
                found = [{**c, **off} if isinstance(c, dict) else c for c in found]
                data = {**data, "characters": found}
            return {**data, "face_pass": {"enabled": False}, "version": 2}
        return data

    @model_validator(mode="after")
    def _no_twins(self) -> Self:
        if len({m.kind for m in self.maps}) < len(self.maps):
            raise ValueError("maps must not have two of one kind")
        if len({c.name for c in self.characters}) < len(self.characters):
            raise ValueError("characters must have different names")
        return self

    def blobs(self) -> frozenset[str]:
        """The hashes of all images that the request names."""
        found = {m.blob for m in self.maps}
        for c in self.characters:
            found.update([c.mask, *c.references])
            if c.head and c.head.mask:
                found.add(c.head.mask)
        return frozenset(found)


class JobRequest(Model):
    """A batch of keyframes, queued in order. client_key makes a repeated submit harmless."""

    client_key: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_check_text)]
    keyframes: list[KeyframeRequest] = Field(min_length=1, max_length=max_keyframes)
    title: Annotated[str, Field(max_length=500), AfterValidator(_check_text)] = ""
    priority: int = Field(default=0, ge=-100, le=100)


def _check_plan(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan is tables of values and lists of values, and none of them is monstrous."""
    for value in plan.values():
        for inner in value.values() if isinstance(value, dict) else [value]:
            for single in inner if isinstance(inner, list) else [inner]:
                _check_value(single)
            if isinstance(inner, list) and len(inner) > 1000:
                raise ValueError("has too long a list")
    return plan


def _check_value(value: Any) -> None:
    if isinstance(value, dict | list):
        raise ValueError("holds a table where a plan has a value")
    elif isinstance(value, str):
        if len(value) > 8000:
            raise ValueError("has too long a text")
        _check_text(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must not hold NaN or infinity")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("has too large a number")


def _plan_schema() -> dict[str, Any]:
    """What OpenAPI says of a plan: the TrainingPlan itself, and the preset it may start from."""
    whole = TypeAdapter(TrainingPlan).json_schema()
    parts = whole.pop("$defs")
    for name, field in whole["properties"].items():
        if "$ref" in field:
            part = parts[field["$ref"].rpartition("/")[2]]
            whole["properties"][name] = {**part, "additionalProperties": False}
    whole["properties"]["preset"] = {"type": "string", "description": "what is left out is its"}
    return {**whole, "additionalProperties": False}


Plan = Annotated[
    dict[str, Any], AfterValidator(_check_plan), WithJsonSchema(_plan_schema(), mode="validation")
]
"""A training plan as nested tables, as in a plan file (docs/train.md), "preset" included.

Its keys, types and ranges are those of `onmodel.train.plan`, which judges it: one set of rules for
files, the command line and this API. base.model is a name of /v1/info; folders are whole paths on
the server's machine.
"""


class TrainingRequest(Model):
    """A LoRA to train. client_key makes a repeated submit harmless."""

    client_key: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_check_text)]
    plan: Plan
    priority: int = Field(default=0, ge=-100, le=100)


class PreflightRequest(Model):
    """The question what a plan would do, and whether it can start."""

    plan: Plan


class IpAdapter(Model):
    """An IP-Adapter of the server, which holds characters by their portraits.

    kind: "" where it cannot be told. problem: why it cannot be used, or "". fits: names of models;
    chosen: those whose characters it holds, for each model has one at most.
    """

    name: str
    hash: str
    kind: Literal["plus", "plain", "faceid", ""]
    problem: str
    fits: list[str]
    chosen: list[str]


class Info(BaseModel):
    """What the server says of itself; docs/api.md lists the rest."""

    model_config = ConfigDict(extra="allow")

    ip_adapters: list[IpAdapter]


class Hashes(Model):
    """The question which of these blobs the server lacks."""

    hashes: list[Hash] = Field(max_length=100_000)


def canonical(data: Any) -> str:
    """Canonical JSON, the same text as addon/core/request.py's `dumps`."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(data: Any) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()

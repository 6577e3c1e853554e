# SPDX-License-Identifier: GPL-3.0-or-later
"""The two programs hold one contract: addon/core/request.py and onmodel/api/schemas.py."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tomllib
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from onmodel.api import check, schemas
from onmodel.api.app import create_app
from onmodel.api.errors import ApiError
from onmodel.api.state import ServerState
from onmodel.generate import references
from onmodel.jobs.blobs import BlobStore
from onmodel.jobs.database import Database
from onmodel.jobs.queue import Queue
from onmodel.version import version
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from addon.core import client, holding
from addon.core import request as contract
from tests.support import keyframes
from tests.support.fake_artist import FakeArtist

root = Path(__file__).resolve().parents[1]
names = [
    name
    for name, value in vars(contract).items()
    if isinstance(value, type) and dataclasses.is_dataclass(value)
]
sha = "ab" * 32


def plain(kind: Any) -> str:
    """A type as words that both notations share: "list[Lora]", "float | None", "str"."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return plain(args[0])
    if origin is typing.Literal:
        return type(args[0]).__name__
    if origin in (typing.Union, types.UnionType):
        return " | ".join(sorted(plain(a) for a in args))
    if origin is list:
        return f"list[{plain(args[0])}]"
    return "None" if kind is type(None) else kind.__name__


def default_of(model: Any, field: Any) -> Any:
    """A pydantic field's default as plain data, or "required"."""
    if field.default is PydanticUndefined:
        return "required"
    found = field.default
    return found.model_dump(mode="json") if hasattr(found, "model_dump") else found


@pytest.mark.parametrize("name", names)
def test_same_fields_types_and_defaults(name: str) -> None:
    ours, theirs = getattr(contract, name), getattr(schemas, name)
    hints = typing.get_type_hints(ours)
    expected, found = {}, {}
    for f in dataclasses.fields(ours):
        default: Any = "required"
        if f.default is not dataclasses.MISSING:
            default = f.default
        elif f.default_factory is not dataclasses.MISSING:
            default = contract.to_data(f.default_factory())
        expected[f.name] = (plain(hints[f.name]), default)
    server_hints = typing.get_type_hints(theirs, include_extras=True)
    for field_name, field in theirs.model_fields.items():
        found[field_name] = (plain(server_hints[field_name]), default_of(theirs, field))
    assert found == expected


def test_ip_adapters_are_told_and_read_alike() -> None:
    hints = typing.get_type_hints(holding.IpAdapter)
    theirs = typing.get_type_hints(schemas.IpAdapter, include_extras=True)
    ours = {f.name: plain(hints[f.name]) for f in dataclasses.fields(holding.IpAdapter)}
    assert ours == {name: plain(theirs[name]) for name in schemas.IpAdapter.model_fields}
    told = schemas.Info.model_validate({"ip_adapters": [FakeArtist().ip_adapters()[0]]})
    (read,) = holding.adapters_of(told.model_dump()) or []
    assert dataclasses.asdict(read) == FakeArtist().ip_adapters()[0]
    assert holding.adapters_of({}) is None


def test_what_holds_a_character_is_told_as_the_server_does_it() -> None:
    assert holding.usual_weight == references.standard_weight
    adapters = [holding.IpAdapter("plus", chosen=["rehearsal"])]
    for weight in (None, 0.0, 0.4):
        for count in (0, 2):
            for loras in ([], [contract.Lora("ana")], [contract.Lora("ana", 0.0)]):
                character = {
                    "references": [sha] * count,
                    "reference_weight": weight,
                    "loras": contract.to_data(loras),
                }
                told = holding.held(loras, count, weight, adapters, "rehearsal")
                by_portraits = references.weight_of(character) > 0
                assert (told.by in ("portraits", "both")) == by_portraits, character


def test_a_hold_is_refused_at_submit_where_the_artist_is_told_so(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    images = [blobs.put(b.data) for b in (keyframes.depth, keyframes.mask, keyframes.png(3))]
    chosen = ["rehearsal"]
    cases: list[list[holding.IpAdapter]] = [
        [],
        [holding.IpAdapter("old", fits=["sdxl"], chosen=["sdxl"])],
        [holding.IpAdapter("bad", problem="It cannot be read.")],
        [holding.IpAdapter("faceid", problem="It needs InsightFace.", fits=chosen, chosen=chosen)],
        [holding.IpAdapter("bad", problem="No."), holding.IpAdapter("plus", chosen=chosen)],
    ]
    refusals = set()
    for adapters in cases:
        told = {
            "models": FakeArtist().models(),
            "ip_adapters": [dataclasses.asdict(a) for a in adapters],
        }
        for weight, count, lora in itertools.product((None, 0.0, 0.4), (0, 1), (0.0, 1.0)):
            loras = [contract.Lora("ana", lora)]
            ana = contract.Character("Ana", "woman", keyframes.mask.hash, loras=loras)
            ana = dataclasses.replace(ana, references=images[2:] * count, reference_weight=weight)
            asked = contract.to_data(keyframes.job(keyframes.keyframe(characters=[ana])))
            job = schemas.JobRequest.model_validate(asked)
            refused = False
            try:
                check.new_job(job, told, blobs)
            except ApiError as error:
                refused, words = True, error.body["error"]
                refusals.add(words["message"])
                assert words["code"] == "no_ip_adapter" and "“Ana”" in words["message"]
            found = holding.held(loras, count, weight, adapters, "rehearsal")
            assert refused == found.refused, (adapters, weight, count, lora)
            # What an older worker left word of says nothing of adapters.
            check.new_job(job, {"models": told["models"]}, blobs)
    assert len(refusals) == 4 and all(words.endswith(".") for words in refusals)


def full_request() -> contract.KeyframeRequest:
    """A request with every field set to something other than its default."""

    def points(count: int) -> list[contract.Keypoint | None]:
        states = contract.keypoint_states
        made: list[contract.Keypoint | None] = [
            contract.Keypoint(1.5 * i, 2.0, 3.25, states[i % 4]) for i in range(count)
        ]
        made[1] = None
        return made

    pose = contract.Pose(points(18), points(21), points(21), points(70))
    head = contract.Head(contract.Box(1.0, 2.0, 30.5, 40.0), -170.0, 12.5, 0.5, sha)
    ana = contract.Character(
        "Ána 1",
        "woman",
        "cd" * 32,
        "sks",
        "angry,\nred coat",
        [contract.Lora("ana v2", 0.8, sha)],
        pose,
        head,
        ["ef" * 32],
        0.6,
    )
    return contract.KeyframeRequest(
        film="Der Film für 2",
        shot="010",
        frame=-3,
        take=2,
        seed=2**63 - 1,
        frame_size=contract.Size(1998, 1080),
        canvas=contract.Canvas(512, 288, contract.Box(0.0, 0.5, 512.0, 276.75)),
        camera=contract.Camera(
            "Cam.001",
            "orthographic",
            [0.1 * i for i in range(16)],
            [-1.0, 1.0, -0.5, 0.5],
            0.1,
            9.0,
        ),
        model="rehearsal",
        prompt="rain",
        negative_prompt="text",
        model_hash=sha,
        sampling=contract.Sampling("fast", 12, 6.5, "ab12"),
        loras=[contract.Lora("ink")],
        maps=[contract.MapImage(kind, sha, 0.7, 0.1, 0.9) for kind in contract.map_kinds],
        characters=[ana],
        face_pass=contract.FacePass(False, 0.7, 0.3, 768, 30.0, 0.5, 90.0, 0.1, False),
    )


def test_a_full_request_goes_both_ways_unchanged() -> None:
    text = contract.dumps(full_request())
    model = schemas.KeyframeRequest.model_validate(json.loads(text))
    there = schemas.canonical(model.model_dump(mode="json"))
    assert there == text
    assert contract.from_data(contract.KeyframeRequest, json.loads(there)) == full_request()
    assert schemas.digest(model.model_dump(mode="json")) == full_request().key()
    assert model.blobs() == full_request().blobs()


def test_a_request_of_version_1_is_read_as_it_was_drawn() -> None:
    """Requests in sidecars, queues and older add-ons know no face pass: they were drawn without."""
    old = contract.to_data(full_request())
    del old["face_pass"], old["characters"][0]["reference_weight"]
    old["version"] = 1
    ours = contract.from_data(contract.KeyframeRequest, old)
    assert not ours.face_pass.enabled and ours.version == contract.request_version
    as_drawn = [dataclasses.replace(c, reference_weight=0.0) for c in full_request().characters]
    assert (ours.seed, ours.characters) == (full_request().seed, as_drawn)
    theirs = schemas.KeyframeRequest.model_validate(old)
    assert schemas.digest(theirs.model_dump(mode="json")) == ours.key()
    assert "face_pass" not in old
    # What names a face pass is no request of version 1.
    with pytest.raises(ValidationError, match="version"):
        schemas.KeyframeRequest.model_validate({**old, "face_pass": {}})


def test_whole_numbers_for_floats_give_the_same_key() -> None:
    data = contract.to_data(full_request())
    data["maps"][0]["weight"] = 1
    model = schemas.KeyframeRequest.model_validate(data)
    ours = contract.from_data(contract.KeyframeRequest, data)
    assert schemas.digest(model.model_dump(mode="json")) == ours.key()


def test_a_job_goes_both_ways_unchanged() -> None:
    job = contract.JobRequest("key", [full_request()], "title", -3)
    model = schemas.JobRequest.model_validate(contract.to_data(job))
    assert schemas.canonical(model.model_dump(mode="json")) == contract.dumps(job)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("seed",), 2**63),
        (("seed",), -1),
        (("seed",), "7"),
        (("seed",), True),
        (("seed",), 1.5),
        (("film",), "../film"),
        (("film",), "a\r\nSet-Cookie: x"),
        (("shot",), ".."),
        (("shot",), "a\0b"),
        (("model",), "/etc/passwd"),
        (("model",), "..\\..\\x"),
        (("prompt",), "a\rb"),
        (("model_hash",), "AB" * 32),
        (("canvas", "width"), 20000),
        (("canvas", "crop", "width"), 600.0),
        (("camera", "matrix_world"), [1.0] * 15),
        (("camera", "clip_end"), float("nan")),
        (("camera", "projection"), "fisheye"),
        (("maps", 0, "weight"), 2.5),
        (("maps", 0, "start"), 0.95),
        (("maps", 0, "kind"), "normal"),
        (("maps", 0, "blob"), "../../secret"),
        (("loras", 0, "name"), "../ink"),
        (("characters", 0, "loras", 0, "name"), "C:\\ink"),
        (("characters", 0, "pose", "body"), []),
        (("characters", 0, "pose", "left_hand", 0, "state"), "gone"),
        (("characters", 0, "references"), ["x"]),
        (("characters", 0, "reference_weight"), 2.1),
        (("sampling", "steps"), 0),
        (("sampling", "method"), "../x"),
        (("take",), 0),
        (("face_pass", "first"), 0.0),
        (("face_pass", "second"), 1.01),
        (("face_pass", "size"), 63),
        (("face_pass", "max_yaw"), 181.0),
        (("face_pass", "enabled"), 1),
        (("version",), 3),
    ],
)
def test_out_of_range_is_refused(path: tuple[Any, ...], value: Any) -> None:
    data = contract.to_data(full_request())
    inner = data
    for part in path[:-1]:
        inner = inner[part]
    if path[-1] == "body":
        value = inner["body"][:17]
    inner[path[-1]] = value
    with pytest.raises(ValidationError):
        schemas.KeyframeRequest.model_validate(data)


def test_unknown_fields_are_refused() -> None:
    data = contract.to_data(full_request())
    data["camera"]["script"] = "x"
    with pytest.raises(ValidationError, match="script"):
        schemas.KeyframeRequest.model_validate(data)


def test_openapi_states_the_contract(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    state = ServerState(Queue(Database(tmp_path / "queue.db"), blobs), blobs)
    api = create_app(state, "x" * 20).openapi()
    found = api["components"]["schemas"]
    for name in names:
        fields = {f.name for f in dataclasses.fields(getattr(contract, name))}
        assert set(found[name]["properties"]) == fields, name
        assert found[name]["additionalProperties"] is False
    body = api["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/JobRequest"}


def test_versions_agree() -> None:
    assert schemas.request_version == contract.request_version
    assert max(schemas.request_versions) == schemas.request_version
    from onmodel.api.routes import api_version, first_word_seconds

    assert api_version == client.api_version
    assert client.patience > first_word_seconds, "a server that waits for its worker seems gone"
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] == version
    manifest = tomllib.loads((root / "blender_manifest.toml").read_text(encoding="utf-8"))
    assert manifest["version"] == version

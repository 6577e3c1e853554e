# SPDX-License-Identifier: GPL-3.0-or-later
"""safetensors and LoRA files: sound ones pass, unsound ones are refused by a sentence each."""

from __future__ import annotations

import struct

import pytest
from onmodel.models import lora_file, safe
from onmodel.models.errors import ModelError

from tests.server.lora_files import entry, raw

down = "lora_unet_x_to_q.lora_down.weight"
up = "lora_unet_x_to_q.lora_up.weight"


def lora_header(rank: int = 2) -> dict:
    return {down: entry([rank, 3], 0, 12 * rank), up: entry([5, rank], 12 * rank, 32 * rank)}


def test_sound_lora_passes(tmp_path):
    path = raw(tmp_path / "good.safetensors", lora_header(), b"\0" * 64)
    checked = lora_file.check(path)
    pair = checked.pairs[0]
    assert (pair.component, pair.module, pair.rank) == ("unet", "x_to_q", 2)
    assert (pair.inputs, pair.outputs, checked.kohya) == (3, 5, True)


def test_metadata_tells_title_trigger_and_family(tmp_path):
    header = lora_header() | {
        "__metadata__": {
            "modelspec.title": "Ann of the park",
            "modelspec.trigger_phrase": "annpark",
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        }
    }
    checked = lora_file.check(raw(tmp_path / "a.safetensors", header, b"\0" * 64))
    assert (checked.title, checked.trigger, checked.family) == (
        "Ann of the park",
        "annpark",
        "sdxl",
    )


def header_text(*parts: str) -> str:
    return "{" + ",".join(parts) + "}"


one = '"{}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}'

unsound = {
    "empty": (None, b"", None, "cut off or damaged"),
    "header longer than the file": ({}, b"", 5000, "cut off or damaged"),
    "header beyond the limit": ({}, b"", 2**63, "cut off or damaged"),
    "not json": ("{nonsense", b"", None, "not JSON"),
    "nested to death": ("[" * 60_000, b"", None, "not JSON"),
    "a list": ([1, 2], b"", None, "not a JSON object"),
    "no tensors": ({}, b"", None, "no tensors"),
    "a name twice": (
        header_text(one.format("a", 0, 4), one.format("a", 4, 8)),
        b"\0" * 8,
        None,
        "stands twice",
    ),
    "truncated": (lora_header(), b"\0" * 60, None, "cut off"),
    "more bytes than told": (lora_header(), b"\0" * 65, None, "do not end where"),
    "a gap": ({"a": entry([1], 4, 8)}, b"\0" * 8, None, "gaps"),
    "an overlap": (
        {"a": entry([2], 0, 8), "b": entry([2], 4, 12)},
        b"\0" * 12,
        None,
        "overlap",
    ),
    "beyond the end": ({"a": entry([2**40], 0, 2**42)}, b"\0" * 8, None, "cut off"),
    "shape and bytes": ({"a": entry([3], 0, 8)}, b"\0" * 8, None, "does not agree"),
    "unknown type": ({"a": entry([1], 0, 4, "Q4")}, b"\0" * 4, None, "unknown type"),
    "negative": ({"a": entry([-1], 0, 4)}, b"\0" * 4, None, "not a tensor's"),
    "boolean size": ({"a": entry([True], 0, 4)}, b"\0" * 4, None, "not a tensor's"),
    "more fields": (
        {"a": entry([1], 0, 4) | {"code": "x"}},
        b"\0" * 4,
        None,
        "not a tensor's",
    ),
    "metadata not texts": ({"__metadata__": {"a": 1}}, b"", None, "metadata"),
}


@pytest.mark.parametrize("name", unsound)
def test_unsound_file_is_refused(tmp_path, name):
    header, data, length, words = unsound[name]
    path = tmp_path / "bad.safetensors"
    if header is None:
        path.write_bytes(b"")
    else:
        raw(path, header, data, length)
    with pytest.raises(ModelError) as caught:
        safe.read_header(path)
    assert words in caught.value.message
    assert caught.value.fix


def lora_with(**tensors) -> dict:
    return lora_header() | tensors


refused = {
    "a pickle by another name": ({"archive/data.pkl": entry([16], 0, 64)}, "not the name"),
    "a whole model": ({"model.diffusion_model.out.2.weight": entry([16], 0, 64)}, "not the name"),
    "one matrix only": ({down: entry([2, 8], 0, 64)}, "only one of its two"),
    "matrices that do not fit": (
        {down: entry([2, 4], 0, 32), up: entry([2, 4], 32, 64)},
        "do not fit each other",
    ),
    "a DoRA": (lora_with(**{"lora_unet_x_to_q.dora_scale": entry([0], 64, 64)}), "a DoRA"),
    "a LoHa": ({"lora_unet_x.hada_w1_a": entry([16], 0, 64)}, "a LoHa"),
    "whole numbers": (
        {down: entry([2, 4], 0, 32, "I32"), up: entry([4, 2], 32, 64)},
        "not floating point",
    ),
    "vectors": ({down: entry([8], 0, 32), up: entry([8], 32, 64)}, "unknown shape"),
    "two namings": (
        lora_with(
            **{
                "unet.y.to_q.lora_A.weight": entry([0, 3], 64, 64),
                "unet.y.to_q.lora_B.weight": entry([3, 0], 64, 64),
            }
        ),
        "two ways of naming",
    ),
    "an alpha of many numbers": (
        {
            down: entry([1, 4], 0, 16),
            up: entry([8, 1], 16, 48),
            "lora_unet_x_to_q.alpha": entry([4], 48, 64),
        },
        "not one number",
    ),
    "path tricks": ({"lora_unet_../../x.lora_down.weight": entry([16], 0, 64)}, "not the name"),
}


@pytest.mark.parametrize("name", refused)
def test_hostile_lora_is_refused(tmp_path, name):
    header, words = refused[name]
    path = raw(tmp_path / "bad.safetensors", header, b"\0" * 64)
    with pytest.raises(ModelError) as caught:
        lora_file.check(path)
    assert words in caught.value.message
    assert "bad.safetensors" in caught.value.message


def test_rank_limit(tmp_path):
    path = raw(tmp_path / "fat.safetensors", lora_header(513), b"\0" * (32 * 513))
    with pytest.raises(ModelError, match="rank 513"):
        lora_file.check(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value):
    data = b"\0" * 60 + struct.pack("<f", value)
    with pytest.raises(ModelError, match="not finite"):
        lora_file.check(raw(tmp_path / "nan.safetensors", lora_header(), data))


def test_only_safetensors_are_opened(tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match=r"not a \.safetensors"):
        safe.read_header(path)


def test_fingerprint_changes_with_any_sampled_part(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(bytes(9 << 20))
    before = safe.fingerprint([path], tmp_path)
    with path.open("r+b") as file:
        file.seek((9 << 20) - 5)
        file.write(b"x")
    assert safe.fingerprint([path], tmp_path) != before

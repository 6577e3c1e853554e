# SPDX-License-Identifier: GPL-3.0-or-later
"""The artist on a tiny SDXL: same seeds same pictures, batches, cancel, previews, bad input."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from onmodel.generate import sampler
from onmodel.generate.pictures import request_key
from onmodel.jobs.artist import DrawError
from PIL import Image

from addon.core.request import KeyframeRequest, from_data
from tests.server.drawing import Blobs, draw, make_artist, make_data, make_request, pixels


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def artist(data):
    return make_artist(data)


@pytest.fixture(scope="module")
def blobs():
    return Blobs()


@pytest.fixture
def latents(artist, blobs, monkeypatch):
    """What reaches the decoder, in the order of decoding."""
    draw(artist, blobs, make_request(blobs))
    family = artist._loaded.family
    decode, seen = family.decode, []
    monkeypatch.setattr(family, "decode", lambda x: seen.append(x.clone()) or decode(x))
    return seen


def test_picture_and_record(artist, blobs):
    request = make_request(blobs)
    drawn = draw(artist, blobs, request)["0"]
    assert pixels(drawn).shape == (84, 128, 3)  # cropped to the frame
    assert pixels(drawn).std() > 5
    assert drawn.record["seed"] == 7 and drawn.record["steps"] == 3
    assert drawn.record["model_hash"] == artist.models()[0]["hash"]
    assert {"load", "denoise", "decode", "total"} <= set(drawn.record["timings"])
    inside = json.loads(Image.open(io.BytesIO(drawn.png)).text["onmodel"])
    assert inside == drawn.record
    # The key is the one that the add-on computes of the same request.
    assert inside["request_key"] == from_data(KeyframeRequest, request).key()
    assert request_key(request) == inside["request_key"]


def test_a_seed_is_a_picture(artist, blobs):
    first, again = (draw(artist, blobs, make_request(blobs))["0"] for _ in range(2))
    other = draw(artist, blobs, make_request(blobs, seed=8))["0"]
    assert np.array_equal(pixels(first), pixels(again))
    assert np.abs(pixels(first) - pixels(other)).mean() > 2


def test_released_for_a_training_it_draws_the_same_again(artist, blobs):
    first = draw(artist, blobs, make_request(blobs))["0"]
    artist.release()
    assert artist._loaded is None
    artist.release()
    assert np.array_equal(pixels(first), pixels(draw(artist, blobs, make_request(blobs))["0"]))


@pytest.mark.parametrize("preset", ["default", "euler-ancestral", "dpmpp-sde", "lcm"])
def test_alone_or_in_a_batch_it_is_the_same_picture(artist, blobs, latents, preset):
    """Also for schedulers that add noise at every step, and for different casts in one batch."""
    sampling = {"preset": preset, "steps": 4, "guidance": 3.0}
    one = make_request(blobs, seed=1, sampling=sampling)
    two = make_request(blobs, seed=2, sampling=sampling, prompt="a blue room " * 9)
    two["characters"] = two["characters"][:1]
    three = make_request(blobs, seed=3, sampling=sampling, characters=[], negative_prompt="red")
    assert len({artist.batch_key(r) for r in (one, two, three)}) == 1
    draw(artist, blobs, one, two, three)
    together = list(latents)
    latents.clear()
    for request in (one, two, three):
        draw(artist, blobs, request)
    for a, b in zip(together, latents, strict=True):
        assert (a - b).abs().max() < 1e-3


def test_batch_keys_tell_apart_what_cannot_be_drawn_together(artist, blobs):
    base = make_request(blobs)
    canvas = {"width": 96, "height": 128, "crop": base["canvas"]["crop"]}
    different = [
        base,
        make_request(blobs, canvas=canvas),
        make_request(blobs, maps=base["maps"][:1]),
        make_request(blobs, maps=[dict(m, weight=0.5) for m in base["maps"]]),
        make_request(blobs, sampling={"preset": "euler", "steps": 3, "guidance": None}),
        make_request(blobs, loras=[{"name": "x", "weight": 1.0, "hash": None}]),
        make_request(blobs, model="other"),
    ]
    assert len({artist.batch_key(r) for r in different}) == len(different)
    same = make_request(blobs, seed=99, prompt="x", frame=5, shot="020", negative_prompt="y")
    assert artist.batch_key(same) == artist.batch_key(base)
    assert artist.max_batch(base) >= 1


def test_regions_reach_the_model(artist, blobs):
    """Ann on the right, Bob on the left; the negative prompt's rows know no regions."""
    from onmodel.generate.conditioning import picture

    entry = artist.registry.find("tiny")
    draw(artist, blobs, make_request(blobs))
    batch = artist._loaded.family.prepare([picture(make_request(blobs), blobs, entry)], 4.0)
    assert batch.keys.shape[:2] == (2, 232)  # three prompts of 77, in steps of 8
    segments = batch.regions.segments.tolist()
    assert segments[0] == [0] * 77 + [-1] * 155
    assert segments[1] == [0] * 77 + [1] * 77 + [2] * 77 + [-1]
    members = batch.regions.members(12 * 16).reshape(2, 2, 12, 16)
    assert not members[0].any()
    ann, bob = members[1]
    assert ann[2:10, 9:15].all() and not ann[:, :8].any()
    assert bob[2:10, 1:7].all() and not bob[:, 8:].any()
    assert batch.regions.members(6 * 8).shape == (2, 2, 48)


def test_a_characters_prompt_changes_the_picture(artist, blobs, latents):
    one, two, three = (make_request(blobs) for _ in range(3))
    two["characters"][0]["prompt"] = "angry blue street"
    three["characters"].reverse()
    draw(artist, blobs, one, two, three)
    assert not torch.equal(latents[0], latents[1])
    assert torch.allclose(latents[0], latents[2], atol=1e-3)  # their order does not matter


def test_maps_act_and_only_between_start_and_end(artist, blobs, latents):
    base = make_request(blobs)
    none = make_request(blobs, maps=[])
    zero = make_request(blobs, maps=[dict(m, weight=0.0) for m in base["maps"]])
    never = make_request(blobs, maps=[dict(m, start=0.5, end=0.5) for m in base["maps"]])
    early = make_request(blobs, maps=[dict(m, end=0.4) for m in base["maps"]])
    for request in (base, none, zero, never, early):
        draw(artist, blobs, request)
    full, without, weightless, unused, part = latents
    assert torch.equal(without, weightless) and torch.equal(without, unused)
    assert not torch.allclose(full, without, atol=1e-2)
    assert not torch.allclose(full, part, atol=1e-3)
    assert not torch.allclose(part, without, atol=1e-3)


def test_progress_and_previews(artist, blobs, monkeypatch):
    monkeypatch.setattr(sampler, "preview_interval", 0.0)
    events = []
    sampling = {"preset": "default", "steps": 4, "guidance": None}
    draw(
        artist,
        blobs,
        make_request(blobs, sampling=sampling),
        make_request(blobs, sampling=sampling, seed=8),
        report=lambda task, kind, data: events.append((task, kind, data)),
    )
    for task in ("0", "1"):
        steps = [d["step"] for t, k, d in events if t == task and k == "sampling"]
        assert steps == [1, 2, 3, 4]
        previews = [d for t, k, d in events if t == task and k == "preview"]
        assert [p["step"] for p in previews] == [1, 2, 3]
        assert Image.open(io.BytesIO(previews[0]["png"])).size == (16, 12)


def test_preview_looks_like_the_picture(artist, blobs):
    """The linear preview of latents is closer to the decoded picture, made small, than grey is."""
    draw(artist, blobs, make_request(blobs))
    family = artist._loaded.family
    coarse = torch.randn(1, 4, 3, 4, generator=torch.Generator().manual_seed(9))
    latents = torch.nn.functional.interpolate(coarse, (12, 16), mode="bilinear")
    small = family.preview(latents)[0].astype(float)
    decoded = family.decode(latents)[0].astype(float).reshape(12, 8, 16, 8, 3).mean(axis=(1, 3))
    grey = np.abs(decoded - decoded.mean(axis=(0, 1))).mean()
    assert np.abs(small - decoded).mean() < 0.8 * grey


def test_loading_is_told_once(data, blobs):
    fresh, kinds = make_artist(data), []
    report = lambda task, kind, told: kinds.append(kind)  # noqa: E731
    draw(fresh, blobs, make_request(blobs), report=report)
    assert kinds.count("loading") == 1
    draw(fresh, blobs, make_request(blobs), report=report)
    assert kinds.count("loading") == 1


def test_cancel_of_all_stops_within_a_step(artist, blobs):
    steps = []
    sampling = {"preset": "default", "steps": 50, "guidance": None}
    drawn = draw(
        artist,
        blobs,
        make_request(blobs, sampling=sampling),
        report=lambda task, kind, data: steps.append(kind) if kind == "sampling" else None,
        cancelled=lambda task: len(steps) >= 2,
    )
    assert drawn == {} and len(steps) == 2
    assert draw(artist, blobs, make_request(blobs))["0"].png


@pytest.mark.parametrize("preset", ["default", "dpmpp-2m-karras"])
def test_cancel_of_one_leaves_the_others_as_they_are(artist, blobs, latents, preset):
    sampling = {"preset": preset, "steps": 5, "guidance": None}
    requests = [make_request(blobs, seed=s, sampling=sampling) for s in (1, 2, 3)]
    seen = []
    drawn = draw(
        artist,
        blobs,
        *requests,
        report=lambda task, kind, data: seen.append(task) if kind == "sampling" else None,
        cancelled=lambda task: task == "1" and len(seen) >= 6,
    )
    assert set(drawn) == {"0", "2"} and seen.count("1") == 2 and seen.count("2") == 5
    kept = list(latents)
    latents.clear()
    draw(artist, blobs, requests[0])
    draw(artist, blobs, requests[2])
    for a, b in zip(kept, latents, strict=True):
        assert (a - b).abs().max() < 1e-3


def test_nothing_is_done_for_tasks_cancelled_before(artist, blobs):
    told = []
    report = lambda *event: told.append(event)  # noqa: E731
    assert draw(artist, blobs, make_request(blobs), cancelled=lambda t: True, report=report) == {}
    assert told == []


def test_out_of_memory_halves_the_batch(artist, blobs, monkeypatch):
    draw(artist, blobs, make_request(blobs))
    family = artist._loaded.family
    denoise, sizes = family.denoise, []

    def small(prepared, x, t, progress):
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return denoise(prepared, x, t, progress)

    monkeypatch.setattr(family, "denoise", small)
    drawn = draw(artist, blobs, *(make_request(blobs, seed=s) for s in range(4)))
    assert set(drawn) == {"0", "1", "2", "3"} and sizes[0] == 4 and set(sizes[1:]) == {2}

    def never(prepared, x, t, progress):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(family, "denoise", never)
    with pytest.raises(DrawError, match="not enough memory") as caught:
        draw(artist, blobs, make_request(blobs), make_request(blobs, seed=8))
    assert caught.value.task_ids == ("0",)


def png_header(width: int, height: int) -> bytes:
    """A PNG of any claimed size in a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(4096))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def with_map(blobs, data: bytes) -> dict:
    request = make_request(blobs)
    request["maps"][1]["blob"] = blobs.put(data)
    return request


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (128, 96)).save(file, "JPEG")
    return file.getvalue()


def sixteen_bit() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((96, 128), np.uint16)).save(file, "PNG")
    return file.getvalue()


bad_maps = {
    "20,000 pixels": (lambda: png_header(20_000, 20_000), "20000x20000|far more pixels"),
    "a claim of gigapixels": (lambda: png_header(60_000, 60_000), "far more pixels"),
    "another size": (lambda: png_header(64, 96), "has 64x96 pixels, but the canvas has 128x96"),
    "cut off": (lambda: png_header(128, 96), "damaged"),
    "a JPEG": (jpeg, "not a PNG"),
    "nothing": (lambda: b"", "not a PNG"),
    "16 bits": (sixteen_bit, "not an 8-bit PNG"),
}


@pytest.mark.parametrize("name", bad_maps)
def test_bad_maps_are_a_sentence(artist, blobs, name):
    make, words = bad_maps[name]
    with pytest.raises(DrawError, match=words) as caught:
        draw(artist, blobs, make_request(blobs, seed=3), with_map(blobs, make()))
    assert caught.value.message.startswith("The depth map")
    assert caught.value.task_ids == ("1",) and caught.value.fix


@pytest.mark.parametrize(
    ("size", "words"),
    [((20_000, 20_000), "far beyond"), ((130, 96), "steps of 32"), ((0, 96), "too small")],
)
def test_bad_canvases_are_a_sentence(artist, blobs, size, words):
    crop = {"x": 0.0, "y": 0.0, "width": 10.0, "height": 10.0}
    canvas = {"width": size[0], "height": size[1], "crop": crop}
    with pytest.raises(DrawError, match=words):
        draw(artist, blobs, make_request(blobs, canvas=canvas))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "nobody"}, "There is no model “nobody” here. Models found: “tiny”"),
        ({"model_hash": "0" * 64}, "its weights have changed"),
        ({"sampling": {"preset": "best"}}, "no scheduler preset “best”"),
        ({"sampling": {"preset": "euler", "steps": 100_000}}, "100000 steps"),
        ({"sampling": {"preset": "lcm", "steps": 60}}, "cannot draw in 60 steps"),
    ],
)
def test_bad_wishes_are_a_sentence(artist, blobs, changes, words):
    with pytest.raises(DrawError) as caught:
        draw(artist, blobs, make_request(blobs, **changes))
    assert words in caught.value.message and caught.value.fix

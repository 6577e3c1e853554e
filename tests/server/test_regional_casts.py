# SPDX-License-Identifier: GPL-3.0-or-later
"""Regional LoRAs through the artist: casts that change, records, failures; masks and casting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onmodel.generate import casting, regional_settings
from onmodel.generate.regional_masks import at_level, feathered
from onmodel.generate.regional_settings import RegionalSettings
from onmodel.generate.regions import Regions
from onmodel.jobs.artist import DrawError
from onmodel.models.errors import ModelError
from onmodel.models.registry import LoraEntry

from tests.server.drawing import Blobs, draw, make_artist, make_data, make_request, pixels
from tests.server.regional import text, unet, write_lora


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    data = make_data(tmp_path_factory.mktemp("data"))
    model, folder = data / "models" / "tiny", data / "loras"
    write_lora(folder / "ann.safetensors", model, 1, unet, text)
    write_lora(folder / "bob.safetensors", model, 2, unet)
    write_lora(folder / "clock.safetensors", model, 3, [*unet, "time_embedding.linear_1"])
    write_lora(folder / "other.safetensors", model, 4, unet[:1])
    spoil(folder / "other.safetensors")
    return data


def spoil(path: Path) -> None:
    """Make a LoRA one for another model: a module that SDXL has not."""
    from safetensors.torch import load_file, save_file

    state = load_file(path)
    save_file({k.replace("down_blocks.1", "down_blocks.9"): v for k, v in state.items()}, path)


@pytest.fixture(scope="module")
def artist(data):
    return make_artist(data)


@pytest.fixture(scope="module")
def blobs():
    return Blobs()


def cast(blobs, ann: str | None, bob: str | None, **changes) -> dict:
    """A request whose two characters have these LoRAs."""
    request = make_request(blobs, **changes)
    for character, name in zip(request["characters"], (ann, bob), strict=True):
        if name:
            character["loras"] = [{"name": name, "weight": 1.0, "hash": None}]
    return request


def test_a_cast_leaves_nothing_behind(artist, blobs):
    """A, B, none, A again, bit for bit; the shelf keeps both warm and loads none twice."""
    requests = {
        "a": cast(blobs, "ann", "bob"),
        "b": cast(blobs, "bob", None),
        "none": cast(blobs, None, None),
        "whole": make_request(blobs, loras=[{"name": "ann", "weight": 1.0, "hash": None}]),
    }
    first = {name: pixels(draw(artist, blobs, r)["0"]) for name, r in requests.items()}
    told = []

    def report(task, kind, data):
        told.append(kind)

    for name in ("a", "whole", "b", "none", "a"):
        again = draw(artist, blobs, requests[name], report=report)["0"]
        assert np.array_equal(pixels(again), first[name]), name
    assert "loading" not in told
    fresh = make_artist(artist.registry.data)
    assert np.array_equal(pixels(draw(fresh, blobs, requests["none"])["0"]), first["none"])
    names = list(first)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert np.abs(first[one] - first[other]).mean() > 0.3, (one, other)


def test_casts_share_a_batch_and_records_say_who_had_what(artist, blobs):
    style = [{"name": "bob", "weight": 0.25, "hash": None}]
    one, two = cast(blobs, "ann", "bob", loras=style), cast(blobs, None, "ann", loras=style)
    assert artist.batch_key(one) == artist.batch_key(two)
    drawn = draw(artist, blobs, one, two)
    alone = [draw(artist, blobs, r)["0"] for r in (one, two)]
    for i in range(2):
        assert np.abs(pixels(drawn[str(i)]) - pixels(alone[i])).max() <= 1
    record = drawn["0"].record
    assert record["regional"] == "fast"
    named = [(x["name"], x["weight"], x["character"]) for x in record["loras"]]
    assert named == [("bob", 0.25, None), ("ann", 1.0, "Ann"), ("bob", 1.0, "Bob")]
    assert [x["character"] for x in drawn["1"].record["loras"]] == [None, "Bob"]


def test_a_cancelled_picture_leaves_the_others_as_they_are(artist, blobs):
    requests = [cast(blobs, "ann", None), cast(blobs, "bob", "ann"), cast(blobs, None, "bob")]
    alone = [pixels(draw(artist, blobs, r)["0"]) for r in requests]
    gone = set()

    def report(task, kind, data):
        if kind == "sampling":
            gone.add("1")

    drawn = draw(artist, blobs, *requests, report=report, cancelled=lambda task: task in gone)
    assert set(drawn) == {"0", "2"}
    for i in (0, 2):
        assert np.abs(pixels(drawn[str(i)]) - alone[i]).max() <= 1


@pytest.mark.parametrize("name", ["nobody", "other"])
def test_a_characters_wrong_lora_fails_its_own_keyframe_only(artist, blobs, name):
    words = {"nobody": "There is no LoRA “nobody” here", "other": "the model has no part"}
    before = pixels(draw(artist, blobs, cast(blobs, "ann", None))["0"])
    with pytest.raises(DrawError) as caught:
        draw(artist, blobs, cast(blobs, "ann", None), cast(blobs, None, name))
    assert words[name] in caught.value.message and caught.value.fix
    assert caught.value.task_ids == ("1",)
    after = pixels(draw(artist, blobs, cast(blobs, "ann", None))["0"])
    assert np.array_equal(before, after)


def test_ways_are_the_servers_choice(data, blobs, monkeypatch):
    drawn = {}
    for way in ("fast", "pass", "batch", "side by side"):
        monkeypatch.setenv(regional_settings.environment, way)
        artist = make_artist(data)
        if way == "side by side":
            with pytest.raises(DrawError, match="no way to draw") as caught:
                draw(artist, blobs, cast(blobs, "ann", "bob"))
            assert "fast, pass, batch" in caught.value.fix
            break
        drawn[way] = draw(artist, blobs, cast(blobs, "ann", "bob"))["0"]
        assert drawn[way].record["regional"] == way
    assert np.abs(pixels(drawn["pass"]) - pixels(drawn["batch"])).max() <= 1
    assert np.abs(pixels(drawn["pass"]) - pixels(drawn["fast"])).mean() > 0.05


def test_what_has_no_place_is_drawn_by_passes_and_says_so(artist, blobs, caplog):
    """A LoRA of the time step's embedding cannot be bound in one pass."""
    drawn = draw(artist, blobs, cast(blobs, "clock", None))["0"]
    assert drawn.record["regional"] == "pass"
    assert "cannot bind" in caplog.text
    assert draw(artist, blobs, cast(blobs, "ann", None))["0"].record["regional"] == "fast"


def entry(name: str) -> LoraEntry:
    return LoraEntry(name, Path(f"{name}.safetensors"), name * 64)


def test_a_lora_of_both_is_the_heavier_in_the_region():
    """The region gets what is missing; several mentions of one name count once."""

    def lora(name: str, weight: float) -> dict:
        return {"name": name, "weight": weight, "hash": None}

    request = {
        "loras": [lora("a", 0.25), lora("b", -1.0)],
        "characters": [
            {"name": "Ann", "loras": [lora("a", 1.0), lora("b", 0.5), lora("a", 0.5)]},
            {"name": "Bob", "loras": [lora("c", 0.0)]},
        ],
    }
    ann, bob = casting.characters(request, lambda name, pin: entry(name))
    assert ann.regional == ((entry("a").adapter, 0.75),)
    assert [(e.name, w) for e, w in ann.loras] == [("a", 1.0), ("b", 0.5)]
    assert bob.regional == () and len(bob.loras) == 1


@pytest.mark.parametrize("soft", [True, False])
def test_shares_never_add_up_to_more_than_one(soft):
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (1, 24, 32))
    masks = torch.stack([labels == 1, labels == 2], 1).float()
    shares = torch.nn.functional.adaptive_avg_pool2d(masks, (12, 16))
    settings = RegionalSettings(soft=soft)
    for sigma in (0.0, 0.7, 2.0):
        soft_shares = feathered(shares, sigma)
        for grown in (False, True):
            for grid in ((12, 16), (6, 8), (3, 4)):
                level = at_level(soft_shares, grid, settings, grown)
                assert level.min() >= 0 and level.sum(1).max() <= 1 + 1e-5


def test_masks_grow_by_a_token_into_free_ground_only():
    shares = torch.zeros(1, 2, 4, 8)
    shares[0, 0, :, :3], shares[0, 1, :, 3:5] = 1, 1
    level = at_level(shares, (4, 8), RegionalSettings(), grown=True)
    assert level[0, 0, 0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert level[0, 1, 0].tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    coarse = at_level(shares, (2, 4), RegionalSettings(), grown=True)
    assert coarse[0, :, 0].tolist() == [[1, 0.5, 0.5, 0], [0, 0.5, 0.5, 0.5]]


def test_feathering_is_soft_on_both_sides_of_an_edge():
    shares = torch.zeros(1, 1, 6, 12)
    shares[..., :6] = 1
    row = feathered(shares, 1.0)[0, 0, 3]
    assert torch.all(row[:-1] >= row[1:]) and row[0] > 0.999 and row[-1] < 0.001
    assert torch.isclose(row[5] + row[6], torch.tensor(1.0), atol=1e-5) and 0.5 < row[5] < 0.8
    assert torch.equal(feathered(shares, 0.0), shares)


@pytest.mark.parametrize("wrong", [{"feather": -1.0}, {"grown": (0.5, 0.2)}, {"grown": (0.0, 1.5)}])
def test_impossible_edges_are_refused(wrong):
    with pytest.raises(ValueError, match="parts of"):
        RegionalSettings(**wrong)
    with pytest.raises(ModelError):
        RegionalSettings("slow")


def test_a_region_with_keys_of_its_own_does_not_see_the_shots():
    shares = torch.zeros(1, 2, 2, 4)
    shares[0, 0, :, :2], shares[0, 1, :, 2:3] = 1, 1
    segments = torch.tensor([[0, 0, 1, 1, 1, 2, -1]])
    regions = Regions(shares, segments, torch.tensor([[True, False]]))
    cpu = torch.device("cpu")
    seen = (regions.bias(8, torch.float32, cpu)[0, 0] == 0).int().tolist()
    assert seen[0] == seen[5] == [0, 0, 1, 1, 1, 0, 0]
    assert seen[2] == [1, 1, 0, 0, 0, 1, 0]
    assert seen[3] == [1, 1, 0, 0, 0, 0, 0]
    twice = regions.rows([0, 0]).bias(8, torch.float32, cpu)
    assert torch.equal(twice[0] == 0, twice[1] == 0)
    assert (twice[1, 0] == 0).int().tolist() == seen

# SPDX-License-Identifier: GPL-3.0-or-later
"""SDXL: single files draw as their folders do; LoRAs of all namings do the same; exact weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onmodel.jobs.artist import DrawError

from tests.server import lora_files, original_layout
from tests.server.drawing import Blobs, draw, make_artist, make_data, make_request, pixels


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    data = make_data(tmp_path_factory.mktemp("data"))
    folder = data / "loras"
    folder.mkdir()
    found = lora_files.pairs(data / "models" / "tiny")
    lora_files.diffusers_file(folder / "diffusers.safetensors", found, alpha=2.0)
    lora_files.kohya_file(folder / "kohya.safetensors", found, 2.0, original=False)
    lora_files.kohya_file(folder / "original.safetensors", found, 2.0, original=True)
    lora_files.kohya_file(folder / "third.safetensors", found, 3.0, original=False)
    other = {("unet", "down_blocks.1.nowhere"): next(iter(found.values()))}
    lora_files.kohya_file(folder / "other.safetensors", other, 2.0, original=False)
    misfit = {("unet", lora_files.attention[0]): (torch.zeros(2, 5), torch.zeros(7, 2))}
    lora_files.kohya_file(folder / "misfit.safetensors", misfit, 2.0, original=False)
    return data


@pytest.fixture(scope="module")
def artist(data):
    return make_artist(data)


@pytest.fixture(scope="module")
def blobs():
    return Blobs()


def with_lora(blobs, name: str, weight: float = 1.0, **more) -> dict:
    return make_request(blobs, loras=[{"name": name, "weight": weight, "hash": None}], **more)


def test_single_file_draws_what_its_folder_draws(data, artist, blobs, tmp_path):
    import shutil

    models = tmp_path / "models"
    models.mkdir()
    original_layout.write(data / "models" / "tiny", models / "one.safetensors")
    shutil.copytree(data / "models" / "tiny" / "controlnet", tmp_path / "controlnet" / "union")
    single = make_artist(tmp_path)
    assert [m["name"] for m in single.models()] == ["one"]
    from_file = draw(single, blobs, make_request(blobs, model="one"))["0"]
    from_folder = draw(artist, blobs, make_request(blobs))["0"]
    assert np.abs(pixels(from_file) - pixels(from_folder)).max() <= 1


def test_all_namings_of_a_lora_draw_the_same(artist, blobs):
    plain = pixels(draw(artist, blobs, make_request(blobs))["0"])
    drawn = {n: pixels(draw(artist, blobs, with_lora(blobs, n))["0"]) for n in ("diffusers",)}
    for name in ("kohya", "original"):
        drawn[name] = pixels(draw(artist, blobs, with_lora(blobs, name))["0"])
        assert np.abs(drawn[name] - drawn["diffusers"]).max() <= 1
    assert np.abs(drawn["kohya"] - plain).mean() > 1


def test_weight_zero_is_no_lora(artist, blobs):
    before = draw(artist, blobs, make_request(blobs))["0"]
    draw(artist, blobs, with_lora(blobs, "kohya"))
    zero = draw(artist, blobs, with_lora(blobs, "kohya", 0.0))["0"]
    after = draw(artist, blobs, make_request(blobs))["0"]
    assert np.array_equal(pixels(zero), pixels(before))
    assert np.array_equal(pixels(after), pixels(before))


def test_lora_is_exactly_its_matrices(data, artist, blobs):
    """A LoRA at weight 0.5 with alpha 2 and rank 4 adds 0.25 · up · down to each module."""
    draw(artist, blobs, with_lora(blobs, "kohya", 0.5))
    family = artist._loaded.family
    found = lora_files.pairs(data / "models" / "tiny")
    for (component, module), (down, up) in found.items():
        parts = family.components[component]
        parts = getattr(parts, "text_model", parts)
        layer = parts.get_submodule(module)
        x = torch.randn(3, down.shape[1])
        with torch.no_grad():
            difference = layer(x) - layer.get_base_layer()(x)
        assert torch.allclose(difference, 0.25 * x @ down.T @ up.T, atol=1e-3)


def test_loras_add_up_and_come_and_go(artist, blobs, monkeypatch):
    """Two at half weight are one; also where only one fits on the shelf, so that others leave."""
    monkeypatch.setattr("onmodel.models.loras.warm_limit", 1)
    whole = pixels(draw(artist, blobs, with_lora(blobs, "kohya"))["0"])
    halves = [{"name": n, "weight": 0.5, "hash": None} for n in ("kohya", "diffusers")]
    both = pixels(draw(artist, blobs, make_request(blobs, loras=halves))["0"])
    assert np.abs(both - whole).max() <= 1
    plain = pixels(draw(artist, blobs, make_request(blobs))["0"])
    again = pixels(draw(artist, blobs, with_lora(blobs, "original"))["0"])
    assert len(artist._loaded.shelf._warm) == 1
    assert np.abs(again - whole).max() <= 1 and np.abs(plain - whole).mean() > 1


def test_a_refused_lora_leaves_the_others_acting(artist, blobs):
    before = pixels(draw(artist, blobs, with_lora(blobs, "kohya"))["0"])
    mixed = [{"name": n, "weight": 1.0, "hash": None} for n in ("kohya", "misfit")]
    with pytest.raises(DrawError):
        draw(artist, blobs, make_request(blobs, loras=mixed))
    after = pixels(draw(artist, blobs, with_lora(blobs, "kohya"))["0"])
    assert np.array_equal(before, after)


def test_half_a_lora_does_not_stay(artist, blobs, monkeypatch):
    from onmodel.models import loras

    plain = pixels(draw(artist, blobs, make_request(blobs))["0"])
    fill, filled = loras._fill, []

    def break_at_third(*parts):
        filled.append(1)
        if len(filled) == 3:
            raise MemoryError
        fill(*parts)

    monkeypatch.setattr(loras, "_fill", break_at_third)
    with pytest.raises(MemoryError):
        draw(artist, blobs, with_lora(blobs, "third"))
    assert np.array_equal(pixels(draw(artist, blobs, make_request(blobs))["0"]), plain)


def test_characters_loras_act_too(artist, blobs):
    """In their region: see test_regional_loras."""
    request = make_request(blobs)
    request["characters"][0]["loras"] = [{"name": "kohya", "weight": 1.0, "hash": None}]
    plain = make_request(blobs)
    assert artist.batch_key(request) == artist.batch_key(plain)
    a = draw(artist, blobs, request)["0"]
    assert np.abs(pixels(a) - pixels(draw(artist, blobs, plain)["0"])).mean() > 0.5
    (lora,) = a.record["loras"]
    assert lora["name"] == "kohya" and lora["character"] == "Ann" and len(lora["hash"]) == 64


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nobody", "There is no LoRA “nobody” here"),
        ("other", "the model has no part"),
        ("misfit", "the LoRA is for 7x5"),
    ],
)
def test_loras_that_cannot_be_used(artist, blobs, name, words):
    with pytest.raises(DrawError) as caught:
        draw(artist, blobs, with_lora(blobs, name))
    assert words in caught.value.message and caught.value.fix
    draw(artist, blobs, make_request(blobs))


def test_pinned_lora_that_changed(artist, blobs):
    request = make_request(blobs, loras=[{"name": "kohya", "weight": 1.0, "hash": "0" * 64}])
    with pytest.raises(DrawError, match="its file has changed"):
        draw(artist, blobs, request)


def test_model_without_controlnet_says_so(data, blobs, tmp_path):
    import shutil

    shutil.copytree(data / "models" / "tiny", tmp_path / "models" / "tiny")
    shutil.rmtree(tmp_path / "models" / "tiny" / "controlnet")
    bare = make_artist(tmp_path)
    assert bare.models()[0]["map_kinds"] == []
    with pytest.raises(DrawError) as caught:
        draw(bare, blobs, make_request(blobs))
    assert "cannot follow the depth map" in caught.value.message
    assert "union ControlNet" in caught.value.fix
    assert draw(bare, blobs, make_request(blobs, maps=[]))["0"].png


def test_damaged_weights_are_a_sentence(data, blobs, tmp_path):
    import shutil

    shutil.copytree(data / "models" / "tiny", tmp_path / "models" / "tiny")
    vae = tmp_path / "models" / "tiny" / "vae" / "diffusion_pytorch_model.safetensors"
    vae.write_bytes(vae.read_bytes()[:-100])
    with pytest.raises(DrawError, match="cut off"):
        draw(make_artist(tmp_path), blobs, make_request(blobs))


def test_flux_in_one_file_is_recognised_and_refused(blobs, tmp_path):
    (tmp_path / "models").mkdir()
    header = {"double_blocks.0.img_attn.qkv.weight": lora_files.entry([4], 0, 16)}
    lora_files.raw(tmp_path / "models" / "flux.safetensors", header, bytes(16))
    request = make_request(blobs, model="flux", maps=[], characters=[])
    with pytest.raises(DrawError, match="in one file"):
        draw(make_artist(tmp_path), blobs, request | {"canvas": big_canvas()})


def big_canvas() -> dict:
    return {
        "width": 1024,
        "height": 1024,
        "crop": {"x": 0.0, "y": 0.0, "width": 1024.0, "height": 1024.0},
    }


def test_prompts_longer_than_the_encoder_are_drawn_whole(artist, blobs):
    draw(artist, blobs, make_request(blobs))
    family = artist._loaded.family
    long = "a red coat , " * 40
    assert family.embed(long).keys.shape[0] == 3 * 77
    same_start = "a red coat , " * 40 + "angry man in the street"
    a = draw(artist, blobs, make_request(blobs, prompt=long))["0"]
    b = draw(artist, blobs, make_request(blobs, prompt=same_start))["0"]
    assert not np.array_equal(pixels(a), pixels(b))


def test_inpainting_changes_only_what_it_may(artist, blobs, monkeypatch):
    from onmodel.generate.sampler import Settings, Start, sample
    from onmodel.models.family import Picture

    draw(artist, blobs, make_request(blobs))
    family = artist._loaded.family
    image = np.random.default_rng(1).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)
    latents = family.encode(image)
    decode, seen = family.decode, []
    monkeypatch.setattr(family, "decode", lambda x: seen.append(x) or decode(x))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    for strength in (1.0, 0.5):
        start = Start(latents, strength, mask)
        settings = Settings("euler", 4, 1.0)
        watcher = Quiet()
        ((row, _),) = sample(family, [Picture("a room", "", 64, 64, 3)], settings, watcher, start)
        assert row == 0 and watcher.steps == 4 * strength
        assert torch.equal(seen[-1][..., 4:], latents[..., 4:])
        assert (seen[-1][..., :4] - latents[..., :4]).abs().mean() > 0.1


class Quiet:
    """Watches and says nothing."""

    steps = 0

    def step(self, row, step, steps):
        self.steps = steps

    def preview(self, row, step, steps, image):
        assert image.dtype == np.uint8

    def cancelled(self, row):
        return False

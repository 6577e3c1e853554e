# SPDX-License-Identifier: GPL-3.0-or-later
"""IP-Adapters on a tiny SDXL: as diffusers draws them, bound to regions, chosen, refused, told."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from onmodel.api import check, schemas
from onmodel.faces.face_pass import head_picture
from onmodel.faces.keyframe import Draft
from onmodel.generate import references, regional_settings
from onmodel.generate.artist import Artist
from onmodel.generate.references import Portraits, weight_of
from onmodel.generate.regional_settings import RegionalSettings
from onmodel.generate.sampler import Settings, denoised
from onmodel.identity.interface import NoFace, unit
from onmodel.jobs.artist import DrawError
from onmodel.models.errors import ModelError
from onmodel.models.family import Look, Picture, RegionPrompt
from PIL import Image

from tests.server import ip_adapters
from tests.server.drawing import Blobs, draw, make_artist, make_data, make_request, pixels
from tests.server.regional import bind, first_step, picture, sides, unet, use, write_lora


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    data = make_data(tmp_path_factory.mktemp("data"))
    folder, model = data / "ip-adapter", data / "models" / "tiny"
    ip_adapters.write_encoder(folder / "image_encoder")
    for kind in ("plain", "plus", "faceid"):
        ip_adapters.write_adapter(folder / f"{kind}.safetensors", model, kind)
    write_lora(data / "loras" / "ann.safetensors", model, 1, unet)
    return data


@pytest.fixture(scope="module")
def shared(data, blobs) -> Artist:
    artist = make_artist(data)
    draw(artist, blobs, make_request(blobs))
    return artist


@pytest.fixture
def artist(shared):
    """The warm artist; afterwards no adapter is on its model."""
    yield shared
    shared._loaded.family.use_adapter(None)
    shared._loaded.adapter = None


@pytest.fixture(scope="module")
def blobs():
    return Blobs()


def portrait(seed: int, size: tuple[int, int] = (40, 32)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


def adapter(artist: Artist, name: str):
    return next(a for a in artist.registry.adapters() if a.name == name)


def look(*seeds: int, weight: float = 0.8) -> Look:
    return Look(tuple(map(str, seeds)), tuple(portrait(s) for s in seeds), weight)


class Unwatched:
    """Nobody looks, nobody cancels."""

    def step(self, *args): ...

    def preview(self, *args): ...

    def cancelled(self, row):
        return False


@pytest.mark.parametrize("kind", ["plain", "plus", "faceid"])
def test_over_the_whole_picture_it_is_diffusers_own(data, artist, kind):
    """Two portraits, guidance, three steps: the latents of StableDiffusionXLPipeline."""
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(data / "models/tiny", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    faces = kind == "faceid"
    pipe.load_ip_adapter(
        str(data / "ip-adapter"),
        subfolder="",
        weight_name=f"{kind}.safetensors",
        image_encoder_folder=None if faces else "image_encoder",
        local_files_only=True,
    )
    pipe.set_ip_adapter_scale(0.8)
    shown = look(1, 2)
    if faces:
        rng = np.random.default_rng(0)
        shown = Look(("f",), tuple(unit(rng.normal(size=16)) for _ in range(2)), 0.8)
        embeds = torch.from_numpy(np.stack(shown.portraits))[None]
        given = {"ip_adapter_image_embeds": [torch.cat([torch.zeros_like(embeds), embeds])]}
    else:
        given = {"ip_adapter_image": [[Image.fromarray(p) for p in shown.portraits]]}
    theirs = pipe(
        "a red coat",
        width=128,
        height=96,
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(4),
        output_type="latent",
        **given,
    ).images
    family = artist._loaded.family
    plain = Picture("a red coat", "", 128, 96, 4)
    settings = Settings("default", 3, 3.0)
    family.use_adapter(adapter(artist, kind))
    held = Picture("a red coat", "", 128, 96, 4, look=shown)
    _, ours = denoised(family, [held], settings, Unwatched())
    _, without = denoised(family, [plain], settings, Unwatched())
    size = theirs.abs().max()
    assert (ours - theirs).abs().max() < 1e-4 * max(1.0, float(size))
    assert (ours - without).abs().max() > 0.01 * size


def first_attention(artist: Artist, *regions: RegionPrompt) -> torch.Tensor:
    """(tokens, C) of the guided row, what the UNet's first cross-attention gives at one step."""
    model = artist._loaded.family.parts.unet
    seen: list[torch.Tensor] = []
    layer = model.get_submodule("down_blocks.1.attentions.0.transformer_blocks.0.attn2")
    handle = layer.register_forward_hook(lambda module, args, out: seen.append(out.clone()))
    try:
        first_step(artist, picture(*regions))
    finally:
        handle.remove()
    return seen[0][1]


def test_a_masked_adapter_changes_its_region_alone(artist):
    """In one layer; further on self-attention carries changes over the border, as everything."""
    left, _ = sides()
    bare = first_attention(artist, RegionPrompt("red coat", left))
    artist._loaded.family.use_adapter(adapter(artist, "plus"))
    held = first_attention(artist, RegionPrompt("red coat", left, look=look(1)))
    changed = ((held - bare).abs().max(-1).values > 0).view(6, 8)
    assert changed[:, :4].all() and not changed[:, 4:].any()
    # A region whose edge halves a token gives it half.
    edge = left.copy()
    edge[:, 56:] = False
    part = first_attention(artist, RegionPrompt("red coat", edge, look=look(1)))
    inside = (held - bare).view(6, 8, -1)[:, 3]
    assert torch.allclose((part - bare).view(6, 8, -1)[:, 3], inside / 2, atol=1e-5)


def test_two_characters_do_not_see_each_others_tokens(artist):
    left, right = sides()
    artist._loaded.family.use_adapter(adapter(artist, "plain"))
    ann = RegionPrompt("red coat", left, look=look(1, weight=0.5))
    # Three portraits beside one: padded tokens are seen by nobody.
    both = first_attention(artist, ann, RegionPrompt("angry", right, look=look(2, 3, 4)))
    other = first_attention(artist, ann, RegionPrompt("angry", right, look=look(5)))
    alone = first_attention(artist, ann, RegionPrompt("angry", right))
    lone = alone.view(6, 8, -1)[:, :4]
    for found in (both, other):
        assert torch.allclose(found.view(6, 8, -1)[:, :4], lone, atol=1e-5)
    changed = (both - other).abs().max(-1).values.view(6, 8)
    assert (changed[:, 4:] > 1e-3).all() and (changed[:, :4] < 1e-5).all()


def test_casts_may_differ_in_a_batch_and_ways_agree(artist):
    left, right = sides()
    use(artist, {}, ["ann"])
    artist._loaded.family.use_adapter(adapter(artist, "plus"))
    ann = RegionPrompt("red coat", left, bind(artist, ann=1.0))
    mixed = picture(ann, RegionPrompt("angry", right, look=look(1)))
    held, none = picture(RegionPrompt("", left, look=look(2, 3))), picture()
    together = first_step(artist, mixed, none, held)
    for row, one in enumerate((mixed, none, held)):
        assert (together[row : row + 1] - first_step(artist, one)).abs().max() < 1e-4
    passes = first_step(artist, mixed, held, settings=RegionalSettings("pass"))
    batch = first_step(artist, mixed, held, settings=RegionalSettings("batch"))
    assert (passes - batch).abs().max() < 1e-4
    prepared = artist._loaded.family.prepare([mixed, none, held], 3.0, regional_settings.standard)
    prepared.keep([0])
    assert {h.row for h in prepared.image_tokens(0.0, None)._held} == {0, 1}
    use(artist, {}, [])


def with_portraits(blobs, *counts: int, weight: float | None = None, **changes) -> dict:
    """A request whose characters have so many portraits."""
    request = make_request(blobs, **changes)
    for i, (character, count) in enumerate(zip(request["characters"], counts, strict=True)):
        character["references"] = [blobs.put_image(portrait(10 * i + n)) for n in range(count)]
        character["reference_weight"] = weight
    return request


def test_drawn_by_its_portraits_with_a_record(artist, blobs):
    plain = draw(artist, blobs, make_request(blobs))["0"]
    told = []
    request = with_portraits(blobs, 2, 0)
    request["characters"][0]["references"].append(blobs.put(b"no picture"))
    drawn = draw(artist, blobs, request, report=lambda t, kind, d: told.append((kind, d)))["0"]
    assert ("loading", {"message": "Loading the IP-Adapter plus"}) in told
    assert np.abs(pixels(drawn) - pixels(plain)).max() > 1
    ann, bob = drawn.record["references"]
    plus = adapter(artist, "plus")
    assert ann["adapter"] == {"name": "plus", "kind": "plus", "hash": plus.hash}
    assert (ann["character"], ann["weight"], ann["used"]) == ("Ann", 0.7, 2)
    [[number, reason]] = ann["refused"]
    assert number == 3 and "cannot be read as a picture" in reason
    assert bob["adapter"] is None and bob["reason"] == "It has no reference portraits."
    # Another weight, another picture; the adapter stays warm.
    told.clear()
    strong = draw(
        artist, blobs, with_portraits(blobs, 2, 0, weight=1.5), report=lambda *a: told.append(a[1])
    )
    assert np.abs(pixels(strong["0"]) - pixels(drawn)).max() > 1 and "loading" not in told
    assert artist.batch_key(request) != artist.batch_key(make_request(blobs))
    assert artist.max_batch(request) >= 1


def test_without_portraits_or_weight_it_is_bit_for_bit_as_before(data, artist, blobs):
    plain = pixels(draw(artist, blobs, make_request(blobs))["0"])
    held = draw(artist, blobs, with_portraits(blobs, 1, 1))["0"]
    assert not np.array_equal(pixels(held), plain)
    off = draw(artist, blobs, with_portraits(blobs, 1, 1, weight=0.0))["0"]
    assert np.array_equal(pixels(off), plain)
    assert [r["reason"] for r in off.record["references"]] == ["Its reference weight is 0."] * 2
    assert np.array_equal(pixels(draw(artist, blobs, make_request(blobs))["0"]), plain)
    with_lora = with_portraits(blobs, 1, 0)
    with_lora["characters"][0]["loras"] = [{"name": "ann", "weight": 1.0, "hash": None}]
    assert weight_of(with_lora["characters"][0]) == 0
    bare = copy.deepcopy(with_lora)
    bare["characters"][0]["references"] = []
    by_lora = draw(artist, blobs, with_lora)["0"]
    assert np.array_equal(pixels(by_lora), pixels(draw(artist, blobs, bare)["0"]))
    assert by_lora.record["references"][0]["reason"] == "Its LoRA holds it."


def only(data: Path, tmp_path: Path) -> Path:
    """The model in a data folder of its own, with an empty ip-adapter folder."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(data / "models" / "tiny")
    (tmp_path / "ip-adapter").mkdir()
    return tmp_path / "ip-adapter"


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("none", "There is no IP-Adapter here"),
        ("bin", "can run code when it is opened. Convert it to .safetensors"),
        ("no encoder", "needs a CLIP picture encoder whose layers have 64 numbers"),
        ("other family", "No IP-Adapter here fits “tiny”, which has 80 text features: “old” (48)"),
        ("no adapter", "is not an IP-Adapter of the published layout"),
        ("layers", "does not fit “tiny”"),
        ("damaged", "lacks parts or has parts of other sizes"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(data, blobs, tmp_path, case, sentence):
    """An error where the weight was asked for; else a word in the record of a drawing without."""
    from safetensors.torch import load_file, save_file

    folder, model = only(data, tmp_path), data / "models" / "tiny"
    if case == "bin":
        (folder / "adapter.bin").write_bytes(b"pickle")
    elif case == "no encoder":
        ip_adapters.write_adapter(folder / "plus.safetensors", model, "plus")
    elif case == "other family":
        ip_adapters.write_encoder(folder / "image_encoder")
        ip_adapters.write_adapter(folder / "old.safetensors", model, "plus", width=48)
    elif case == "no adapter":
        save_file({"x": torch.zeros(2)}, folder / "x.safetensors")
    elif case in ("layers", "damaged"):
        shutil.copytree(data / "ip-adapter" / "image_encoder", folder / "image_encoder")
        state = load_file(data / "ip-adapter" / "plus.safetensors")
        del state["ip_adapter.3.to_k_ip.weight" if case == "layers" else "image_proj.norm_out.bias"]
        save_file(state, folder / "plus.safetensors")
    artist = make_artist(tmp_path)
    with pytest.raises(DrawError) as caught:
        draw(artist, blobs, with_portraits(blobs, 1, 0, weight=0.5))
    assert sentence in f"{caught.value.message} {caught.value.fix}"
    assert caught.value.task_ids == ("0",)
    at_submit = check.why_unheld(artist.ip_adapters(), "tiny")
    assert bool(at_submit) == (case not in ("layers", "damaged"))  # seen only when it is loaded
    if at_submit:
        drawn = draw(artist, blobs, with_portraits(blobs, 1, 0))["0"]
        assert sentence in drawn.record["references"][0]["reason"]


def test_the_environment_names_another(data, artist, monkeypatch):
    entry = artist.registry.find("tiny")
    assert artist.registry.find_adapter(entry).name == "plus"
    monkeypatch.setenv("ONMODEL_IP_ADAPTER", "plain")
    assert artist.registry.find_adapter(entry).name == "plain"
    monkeypatch.setenv("ONMODEL_IP_ADAPTER", "gone")
    with pytest.raises(ModelError, match="no IP-Adapter “gone”"):
        artist.registry.find_adapter(entry)
    assert "ONMODEL_IP_ADAPTER names" in check.why_unheld(artist.ip_adapters(), "tiny")


def test_the_server_says_which_adapters_it_has_and_whom_they_hold(data, tmp_path, monkeypatch):
    for variable in ("ONMODEL_IP_ADAPTER", "ONMODEL_FACE_PACK"):
        monkeypatch.delenv(variable, raising=False)
    folder = only(data, tmp_path)
    artist = make_artist(tmp_path)
    assert artist.ip_adapters() == []
    shutil.copytree(data / "ip-adapter", folder, dirs_exist_ok=True)
    ip_adapters.write_adapter(folder / "old.safetensors", data / "models" / "tiny", "plus", 48)
    (folder / "pickled.bin").write_bytes(b"pickle")

    def told():
        found = [schemas.IpAdapter.model_validate(a) for a in artist.ip_adapters()]
        return {a.name: a for a in found}

    found = told()
    fits = {name: a.fits for name, a in found.items()}
    three = {kind: ["tiny"] for kind in ("faceid", "plain", "plus")}
    assert fits == {"old": [], "pickled": [], **three}
    assert {name for name, a in found.items() if a.chosen} == {"plus"}
    assert {name: a.kind for name, a in found.items()} == {
        "old": "plus",
        "pickled": "",
        **{name: name for name in three},
    }
    assert "can run code" in found["pickled"].problem and str(tmp_path) not in str(found)
    assert "needs InsightFace" in found["faceid"].problem and found["plus"].problem == ""
    monkeypatch.setenv("ONMODEL_IP_ADAPTER", "plain")
    assert [name for name, a in told().items() if a.chosen] == ["plain"]


class Faces:
    """An embedder that knows no face in dark pictures."""

    name, size = "double", 16

    def embed(self, image, head=None, yaw=None):
        if image.mean() < 100:
            return NoFace("undetected", "No face was found.")
        return unit(image.reshape(-1)[:16].astype(np.float32))


def test_faceid_asks_for_faces(data, artist, blobs, monkeypatch):
    monkeypatch.setenv("ONMODEL_IP_ADAPTER", "faceid")
    monkeypatch.delenv("ONMODEL_FACE_PACK", raising=False)
    request = with_portraits(blobs, 1, 0, weight=0.5)
    with pytest.raises(DrawError, match="is a FaceID one, which needs InsightFace"):
        draw(artist, blobs, request)
    monkeypatch.setattr(artist, "_portraits", Portraits(Faces()))
    request["characters"][0]["references"].append(blobs.put_image(portrait(1) // 4))
    ann = draw(artist, blobs, request)["0"].record["references"][0]
    assert (ann["used"], ann["refused"]) == (1, [[2, "No face was found."]])
    request["characters"][0]["references"].pop(0)
    with pytest.raises(DrawError, match="No portrait of “Ann” can hold it"):
        draw(artist, blobs, request)


def test_a_lora_inside_is_left_out_and_told(data, blobs, tmp_path):
    folder = only(data, tmp_path)
    path = folder / "faceid.safetensors"
    ip_adapters.write_adapter(path, data / "models" / "tiny", "faceid", lora=True)
    artist = make_artist(tmp_path)
    artist._portraits = Portraits(Faces())
    ann = draw(artist, blobs, with_portraits(blobs, 1, 0))["0"].record["references"][0]
    assert ann["used"] == 1 and "LoRA inside the adapter's file is not used" in ann["reason"]


def test_a_head_is_drawn_by_its_own_portraits(artist, blobs, monkeypatch):
    """In its square they act everywhere."""
    from tests.server.test_face_pass import add_head, ann_box

    seen: list[Picture] = []
    made = head_picture

    def spy(whole: Picture, draft: Draft, side: int) -> Picture:
        seen.append(made(whole, draft, side))
        return seen[-1]

    monkeypatch.setattr("onmodel.faces.face_pass.head_picture", spy)
    request = with_portraits(blobs, 1, 1)
    add_head(blobs, request["characters"][0], ann_box, 5.0)
    drawn = draw(artist, blobs, request)["0"]
    assert drawn.record["heads"][0]["face"]["state"] == "repaired"
    [head] = seen
    assert head.look is not None and head.look.weight == references.standard_weight
    assert np.array_equal(head.look.portraits[0], portrait(0)) and not head.regions

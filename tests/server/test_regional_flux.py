# SPDX-License-Identifier: GPL-3.0-or-later
"""Regions and regional LoRAs in Flux: who sees whom, each layer, the ways, leaks, the face pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onmodel.generate.joint_regions import JointRegions
from onmodel.generate.regional_loras import Fields, Rows
from onmodel.generate.regional_settings import RegionalSettings, standard
from onmodel.models.family import Picture, RegionPrompt
from safetensors.torch import load_file, save_file

from tests.server import tiny_flux
from tests.server.drawing import Blobs, draw, make_artist, make_request, pixels
from tests.server.regional import bind, size, use
from tests.server.test_face_pass import two_heads
from tests.server.test_models_flux import own_settings

double, single = "transformer_blocks.0", "single_transformer_blocks.0"
image = [f"{double}.attn.to_q", f"{double}.attn.to_out.0", f"{double}.ff.net.0.proj"]
text = [f"{double}.attn.add_k_proj", f"{double}.attn.to_add_out", f"{double}.ff_context.net.2"]
joint = [f"{single}.attn.to_v", f"{single}.proj_mlp", f"{single}.proj_out"]
both_sides = [f"{double}.attn.to_k", f"{double}.attn.to_v"]
every = [*image, *both_sides, *text, *joint, "x_embedder", "context_embedder"]
reference = [RegionalSettings("pass"), RegionalSettings("batch")]
every_way = [standard, *reference]
shot_words = 512
left = np.zeros(size, bool)
left[:, :64] = True
right, whole = ~left, np.ones(size, bool)


def write_lora(
    path: Path, model: Path, seed: int, modules: list[str], kohya: dict | None = None
) -> None:
    """A LoRA with random numbers that fits the model's transformer. kohya: its names there for
    several modules as one."""
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")
    state = {}
    for name in modules:
        inputs = weights[f"{name}.weight"].shape[1]
        down = torch.randn(3, inputs, generator=generator) * 0.5 / inputs**0.5
        up = torch.randn(len(weights[f"{name}.weight"]), 3, generator=generator)
        state[f"transformer.{name}.lora_A.weight"] = down
        state[f"transformer.{name}.lora_B.weight"] = up
        state[f"transformer.{name}.alpha"] = torch.tensor(1.5)
    for name, parts in (kohya or {}).items():
        ups = [state.pop(f"transformer.{p}.lora_B.weight") for p in parts]
        downs = [state.pop(f"transformer.{p}.lora_A.weight") for p in parts]
        alphas = [state.pop(f"transformer.{p}.alpha") for p in parts]
        state[f"lora_unet_{name}.lora_down.weight"] = downs[0]
        state[f"lora_unet_{name}.lora_up.weight"] = torch.cat(ups)
        state[f"lora_unet_{name}.alpha"] = alphas[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    data = tmp_path_factory.mktemp("flux")
    model = tiny_flux.build(data / "models" / "tiny")
    own_settings(model)
    write_lora(data / "loras" / "ann.safetensors", model, 1, every)
    write_lora(data / "loras" / "bob.safetensors", model, 2, every)
    write_lora(data / "loras" / "picture.safetensors", model, 3, image)
    write_lora(data / "loras" / "time.safetensors", model, 4, [f"{double}.norm1.linear"])
    qkv = [f"{double}.attn.to_{x}" for x in "qkv"]
    linear1 = [*(f"{single}.attn.to_{x}" for x in "qkv"), f"{single}.proj_mlp"]
    names = {"double_blocks_0_img_attn_qkv": qkv, "single_blocks_0_linear1": linear1}
    write_lora(data / "loras" / "kohya.safetensors", model, 5, [*qkv, *linear1], names)
    return data


@pytest.fixture(scope="module")
def artist(data):
    artist, blobs = make_artist(data), Blobs()
    draw(artist, blobs, make_request(blobs, maps=[]))
    return artist


def picture(*regions: RegionPrompt) -> Picture:
    return Picture("a room", "", size[1], size[0], 1, regions=regions)


noise = torch.randn(1, 4, 12, 16, generator=torch.Generator().manual_seed(9))


def first_step(artist, *pictures: Picture, settings: RegionalSettings = standard) -> torch.Tensor:
    """(B, 4, 12, 16): what the model says of the same noise for each picture."""
    family = artist._loaded.family
    prepared = family.prepare(list(pictures), 3.5, settings)
    latents = noise.expand(len(pictures), -1, -1, -1)
    return family.denoise(prepared, latents, torch.tensor(700.0), 0.0)


def spans(artist, *prompts: str) -> list[int]:
    """Tokens of the shot's prompt and of these."""
    family = artist._loaded.family
    return [shot_words, *(family.embed(p).words for p in prompts)]


def test_who_sees_whom():
    """Two image tokens for Ann, one for Bob, one for nobody; a shot of two words."""
    shares = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]]])
    regions = JointRegions(shares, (2, 2), torch.tensor([[0, 0, 1, 2, -1]]))
    wanted = [
        # shot  Ann  Bob  pad   Ann Ann  Bob  nobody
        [1, 1, 0, 0, 0, 1, 1, 1, 1],
        [1, 1, 0, 0, 0, 1, 1, 1, 1],
        [1, 1, 1, 0, 0, 1, 1, 0, 0],
        [1, 1, 0, 1, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 1, 1, 1, 1],
        [1, 1, 1, 0, 0, 1, 1, 1, 1],
        [1, 1, 0, 1, 0, 1, 1, 1, 1],
        [1, 1, 0, 0, 0, 1, 1, 1, 1],
    ]
    assert regions.mask[0, 0].int().tolist() == wanted


def test_a_prompt_reaches_its_own_tokens_alone_in_the_first_block(artist):
    seen = []
    block = artist._loaded.family.parts.transformer.transformer_blocks[0]
    handle = block.register_forward_hook(lambda m, args, out: seen.append(out))
    first_step(artist, picture(RegionPrompt("red coat", left)))
    first_step(artist, picture(RegionPrompt("angry man", left)))
    handle.remove()
    (text_a, image_a), (text_b, image_b) = seen
    a, b = (x.view(1, 6, 8, -1) for x in (image_a, image_b))
    assert torch.allclose(a[:, :, 4:], b[:, :, 4:], atol=1e-6)
    assert (a[:, :, :4] - b[:, :, :4]).abs().mean() > 1e-4
    assert torch.allclose(text_a[:, :shot_words], text_b[:, :shot_words], atol=1e-6)


@pytest.mark.parametrize("path", [*image, *text, *joint])
@torch.inference_mode()
def test_layers_outside_are_the_bases_and_inside_the_loras(artist, path):
    """Ann has the left half at weight 1, Bob the right at 0.5, and each its own words."""
    use(artist, {}, ["ann", "bob"])
    family = artist._loaded.family
    cast = [("red coat", left, {"ann": 1.0}), ("angry", right, {"bob": 0.5})]
    regions = [RegionPrompt(p, mask, bind(artist, **w)) for p, mask, w in cast]
    batch = family.prepare([picture(*regions)], 3.5)
    plan = batch.plan(0.0)
    assert isinstance(plan, Fields)
    words = batch.keys.shape[1]
    tokens = {"image": 48, "text": words, "joint": words + 48}
    kind = "image" if path in image else "text" if path in text else "joint"
    layer = family.parts.transformer.get_submodule(path)
    x = torch.randn(1, tokens[kind], layer.get_base_layer().in_features)
    base = layer(x)
    with family.regional.acting(plan):
        out = layer(x)
    shot, ann_words, bob_words = spans(artist, "red coat", "angry")
    owner = torch.zeros(words, dtype=torch.int64)
    owner[shot : shot + ann_words] = 1
    owner[shot + ann_words : shot + ann_words + bob_words] = 2
    grid = torch.ones(6, 8, dtype=torch.int64)
    grid[:, 4:] = 2
    whose = {"image": grid.flatten(), "text": owner, "joint": torch.cat([owner, grid.flatten()])}
    for name, weight, number in (("ann", 1.0, 1), ("bob", 0.5, 2)):
        (adapter, _), at = bind(artist, **{name: 1})[0], whose[kind] == number
        delta = layer.lora_B[adapter](layer.lora_A[adapter](x)) * 0.5 * weight
        assert torch.allclose(out[:, at], (base + delta)[:, at], atol=1e-5)
        assert (out - base)[:, at].abs().mean() > 0.05
    assert torch.equal(out[:, whose[kind] == 0], base[:, whose[kind] == 0])


def test_of_a_lora_on_the_picture_only_its_tokens_change_in_the_first_block(artist):
    use(artist, {}, ["picture"])
    seen = []
    block = artist._loaded.family.parts.transformer.transformer_blocks[0]
    handle = block.register_forward_hook(lambda m, args, out: seen.append(out))
    first_step(artist, picture(RegionPrompt("red coat", left)))
    first_step(artist, picture(RegionPrompt("red coat", left, bind(artist, picture=1.0))))
    handle.remove()
    (text_a, image_a), (text_b, image_b) = seen
    a, b = (x.view(1, 6, 8, -1) for x in (image_a, image_b))
    assert torch.equal(a[:, :, 4:], b[:, :, 4:])
    assert (a[:, :, :4] - b[:, :, :4]).abs().mean() > 0.01
    assert torch.equal(text_a, text_b)


def test_a_lora_without_a_share_changes_nothing(artist):
    use(artist, {}, ["ann"])
    nowhere = np.zeros(size, bool)
    plain = first_step(artist, picture(RegionPrompt("red coat", nowhere)))
    bound = RegionPrompt("red coat", nowhere, bind(artist, ann=1.0))
    assert torch.equal(first_step(artist, picture(bound)), plain)
    other = RegionPrompt("angry", left)
    assert torch.equal(
        first_step(artist, picture(bound, other)),
        first_step(artist, picture(RegionPrompt("red coat", nowhere), other)),
    )


@pytest.mark.parametrize("settings", every_way, ids=lambda s: s.way)
def test_a_mask_of_ones_is_the_plain_lora_bit_for_bit(artist, settings):
    use(artist, {"ann": 0.7}, [])
    plain = first_step(artist, picture(RegionPrompt("red coat", whole)))
    use(artist, {}, ["ann"])
    region = RegionPrompt("red coat", whole, bind(artist, ann=0.7))
    assert torch.equal(first_step(artist, picture(region), settings=settings), plain)
    none = first_step(artist, picture(RegionPrompt("red coat", whole)), settings=settings)
    assert (none - plain).abs().mean() > 0.01


def test_fields_of_ones_are_the_plain_lora(artist):
    """Beside a picture whose region is partial: every kind of layer, and the shot's words too."""
    use(artist, {"ann": 0.7, "bob": 0.4}, [])
    plain = first_step(artist, picture(RegionPrompt("red coat", whole)))
    use(artist, {}, ["ann", "bob"])
    both = picture(RegionPrompt("red coat", whole, bind(artist, ann=0.7, bob=0.4)))
    partial = picture(RegionPrompt("red coat", left, bind(artist, ann=1.0)))
    family = artist._loaded.family
    assert isinstance(family.prepare([both], 3.5).plan(0.0), Rows)
    assert isinstance(family.prepare([both, partial], 3.5).plan(0.0), Fields)
    out = first_step(artist, both, partial)
    assert torch.allclose(out[0], plain[0], atol=1e-4)
    assert torch.allclose(out[1], first_step(artist, partial)[0], atol=1e-4)


def test_reference_ways_are_plain_passes_blended_and_agree(artist):
    bare = [RegionPrompt("red coat", left), RegionPrompt("angry", right)]
    outs = []
    for name in ("ann", "bob"):
        use(artist, {name: 1.0}, [])
        outs.append(first_step(artist, picture(*bare))[0])
    use(artist, {}, ["ann", "bob"])
    pair = [
        RegionPrompt("red coat", left, bind(artist, ann=1.0)),
        RegionPrompt("angry", right, bind(artist, bob=1.0)),
    ]
    found = [first_step(artist, picture(*pair), settings=s)[0] for s in reference]
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert torch.allclose(found[0][..., :8], outs[0][..., :8], atol=1e-5)
    assert torch.allclose(found[0][..., 8:], outs[1][..., 8:], atol=1e-5)


def test_a_lora_leaks_little_into_the_neighbour(artist):
    """In one pass attention carries some of it over; far less than there is inside."""
    use(artist, {}, ["ann"])
    with_lora = first_step(artist, picture(RegionPrompt("", left, bind(artist, ann=1.0))))
    without = first_step(artist, picture(RegionPrompt("", left)))
    change = (with_lora - without).abs().mean((0, 1, 2))
    assert change[8:].mean() < 0.35 * change[:8].mean()
    exact = first_step(
        artist, picture(RegionPrompt("", left, bind(artist, ann=1.0))), settings=reference[0]
    )
    assert torch.equal(exact[..., 8:], without[..., 8:])


def test_kohyas_names_for_several_modules_as_one(artist, data):
    """Each module gets its rows of the fused matrix."""
    use(artist, {"kohya": 1.0}, [])
    (adapter, _) = bind(artist, kohya=1.0)[0]
    state = load_file(data / "loras" / "kohya.safetensors")
    transformer = artist._loaded.family.parts.transformer
    up = state["lora_unet_single_blocks_0_linear1.lora_up.weight"]
    parts = [f"{single}.attn.to_{x}" for x in "qkv"] + [f"{single}.proj_mlp"]
    found = [transformer.get_submodule(p).lora_B[adapter].weight for p in parts]
    assert torch.equal(torch.cat(found), up)
    key = transformer.get_submodule(f"{double}.attn.to_k")
    assert torch.equal(
        key.lora_B[adapter].weight,
        state["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"][32:64],
    )
    assert key.scaling[adapter] == 0.5
    use(artist, {}, [])


def test_what_has_no_place_is_drawn_by_passes(artist):
    blobs = Blobs()
    request = make_request(blobs, maps=[], sampling={"preset": "default", "steps": 1})
    request["characters"][0]["loras"] = [{"name": "time", "weight": 1.0, "hash": None}]
    (drawn,) = draw(artist, blobs, request).values()
    assert drawn.record["regional"] == "pass"


def test_heads_are_repaired(artist):
    """The face pass: both samplers, each head with its own LoRA, nothing outside of the squares."""
    blobs = Blobs()
    request = two_heads(blobs, maps=[], face={"min_height": 1})
    (drawn,) = draw(artist, blobs, request).values()
    states = [head["face"]["state"] for head in drawn.record["heads"]]
    assert states == ["repaired", "repaired"]
    off = request | {"face_pass": request["face_pass"] | {"enabled": False}}
    (before,) = draw(artist, blobs, off).values()
    change = np.abs(pixels(drawn) - pixels(before)).max(-1)
    assert change.max() > 0
    assert (change > 0).mean() < 0.5

# SPDX-License-Identifier: GPL-3.0-or-later
"""Regional LoRAs, one step: each layer, the whole model, the reference ways against peft's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from onmodel.generate import regional_settings
from onmodel.generate.regional_loras import Fields, Rows
from onmodel.generate.regional_settings import RegionalSettings, standard
from onmodel.generate.regions import token_grids
from onmodel.models.family import RegionPrompt

from tests.server.drawing import Blobs, draw, make_artist, make_data, make_request
from tests.server.regional import (
    bind,
    first_step,
    layers,
    picture,
    sides,
    size,
    text,
    unet,
    use,
    write_lora,
)

reference = [RegionalSettings("pass"), RegionalSettings("batch")]
every_way = [standard, *reference]
left, right = sides()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    data = make_data(tmp_path_factory.mktemp("data"))
    model = data / "models" / "tiny"
    write_lora(data / "loras" / "ann.safetensors", model, 1, unet)
    write_lora(data / "loras" / "bob.safetensors", model, 2, unet, rank=5)
    write_lora(data / "loras" / "eve.safetensors", model, 3, unet, text)
    return data


@pytest.fixture(scope="module")
def artist(data):
    artist, blobs = make_artist(data), Blobs()
    draw(artist, blobs, make_request(blobs))
    return artist


def plan(artist, masks: list[torch.Tensor], weights: list[dict[str, float]]) -> Fields:
    """For one picture of 12x16 latents whose text keys are the shot's 4, then 3 per region."""
    names = artist._loaded.family.regional.names
    table = torch.zeros(1, len(masks), len(names))
    for r, row in enumerate(weights):
        for name, weight in row.items():
            table[0, r, names.index(bind(artist, **{name: 1})[0][0])] = weight
    segments = torch.tensor([[0] * 4 + [r + 1 for r in range(len(masks)) for _ in range(3)]])
    shares = torch.stack(masks)[None].float()
    return Fields(shares, table, segments, token_grids(12, 16), standard, torch.float32)


def example(artist, path: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """A layer, and an input such as it gets in the model."""
    layer = artist._loaded.family.parts.unet.get_submodule(path)
    torch.manual_seed(4)
    weight = layer.get_base_layer().weight
    if path in layers["keys"]:
        return layer, torch.randn(1, 10, weight.shape[1])
    level = (6, 8) if path.startswith("down_blocks.1") else (12, 16)
    if path in layers["space"]:
        return layer, torch.randn(1, weight.shape[1], *level)
    return layer, torch.randn(1, level[0] * level[1], weight.shape[1])


def delta(layer, name: str, x: torch.Tensor) -> torch.Tensor:
    """What the LoRA adds, by its matrices alone."""
    return layer.lora_B[name](layer.lora_A[name](x)) * 0.5


@pytest.mark.parametrize("path", layers["tokens"] + layers["keys"] + layers["space"])
@torch.inference_mode()
def test_layers_outside_are_the_bases_and_inside_the_loras(artist, path):
    """Ann has the left half at weight 1, Bob the next quarter at 0.5, nobody the rest."""
    use(artist, {}, ["ann", "bob"])
    masks = [torch.zeros(12, 16), torch.zeros(12, 16)]
    masks[0][:, :8], masks[1][:, 8:12] = 1, 1
    layer, x = example(artist, path)
    (ann, _), (bob, _) = bind(artist, ann=1)[0], bind(artist, bob=1)[0]
    base = layer(x)
    assert torch.equal(base, layer.get_base_layer()(x))  # nothing acts without a plan
    with artist._loaded.family.regional.acting(plan(artist, masks, [{"ann": 1}, {"bob": 0.5}])):
        out = layer(x)
    ann_out, bob_out = base + delta(layer, ann, x), base + delta(layer, bob, x) * 0.5
    got = columns(path, out, ann_out, bob_out, base)
    assert torch.equal(got["nobody"][0], got["nobody"][3])
    for name, place in (("ann", 1), ("bob", 2)):
        assert torch.allclose(got[name][0], got[name][place], atol=1e-4)
        assert (got[name][0] - got[name][3]).abs().mean() > 0.05


def columns(path: str, *outs: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """The part of each output that is Ann's (half of the width), Bob's (a quarter), nobody's."""
    if path in layers["keys"]:
        parts = {"ann": slice(4, 7), "bob": slice(7, 10), "nobody": slice(0, 4)}
        return {name: [out[:, at] for out in outs] for name, at in parts.items()}
    if outs[0].ndim == 3:
        grid = {48: (6, 8), 192: (12, 16)}[outs[0].shape[1]]
        outs = tuple(out.transpose(1, 2).unflatten(2, grid) for out in outs)
    quarter = outs[0].shape[-1] // 4
    return {
        "ann": [out[..., : 2 * quarter] for out in outs],
        "bob": [out[..., 2 * quarter : 3 * quarter] for out in outs],
        "nobody": [out[..., 3 * quarter :] for out in outs],
    }


@torch.inference_mode()
def test_a_time_projection_acts_where_its_vector_is_added(artist):
    """Its output goes to the whole picture; the region's part is added before norm2."""
    use(artist, {}, ["ann"])
    (path,) = layers["time"]
    resnet = artist._loaded.family.parts.unet.get_submodule(path.rpartition(".")[0])
    layer, mask = resnet.time_emb_proj, torch.zeros(12, 16)
    mask[:, :8] = 1
    seen = []
    handle = resnet.norm2.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    x = torch.randn(1, resnet.conv1.in_channels, 12, 16)
    time = torch.randn(1, layer.get_base_layer().in_features)
    resnet(x, time)
    with artist._loaded.family.regional.acting(plan(artist, [mask], [{"ann": 1}])):
        resnet(x, time)
    handle.remove()
    added = delta(layer, bind(artist, ann=1)[0][0], torch.nn.functional.silu(time))
    assert torch.equal(seen[0][..., 8:], seen[1][..., 8:])
    assert torch.allclose(seen[1][..., :8] - seen[0][..., :8], added[..., None, None], atol=1e-5)


@pytest.mark.parametrize("path", layers["tokens"][:1] + layers["space"][:1])
@torch.inference_mode()
def test_soft_edges_several_loras_and_two_who_share_one(artist, path):
    """Weights times shares, added up: two LoRAs on one character, one LoRA on two."""
    use(artist, {}, ["ann", "bob"])
    masks = [torch.full((12, 16), 0.25), torch.full((12, 16), 0.5)]
    layer, x = example(artist, path)
    fields = plan(artist, masks, [{"ann": 1, "bob": -0.5}, {"ann": 0.5}])
    with artist._loaded.family.regional.acting(fields):
        out = layer(x)
    (ann, _), (bob, _) = bind(artist, ann=1)[0], bind(artist, bob=1)[0]
    wanted = layer.get_base_layer()(x)
    wanted = wanted + delta(layer, ann, x) * (0.25 + 0.25) + delta(layer, bob, x) * -0.125
    assert torch.allclose(out, wanted, atol=1e-4)


@pytest.mark.parametrize("path", unet)
@torch.inference_mode()
def test_rows_are_what_peft_does_with_adapter_names(artist, path):
    """Held against peft's public `adapter_names`: an adapter per sample of a batch."""
    use(artist, {}, ["ann", "bob"])
    (ann, _), (bob, _) = bind(artist, ann=1)[0], bind(artist, bob=1)[0]
    layer = artist._loaded.family.parts.unet.get_submodule(path)
    weight = layer.get_base_layer().weight
    x = torch.randn(4, *((weight.shape[1], 6, 8) if weight.ndim == 4 else (7, weight.shape[1])))
    names = ["__base__", ann, ann, bob]
    layer.set_scale(ann, 0.5)
    layer.set_scale(bob, 2.0)
    wanted = layer(x, adapter_names=names)
    runs = [(slice(1, 3), ((ann, 0.5),)), (slice(3, 4), ((bob, 2.0),))]
    with artist._loaded.family.regional.acting(Rows(runs)):
        assert torch.allclose(layer(x), wanted, atol=1e-6)


@pytest.mark.parametrize("settings", every_way, ids=lambda s: s.way)
def test_a_mask_of_ones_is_the_plain_lora_bit_for_bit(artist, settings):
    whole = np.ones(size, bool)
    use(artist, {"ann": 0.7}, [])
    plain = first_step(artist, picture(RegionPrompt("red coat", whole)))
    use(artist, {}, ["ann"])
    region = RegionPrompt("red coat", whole, bind(artist, ann=0.7))
    assert torch.equal(first_step(artist, picture(region), settings=settings), plain)
    none = first_step(artist, picture(RegionPrompt("red coat", whole)), settings=settings)
    assert (none - plain).abs().mean() > 0.01


def test_fields_of_ones_are_the_plain_lora(artist):
    """The masked sums themselves, which a mask of ones does not need: every kind of layer."""
    whole = np.ones(size, bool)
    use(artist, {"ann": 0.7, "bob": 0.4}, [])
    plain = first_step(artist, picture(RegionPrompt("red coat", whole)))
    use(artist, {}, ["ann", "bob"])
    family = artist._loaded.family
    both = RegionPrompt("red coat", whole, bind(artist, ann=0.7, bob=0.4))
    partial = RegionPrompt("red coat", left, bind(artist, ann=1.0))
    # Beside a picture whose region is partial, the batch is drawn by fields.
    assert isinstance(family.prepare([picture(both)], 3.0).plan(0.0), Rows)
    assert isinstance(family.prepare([picture(both), picture(partial)], 3.0).plan(0.0), Fields)
    out = first_step(artist, picture(both), picture(partial))
    assert torch.allclose(out[0], plain[0], atol=1e-4)
    assert not torch.allclose(out[1], plain[0], atol=1e-1)


def test_reference_ways_are_plain_passes_blended(artist):
    """Exact: each half is the model with that half's LoRA alone on the whole picture."""
    bare = [RegionPrompt("red coat", left), RegionPrompt("angry", right)]
    outs = []
    for name in ("ann", "bob"):
        use(artist, {name: 1.0}, [])
        outs.append(first_step(artist, picture(*bare)))
    use(artist, {}, ["ann", "bob"])
    none = first_step(artist, picture(*bare))
    pair = [
        RegionPrompt("red coat", left, bind(artist, ann=1.0)),
        RegionPrompt("angry", right, bind(artist, bob=1.0)),
    ]
    lone = [RegionPrompt("red coat", left), pair[1]]
    for settings in reference:
        got, alone = first_step(artist, picture(*pair), picture(*lone), settings=settings)
        assert torch.allclose(got[..., :8], outs[0][0][..., :8], atol=1e-5)
        assert torch.allclose(got[..., 8:], outs[1][0][..., 8:], atol=1e-5)
        assert torch.allclose(alone[..., :8], none[0][..., :8], atol=1e-5)
        assert torch.allclose(alone[..., 8:], outs[1][0][..., 8:], atol=1e-5)


def test_pass_and_batch_agree(artist):
    use(artist, {"eve": 0.3}, ["ann", "bob"])
    mask = np.zeros(size, bool)
    mask[20:77, 30:61] = True
    cast = picture(
        RegionPrompt("red coat", mask, bind(artist, ann=1.0, bob=0.5)),
        RegionPrompt("angry", right, bind(artist, ann=-0.5)),
    )
    other = picture(RegionPrompt("man", right, bind(artist, bob=1.0)))
    empty = picture(RegionPrompt("man", right))
    a, b = (first_step(artist, cast, other, empty, settings=s) for s in reference)
    assert (a - b).abs().max() < 1e-5
    assert (a[0] - a[1]).abs().mean() > 0.01


def answers(artist, one, settings) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model says without and with the prompt: out(g) = without + g * (with - without)."""
    two, three = (first_step(artist, one, settings=settings, guidance=g) for g in (2.0, 3.0))
    return 3 * two - 2 * three, 2 * two - three


@pytest.mark.parametrize("way", regional_settings.ways)
def test_guided_loras_leave_the_answer_alone_that_guidance_leads_away_from(artist, way):
    left, _ = sides()
    use(artist, {}, ["ann"])
    bound = picture(RegionPrompt("Ann", left, bind(artist, ann=1.0)))
    settings, family = RegionalSettings(way, own_keys=False), artist._loaded.family
    usual = answers(artist, bound, settings)
    base = answers(artist, picture(RegionPrompt("Ann", left)), settings)
    before = family.entry
    family.entry = dataclasses.replace(before, guided_loras=True)
    try:
        guided = answers(artist, bound, settings)
    finally:
        family.entry = before
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(guided[0], base[0], **close)
    torch.testing.assert_close(guided[1], usual[1], **close)
    assert (usual[0] - base[0]).abs().max() > 0.01


def test_swapped_masks_are_swapped_effects(artist):
    """In one pass too: each half is nearer to its own LoRA's picture than to the other's."""
    bare = [RegionPrompt("red coat", left), RegionPrompt("red coat", right)]
    plain = {}
    for name in ("ann", "bob"):
        use(artist, {name: 1.0}, [])
        plain[name] = first_step(artist, picture(*bare))[0]
    use(artist, {}, ["ann", "bob"])
    ann, bob = bind(artist, ann=1.0), bind(artist, bob=1.0)
    for first, second in ((ann, bob), (bob, ann)):
        regions = [RegionPrompt("red coat", left, first), RegionPrompt("red coat", right, second)]
        out = first_step(artist, picture(*regions))[0]
        own, other = ("ann", "bob") if first is ann else ("bob", "ann")
        for name, stranger, half in ((own, other, slice(0, 6)), (other, own, slice(10, 16))):
            near = (out - plain[name])[..., half].abs().mean()
            far = (out - plain[stranger])[..., half].abs().mean()
            assert near < 0.5 * far


def test_outside_only_the_models_reach_carries_a_change(artist):
    """Not exact in one pass: convolutions and self-attention carry some, far less than inside."""
    use(artist, {}, ["ann"])
    regions = [RegionPrompt("red coat", left, bind(artist, ann=1.0))]
    with_lora = first_step(artist, picture(*regions))
    without = first_step(artist, picture(RegionPrompt("red coat", left)))
    change = (with_lora - without).abs().mean((0, 1, 2))
    assert change[10:].mean() < 0.35 * change[:6].mean()
    exact = first_step(artist, picture(*regions), settings=reference[0])
    assert torch.equal(exact[..., 8:], without[..., 8:])


def test_without_own_keys_only_the_own_prompts_keys_change(artist):
    use(artist, {}, ["ann"])
    family = artist._loaded.family
    cast = picture(RegionPrompt("red coat", left, bind(artist, ann=1.0)))
    copied = family.prepare([cast], 3.0)
    plain = family.prepare([cast], 3.0, RegionalSettings(own_keys=False))
    assert copied.regions.segments[:, :232].ne(-1).sum(1).tolist() == [154, 231]
    assert plain.regions.segments.ne(-1).sum(1).tolist() == [77, 154]
    assert torch.equal(copied.keys[1, 77:154], copied.keys[1, :77])
    a, b = first_step(artist, cast), first_step(artist, cast, settings=plain.settings)
    assert (a - b).abs().max() > 0


def test_text_encoders_change_for_the_characters_own_prompt_alone(artist):
    use(artist, {}, ["ann", "eve"])
    family = artist._loaded.family
    plain = family.embed("red coat").keys
    eve = family.embed("red coat", bind(artist, eve=1.0)).keys
    assert (eve - plain).abs().mean() > 0.01
    assert torch.equal(family.embed("red coat", bind(artist, ann=1.0)).keys, plain)
    cast = picture(
        RegionPrompt("red coat", left, bind(artist, eve=1.0)), RegionPrompt("red coat", right)
    )
    batch = family.prepare([cast], 3.0, reference[0])
    assert torch.equal(batch.keys[1, :77], family.embed("a room").keys)
    assert torch.equal(batch.keys[1, 77:154], eve)
    assert torch.equal(batch.keys[1, 154:231], plain)
    use(artist, {"eve": 1.0}, [])
    assert torch.allclose(family.embed("red coat").keys, eve, atol=1e-5)
    use(artist, {}, ["eve"])
    assert torch.equal(family.embed("red coat").keys, plain)


@pytest.mark.parametrize("settings", every_way, ids=lambda s: s.way)
def test_different_casts_in_one_batch(artist, settings):
    """Each picture is what it is alone, also after others have left."""
    use(artist, {}, ["ann", "bob"])
    pictures = [
        picture(RegionPrompt("red coat", left, bind(artist, ann=1.0))),
        picture(),
        picture(
            RegionPrompt("angry", left, bind(artist, bob=1.0)),
            RegionPrompt("", right, bind(artist, ann=0.5)),
        ),
    ]
    together = first_step(artist, *pictures, settings=settings)
    for out, one in zip(together, pictures, strict=True):
        assert torch.allclose(out, first_step(artist, one, settings=settings)[0], atol=1e-4)
    family = artist._loaded.family
    prepared = family.prepare(pictures, 3.0, settings)
    prepared.keep([0, 2])
    noise = torch.randn(1, 4, 12, 16, generator=torch.Generator().manual_seed(9))
    left_over = family.denoise(prepared, noise.expand(2, -1, -1, -1), torch.tensor(700), 0.0)
    assert torch.allclose(left_over, together[[0, 2]], atol=1e-4)


def test_grown_masks_act_in_their_part_of_the_steps(artist):
    use(artist, {}, ["ann"])
    cast = picture(RegionPrompt("red coat", left, bind(artist, ann=1.0)))
    family = artist._loaded.family
    noise = torch.randn(1, 4, 12, 16, generator=torch.Generator().manual_seed(9))
    for way in ("fast", "pass"):
        grown = family.prepare([cast], 3.0, RegionalSettings(way, grown=(0.0, 0.5)))
        never = family.prepare([cast], 3.0, RegionalSettings(way))

        def step(batch, progress):
            return family.denoise(batch, noise, torch.tensor(700), progress)

        assert not torch.equal(step(grown, 0.25), step(never, 0.25))
        assert torch.equal(step(grown, 0.5), step(never, 0.5))

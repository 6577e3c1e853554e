# SPDX-License-Identifier: GPL-3.0-or-later
"""Flux draws: as diffusers' pipeline does, alone and in batches, by guidance and from a start."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    FluxControlNetPipeline,
    FluxImg2ImgPipeline,
    FluxMultiControlNetModel,
    FluxPipeline,
    FluxTransformer2DModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from onmodel.generate.sampler import Settings, Start, denoised, sample
from onmodel.jobs.artist import DrawError
from onmodel.models import families, flux_original
from onmodel.models.errors import ModelError
from onmodel.models.family import ControlMap, Picture, RegionPrompt
from onmodel.models.flux_tokens import pack, unpack
from onmodel.models.probe import probe_controlnet
from onmodel.models.registry import Registry
from PIL import Image

from tests.server import tiny_flux
from tests.server.drawing import Blobs, draw, make_artist, make_request, pixels
from tests.server.tiny_models import cpu

size = (48, 64)


class Quiet:
    """Watches, and wants all pictures but those named."""

    def __init__(self, *unwanted: int):
        self.unwanted, self.shown = unwanted, []

    def step(self, row, step, steps):
        pass

    def preview(self, row, step, steps, image):
        self.shown.append(image)

    def cancelled(self, row):
        return row in self.unwanted


def own_settings(folder: Path, **more) -> None:
    """As a person would, beside the weights: small pictures, no face pass of 1024 pixels."""
    (folder / "onmodel.json").write_text(json.dumps({"native_pixels": 128 * 96, **more}))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    data = tmp_path_factory.mktemp("flux")
    for name, told in (("dev", True), ("schnell", False)):
        own_settings(tiny_flux.build(data / "models" / name, told))
    return data


def entry(data: Path, name: str):
    return Registry(data, extra=[], embedded=data / "none").find(name)


@pytest.fixture(scope="module")
def dev(data):
    return families.load(entry(data, "dev"), cpu)


@pytest.fixture(scope="module")
def schnell(data):
    return families.load(entry(data, "schnell"), cpu)


def picture(prompt: str = "a man, red coat", seed: int = 3, negative: str = "") -> Picture:
    return Picture(prompt, negative, size[1], size[0], seed)


def drawn(family, *pictures: Picture, guidance: float = 3.5, start=None) -> torch.Tensor:
    settings = Settings("default", 4, guidance)
    return denoised(family, list(pictures), settings, Quiet(), start)[1]


def theirs(data: Path, name: str, cls=FluxPipeline, **options):
    pipe = cls.from_pretrained(data / "models" / name, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    tokens = pipe(
        prompt="a man, red coat",
        width=size[1],
        height=size[0],
        num_inference_steps=4,
        max_sequence_length=512 if name == "dev" else 256,
        output_type="latent",
        **options,
    ).images
    return unpack(tokens, size[0] // 8, size[1] // 8)


def test_dev_draws_what_the_librarys_pipeline_draws(data, dev):
    wanted = theirs(data, "dev", guidance_scale=3.5, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(drawn(dev, picture()), wanted, atol=1e-5)
    assert not torch.allclose(drawn(dev, picture(), guidance=9.0), wanted, atol=1e-3)


def test_a_negative_prompt_counts_where_guidance_asks(data, schnell, dev):
    """The model without embedded guidance: plain; and away from the negative prompt."""
    seed = {"generator": torch.Generator().manual_seed(3)}
    plain = theirs(data, "schnell", **seed)
    assert torch.allclose(drawn(schnell, picture(), guidance=1.0), plain, atol=1e-5)
    unasked = drawn(schnell, picture(negative="a blue room"), guidance=1.0)
    assert torch.allclose(unasked, plain, atol=1e-5)
    seed = {"generator": torch.Generator().manual_seed(3)}
    away = theirs(data, "schnell", negative_prompt="a blue room", true_cfg_scale=3.0, **seed)
    assert (away - plain).abs().max() > 1e-3
    both = drawn(schnell, picture(), picture(negative="a blue room"), guidance=3.0)
    assert torch.allclose(both[0], plain[0], atol=1e-4)
    assert torch.allclose(both[1], away[0], atol=1e-4)
    # dev is told its guidance: a negative prompt needs a number of its own.
    same = drawn(dev, picture(negative="a blue room"))
    assert torch.equal(same, drawn(dev, picture()))
    dev.entry = replace(dev.entry, true_guidance=2.0)
    moved = drawn(dev, picture(negative="a blue room"))
    dev.entry = replace(dev.entry, true_guidance=1.0)
    seed = {"generator": torch.Generator().manual_seed(3)}
    away = theirs(data, "dev", negative_prompt="a blue room", true_cfg_scale=2.0, **seed)
    assert torch.allclose(moved, away, atol=1e-4)


def test_a_picture_is_the_same_alone_and_in_a_batch(dev):
    """Also beside a prompt of two pieces, and when the neighbour leaves."""
    long = picture("red, " * 300, seed=4)
    alone = drawn(dev, picture())
    again = drawn(dev, picture())
    assert torch.equal(alone, again)
    beside = drawn(dev, picture(), long)
    assert torch.allclose(beside[0], alone[0], atol=1e-4)
    assert torch.allclose(beside[1], drawn(dev, long)[0], atol=1e-4)
    left = list(sample(dev, [long, picture()], Settings("default", 4, 3.5), Quiet(0)))
    assert [row for row, _ in left] == [1]
    assert np.abs(left[0][1].astype(int) - dev.decode(alone)[0]).max() <= 1


def test_a_start_is_the_librarys_image_to_image(data, dev):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 255, (1, *size, 3), dtype=np.uint8)
    clean = dev.encode(image)
    assert clean.shape == (1, 4, 6, 8)
    noise = dev.noise(torch.Generator().manual_seed(3), size[1], size[0])
    # Their image encoder draws from the generator before the noise; latents spare both.
    wanted = theirs(
        data,
        "dev",
        FluxImg2ImgPipeline,
        image=clean,
        strength=0.5,
        guidance_scale=3.5,
        latents=None,
        generator=torch.Generator().manual_seed(3),
    )
    got = drawn(dev, picture(), start=Start(clean, 0.5))
    assert torch.allclose(got, wanted, atol=1e-5)
    assert (got - clean).abs().max() < (noise - clean).abs().max()


def test_under_a_mask_only_the_mask_changes(dev):
    image = np.full((1, *size, 3), 90, np.uint8)
    clean = dev.encode(image)
    mask = np.zeros((1, *size), np.float32)
    mask[:, :, :32] = 1
    got = drawn(dev, picture(), start=Start(clean, 0.75, dev.cells(mask)))
    assert torch.equal(got[..., 4:], clean[..., 4:])
    assert not torch.allclose(got[..., :4], clean[..., :4], atol=1e-2)


def test_pixels_go_through_the_vae_with_shift_and_scale(data, dev):
    image = np.random.default_rng(2).integers(0, 255, (1, *size, 3), dtype=np.uint8)
    pipe = FluxPipeline.from_pretrained(data / "models" / "dev", local_files_only=True)
    x = torch.from_numpy(image).permute(0, 3, 1, 2) / 127.5 - 1.0
    with torch.no_grad():
        z = pipe.vae.encode(x).latent_dist.mode()
        back = pipe.vae.decode(z, return_dict=False)[0]
    assert torch.allclose(dev.encode(image), (z - 0.11) * 0.36, atol=1e-5)
    pixels = ((back[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).numpy()
    assert np.abs(dev.decode(dev.encode(image))[0] - pixels).max() <= 1
    assert dev.preview(dev.encode(image)).shape == (1, 6, 8, 3)
    assert torch.equal(unpack(pack(z), 6, 8), z)


@pytest.fixture(scope="module")
def followed(data, tmp_path_factory):
    """dev with a union ControlNet."""
    home = tmp_path_factory.mktemp("control")
    shutil.copytree(data / "models" / "dev", home / "models" / "dev")
    tiny_flux.build_control(home / "controlnet" / "union")
    return families.load(entry(home, "dev"), cpu)


def control_maps(*kinds: tuple[str, float, float, float]) -> list[ControlMap]:
    rng = np.random.default_rng(4)
    maps = []
    for kind, *numbers in kinds:
        maps.append(ControlMap(kind, rng.integers(0, 255, (*size, 3), dtype=np.uint8), *numbers))
    return maps


def test_maps_are_followed_as_in_the_librarys_pipeline(data, followed, monkeypatch):
    """A union net by mode; two maps add up; a map acts in its part of the steps."""
    assert followed.entry.map_kinds == ("depth", "pose")
    maps = control_maps(("depth", 0.7, 0.0, 1.0), ("pose", 0.4, 0.0, 0.5))
    # Their map has the VAE's noise, ours does not.
    monkeypatch.setattr(
        DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()
    )
    pipe = FluxPipeline.from_pretrained(data / "models" / "dev", local_files_only=True)
    pipe = FluxControlNetPipeline(
        **pipe.components, controlnet=FluxMultiControlNetModel([followed.parts.controlnet])
    )
    pipe.set_progress_bar_config(disable=True)
    tokens = pipe(
        prompt="a man, red coat",
        control_image=[Image.fromarray(m.image) for m in maps],
        control_mode=[2, 4],
        controlnet_conditioning_scale=[0.7, 0.4],
        control_guidance_start=[0.0, 0.0],
        control_guidance_end=[1.0, 0.5],
        width=size[1],
        height=size[0],
        num_inference_steps=4,
        guidance_scale=3.5,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images
    mapped = replace(picture(), maps=maps)
    got = drawn(followed, mapped)
    assert torch.allclose(got, unpack(tokens, 6, 8), atol=1e-4)
    plain = drawn(followed, picture())
    assert (got - plain).abs().max() > 1e-2
    off = replace(picture(), maps=control_maps(("depth", 0.0, 0.0, 1.0), ("pose", 1.0, 1.0, 1.0)))
    assert torch.equal(drawn(followed, off), plain)


def test_maps_and_regions_in_one_batch(followed):
    """Each picture of a batch with its own map is what it is alone."""
    left = np.zeros(size, bool)
    left[:, :32] = True
    one = replace(picture(), maps=control_maps(("depth", 1.0, 0.0, 1.0)))
    two = replace(
        picture("a room", seed=5),
        maps=[replace(one.maps[0], image=255 - one.maps[0].image)],
        regions=(RegionPrompt("a red coat", left),),
    )
    both = drawn(followed, one, two)
    for got, alone in zip(both, (one, two), strict=True):
        assert torch.allclose(got, drawn(followed, alone)[0], atol=1e-4)


def test_a_net_of_one_kind_says_which(data, tmp_path):
    folder = tiny_flux.build_control(tmp_path / "depth", modes=None)
    assert probe_controlnet(folder) is None
    (folder / "onmodel.json").write_text('{"map_kinds": ["depth"]}')
    assert probe_controlnet(folder).map_kinds == ("depth",)


def test_kinds_have_their_usual_steps_and_guidance(data):
    assert (entry(data, "dev").steps, entry(data, "dev").guidance) == (28, 3.5)
    assert (entry(data, "schnell").steps, entry(data, "schnell").guidance) == (4, 1.0)
    assert entry(data, "dev").map_kinds == ()


def test_what_is_missing_is_said(data, tmp_path):
    folder = tmp_path / "models" / "dev"
    shutil.copytree(data / "models" / "dev", folder)
    shutil.rmtree(folder / "text_encoder_2")
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(ModelError, match=r"T5 \(text_encoder_2\), T5's tokenizer"):
        families.load(entry(tmp_path, "dev"), cpu)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_transformer_in_one_file_draws_the_same(data, dev, tmp_path, prefix):
    (tmp_path / "models").mkdir()
    file = tmp_path / "models" / "one.safetensors"
    tiny_flux.write_file(data / "models" / "dev", file, prefix)
    found = entry(tmp_path, "one")
    assert (found.family, found.steps, found.guidance) == ("flux", 28, 3.5)
    assert torch.equal(drawn(families.load(found, cpu), picture()), drawn(dev, picture()))
    # Without its configuration, the sizes come from the file; these heads are not FLUX.1's.
    (tmp_path / "models" / "one" / "transformer" / "config.json").unlink()
    with pytest.raises(ModelError, match="heads of 16 channels"):
        families.load(found, cpu)
    shutil.rmtree(tmp_path / "models" / "one" / "vae")
    with pytest.raises(ModelError, match="in one file; to draw it needs its VAE"):
        families.load(found, cpu)


def test_sizes_of_flux_are_told_from_a_file(tmp_path):
    """FLUX.1 schnell's shapes, no numbers."""
    shapes = {
        "img_in.weight": (3072, 64),
        "txt_in.weight": (3072, 4096),
        "vector_in.in_layer.weight": (3072, 768),
        "double_blocks.0.img_attn.norm.query_norm.scale": (128,),
    }
    shapes |= {f"double_blocks.{i}.img_attn.proj.bias": (3072,) for i in range(19)}
    shapes |= {f"single_blocks.{i}.linear2.bias": (3072,) for i in range(38)}
    told = flux_original.sizes(tmp_path / "flux1-schnell.safetensors", shapes)
    defaults = inspect.signature(FluxTransformer2DModel.__init__).parameters
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()} == {
        k: defaults[k].default for k in told
    }


def test_a_keyframe_of_flux_is_drawn(data):
    """By the artist, regions and all; maps are refused in a sentence."""
    artist, blobs = make_artist(data), Blobs()
    request = make_request(blobs, model="dev", maps=[])
    first, second = draw(artist, blobs, request, request | {"seed": 8}).values()
    assert pixels(first).shape == (84, 128, 3)
    assert np.abs(pixels(first) - pixels(second)).mean() > 0.5
    assert first.record["guidance"] == 3.5
    with pytest.raises(DrawError, match="cannot follow the depth map"):
        draw(artist, blobs, make_request(blobs, model="dev"))

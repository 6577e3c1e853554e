# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded model's training and export, on a tiny version of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from onmodel.rehearsal import data, stem
from onmodel.rehearsal.architecture import (
    Denoiser,
    latent_channels,
    make_controlnet,
    make_tokenizer,
    make_vae,
    tiny,
)
from onmodel.rehearsal.export import export
from onmodel.rehearsal.latents import PatchBasis
from onmodel.rehearsal.sampling import Noise, draw, make_batch
from onmodel.rehearsal.train import Plan, Trainer, vocabulary_of
from onmodel.rehearsal.train_vae import Plan as VaePlan
from onmodel.rehearsal.train_vae import VaeTrainer

keypoint = [40.0, 30.0, 2.0, "visible"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def write_sample(folder: Path, number: int) -> None:
    """A small picture of one or two "people": a red and a blue rectangle."""
    rng = np.random.default_rng(number)
    size = 64
    rgb = np.full((size, size, 3), 90, np.uint8)
    person = np.zeros((size, size), np.uint8)
    people = []
    for index in range(1 + number % 2):
        x = int(rng.integers(0, 20)) + 32 * index
        person[8:, x : x + 16] = index + 1
        rgb[8:, x : x + 16] = (200, 20, 20) if index == 0 else (20, 20, 200)
        colour = ("red", "blue")[index]
        body = [[x + 8.0, 20.0, 2.0, "visible"]] * 18
        people.append(
            {
                "identity": index,
                "caption": f"woman, fair skin, {colour} sweater, smiling, facing",
                "seen": True,
                "distance": 2.0 + index,
                "pose": {"body": body, "face": [], "left_hand": [], "right_hand": []},
            }
        )
    disparity = np.where(person > 0, 0.5, 0.1).astype(np.float16)
    normal = np.full((size, size, 3), (128, 128, 255), np.uint8)
    for one in people:
        one["standin_pose"] = one["pose"]
    own = {"disparity": disparity, "person": person, "normal": normal}
    standin = {f"standin_{k}": np.roll(v, 2, axis=0) for k, v in own.items()}
    with (folder / f"{number:06d}.npz").open("wb") as file:
        np.savez(file, rgb=rgb, **own, **standin)
    words = {"look": "animated", "framing": "portrait", "set": "room"}
    description = {"number": number, **words, "people": people}
    (folder / f"{number:06d}.json").write_text(json.dumps(description))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[data.Shard]:
    samples = tmp_path_factory.mktemp("samples")
    for number in range(8):
        write_sample(samples, number)
    arrays = [data.read_sample(samples, n)[0]["rgb"] for n in range(8)]
    pictures = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1
    basis = PatchBasis()
    basis.fit(pictures, steps=20)
    folder = samples.parent / "shards"
    folder.mkdir(exist_ok=True)
    data._pack_run(samples, folder, basis, 0, list(range(8)))
    return data.merge(data.load_shards(folder, 1, 0, 256))


def test_packed_samples_hold_maps_masks_and_words(shards: list[data.Shard]) -> None:
    (shard,) = shards
    assert shard.latents.shape == (8, latent_channels, 8, 8)
    assert 0.5 < float(shard.latents.float().pow(2).mean()) < 1.5
    assert set(shard.maps) == {f"{s} {k}" for s in data.sources for k in data.map_order}
    assert shard.maps["own pose"].shape == (8, stem.channels[-1], 8, 8)
    grey = shard.maps["own depth"][0, :16].float().mean(0)
    person = shard.shares["own"][0, 0].float() / 255
    assert grey[person == 1].min() > grey[0, 0], "people are nearer than the ground"
    assert not torch.equal(shard.maps["own depth"], shard.maps["standin depth"])
    assert shard.shares["own"][0, 1].amax() == 0 and shard.shares["standin"][1, 1].amax() > 200
    assert len(shard.words[1].people) == 2
    assert shard.words[0].shot == ("animated", "portrait", "room")


def test_stem_tells_grey_points_and_colours_apart() -> None:
    embedding = make_controlnet(tiny).controlnet_cond_embedding
    maps = torch.zeros(3, 3, 32, 32)
    maps[0] = 0.5  # a depth
    maps[1, :, 10:12, 10:12] = 1  # a face point
    maps[2, 0] = 1  # a red limb
    found = stem.features(embedding, maps).float() * 8.3 / 255 - 0.3
    grey, white, colours = found[:, :16], found[:, 16:32], found[:, 32:]
    assert grey[0].min() == pytest.approx(3.0, abs=0.2), "6 x grey"
    assert white[0].max() < 0.1 and colours[0].max() < 0.1
    dark = stem.features(embedding, torch.full((1, 3, 16, 16), 0.1)).float()
    assert dark[0, :16].mean() * 8.3 / 255 - 0.3 > 0.3, "dark greys are not swallowed"
    there = white[1].amax(0) > 1
    assert there[1, 1] and int(there.sum()) == 1, "a face point lights its own cell alone"
    red_over_green, green_over_red = colours[2, :4, 1:3, 1:3], colours[2, 4:8, 1:3, 1:3]
    assert red_over_green.min() > 4 and green_over_red.max() < 0.1


def test_the_exported_controlnet_sees_maps_as_training_did() -> None:
    torch.manual_seed(0)
    model = Denoiser(tiny, list(range(5)))
    whole = model.full_controlnet().controlnet_cond_embedding
    maps = torch.rand(2, 3, 32, 48)
    packed = model.controlnet.controlnet_cond_embedding(stem.features(whole, maps).float())
    assert torch.allclose(packed, whole(maps), atol=0.05)
    assert packed.shape == (2, tiny.unet[0], 4, 6)


def test_prompts_are_regional_for_two_people(shards: list[data.Shard]) -> None:
    words = shards[0].words[1]
    rng = torch.Generator().manual_seed(0)
    kinds = {len(data.choose_prompts(words, rng).texts) for _ in range(60)}
    assert kinds == {1, 3}, "either nothing at all, or the shot and one prompt a person"
    prompts = [data.choose_prompts(words, rng).texts for _ in range(20)]
    assert all("blue sweater" in p[2] for p in prompts if len(p) == 3)


def test_loss_falls(shards: list[data.Shard]) -> None:
    trainer = Trainer(tiny, vocabulary_of(shards))
    plan = Plan(steps=60, small=0, decay=30, batches=(4, 4), rate=3e-3, warm=5)
    losses = [trainer.train_step(plan, shards) for _ in range(25)]
    assert np.mean(losses[-8:]) < 0.92 * np.mean(losses[:5])


def test_a_run_goes_on_exactly(shards: list[data.Shard], tmp_path: Path) -> None:
    plan = Plan(steps=10, small=0, decay=5, batches=(2, 2))
    trainer = Trainer(tiny, vocabulary_of(shards))
    for _ in range(3):
        trainer.train_step(plan, shards)
    trainer.save(tmp_path / "denoiser.pt")
    expected = [trainer.train_step(plan, shards) for _ in range(2)]
    again = Trainer.load(tmp_path / "denoiser.pt")
    assert again.step == 3
    assert [again.train_step(plan, shards) for _ in range(2)] == expected


def test_new_words_change_nothing_that_was_learned(shards: list[data.Shard]) -> None:
    plan = Plan(steps=10, small=0, decay=5, batches=(2, 2))
    trainer = Trainer(tiny, vocabulary_of(shards))
    trainer.train_step(plan, shards)
    larger = trainer.learn_words([*trainer.model.tokens, 2368, 1929])
    tokens = trainer.tokens("woman, red sweater")[None]
    assert torch.allclose(trainer.model.encode(tokens)[0], larger.model.encode(tokens)[0])
    assert larger.train_step(plan, shards) == pytest.approx(trainer.train_step(plan, shards))
    with pytest.raises(KeyError):
        trainer.model.encode(torch.tensor([[49406, 2368, 49407]]))


def test_vae_goes_on_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pictures = [torch.randint(0, 255, (64, 64, 3), dtype=torch.uint8)]
    basis = PatchBasis()
    basis.fit(torch.stack(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1, steps=2)
    plan = VaePlan(steps=20, crops=(32, 32), batches=(2, 2))
    trainer = VaeTrainer(tiny, basis)
    trainer.train_step(plan, pictures)
    trainer.save(tmp_path / "vae.pt")
    expected = trainer.train_step(plan, pictures)
    assert VaeTrainer.load(tmp_path / "vae.pt", basis).train_step(plan, pictures) == expected


def test_tokenizer_has_clips_numbers() -> None:
    ids = make_tokenizer()("a photo of a cat")["input_ids"]
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_exported_folder_is_a_plain_pipeline(shards: list[data.Shard], tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLControlNetUnionPipeline, StableDiffusionXLPipeline

    trainer = Trainer(tiny, vocabulary_of(shards))
    export(trainer, make_vae(tiny), tmp_path / "weights")
    pipeline = StableDiffusionXLControlNetUnionPipeline.from_pretrained(
        tmp_path / "weights", local_files_only=True, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    control = torch.rand(1, 3, 64, 96)
    latents = pipeline(
        "woman, red sweater",
        control_image=[control, control],
        control_mode=[0, 1],
        num_inference_steps=2,
        width=96,
        height=64,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert latents.shape == (1, latent_channels, 8, 12) and bool(torch.isfinite(latents).all())
    parts = {k: v for k, v in pipeline.components.items() if k != "controlnet"}
    assert StableDiffusionXLPipeline(**parts).unet is pipeline.unet
    tokens = trainer.tokens("woman, red sweater")[None]
    mine = trainer.average.encode(tokens)[0]
    theirs = torch.cat(
        [
            encoder(tokens, output_hidden_states=True).hidden_states[-2]
            for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)
        ],
        dim=-1,
    )
    assert torch.allclose(mine, theirs, atol=5e-3), "a prompt means the same after export"


def test_draw_is_repeatable(shards: list[data.Shard]) -> None:
    trainer = Trainer(tiny, vocabulary_of(shards))
    words = shards[0].words[1]
    texts = (", ".join(words.shot), *(", ".join(p) for p in words.people))
    prompts = [data.Prompts(texts)]
    batch = make_batch(shards[0], torch.tensor([1]), prompts, trainer.tokens)
    one, two = (
        draw(trainer.average, batch, Noise(), trainer.tokens(""), steps=2) for _ in range(2)
    )
    assert torch.equal(one, two) and one.shape == (1, latent_channels, 8, 8)

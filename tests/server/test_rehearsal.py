# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded model's training and export, on a tiny version of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from onmodel.rehearsal import data
from onmodel.rehearsal.architecture import make_tokenizer, make_vae, tiny
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
    with (folder / f"{number:06d}.npz").open("wb") as file:
        np.savez(file, rgb=rgb, disparity=disparity, person=person, normal=normal)
    description = {"number": number, "framing": "portrait", "set": "room", "people": people}
    (folder / f"{number:06d}.json").write_text(json.dumps(description))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[data.Shard]:
    samples = tmp_path_factory.mktemp("samples")
    for number in range(8):
        write_sample(samples, number)
    arrays = [data.read_sample(samples, n)[0]["rgb"] for n in range(8)]
    pictures = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1
    basis = PatchBasis()
    basis.fit(pictures)
    folder = samples.parent / "shards"
    folder.mkdir(exist_ok=True)
    data._pack_run(samples, folder, basis, 0, list(range(8)))
    return data.merge(data.load_shards(folder, 1, 0, 256))


def test_packed_samples_hold_maps_masks_and_words(shards: list[data.Shard]) -> None:
    (shard,) = shards
    assert shard.latents.shape == (8, 8, 8, 8)
    assert abs(float(shard.latents.float().pow(2).mean()) - 1) < 0.1
    assert shard.maps["pose"].shape == (8, 64, 64, 3) and shard.maps["pose"].amax() == 255
    depth = shard.maps["depth"][0]
    assert depth.amax() > 150 and depth[0, 0] < 30, "people are nearer than the ground"
    assert shard.shares[0, 1].amax() == 0 and shard.shares[1, 1].amax() > 200
    assert len(shard.words[1].people) == 2 and shard.words[0].shot == ("portrait", "room")


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
    basis.fit(torch.stack(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1)
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
    assert latents.shape == (1, 8, 8, 12) and bool(torch.isfinite(latents).all())
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
    assert torch.equal(one, two) and one.shape == (1, 8, 8, 8)

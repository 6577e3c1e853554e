# SPDX-License-Identifier: GPL-3.0-or-later
"""The judge of drawings, and the figures made with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from onmodel.identity import pack as identity_pack
from onmodel.identity.interface import NoFace
from onmodel.rehearsal.judge import attributes, net, pack, train
from PIL import Image

from bench import drawings, held_out, identity, lora_test
from bench.held_out import Sample
from world import identities, looks, lora_training, people, sets

description = {
    "number": 7,
    "framing": "portrait",
    "set": "park",
    "look": "realistic",
    "people": [{"caption": "woman, tan skin, long red hair, blue eyes, grey t-shirt, pink skirt"}],
}


def blocks(hair: int, top: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture with a square figure: hair above, top below; part; person."""
    small = np.full((128, 128, 3), 200, np.uint8)
    part = np.zeros((128, 128), np.uint8)
    part[32:64, 32:96], part[64:96, 32:96] = 3, 4
    small[part == 3], small[part == 4] = hair, top
    return small, part, (part > 0).astype(np.uint8)


def test_words_are_the_worlds() -> None:
    assert attributes.hair_colours == tuple(identities.hairs)
    assert attributes.cloth_colours == tuple(identities.cloths)
    assert attributes.sets == sets.names
    assert attributes.tints == sets.tints
    assert attributes.looks == looks.looks
    assert net.parts == people.regions
    held = identity_pack.held_out * identity_pack.per_person
    assert pack.held_out == held_out.first_held_out == held


def test_lab_of_known_colours() -> None:
    found = attributes.lab(np.array([(1.0, 1, 1), (1, 0, 0), (0, 0, 0)]))
    expected = [(100, 0, 0), (53.24, 80.09, 67.20), (0, 0, 0)]
    assert np.allclose(found, expected, atol=0.1)


def test_what_a_caption_asks_for() -> None:
    asked = attributes.asked("old man, fair skin, bald, grey beard, green eyes, red sweater, sad")
    assert asked == {"top": "red"}
    asked = attributes.asked(description["people"][0]["caption"])  # type: ignore[index]
    assert asked == {"hair": "red", "top": "grey", "bottom": "pink"}


def test_only_large_regions_are_judged() -> None:
    small, part, person = blocks(90, 120)
    found = attributes.colours_in(small, part, person, description)
    assert [(f.kind, f.word) for f in found] == [("hair", "red"), ("top", "grey")]
    part[:] = np.where(part == 3, 0, part)
    part[40:45, 40:45] = 3
    kinds = [f.kind for f in attributes.colours_in(small, part, person, description)]
    assert kinds == ["top"]
    assert not attributes.set_in(small, np.ones_like(person), description)


def test_network_gives_each_pixel_a_part() -> None:
    found = net.PartNet().eval()(torch.zeros(2, 3, 128, 128))
    assert found.shape == (2, len(net.parts), 128, 128)


def test_small_pictures_and_labels_lie_alike() -> None:
    labels = np.zeros((352, 192), np.uint8)
    labels[176:, :96] = 5
    picture = np.repeat(labels[..., None] * 40, 3, axis=2)
    assert (net.nearest(labels) * 40 == net.shrunk(picture)[..., 0]).all()


def test_labels_move_with_their_picture() -> None:
    part = torch.zeros(4, 128, 128, dtype=torch.uint8)
    part[:, 30:90, 40:70] = 4
    picture = part[:, None].float().expand(-1, 3, -1, -1) / 4
    moved, labels = train.move(picture, part, torch.Generator().manual_seed(0))
    assert ((moved[:, 0] > 0.5) == (labels == 4)).float().mean() > 0.99
    assert not torch.equal(labels[0], part[0].long())


def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (9, 128, 128, 3), dtype=np.uint8)
    part = (rgb[..., 0] > 128).astype(np.uint8)
    first = train.Training(tmp_path / "state.pt", 600)
    first.take(rgb, part)
    first.save()
    again = train.Training(tmp_path / "state.pt", 600)
    again.spent = first.spent
    assert again.step == 1
    assert again.take(rgb, part) == first.take(rgb, part)


def test_pack_follows_its_samples(tmp_path: Path) -> None:
    def write(number: int) -> None:
        rgb = np.full((64, 64, 3), number, np.uint8)
        grey = np.zeros((64, 64), np.uint8)
        np.savez(tmp_path / f"{number:06d}.npz", rgb=rgb, part=grey, person=grey)
        told = {"number": number, "people": [{"caption": "man", "pose": {}, "standin_pose": {}}]}
        (tmp_path / f"{number:06d}.json").write_text(json.dumps(told))

    write(3)
    made = pack.load_or_make(tmp_path, tmp_path / "judge")
    assert made.rgb.shape == (1, 128, 128, 3)
    assert not made.kept.any()
    write(pack.held_out)
    again = pack.load_or_make(tmp_path, tmp_path / "judge")
    assert again.number.tolist() == [3, pack.held_out]
    assert again.kept.tolist() == [False, True]
    assert again.told == pack.load_or_make(tmp_path, tmp_path / "judge").told


def test_held_out_set_is_balanced() -> None:
    told = [s.told for s in held_out.load()]
    assert {(t["set"], t["look"]) for t in told} == {
        (s, k) for s in sets.names for k in looks.looks
    }
    assert min(np.unique([t["framing"] for t in told], return_counts=True)[1]) >= 4
    assert any(len(t["people"]) > 1 for t in told)


def sample_with(figure: np.ndarray, joints: list[list[float | str]]) -> Sample:
    """A sample whose figure and joints are these."""
    told = {**description, "people": [{"caption": "man", "joints": joints}]}
    grey = np.repeat(figure[..., None], 3, axis=2)
    return Sample(0, grey, grey, figure, grey, figure, figure, told)


def test_pose_figures_know_the_right_pose() -> None:
    left, right = np.zeros((2, 128, 128), np.uint8)
    left[20:100, 10:50], right[20:100, 70:110] = 1, 1
    at_left = sample_with(left, [[30, 60, "visible"], [40, 90, "hidden"], [300, 60, "outside"]])
    at_right = sample_with(right, [[90, 60, "visible"], [80, 30, "visible"]])
    seen = {"posed": np.stack([left, right]) > 0, "renders": np.stack([left, right]) > 0}
    found = {f.name.partition(", ")[2]: f for f in drawings._pose([at_left, at_right], seen)}
    assert found["joints in the figure"].value == 1.0
    assert "of another sample 0.000" in found["joints in the figure"].note
    assert found["own mask the nearest of its framing"].value == 1.0
    swapped = {**seen, "posed": seen["posed"][::-1]}
    found = {f.name.partition(", ")[2]: f for f in drawings._pose([at_left, at_right], swapped)}
    assert found["joints in the figure"].value == 0.0
    assert found["own mask the nearest of its framing"].verdict == "short"


def test_prompts_of_a_lora_test() -> None:
    parts = {
        "noun": "young woman",
        "traits": "tan skin, long red hair",
        "expression": "smiling",
        "view": "facing",
        "framing": "portrait",
        "set": "park",
        "look": "animated",
    }
    assert lora_training.changing(parts) == "smiling, facing, animated, portrait, park"
    found = lora_test.prompts(parts)
    assert found["with"] == found["without"] == "zanna young woman, smiling, facing"
    assert found["described"] == "young woman, tan skin, long red hair, smiling, facing"


class BrightnessFaces:
    """An embedder for which a face is its brightness; black pictures have no face."""

    name, size = "brightness", 2

    def embed(self, image: np.ndarray, head: object = None, yaw: object = None) -> object:
        """See interface.Embedder."""
        value = float(image.mean()) / 255
        if value == 0:
            return NoFace("small", "It is black.")
        return np.array((np.cos(value), np.sin(value)), np.float32)


def write_grey(path: Path, value: int) -> None:
    """A small grey picture, and a box beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(path)
    path.with_suffix(".json").write_text(json.dumps({"face": [2, 2, 14, 14], "yaw": 0}))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two characters whose LoRA drawings have their brightness, and 20 darker strangers."""
    for number, look in enumerate(looks.looks):
        place = tmp_path / f"{look}-{number}"
        write_grey(place / "data" / "references" / "01.png", 200)
        for shot in range(6):
            write_grey(place / "with" / f"{shot}.png", 0 if shot == 5 else 196 + shot)
            write_grey(place / "without" / f"{shot}.png", 60 + shot)
            write_grey(place / "described" / f"{shot}.png", 150 + shot)
        row = {"box": [2, 2, 14, 14], "yaw": 0, "framing": "portrait", "set": "park"}
        (place / "shots.json").write_text(json.dumps([{**row, "shot": str(i)} for i in range(6)]))
        about = {"identity": number, "look": look, "cpu_seconds": 600}
        (place / "about.json").write_text(json.dumps(about))
        for other in range(identity.strangers_wanted):
            write_grey(
                tmp_path / "strangers" / look / str(4500 + other) / "references" / "01.png", 90
            )
    return tmp_path


def test_lora_figures(results: Path) -> None:
    found = {
        f.name: f
        for f in identity.of_loras([BrightnessFaces()], {"brightness": {"portrait": 0.97}}, results)
    }
    assert found["LoRA: held-out characters drawn"].verdict == "short"
    assert found["LoRA: slowest training"].value == 10
    margin = found["LoRA: brightness, portrait, margin over the same prompt"]
    assert margin.verdict == "ok"
    assert "10 of 12 pairs" in margin.note
    described = found["LoRA: brightness, portrait, margin over all traits in words"]
    assert described.value is not None
    assert margin.value is not None
    assert 0 < described.value < margin.value
    rank = found["LoRA: brightness, rank 1 among 20 strangers, portrait"]
    assert rank.value == pytest.approx(10 / 12)
    assert "2 without a face count" in rank.note


def test_embedders_are_measured_on_renders(tmp_path: Path) -> None:
    for look in looks.looks:
        for person in range(12):
            place = tmp_path / look / str(4500 + person)
            write_grey(place / "references" / "01.png", 20 + 20 * person)
            for shot, value in enumerate(
                (21 + 20 * person, 0 if person == 11 else 22 + 20 * person)
            ):
                write_grey(place / "test" / str(shot) / "picture.png", value)
                told = {"face": [2, 2, 14, 14], "yaw": 0, "parts": {"framing": "portrait"}}
                (place / "test" / str(shot) / "shot.json").write_text(json.dumps(told))
    figures, known = identity.of_renders(BrightnessFaces(), tmp_path)
    found = {f.name: f for f in figures}
    assert found["identity: brightness, EER on renders"].value == pytest.approx(0)
    assert known == {"portrait": pytest.approx(1.0)}
    portrait = found["identity: brightness, AUC on renders, portrait"]
    assert "46 faces; rank 1 1.000" in portrait.note
    assert "refused: 2 small" in found["identity: brightness, EER on renders"].note
    assert "too few" in found["identity: brightness, AUC on renders, close-up"].note


def test_weak_embedders_do_not_judge(results: Path) -> None:
    found = identity.of_loras([BrightnessFaces()], {"brightness": {"portrait": 0.7}}, results)
    margin = next(f for f in found if "same prompt" in f.name)
    assert margin.bar is None
    assert "does not judge" in margin.note
    assert not any("rank 1" in f.name for f in found)


def test_missing_drawings_are_short(tmp_path: Path) -> None:
    found = identity.of_loras([BrightnessFaces()], {}, tmp_path)
    assert [f.verdict for f in found] == ["short"] * 3
    assert all("bench.lora_test" in f.note for f in found)

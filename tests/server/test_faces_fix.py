# SPDX-License-Identifier: GPL-3.0-or-later
"""`onmodel faces fix`: arguments, heads found and matched, masks, and the pass over pictures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from onmodel.cli import build_parser
from onmodel.faces import fix
from onmodel.faces.detect import FolderParser, FoundHead, finder_for, head_mask, oval, polygon
from onmodel.faces.fix import Fixer
from onmodel.identity import dlib_faces
from onmodel.identity.dlib_faces import DlibFaces
from onmodel.models.errors import ModelError
from onmodel.models.registry import Registry
from PIL import Image

from tests.server.drawing import make_data
from tests.server.regional import unet, write_lora
from tests.server.test_face_pass import Scorer


def options(*words: str) -> argparse.Namespace:
    return build_parser().parse_args(["faces", "fix", *words])


def picture(seed: int = 0, width: int = 150, height: int = 110) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def found(x: float, y: float = 55.0) -> FoundHead:
    return oval(np.array([x - 4.0, y]), np.array([x + 4.0, y]), np.array([x, y + 6.0]), 0.75)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    data = make_data(tmp_path_factory.mktemp("data"))
    model = data / "models" / "tiny"
    write_lora(data / "loras" / "ann.safetensors", model, 1, unet)
    return data


def test_options_belong_to_the_character_before_them(tmp_path):
    portrait = str(tmp_path / "a.png")
    made = options(
        *("a.png", "--character", "Ann", "--lora", "ann", "--lora", "coat:0.5"),
        *("--reference", portrait, "--noun", "woman", "--character", "Bob", "--prompt", "angry"),
    )
    ann, bob = made.characters
    assert ann.loras == [("ann", 1.0), ("coat", 0.5)] and ann.noun == "woman"
    assert ann.references == [Path(portrait)] and bob.references == [] and bob.prompt == "angry"
    assert (made.first, made.second, made.size) == (0.6, 0.4, None)
    # `onmodel faces` has a run of its own, which this one takes the place of.
    assert made.run.__module__ == "onmodel.faces.fix_cli"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a.png", "--lora", "x", "--character", "Ann"], "comes after the --character"),
        (["a.png", "--character", "A", "--character", "A"], "twice"),
        (["a.png", "--character", "A", "--lora", "x:y"], "write NAME or NAME:0.8"),
        (["a.png", "--character", "A", "--first", "0"], "more than 0"),
        (["a.png"], "--character"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(words, told, capsys):
    with pytest.raises(SystemExit):
        options(*words)
    assert told in capsys.readouterr().err


def test_an_oval_holds_the_head_that_its_landmarks_place():
    """Turned in the picture's plane, mirrored, and in profile, where the eyes come together."""
    head = oval(np.array([90.0, 50]), np.array([110.0, 50]), np.array([100.0, 65]), 0.75)
    left, top, wide, tall = head.box
    assert (left, wide) == (pytest.approx(70), pytest.approx(60))
    assert (top, tall) == (pytest.approx(14, abs=0.1), pytest.approx(76, abs=0.1))
    swapped = oval(np.array([110.0, 50]), np.array([90.0, 50]), np.array([100.0, 65]), 0.75)
    assert np.allclose(swapped.box, head.box)
    tilted = oval(np.array([100.0, 40]), np.array([100.0, 60]), np.array([85.0, 50]), 0.75)
    assert np.allclose(tilted.box[2:], (76, 60), atol=0.2) and tilted.box[0] < 70
    profile = oval(np.array([98.0, 50]), np.array([102.0, 50]), np.array([104.0, 65]), 0.75)
    assert np.allclose(profile.box[2:], head.box[2:], atol=0.2)
    mask = polygon(head.outline, 200, 120)
    assert abs(mask.sum() / (np.pi * 30 * 38) - 1) < 0.03


class HalfParser:
    """Calls the left half of what it is shown the head."""

    def head(self, image):
        mask = np.zeros(image.shape[:2], bool)
        mask[:, : image.shape[1] // 2] = True
        return mask


class BlindParser:
    def head(self, image):
        return np.zeros(image.shape[:2], bool)


def test_a_parser_shapes_the_mask_but_not_beyond_the_head():
    head, image = found(75), picture()
    whole = head_mask(image, head, None)
    half = head_mask(image, head, HalfParser())
    assert half[:, 76:].sum() == 0 and (half & whole).any() and not half[:, :50].any()
    # A parser that sees nothing leaves the oval.
    assert np.array_equal(head_mask(image, head, BlindParser()), whole)


def test_a_face_parser_from_a_folder(tmp_path):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    names = {0: "background", 1: "skin", 2: "neck_l", 3: "l_brow"}
    small = {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "sr_ratios": [2, 1],
        "hidden_sizes": [8, 16],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2],
        "decoder_hidden_size": 8,
        "id2label": names,
    }
    model = SegformerForSemanticSegmentation(SegformerConfig(**small))
    model.decode_head.classifier.bias.data[:] = 0
    model.decode_head.classifier.bias.data[1] = 100  # everything is skin
    model.save_pretrained(tmp_path / "faces")
    (tmp_path / "faces" / "preprocessor_config.json").write_text('{"size": {"height": 64}}')
    parser = FolderParser(tmp_path / "faces")
    mask = parser.head(picture())
    assert mask.shape == (110, 150) and mask.all()
    model.config.id2label = {0: "road", 1: "sky", 2: "car", 3: "earth"}
    model.save_pretrained(tmp_path / "roads")
    with pytest.raises(ModelError, match="no label of a face"):
        FolderParser(tmp_path / "roads")
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        FolderParser(tmp_path)


def test_without_a_finder_it_says_what_to_install():
    with pytest.raises(ModelError, match="Nothing here can find faces") as raised:
        finder_for(None)
    assert "requirements/faces.txt" in raised.value.fix and "--pack" in raised.value.fix


@pytest.mark.skipif(bool(dlib_faces.missing()), reason="dlib is not installed")
def test_dlib_finds_no_face_in_a_plain_wall():
    assert finder_for(DlibFaces())(np.full((90, 120, 3), 128, np.uint8)) == []


def fixer(data: Path, scorer, heads, *words: str) -> Fixer:
    registry = Registry(data, extra=[], embedded=data / "none")
    made = options("a.png", "--size", "64", "--steps", "3", *words)
    return Fixer(
        registry, registry.find("tiny"), made.characters, made, scorer, lambda image: heads, None
    )


def test_faces_are_matched_by_score_and_only_they_change(data, tmp_path):
    """Ann is the right head, Bob the left; a third head and Cy, who is not there, stay alone."""
    portrait = tmp_path / "portrait.png"
    portrait.write_bytes(b"portrait")
    heads = [found(25), found(75), found(125)]
    cast = []
    for name in ("Ann", "Bob", "Cy"):
        cast += ["--character", name, "--reference", str(portrait)]
    cast[2:2] = ["--lora", "ann:0.7"]
    # By character and head: Ann, Bob, Cy; then before, after and at last for both repaired.
    scores = Scorer(0.1, 0.3, 0.8, 0.7, 0.2, 0.75, None, None, None)
    scores.values += [0.7, 0.9, 0.8, 0.6, 0.8, 0.9]
    image = picture()
    (fixed,) = fixer(data, scores, heads, *cast).fix([image])
    ann, bob, cy = fixed.heads
    assert ann["box"][0] == pytest.approx(113) and bob["box"][0] == pytest.approx(13)
    assert ann["face"]["loras"] == [["ann", 0.7]] and bob["face"]["loras"] == []
    states = {h["character"]: h["face"]["state"] for h in fixed.heads}
    assert states["Cy"] == "skipped" and sorted([states["Ann"], states["Bob"]]) == [
        "kept",
        "repaired",
    ]
    assert cy["face"]["reason"] == cy["no_score"] == "No face in the picture is like it."
    repaired = ann if states["Ann"] == "repaired" else bob
    middle = repaired["box"][0] + 12
    changed = (fixed.pixels != image).any(-1)
    near = polygon(found(middle).outline, 150, 110)
    assert changed[near].mean() > 0.9
    assert not changed[:, : int(middle) - 25].any() and not changed[:, int(middle) + 25 :].any()


def test_one_character_alone_needs_no_portrait(data):
    alone = fixer(data, Scorer(), [found(75)], "--character", "Ann", "--lora", "ann")
    (fixed,) = alone.fix([picture()])
    assert fixed.heads[0]["face"]["state"] == "repaired"
    assert "no reference portraits" in fixed.heads[0]["no_score"]
    two = fixer(data, Scorer(), [found(30), found(110)], "--character", "Ann")
    (fixed,) = two.fix([picture()])
    assert fixed.heads[0]["face"]["state"] == "skipped"
    assert "no reference portraits" in fixed.heads[0]["face"]["reason"]


@pytest.mark.skipif(bool(dlib_faces.missing()), reason="dlib is not installed")
def test_the_command_writes_beside_the_picture_and_never_over_it(data, tmp_path, capsys):
    file = tmp_path / "wall.png"
    Image.fromarray(np.full((90, 120, 3), 128, np.uint8)).save(file)
    before = file.read_bytes()
    made = options(str(file), "--character", "Ann", "--data", str(data), "--model", "tiny")
    assert fix.run(made) == 0
    out = tmp_path / "wall_faces.png"
    assert file.read_bytes() == before
    with Image.open(out) as shown:
        assert np.array_equal(np.array(shown), np.full((90, 120, 3), 128, np.uint8))
        heads = json.loads(shown.text["onmodel"])["heads"]
    assert heads[0]["face"]["reason"] == "No face was found in the picture."
    assert "Ann: skipped. No face was found" in capsys.readouterr().out
    missing = options(str(tmp_path / "no.png"), "--character", "Ann", "--data", str(data))
    missing.model = "tiny"
    assert fix.run(missing) == 1
    assert "cannot be read as a picture" in capsys.readouterr().err

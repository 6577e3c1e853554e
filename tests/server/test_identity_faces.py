# SPDX-License-Identifier: GPL-3.0-or-later
"""Cuts, refusals, embedders, references and the command `onmodel faces`."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from onmodel import cli
from onmodel.identity import dlib_faces, insightface_faces, interface, registry, rehearsal
from onmodel.identity.calibrate import Calibration
from onmodel.identity.interface import NoFace
from onmodel.identity.references import NoReferenceError, Reference, look_at, score
from onmodel.models.errors import ModelError
from PIL import Image

has_weights = pytest.mark.skipif(bool(rehearsal.missing()), reason=rehearsal.missing())
has_dlib = pytest.mark.skipif(bool(dlib_faces.missing()), reason=dlib_faces.missing())


def picture(seed: int = 0, side: int = 96) -> np.ndarray:
    """A smooth random picture (side, side, 3) uint8."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


class Corners:
    """An embedder of the tests: the mean colours of the head's four quarters."""

    name = "corners"
    size = 12
    least_pixels = 8.0

    def embed(self, image, head=None, yaw=None):
        head = head or (0, 0, image.shape[1], image.shape[0])
        refused = interface.unusable(image, head, yaw, 8, 90)
        if refused:
            return refused
        return interface.unit(interface.cut(image, head, 2).astype(float).ravel() - 128)


def test_a_cut_is_the_box_and_repeats_the_edge_beyond_the_border():
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, 15:] = 200
    image[5:10, 15:20] = (10, 60, 90)
    assert (interface.cut(image, (16, 6, 19, 9), 8) == (10, 60, 90)).all()
    outside = interface.cut(image, (26, -10, 46, 10), 8)
    assert (outside == 200).all()
    assert (interface.cut(image, (-40, -40, -20, -20), 4) == 0).all()


def test_a_cut_keeps_a_pixel_where_it_was():
    image = np.zeros((40, 40, 3), np.uint8)
    image[12, 17] = 255
    assert (interface.cut(image, (0, 0, 40, 40), 40) == image).all()
    part = interface.cut(image, (10, 10, 20, 20), 10)
    assert tuple(np.argwhere(part[:, :, 0] == 255)[0]) == (2, 7)


@pytest.mark.parametrize(
    ("box", "yaw", "kind", "words"),
    [
        ((10, 10, 15, 16), None, "small", "6 px high; 8 is least"),
        ((-30, 10, 10, 50), None, "outside", "Only 25% of the head"),
        ((10, 10, 50, 50), 135.0, "turned", "turned 135° away"),
        ((10, 10, 50, 50), -135.0, "turned", "turned 135° away"),
        ((10, 10, 50, 50), 350.0, "", ""),
    ],
)
def test_heads_that_give_no_number_say_why(box, yaw, kind, words):
    found = interface.unusable(picture(), box, yaw, 8, 100)
    if not kind:
        assert found is None
    else:
        assert found.kind == kind
        assert words in found.reason


def test_a_box_of_a_pose_holds_its_face_ears_and_crown():
    rng = np.random.default_rng(1)
    face = [[100 + x, 100 + y, 1.0, "visible"] for x, y in rng.uniform(-20, 20, (70, 2))]
    for k in range(17, 27):
        face[k][:2] = [90 + 2 * (k - 17), 85]
    face[8][:2] = [100, 125]
    face[27][:2] = [100, 90]
    body = [[0.0, 0.0, 1.0, "outside"]] * 16 + [
        [70.0, 98.0, 1, "visible"],
        [130.0, 98.0, 1, "hidden"],
    ]
    x0, y0, x1, y1 = interface.box_from_pose({"face": face, "body": body})
    assert x0 <= 70
    assert x1 >= 130
    assert y0 < 65
    assert y1 >= 125


def test_references_are_the_mean_direction_and_name_those_left_out():
    one, two = picture(1), picture(2)
    found = look_at(Corners(), [Reference(one), Reference(two, (0, 0, 5, 5)), Reference(two)])
    parts = [Corners().embed(one), Corners().embed(two)]
    assert np.allclose(found.mean, interface.unit(parts[0] + parts[1]), atol=1e-6)
    assert [index for index, _ in found.refused] == [1]
    with pytest.raises(NoReferenceError, match="5 px high"):
        look_at(Corners(), [Reference(two, (0, 0, 5, 5))])


def test_scores_carry_cosine_probability_and_verdict():
    numbers = Calibration("corners", 0.8, 0.5, 10, -6, 0.9, 0.1, 5, 50, "a test")
    references = look_at(Corners(), [Reference(picture(1))])
    same = score(Corners(), references, picture(1), calibration=numbers)
    assert same.value == pytest.approx(1.0)
    assert same.verdict == "same"
    assert same.probability == pytest.approx(1 / (1 + np.exp(-4)))
    other = score(Corners(), references, 255 - picture(1), calibration=numbers)
    assert (other.verdict, other.value < -0.9) == ("other", True)
    assert isinstance(score(Corners(), references, picture(1), (0, 0, 4, 4)), NoFace)
    bare = score(Corners(), references, picture(1))
    assert (bare.probability, bare.verdict) == (None, None)


def test_numbers_of_two_embedders_are_not_mixed():
    references = look_at(Corners(), [Reference(picture(1))])
    other = Calibration("dlib", 0.8, 0.5, 10, -6, 0.9, 0.1, 5, 50, "a test")
    with pytest.raises(ValueError, match="dlib"):
        score(Corners(), references, picture(1), calibration=other)


@has_weights
def test_the_rehearsal_embedder_repeats_and_knows_a_mirrored_head():
    embedder, image, head = rehearsal.RehearsalFaces(), picture(3), (20.0, 16.0, 70.0, 80.0)
    first = embedder.embed(image, head)
    assert first.shape == (128,)
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    assert (embedder.embed(image, head) == first).all()
    mirrored = embedder.embed(image[:, ::-1], (26.0, 16.0, 76.0, 80.0))
    assert interface.cosine(first, mirrored) > 0.99
    assert embedder.embed(image).kind == "no box"
    assert embedder.embed(image, (0.0, 0.0, 10.0, 10.0)).kind == "small"


@has_weights
def test_what_ships_is_small_and_calibrated_on_held_out_people():
    assert rehearsal.weights.stat().st_size < 4_000_000
    numbers = registry.calibration("rehearsal")
    assert numbers is not None
    assert numbers.auc > 0.9
    assert numbers.equal <= numbers.accept


@has_dlib
def test_dlib_embeds_a_known_head_and_finds_none_in_noise():
    embedder, image = dlib_faces.DlibFaces(), picture(4)
    found = embedder.embed(image, (20, 10, 70, 80))
    assert found.shape == (128,)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
    assert (embedder.embed(image, (20, 10, 70, 80)) == found).all()
    assert embedder.embed(image, (20, 10, 70, 80), yaw=90).kind == "turned"
    assert embedder.embed(image).kind == "undetected"


def test_insightface_is_never_fetched_and_says_what_it_needs(tmp_path, monkeypatch):
    assert "none is downloaded" in insightface_faces.missing(None) or "Not installed" in (
        insightface_faces.missing(None)
    )
    with pytest.raises(ModelError):
        registry.get("insightface")
    monkeypatch.setattr(insightface_faces.importlib.util, "find_spec", lambda name: object())
    assert "no folder" in insightface_faces.missing(tmp_path / "gone")
    assert "no .onnx files" in insightface_faces.missing(tmp_path)
    (tmp_path / "w600k_r50.onnx").write_bytes(b"")
    assert insightface_faces.missing(tmp_path) == ""
    with pytest.raises(ModelError, match="non-commercial"):
        insightface_faces.InsightFaces(tmp_path, accept_licence=False)


def test_the_registry_names_what_there_is():
    assert [one.name for one in registry.available()] == ["rehearsal", "dlib", "insightface"]
    with pytest.raises(ModelError, match="no face embedder called facenet"):
        registry.get("facenet")


@has_weights
def test_faces_score_on_the_command_line(tmp_path, capsys):
    Image.fromarray(picture(5)).save(tmp_path / "a.png")
    box = ["--head", "20,16,70,80", "--reference-head", "20,16,70,80"]
    line = ["faces", "score", str(tmp_path / "a.png"), "--reference", str(tmp_path / "a.png")]
    assert cli.main([*line, *box, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["value"] == pytest.approx(1, abs=1e-4)
    assert (told["verdict"], told["embedder"]) == ("same", "rehearsal")
    assert cli.main([*line, "--head", "0,0,9,9", *box[2:]]) == 1
    assert capsys.readouterr().out.startswith("no face: The head is 9 px high")
    assert cli.main([*line, *box, "--reference-head", "0,0,9,9"]) == 1
    assert "have 2 boxes" in capsys.readouterr().err


def test_nothing_heavy_is_imported_before_it_is_used():
    code = (
        "import sys; import onmodel.identity.registry, onmodel.identity.references, onmodel.cli;"
        "bad = {'torch', 'dlib', 'insightface', 'onnxruntime'} & set(sys.modules); assert not bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Middle(Corners):
    """`Corners` that finds a face only in pictures that are not grey."""

    def embed(self, image, head=None, yaw=None):
        if head is None and int(image.max()) - int(image.min()) < 10:
            return NoFace("undetected", "No face was found in the picture.")
        return super().embed(image, head, yaw)


def test_several_pictures_are_scored_and_one_without_a_face_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(registry, "get", lambda *_, **__: Middle())
    for name, image in (("a", picture(1)), ("b", picture(2)), ("grey", np.full_like(picture(), 9))):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    a, b, grey = (str(tmp_path / f"{name}.png") for name in ("a", "b", "grey"))
    line = ["faces", "score", a, grey, b, "--reference", a, "--reference", grey, "--reference", a]
    assert cli.main(line) == 1
    said = capsys.readouterr()
    first, second, third = said.out.splitlines()
    assert first.startswith(f"{a}: 1.000") and third.startswith(f"{b}: ")
    assert second == f"{grey}: no face: No face was found in the picture."
    assert f"{grey} is left out: No face was found" in said.err
    assert cli.main(["faces", "score", a, b, "--reference", a, "--json"]) == 0
    told = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [one["file"] for one in told] == [a, b] and told[0]["value"] > told[1]["value"]
    assert cli.main(["faces", "score", a, b, "--reference", a, "--head", "0,0,9,9"]) == 1
    assert "2 pictures have 1 boxes" in capsys.readouterr().err
    assert cli.main(["faces", "score", str(tmp_path / "gone.png"), "--reference", a]) == 1
    assert "gone.png cannot be read" in capsys.readouterr().err

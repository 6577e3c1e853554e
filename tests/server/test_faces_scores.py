# SPDX-License-Identifier: GPL-3.0-or-later
"""Who scores a model's people, portraits with and without a head box, scores and refusals."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from onmodel.faces import scores
from onmodel.faces.scores import HeadScore, Scorer
from onmodel.faces.skull import skull_box
from onmodel.identity import dlib_faces, find, interface, portrait, rehearsal
from onmodel.identity.calibrate import Calibration
from onmodel.identity.references import References
from PIL import Image

from tests.server.drawing import Blobs
from tests.server.test_identity_faces import Corners, picture

has_weights = pytest.mark.skipif(bool(rehearsal.missing()), reason=rehearsal.missing())
wide = Calibration("corners", 0.9, 0.2, 4.0, -2.0, 0.95, 0.1, 9, 90, "a cast of 3")


def ann(blobs: Blobs, *seeds: int) -> dict:
    return {"name": "Ann", "references": [blobs.put_image(picture(s)) for s in seeds]}


def test_the_embedded_models_people_are_known_to_the_rehearsal_network_alone(monkeypatch):
    monkeypatch.delenv(scores.pack_variable, raising=False)
    monkeypatch.setattr(dlib_faces, "missing", lambda: "no dlib")
    assert Scorer(embedded=True).name == "rehearsal"
    other = Scorer(embedded=False)
    assert other.name == "" and "no face embedder for this model" in other.why_not
    assert other.references_of({"name": "Ann", "references": ["0" * 64]}, Blobs()) == other.why_not


def test_a_pack_that_was_named_is_not_silently_replaced(monkeypatch, tmp_path):
    monkeypatch.setenv(scores.pack_variable, str(tmp_path / "nothing"))
    chosen = scores.choose(embedded=False)
    assert chosen.embedder is None
    assert "InsightFace" in chosen.why_not


def test_dlib_says_what_it_is_weak_at(monkeypatch):
    monkeypatch.delenv(scores.pack_variable, raising=False)
    if dlib_faces.missing():
        pytest.skip(dlib_faces.missing())
    assert "weak on drawn faces" in scores.choose(embedded=False).note


def test_references_are_looked_at_once_and_scores_are_read_by_the_calibration():
    blobs, scorer = Blobs(), Scorer(Corners())
    character = ann(blobs, 1, 1)
    found = scorer.references_of(character, blobs)
    assert isinstance(found, References) and len(found.parts) == 2
    blobs.data.clear()
    assert scorer.references_of(character, blobs) is found
    same = scorer.score(picture(1), (0, 0, 96, 96), 10.0, found, wide)
    assert same.value == pytest.approx(1.0, abs=1e-5)
    assert (same.verdict, same.calibration) == ("same", "a cast of 3")
    assert same.as_record()["probability"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-3)
    plain = scorer.score(picture(1), (0, 0, 96, 96), None, found)
    assert plain.verdict is None and plain.value == same.value


@pytest.mark.parametrize(
    ("box", "yaw", "words"),
    [
        ((0, 0, 4, 5), 0.0, "5 px high"),
        ((10, 10, 40, 40), 170.0, "turned 170°"),
        ((-60, 0, 80, 90), 0.0, "of the head lies in the picture"),
        ((10, 10, 0, 40), 0.0, "no area"),
    ],
)
def test_a_head_without_a_number_says_why(box, yaw, words):
    blobs, scorer = Blobs(), Scorer(Corners())
    references = scorer.references_of(ann(blobs, 1), blobs)
    found = scorer.score(picture(1), box, yaw, references, wide)
    assert found.value is None and words in found.reason
    assert found.as_record() is None


def test_characters_without_usable_portraits_say_why():
    blobs, scorer = Blobs(), Scorer(Corners())
    assert "no reference portraits" in scorer.references_of({"name": "Ann"}, blobs)
    broken = {"name": "Bob", "references": [blobs.put(b"\x89PNG\r\n\x1a\n rubbish")]}
    assert "Portrait 1: It cannot be read" in scorer.references_of(broken, blobs)


def test_a_portrait_tells_its_head_box():
    image = picture(3)
    data = portrait.write(image, (10, 12.5, 60, 80))
    read = portrait.read(data)
    assert read.head == (10, 12.5, 60, 80)
    assert (read.image == image).all()
    assert portrait.read(_file(image)).head is None
    for box in ((5, 5, 5, 9), (0, 0, float("nan"), 9)):
        with pytest.raises(portrait.PortraitError, match="head box"):
            portrait.read(portrait.write(image, box))


def _file(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def test_the_largest_blob():
    mask = np.zeros((12, 12), bool)
    mask[1:3, 1:3] = mask[5:11, 4:9] = True
    mask[4, 4] = True  # joins the larger
    mask[3, 3] = True  # touches corners only
    blob = find.largest_blob(mask)
    assert blob.sum() == 31 and not blob[3, 3] and not blob[1, 1]


def test_the_head_rule_finds_heads_without_necks_and_hanging_hair():
    """Fitted on ellipses with necks and hair of any length, it finds ones that it has not seen."""
    rng = np.random.default_rng(0)

    def example():
        labels = np.zeros((128, 128), np.uint8)
        rows, columns = np.mgrid[:128, :128]
        x, y = rng.uniform(40, 88), rng.uniform(40, 70)
        a, b = rng.uniform(12, 20), rng.uniform(18, 26)
        hair = (abs(columns - x) < a + 3) & (rows > y - b) & (rows < y + rng.uniform(-10, 50))
        labels[hair] = 3
        neck = (abs(columns - x) < a / 2) & (rows > y) & (rows < y + b + 14)
        labels[neck | (((columns - x) / a) ** 2 + ((rows - y + 4) / (b - 4)) ** 2 < 1)] = 2
        return labels, 256, 128, (2 * (x - a), y - b, 2 * (x + a), y + b - 8)

    rule = find.fit([example() for _ in range(150)])
    for _ in range(10):
        labels, width, height, box = example()
        found = find.box_of_labels(labels, width, height, rule)
        assert np.allclose(found, box, atol=7)
    empty = find.box_of_labels(np.zeros((128, 128), np.uint8), 256, 128, rule)
    assert isinstance(empty, interface.NoFace)


@has_weights
def test_the_rehearsal_scorer_finds_heads_in_portraits_or_says_that_there_is_none():
    blobs = Blobs()
    scorer = Scorer(embedded=True)
    grey = {"name": "Ann", "references": [blobs.put_image(np.full((64, 64, 3), 127, np.uint8))]}
    assert "No head was found" in scorer.references_of(grey, blobs)
    image = picture(4, 128)
    told = {"name": "Bob", "references": [blobs.put(portrait.write(image, (20, 20, 100, 110)))]}
    references = scorer.references_of(told, blobs)
    found = scorer.score(image, (20, 20, 80, 90), 0.0, references)
    assert found.value == pytest.approx(1.0, abs=1e-4)
    assert found.embedder == "rehearsal" and found.verdict == "same"


def test_a_score_without_a_number_is_no_score():
    assert HeadScore(None, None, None, "", "why").as_record() is None


def test_the_scorer_imports_torch_late():
    code = "import onmodel.faces.scores, sys; print('torch' in sys.modules, 'dlib' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


def _head(box, yaw=0.0, chin=150.0, points=68):
    face = [{"x": 100.0 + k % 17 * 2, "y": chin - 3 * (k % 16), "z": 2.0} for k in range(points)]
    names = ("x", "y", "width", "height")
    return {
        "head": {"box": dict(zip(names, box, strict=True)), "yaw": yaw},
        "pose": {"face": face, "body": [None] * 18},
    }


def test_hanging_hair_is_no_part_of_a_skull():
    left, top, width, height = skull_box(_head((80, 90, 80, 140)))
    assert top == 90 and top + height == pytest.approx(150, abs=3)
    assert 50 < width < 60 and left + width / 2 == pytest.approx(116, abs=2)
    right_profile = skull_box(_head((60, 90, 90, 140), yaw=85.0))
    assert right_profile[0] + right_profile[2] / 2 < 112  # the back lies behind the face


def test_a_box_without_hanging_hair_stays():
    assert skull_box(_head((88, 90, 54, 61))) == (88, 90, 54, 61)
    assert skull_box({"head": None}) is None


def test_without_face_points_a_skull_is_no_taller_than_heads_are():
    assert skull_box(_head((80, 90, 40, 140), points=0)) == (80, 90, 40, 60)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The choice among checkpoints, on drawings whose identity is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onmodel.identity.interface import NoFace, unit
from onmodel.identity.references import Reference
from onmodel.train import choose
from onmodel.train.plan import PlanError
from PIL import Image

texture = np.random.default_rng(1).integers(0, 200, (6, 8, 8)).repeat(8, 1).repeat(8, 2)
# The training pictures (0 to 2) show the same from nearly the same place.
texture[1:3] = texture[0] * 0.9 + texture[1:3] * 0.1


class Colours:
    """An embedder that takes the mean colour for the person; black shows no face."""

    name, size = "colours", 3

    def embed(self, image, head=None, yaw=None):
        colour = image.reshape(-1, 3).mean(0)
        if colour.max() < 1:
            return NoFace("undetected", "It is dark.")
        return unit(colour)


judge = choose.Judge(Colours())


def picture(red: float, green: float, pattern: int = 0) -> np.ndarray:
    """A textured picture of one hue."""
    tint = np.array([red, green, 0.2])
    return (texture[pattern][..., None] * tint).clip(0, 255).astype(np.uint8)


def training() -> list[Reference]:
    return [Reference(picture(1, g, i)) for i, g in enumerate((0.18, 0.2, 0.22))]


def drawn(green: float, patterns=(3, 4, 5, 3)) -> list[np.ndarray]:
    return [picture(1, green + 0.03 * i, p) for i, p in enumerate(patterns)]


def test_the_likest_checkpoint_is_chosen_with_an_interval():
    drawings = {0: drawn(1.0), 100: drawn(0.6), 200: drawn(0.25), 300: drawn(0.5)}
    found = choose.choose(drawings, training(), judge)
    assert found.best == 200
    best = found.checkpoints[1].identity
    assert best.low <= best.value <= best.high
    assert best.low > found.base.identity.high
    assert not found.zero_effect
    assert "Step 200 is best" in found.sentence


def test_copies_are_passed_over():
    copies = [r.image for r in training()] + [training()[0].image]
    drawings = {0: drawn(1.0), 100: drawn(0.4), 200: copies}
    found = choose.choose(drawings, training(), judge)
    assert found.checkpoints[1].copies == (0, 1, 2, 3)
    assert found.checkpoints[0].copies == ()
    assert found.best == 100
    assert "passed over for copying: 200" in found.sentence


def test_a_good_likeness_in_another_picture_is_no_copy():
    alike = [picture(1, 0.2, p) for p in (3, 4, 5, 3)]
    found = choose.choose({0: drawn(1.0), 100: alike}, training(), judge)
    assert found.checkpoints[0].copies == ()
    assert found.best == 100


def test_a_lora_without_effect_is_named():
    drawings = {0: drawn(0.5), 100: drawn(0.5)}
    drawings[100][0] = drawings[100][0] ^ 1
    found = choose.choose(drawings, training(), judge)
    assert found.zero_effect
    assert found.best is None
    assert "has no effect" in found.sentence


def test_no_face_is_a_reason_not_a_number():
    dark = [np.zeros((64, 64, 3), np.uint8)] * 3 + [picture(1, 0.2, 3)]
    found = choose.choose({0: drawn(1.0), 100: dark}, training(), judge)
    assert found.checkpoints[0].without_face == {
        0: "It is dark.",
        1: "It is dark.",
        2: "It is dark.",
    }
    assert found.checkpoints[0].identity is None
    assert found.best is None
    assert "enough usable faces" in found.sentence


def test_nothing_to_judge_is_said():
    with pytest.raises(PlanError, match="no validation drawings"):
        choose.choose({0: drawn(1.0)}, training(), judge)


@pytest.mark.parametrize(
    ("references", "who", "words"),
    [
        ([Reference(np.zeros((8, 8, 3), np.uint8))], judge, "It is dark"),
        (training(), "No embedder is installed.", "No embedder is installed."),
    ],
)
def test_where_nobody_can_judge_nothing_is_chosen(references, who, words):
    found = choose.choose({0: drawn(1.0), 1: drawn(0.2)}, references, who)
    assert found.best is None
    assert words in found.sentence
    assert not found.zero_effect
    idle = choose.choose({0: drawn(1.0), 1: drawn(1.0)}, references, who)
    assert idle.zero_effect
    assert "no effect" in idle.sentence


def test_a_head_is_looked_for_where_it_is_not_known():
    """One drawing's head is given, the other's and the reference's are found."""
    asked = []

    def find(image):
        asked.append(image)
        return NoFace("undetected", "No head.") if image.max() < 1 else (0.0, 0.0, 9.0, 9.0)

    class Needs(Colours):
        def embed(self, image, head=None, yaw=None):
            assert head is not None
            return super().embed(image, head, yaw)

    seen = choose.Judge(Needs(), find)
    dark = np.zeros((64, 64, 3), np.uint8)
    given: list = [(0.0, 0.0, 5.0, 5.0), None, None]
    pictures = [*drawn(0.3, (3, 4)), dark]
    found = choose.choose({0: pictures, 5: pictures}, training()[:1], seen, given)
    assert list(found.base.scores) == [0, 1]
    assert found.base.without_face == {2: "No head."}
    assert len(asked) == 1 + 2 * 2


def test_a_runs_folder_gets_its_choice_and_curve(tmp_path):
    for step, green in ((0, 1.0), (100, 0.6), (200, 0.25), (300, 0.2)):
        folder = tmp_path / "drawings" / f"{step:06d}"
        folder.mkdir(parents=True)
        for i, image in enumerate(drawn(green)):
            Image.fromarray(image).save(folder / f"{i:02d}.png")
    # The last has no checkpoint any more.
    files = []
    for i, reference in enumerate(training()):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(reference.image).save(files[-1])
    found = choose.choose_in(tmp_path, {100, 200}, files, judge, [None] * 4)
    told = json.loads((tmp_path / "choice.json").read_text())
    assert found.best == told["best"] == 200
    assert told["zero_effect"] is False
    curve = np.asarray(Image.open(tmp_path / "identity.png"))
    assert curve.shape == (480, 900, 3)
    # The chosen point is drawn in its own colour.
    assert (curve == (200, 60, 30)).all(-1).sum() > 50


def test_references_are_pictures_without_their_masks(tmp_path):
    for name in ("a.png", "a.mask.png", "a.pose.png", "b.JPG"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert [p.name for p in choose.pictures_in(tmp_path)] == ["a.png", "b.JPG"]
    (tmp_path / "none").mkdir()
    with pytest.raises(PlanError, match="no pictures"):
        choose.pictures_in(tmp_path / "none")

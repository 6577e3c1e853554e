# SPDX-License-Identifier: GPL-3.0-or-later
"""A head that is drawn again can be scored: one rule, of the box that the scorer looks at."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from onmodel.faces.heads import FaceRules, head_regions, plan_repairs
from onmodel.faces.keyframe import HeadPlan, plan_keyframe
from onmodel.faces.record import HeadScores
from onmodel.faces.scores import HeadScore, Scorer
from onmodel.faces.settings import settings_of
from onmodel.generate.casting import Bound
from onmodel.identity import interface

from tests.server.drawing import Blobs
from tests.server.test_identity_faces import Corners, picture

width, height = 160, 120
crop = {"x": 0.0, "y": 10.0, "width": 160.0, "height": 100.0}
entry = SimpleNamespace(name="small", multiple=8, native_pixels=256 * 256)


class Choosy(Corners):
    """Wants 24 pixels, and nobody turned more than 60°."""

    least_pixels = 24.0

    def embed(self, image, head=None, yaw=None):
        head = head or (0, 0, image.shape[1], image.shape[0])
        refused = interface.unusable(image, head, yaw, self.least_pixels, 60.0)
        return refused or super().embed(image, head, yaw)


def actor(blobs: Blobs, box: tuple, yaw: float = 0.0, known: bool = True) -> dict:
    left, top, wide, tall = box
    mask = np.zeros((height, width), np.uint8)
    mask[max(0, int(top)) : int(top + tall), max(0, int(left)) : int(left + wide)] = 255
    return {
        "name": "Ann",
        "noun": "woman",
        "references": [blobs.put_image(picture(1))] if known else [],
        "head": {
            "box": {"x": left, "y": top, "width": wide, "height": tall},
            "yaw": yaw,
            "visible": 1.0,
            "mask": blobs.put_image(mask),
        },
    }


def planned(blobs: Blobs, scorer: Scorer, *cast: dict, **face) -> tuple[HeadPlan, HeadScores]:
    request = {
        "canvas": {"width": width, "height": height, "crop": crop},
        "prompt": "",
        "seed": 1,
        "characters": list(cast),
        "face_pass": {"min_height": 4.0, "max_yaw": 180.0} | face,
    }
    scores = HeadScores(request, blobs, scorer, settings_of(request))
    bound = [Bound(c["name"], (), ()) for c in cast]
    return plan_keyframe(request, blobs, entry, bound, unfit=scores.unfit), scores


def test_long_hair_makes_no_head_taller():
    """The skull counts: 21 pixels, whatever hangs below them."""
    blobs = Blobs()
    request = {"characters": [actor(blobs, (60.0, 30.0, 14.0, 70.0))]}
    mask = np.zeros((height, width), bool)
    mask[30:100, 60:74] = True
    heads, _ = head_regions(request, lambda sha256, name: mask)
    assert heads[0].skull == (60, 30, 14, 21)
    repairs, (skip,) = plan_repairs(heads, FaceRules())
    assert not repairs and skip.reason == "It is too small: 21 of at least 24 pixels."
    assert plan_repairs(heads, FaceRules(min_height=21))[0]


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((60.0, 30.0, 18.0, 20.0), "20 px high; 24 is least"),
        ((60.0, -20.0, 40.0, 40.0), "Only 25% of the head lies in the picture"),
    ],
)
def test_a_head_that_nobody_could_compare_is_left(box, words):
    blobs, scorer = Blobs(), Scorer(Choosy())
    plan, scores = planned(blobs, scorer, actor(blobs, box))
    assert not plan.count and plan.skips[0].startswith("It could not be scored afterwards: ")
    assert words in plan.skips[0]
    found = scores.of(0, np.zeros((height, width, 3), np.uint8))
    assert found in plan.skips[0]


def test_without_portraits_or_an_embedder_there_is_nothing_to_compare(monkeypatch):
    """Then the settings alone say which heads are drawn again."""
    blobs, box = Blobs(), (60.0, 30.0, 18.0, 20.0)
    assert planned(blobs, Scorer(Choosy()), actor(blobs, box, known=False))[0].count == 1
    monkeypatch.delenv("ONMODEL_FACE_PACK", raising=False)
    monkeypatch.setattr("onmodel.faces.scores.dlib_faces.missing", lambda: "no dlib")
    assert planned(blobs, Scorer(embedded=False), actor(blobs, box))[0].count == 1


def test_how_far_a_head_is_turned_is_for_the_settings_to_say():
    blobs, box = Blobs(), (60.0, 30.0, 40.0, 40.0)
    assert planned(blobs, Scorer(Choosy()), actor(blobs, box, 80.0))[0].count == 1
    plan, _ = planned(blobs, Scorer(Choosy()), actor(blobs, box, 80.0), max_yaw=75.0)
    assert "looks away" in plan.skips[0]


def test_what_is_drawn_again_has_a_score():
    rng = np.random.default_rng(2)
    blobs, scorer = Blobs(), Scorer(Choosy())
    pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    states = []
    for _ in range(120):
        wide, tall = rng.uniform(8, 60, 2)
        box = (rng.uniform(-20, width - 10), rng.uniform(-20, height - 10), wide, tall)
        plan, scores = planned(blobs, scorer, actor(blobs, box, float(rng.uniform(-60, 60))))
        states.append(plan.count)
        if plan.count:
            assert isinstance(scores.of(0, pixels), HeadScore)
        else:
            assert plan.skips[0]
    assert 10 < sum(states) < 110

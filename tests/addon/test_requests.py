# SPDX-License-Identifier: GPL-3.0-or-later
"""A captured keyframe and what the artist wrote, as a request."""

from types import SimpleNamespace

import numpy as np
import pytest

from addon.core.blob import Blob
from addon.core.request import Box, Camera, Canvas, Pose, Sampling, Size
from addon.render.requests import (
    Actor,
    BuildError,
    ShotSettings,
    build,
    effective_sampling,
    encode,
)

settings = ShotSettings(film="film", shot="010", seed=7, model="rehearsal", prompt="rain")


@pytest.fixture
def captured():
    """Ada in the left half, nothing of Ben to be seen."""
    seen, unseen = np.zeros((2, 32, 64), np.uint8)
    seen[:, :32] = 1
    return SimpleNamespace(
        frame=3,
        frame_size=Size(64, 32),
        canvas=Canvas(64, 32, Box(0.0, 0.0, 64.0, 32.0)),
        camera=Camera("Cam", "perspective", [0.0] * 16, [-1.0, 1.0, -0.5, 0.5], 0.1, 100.0),
        maps={},
        masks={"Ada": seen, "Ben": unseen},
        heads={},
        poses={"Ada": Pose()},
    )


@pytest.mark.parametrize("weight", [None, 0.0, 0.85])
def test_how_firmly_portraits_hold_a_character_is_said(captured, weight):
    portrait = Blob(b"\x89PNG and so on")
    encoded = encode(captured, (), {"Ada": (portrait,), "Ben": ()})
    actors = [
        Actor("Ada", "woman", reference_weight=weight),
        Actor("Ben", "man", reference_weight=2.0),
    ]
    request, blobs = build(encoded, settings, actors, take=1)
    (ada,) = request.characters
    assert (ada.name, ada.references, ada.reference_weight) == ("Ada", [portrait.hash], weight)
    assert {b.hash for b in blobs} == request.blobs()


model = {
    "name": "dream",
    "default_preset": "few",
    "sampling": {
        "default": {"steps": 30, "guidance": 5.0, "method": "a"},
        "few": {"steps": 8, "guidance": 2, "method": "b"},
    },
}


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (Sampling(), Sampling("few", 8, 2.0, "b")),
        (Sampling("few"), Sampling("few", 8, 2.0, "b")),
        (Sampling(steps=12), Sampling("few", 12, 2.0, "b")),
        (Sampling(guidance=0.0), Sampling("few", 8, 0.0, "b")),
        (Sampling("few", 12, 6.5), Sampling("few", 12, 6.5, "b")),
    ],
)
def test_what_is_left_to_the_model_is_said_and_the_artists_choice_wins(asked, found):
    effective = effective_sampling(asked, model)
    assert effective == found and isinstance(effective.guidance, float)


def test_a_preset_that_the_model_lacks_is_said():
    with pytest.raises(BuildError, match="model dream has no preset slow") as raised:
        effective_sampling(Sampling("slow"), model)
    assert "default, few" in raised.value.fix


@pytest.mark.parametrize("told", [{}, {"sampling": None}, {"sampling": {}}])
def test_a_server_that_does_not_say_how_it_draws_is_told_of(told):
    with pytest.raises(BuildError, match="does not say how dream draws") as raised:
        effective_sampling(Sampling(), {"name": "dream", "default_preset": "default", **told})
    assert "update the server" in raised.value.fix

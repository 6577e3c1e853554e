# SPDX-License-Identifier: GPL-3.0-or-later
"""The face pass on a tiny SDXL: whose LoRA, what changes, what is kept, order, memory, cancel."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from onmodel.faces import face_pass, pose_map
from onmodel.faces.crops import Square, feather
from onmodel.faces.heads import FaceRules, HeadRegion, plan_repairs
from onmodel.faces.keyframe import Draft, head_seeds, plan_keyframe, ranked
from onmodel.faces.prompts import head_prompt, style_of
from onmodel.faces.scores import HeadScore
from onmodel.faces.settings import FaceSettings, settings_of, work_side
from onmodel.generate.artist import Artist
from onmodel.generate.errors import RequestProblem
from onmodel.models.family import Picture
from onmodel.models.registry import Registry

from addon.core import openpose
from addon.core import request as contract
from tests.server.drawing import Blobs, draw, make_data, make_request, pixels
from tests.server.regional import bind, first_step, text, unet, use, write_lora

width, height, side = 128, 96, 64
ann_box, bob_box = (80.0, 20.0, 30.0, 30.0), (14.0, 24.0, 30.0, 30.0)


class Scorer:
    """Gives the scores that it was told, in turn; then, like a blank wall, none."""

    def __init__(self, *values: float | None):
        self.values = list(values)
        self.asked: list[tuple[tuple, tuple, float]] = []

    def references_of(self, character, blobs):
        hashes = character["references"]
        return tuple(hashes) if hashes else f"{character['name']} has no reference portraits."

    def calibration_of(self, characters, blobs):
        return None

    def unfit(self, width, height, box):
        return None

    def score(self, image, box, yaw, references, calibration=None):
        self.asked.append((image.shape, box, yaw))
        value = self.values.pop(0) if self.values else None
        reason = "No face was found." if value is None else None
        return HeadScore(value, None, None, "double", reason)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    data = make_data(tmp_path_factory.mktemp("data"))
    for number, name in enumerate(("ann", "bob", "ink"), 1):
        write_lora(data / "loras" / f"{name}.safetensors", data / "models/tiny", number, unet, text)
    return data


@pytest.fixture(scope="module")
def shared(data):
    return Artist(Registry(data, extra=[], embedded=data / "none"), scorer=Scorer())


@pytest.fixture
def artist(shared):
    """The warm artist with a scorer that finds no face."""
    shared._scorer = Scorer()
    return shared


@pytest.fixture(scope="module")
def blobs():
    return Blobs()


def disc(box: tuple[float, ...]) -> np.ndarray:
    left, top, wide, tall = box
    rows, columns = np.mgrid[:height, :width] + 0.5
    x, y = left + wide / 2, top + tall / 2
    return ((columns - x) / (wide / 2)) ** 2 + ((rows - y) / (tall / 2)) ** 2 < 1


def add_head(blobs: Blobs, character: dict, box: tuple[float, ...], z: float, **changes) -> None:
    left, top, wide, tall = box
    mask = (disc(box) * 255).astype(np.uint8)
    character["head"] = {
        "box": {"x": left, "y": top, "width": wide, "height": tall},
        "yaw": 15.0,
        "pitch": 0.0,
        "visible": 1.0,
        "mask": blobs.put_image(mask),
    } | changes
    nose = {"x": left + wide / 2, "y": top + tall / 2, "z": z, "state": "visible"}
    character["pose"] = {**character["pose"], "body": [nose] + [None] * 17}


def two_heads(blobs: Blobs, references: bool = False, loras: bool = True, **changes) -> dict:
    """Ann on the right, near; Bob on the left, far; 64-pixel squares."""
    face = changes.pop("face", {})
    request = copy.deepcopy(make_request(blobs, **changes))
    request["face_pass"] |= {"size": side} | face
    for character, box, z in zip(request["characters"], (ann_box, bob_box), (2, 5), strict=True):
        add_head(blobs, character, box, float(z))
        if loras:
            name = character["name"].lower()
            character["loras"] = [{"name": name, "weight": 0.8, "hash": None}]
        if references:
            character["references"] = [blobs.put(character["name"].encode())]
    return request


def off(request: dict) -> dict:
    return request | {"face_pass": request["face_pass"] | {"enabled": False}}


@pytest.fixture
def seen(artist, blobs, monkeypatch):
    """The pictures of the face pass's batches, in the order in which they are prepared."""
    draw(artist, blobs, make_request(blobs, sampling={"preset": "default", "steps": 1}))
    family = artist._loaded.family
    prepare, batches = family.prepare, []

    def watch(pictures, *more):
        if pictures[0].width == side:
            batches.append(list(pictures))
        return prepare(pictures, *more)

    monkeypatch.setattr(family, "prepare", watch)
    return batches


def reach(*boxes: tuple[float, ...]) -> np.ndarray:
    """Where the feathered masks of these heads are above 0, in the delivered picture."""
    found = np.zeros((height, width), bool)
    for box in boxes:
        others = [disc(other) for other in boxes if other != box]
        allowed = ~np.logical_or.reduce([*others, np.zeros((height, width), bool)])
        found |= feather(disc(box), round(30 * 0.04), allowed) > 0
    return found[6:90]


def test_heads_are_drawn_again_and_not_one_byte_beside_them(artist, blobs, seen):
    request = two_heads(blobs, loras=False)
    events = []
    on = draw(artist, blobs, request, report=lambda i, kind, d: events.append((kind, d)))["0"]
    without = draw(artist, blobs, off(request))["0"]
    touched = reach(ann_box, bob_box)
    assert np.array_equal(pixels(on)[~touched], pixels(without)[~touched])
    changed = (pixels(on) != pixels(without)).any(-1)
    for box in (ann_box, bob_box):
        assert changed[disc(box)[6:90]].mean() > 0.9
    # 3 steps of drawing; a head takes 2 of 3 (0.8) and 1 of 3 (0.4), two heads in one batch.
    steps = [d for kind, d in events if kind == "sampling"]
    assert [d["step"] for d in steps] == list(range(1, 10)) and {d["steps"] for d in steps} == {9}
    assert [len(batch) for batch in seen] == [2, 2]
    assert on.record["timings"]["faces"] > 0 and "faces" not in without.record["timings"]
    ann, bob = on.record["heads"]
    assert ann["character"] == "Ann" and bob["character"] == "Bob"
    assert ann["box"] == [80, 14, 30, 30] and ann["yaw"] == 15 and ann["score"] is None
    assert ann["no_score"] == "Ann has no reference portraits."
    assert ann["face"] == {
        "state": "repaired",
        "reason": "It was not compared with the head before. Ann has no reference portraits.",
        "denoise": [0.8, 0.4],
        "loras": [],
        "square": [67, 7, 56],
        "before": None,
        "after": None,
    }
    assert [entry["face"] for entry in without.record["heads"]] == [None, None]
    assert without.record["heads"][0]["no_score"] == ann["no_score"]


def test_the_paper_step_for_step(artist, blobs, seen, monkeypatch):
    """Squares to latents once, latents straight from the first sampler into the second, one
    decode; the first under the mask, the second not."""
    family = artist._loaded.family
    encode, decode, calls = family.encode, family.decode, []
    monkeypatch.setattr(family, "encode", lambda x: calls.append("encode") or encode(x))
    monkeypatch.setattr(family, "decode", lambda x: calls.append("decode") or decode(x))
    inner, starts = face_pass.denoised, []

    def watch(family, pictures, settings, watcher, start):
        rows, latents = inner(family, pictures, settings, watcher, start)
        starts.append((start, latents))
        return rows, latents

    monkeypatch.setattr(face_pass, "denoised", watch)
    draw(artist, blobs, two_heads(blobs, loras=False))
    assert calls == ["decode", "encode", "decode", "decode"]  # the drawing's own decode first
    (first, between), (second, _) = starts
    assert (first.strength, second.strength) == (0.8, 0.4)
    assert second.mask is None and second.latents is between
    assert first.mask.shape == (2, 1, 8, 8) and float(first.mask.max()) == 1
    outside = first.mask.expand_as(between) == 0
    assert outside.any() and torch.equal(between[outside], first.latents[outside])
    assert not torch.equal(between, first.latents)


def test_each_head_has_its_own_prompt_lora_and_maps(artist, blobs, seen):
    request = two_heads(blobs, prompt="two people, street, black and white photo")
    drawn = draw(artist, blobs, request)["0"]
    find = artist.registry.find_lora
    for batch in seen:
        bob, ann = batch  # far ones first
        assert bob.loras == ((find("bob").adapter, 0.8),) and not bob.regions
        assert ann.loras == ((find("ann").adapter, 0.8),) and not ann.regions
        assert ann.prompt == "woman, red coat, close-up, black and white photo"
        assert [m.kind for m in ann.maps] == ["depth", "pose"]
        assert all(m.image.shape == (side, side, 3) and m.weight == 1.0 for m in ann.maps)
        # Nothing but her nose is known of Ann's pose: a red dot in the middle of the square.
        pose = ann.maps[1].image
        assert tuple(pose[31, 31]) == (255, 0, 0) and (pose.any(-1)).mean() < 0.03
    (first, second) = ([p.seed for p in batch] for batch in seen)
    assert len({*first, *second}) == 4
    assert drawn.record["heads"][0]["face"]["loras"] == [["ann", 0.8]]
    assert drawn.record["heads"][1]["face"]["loras"] == [["bob", 0.8]]


def test_a_neighbours_lora_does_not_reach_a_head(artist, blobs, seen):
    """From one drawing, Ann's head comes out the same whatever LoRA Bob has; not so with another
    LoRA of her own."""
    plain = two_heads(blobs)
    bobs, anns = copy.deepcopy(plain), copy.deepcopy(plain)
    bobs["characters"][1]["loras"][0]["name"] = "ink"
    anns["characters"][0]["loras"][0]["name"] = "ink"
    base = np.random.default_rng(3).integers(0, 255, (height, width, 3), dtype=np.uint8)
    found = []
    for request in (plain, bobs, anns):
        draw(artist, blobs, off(request))  # makes the LoRAs active
        found.append(repaired(artist, blobs, request, base).pixels)
    near, far = disc(ann_box), disc(bob_box)
    assert np.array_equal(found[0][near], found[1][near])
    assert (found[0][far] != found[1][far]).any()
    assert (found[0][near] != found[2][near]).any()
    assert np.array_equal(found[0][far], found[2][far])


def repaired(artist, blobs, request: dict, base: np.ndarray) -> face_pass.Canvas:
    """A picture through the face pass of a request, without a judge."""
    from onmodel.generate import casting
    from onmodel.generate.conditioning import picture
    from onmodel.generate.sampler import Settings

    family, entry = artist._loaded.family, artist.registry.find("tiny")
    cast = casting.characters(request, artist.registry.find_lora)
    plan = plan_keyframe(request, blobs, entry, cast)
    made = picture(request, blobs, entry)
    canvas = face_pass.Canvas("0", made, plan, base, lambda *_: face_pass.Choice())
    settings = Settings("default", 3, 5.0)
    (done,) = face_pass.run(family, [canvas], settings, 4, Nobody())
    return done


class Nobody:
    def step(self, id, done):
        pass

    def cancelled(self, id):
        return False


def test_a_pictures_own_loras_are_plain_loras(artist, blobs, seen):
    """What peft computes with the LoRA on the whole picture, its prompts too."""
    picture = Picture("a red room", "blue", 128, 96, 1)
    use(artist, {}, ["ann", "bob"])
    own = first_step(artist, dataclasses.replace(picture, loras=bind(artist, ann=0.8)))
    use(artist, {"ann": 0.8}, [])
    assert torch.allclose(own, first_step(artist, picture), atol=1e-4)
    use(artist, {}, ["ann", "bob"])
    assert not torch.allclose(own, first_step(artist, picture), atol=1e-3)
    whole = dataclasses.replace(picture, loras=bind(artist, ann=0.8), regions=[None])
    with pytest.raises(ValueError, match="either"):
        first_step(artist, whole)


@pytest.mark.parametrize(
    ("scores", "state", "numbers"),
    [
        ((0.5, 0.6, 0.6), "repaired", (0.5, 0.6)),
        ((0.6, 0.5, 0.6), "kept", (0.6, 0.5)),
        ((0.6, None, 0.6), "kept", (0.6, None)),
        ((None, 0.6), "repaired", (None, None)),
    ],
)
def test_a_repair_that_lowers_the_score_is_not_kept(artist, blobs, seen, scores, state, numbers):
    request = two_heads(blobs, references=True, loras=False)
    request["characters"][1]["head"] = None
    artist._scorer = Scorer()
    without = pixels(draw(artist, blobs, off(request))["0"])
    artist._scorer = Scorer(*scores)
    drawn = draw(artist, blobs, request)["0"]
    entry = drawn.record["heads"][0]
    face = entry["face"]
    assert (face["state"], face["before"], face["after"]) == (state, *numbers)
    assert np.array_equal(pixels(drawn), without) == (state == "kept")
    assert (face["reason"] is None) == (scores == (0.5, 0.6, 0.6))
    assert entry["score"]["value"] == 0.6 and entry["score"]["embedder"] == "double"
    # Asked of the delivered picture, with the box in its pixels.
    assert set(artist._scorer.asked) == {((84, 128, 3), (80.0, 14.0, 30.0, 30.0), 15.0)}


def test_a_worse_repair_is_kept_where_the_settings_ask(artist, blobs, seen):
    request = two_heads(blobs, references=True, loras=False, face={"keep_if_better": False})
    request["characters"] = request["characters"][:1]
    artist._scorer = Scorer(0.6, 0.5, 0.5)
    face = draw(artist, blobs, request)["0"].record["heads"][0]["face"]
    assert (face["state"], face["before"], face["after"]) == ("repaired", 0.6, 0.5)
    assert "as the settings ask" in face["reason"]


def test_skipped_heads_say_why(artist, blobs, seen):
    request = two_heads(blobs, loras=False)
    request["characters"][0]["head"]["yaw"] = 170.0
    request["characters"][1]["head"]["visible"] = 0.1
    drawn = draw(artist, blobs, request)["0"]
    ann, bob = (entry["face"] for entry in drawn.record["heads"])
    assert ann["state"] == bob["state"] == "skipped" and not seen
    assert "looks away" in ann["reason"] and "hidden" in bob["reason"]
    assert ann["square"] is None and ann["loras"] == []
    assert drawn.record["heads"][1]["no_score"] == bob["reason"]
    request["characters"][0]["head"] = None
    entry = draw(artist, blobs, request)["0"].record["heads"][0]
    assert entry["box"] is None and entry["yaw"] is None
    assert entry["face"]["reason"] == entry["no_score"] == "Its head is not in the picture."


def test_the_same_alone_and_in_a_batch(artist, blobs, seen):
    """Seeds are the keyframe's and the character's own; a batch rounds in the last digit."""
    one, two = two_heads(blobs), two_heads(blobs, seed=8, prompt="a room")
    two["characters"] = two["characters"][1:]
    together = draw(artist, blobs, one, two)
    assert [len(batch) for batch in seen[:2]] == [3, 3]
    for number, request in enumerate((one, two)):
        alone = draw(artist, blobs, request)["0"]
        assert np.abs(pixels(alone) - pixels(together[str(number)])).max() <= 1
        again = draw(artist, blobs, request)["0"]
        assert np.array_equal(pixels(alone), pixels(again))
    assert head_seeds(7, 0) == head_seeds(7, 0) and len({*head_seeds(7, 0), *head_seeds(7, 1)}) == 4
    assert all(0 <= seed < 2**63 for seed in head_seeds(2**63 - 1, 5))


def test_without_memory_for_many_heads_they_are_drawn_one_by_one(artist, blobs, seen, monkeypatch):
    request = two_heads(blobs, loras=False)
    whole = draw(artist, blobs, request)["0"]
    family = artist._loaded.family
    denoise, most = family.denoise, 1

    def little(prepared, latents, *more):
        if latents.shape[-1] == side // 8 and latents.shape[0] > most:
            raise torch.OutOfMemoryError("out of memory")
        return denoise(prepared, latents, *more)

    monkeypatch.setattr(family, "denoise", little)
    steps = []
    halves = draw(artist, blobs, request, report=lambda i, k, d: steps.append((k, d["step"])))["0"]
    assert np.abs(pixels(whole) - pixels(halves)).max() <= 1
    assert [step for kind, step in steps if kind == "sampling"] == list(range(1, 10))
    most = 0
    drawn = draw(artist, blobs, request)["0"]
    without = draw(artist, blobs, off(request))["0"]
    assert np.array_equal(pixels(drawn), pixels(without))
    for entry in drawn.record["heads"]:
        assert entry["face"]["state"] == "skipped" and "memory" in entry["face"]["reason"]


def test_a_cancel_stops_within_a_step_and_the_others_go_on(artist, blobs, seen):
    gone, steps = set(), []

    def report(task, kind, data):
        if kind != "sampling":
            return
        steps.append((task, data["step"]))
        if (task, data["step"]) == ("0", 4):
            gone.add("0")

    one, two = two_heads(blobs, loras=False), two_heads(blobs, seed=8, loras=False)
    drawn = draw(artist, blobs, one, two, report=report, cancelled=lambda task: task in gone)
    assert set(drawn) == {"1"} and max(step for task, step in steps if task == "0") <= 5
    alone = draw(artist, blobs, two)["0"]
    assert np.abs(pixels(alone) - pixels(drawn["1"])).max() <= 1


def draft(name: str, x: float, radius: float, z: float, others=()) -> HeadRegion:
    box = (x - radius, 48 - radius, 2 * radius, 2 * radius)
    mask = disc(box)
    for other in others:
        mask &= ~other.mask
    return HeadRegion(ord(name), name, box, 0.0, 1.0, mask, z)


def test_heads_that_see_each_other_go_one_after_the_other():
    """Far before near; those that are apart go together."""
    near = draft("n", 60, 16, 2.0)
    far = draft("f", 40, 14, 5.0, [near])
    apart = draft("a", 110, 14, 3.0)
    repairs, skips = plan_repairs([near, apart, far], FaceRules(size=96))
    assert not skips
    drafts = [Draft(repair, "", (), (), (1, 2)) for repair in repairs]
    names = [[d.repair.head.name for d in rank] for rank in ranked(drafts)]
    assert names == [["f", "a"], ["n"]]


def test_a_near_head_is_drawn_beside_the_repaired_far_one(artist, blobs, seen, monkeypatch):
    request = two_heads(blobs, loras=False)
    add_head(blobs, request["characters"][1], (58.0, 20.0, 30.0, 30.0), 5.0)
    squares, enlarge = [], face_pass.enlarge
    monkeypatch.setattr(
        face_pass, "enlarge", lambda i, q, n: squares.append((q, i.copy())) or enlarge(i, q, n)
    )
    draw(artist, blobs, request)
    assert [len(batch) for batch in seen] == [1, 1, 1, 1]
    (far, before), (near, later) = squares
    assert far.left < near.left
    assert not np.array_equal(before[near.rows_columns], later[near.rows_columns])


def test_a_squares_pose_is_drawn_as_the_add_on_would_draw_it():
    """The same joints in the square's pixels; sticks and dots keep the size that a picture of the
    square's size has."""
    rng = np.random.default_rng(4)

    def points(count: int, x: float, y: float, spread: float, z: float) -> list:
        places = rng.normal((x, y), spread, (count, 2))
        made = [contract.Keypoint(float(a), float(b), z, "visible") for a, b in places]
        made[2] = None
        made[3] = dataclasses.replace(made[3], state="hidden")
        return made

    people = [
        contract.Pose(
            points(18, x, 50, 14, z), points(21, x, 70, 6, z), [], points(70, x, 40, 5, z)
        )
        for x, z in ((50, 2.0), (66, 4.0))
    ]
    square, size = Square(30, 20, 64), 512
    moved = []
    for pose in reversed(people):  # far ones first

        def there(point):
            scale = size / square.side
            x, y = (point.x - square.left) * scale, (point.y - square.top) * scale
            return dataclasses.replace(point, x=x, y=y)

        parts = (pose.body, pose.left_hand, pose.right_hand, pose.face)
        moved.append(contract.Pose(*[[p and there(p) for p in part] for part in parts]))
    theirs = openpose.draw_pose(moved, size, size)
    characters = [{"pose": contract.to_data(pose)} for pose in people]
    ours = pose_map.draw(characters, square, size)
    assert ours.shape == (size, size, 3) and (theirs.any(-1)).mean() > 0.1
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    near = [(np.roll(ours, shift, (0, 1)) == theirs).all(-1) for shift in shifts]
    assert np.logical_or.reduce(near).mean() > 0.99  # Pillow and cv2 differ along the edges
    assert pose_map.draw([{"pose": {}}], square, size) is None
    assert [pose_map.stick_ratio(s) for s in (256, 768, 1024)] == [
        openpose.stick_ratio(s, s) for s in (256, 768, 1024)
    ]


def test_prompts_of_heads():
    ann = {"noun": "woman", "trigger": "sks", "prompt": "red coat, angry"}
    shot = "two people, full body shot, park, animated, soft evening light"
    assert head_prompt(ann, shot) == (
        "sks woman, red coat, angry, close-up, animated, soft evening light"
    )
    assert head_prompt({"noun": "man"}, "") == "man, close-up"
    assert style_of("Ink drawing.\nan old house; stylish people") == "Ink drawing"


def test_sizes_and_settings_of_requests(artist, blobs):
    entry = dataclasses.replace(artist.registry.find("tiny"), native_pixels=1 << 20, multiple=64)
    assert work_side(None, entry) == 1024 and work_side(768, entry) == 768
    small = dataclasses.replace(entry, native_pixels=256 * 256, multiple=32)
    assert work_side(None, small) == 256
    with pytest.raises(RequestProblem, match="in steps of 64") as raised:
        work_side(700, entry)
    assert raised.value.fix.startswith("Choose 640 or 704")
    with pytest.raises(RequestProblem, match="made for about 256"):
        work_side(1024, small)
    assert not settings_of({}).enabled
    assert settings_of(make_request(blobs)) == FaceSettings()
    ours, theirs = contract.FacePass(), FaceSettings()
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)

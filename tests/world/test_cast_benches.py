# SPDX-License-Identifier: GPL-3.0-or-later
"""The logic of the cast's benches on made-up people, frames and drawings; nothing is drawn."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("onmodel")

from addon.core.request import Box, Head, Pose
from addon.core.retakes import RetakeRule
from bench import bindings, cast_people, leak, people, retakes, seams
from bench.cast_drawing import Drawing
from bench.cast_people import Cell, Member
from bench.cast_report import Company
from world import frame_plans
from world.frame_plans import Frame, Person, Plan, View, heads_fit

side = 64


def person(identity: int, left: int, head: bool = True) -> Person:
    box = Box(left + 4.0, 6.0, 16.0, 20.0)
    return Person(
        identity=identity,
        noun="man",
        traits="black hair",
        expression="neutral",
        view="facing",
        face=box,
        yaw=0.0,
        seen=1.0,
        head=Head(box, 0.0, 0.0, 1.0) if head else None,
        middle=[left + 12.0, 16.0, 2.0],
        pose=Pose(),
    )


def two(number: int = 0, loose: bool = False) -> Frame:
    """Two people beside each other, bodies and heads as rectangles."""
    plan = Plan(number, "realistic", (4500, 4501), "full body shot", (side, side), loose)
    owner, heads = np.zeros((2, side, side), np.uint8)
    for index, left in enumerate((4, 34)):
        owner[6:60, left : left + 24] = index + 1
        heads[6:26, left + 4 : left + 20] = index + 1
    view = View([float(v) for v in np.eye(4).ravel()], [-1.0, 1.0, -1.0, 1.0], False)
    pixels = np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)
    shown = [person(4500, 4), person(4501, 34)]
    return Frame(
        plan, "park", view, shown, pixels, owner.copy(), pixels, owner, pixels, owner, heads
    )


def member(look: str, identity: int, lora: bool = True) -> Member:
    file = Path(f"{look}-{identity}.safetensors") if lora else None
    return Member(look, identity, "man", "black hair", Path(f"{look}-{identity}"), file)


own = {look: [member(look, n) for n in (1, 2)] for look in ("realistic", "animated")}
others = {look: [member(look, n, False) for n in range(10, 31)] for look in own}


class Eyes:
    """Knows people by directions of their own; an embedding is what is given as a head."""

    embedder = SimpleNamespace(name="made up")

    def knows(self, one: Member) -> np.ndarray:
        return np.eye(40)[one.identity]


# --- frames --------------------------------------------------------------------------------------


def test_a_frame_comes_back_as_it_was_saved(tmp_path):
    frame = two(3)
    assert not frame_plans.there(frame.plan, tmp_path)
    frame_plans.save(frame, tmp_path)
    assert frame_plans.there(frame.plan, tmp_path)
    back = frame_plans.load(frame.plan, tmp_path)
    assert back.people == frame.people and back.view == frame.view
    assert np.array_equal(back.rgb, frame.rgb) and np.array_equal(back.heads, frame.heads)
    assert back.shot == "two people, realistic, full body shot, park"


def test_a_plans_key_says_what_it_shows():
    plan = two().plan
    text = json.loads(json.dumps(dataclasses.asdict(plan)))
    assert frame_plans.plan_of(text) == plan and frame_plans.plan_of(text).key == plan.key
    changed = [
        dataclasses.replace(plan, number=1),
        dataclasses.replace(plan, identities=(4501, 4500)),
        dataclasses.replace(plan, loose=True),
    ]
    assert len({plan.key, *(one.key for one in changed)}) == 4


def test_heads_fit_inside_apart_and_large_enough():
    size = (128, 128)
    fit = [(10.0, 10.0, 34.0, 40.0), (60.0, 12.0, 84.0, 42.0)]
    assert heads_fit(fit, size)
    assert not heads_fit([*fit, (110.0, 10.0, 134.0, 40.0)], size)  # leaves the picture
    assert not heads_fit([*fit, (90.0, 10.0, 102.0, 25.0)], size)  # too small
    assert not heads_fit([*fit, (66.0, 14.0, 90.0, 44.0)], size)  # behind another


# --- who is in them ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_looks_and_framings_take_turns_and_loras_come_first(count):
    cells = cast_people.cells(count, 52, own, others)
    assert len(cells) == 52
    kinds = {(c.plan.look, c.plan.framing) for c in cells}
    assert len(kinds) == 2 * len(cast_people.kinds[count])
    for cell in cells:
        assert len(cell.members) == len(set(cell.members)) == count
        assert sum(m.lora is not None for m in cell.members) == min(count, 2)
        assert {m.look for m in cell.members} == {cell.plan.look}
        assert cell.plan.identities == tuple(m.identity for m in cell.members)
    if count == 1:
        assert {c.members[0].name for c in cells} == {m.name for look in own.values() for m in look}


def test_without_loras_there_is_nothing_to_draw_and_the_reason_names_the_command(tmp_path):
    assert cast_people.cells(2, 52, {}, others) == []
    reason = cast_people.lacking(tmp_path)
    assert "realistic-4103" in reason and "animated-4113" in reason
    assert "python -m bench.lora_test --identity 4103 --look realistic" in reason


# --- people and leaks ----------------------------------------------------------------------------


def pair() -> Cell:
    plan = two().plan
    return Cell(plan, (own["realistic"][0], own["realistic"][1]))


def test_frames_are_right_wrong_or_rejected():
    a, b = np.eye(40)[1], np.eye(40)[2]
    weak = 0.1 * a + np.eye(40)[39]
    heads = [(a, b), (b, a), (a, None), (a, 0.1 * b), (weak, b)]
    found = people.tally(
        [pair()] * len(heads),
        lambda place, index: heads[place][index],
        Eyes(),
        lambda value: "same" if value > 0.5 else "other",
    )
    assert (found.right, found.wrong, found.no_face, found.other) == (1, 0, 1, 3)
    assert found.accepted == 1 and found.frames == 5 and found.right_of_all == 3
    lenient = people.tally(
        [pair()] * len(heads), lambda p, i: heads[p][i], Eyes(), lambda value: "unsure"
    )
    assert (lenient.right, lenient.wrong, lenient.no_face) == (3, 1, 1)


def test_a_leak_is_what_a_neighbour_has_over_strangers():
    company = Company(own, others)
    clean, mixed = np.eye(40)[1], np.eye(40)[1] + 0.5 * np.eye(40)[2]
    heads = {0: (clean, np.eye(40)[2]), 1: (mixed, None)}
    found = leak.over_strangers([pair(), pair()], lambda p, i: heads[p][i], company, Eyes())
    assert [name for name, _ in found] == [
        "realistic-2 on realistic-1",
        "realistic-1 on realistic-2",
        "realistic-2 on realistic-1",
    ]
    assert [round(value, 6) for _, value in found] == [0.0, 0.0, 0.5]


# --- seams ---------------------------------------------------------------------------------------


def test_the_reach_of_a_feathered_mask_is_that_of_the_server():
    from onmodel.faces.heads import FaceRules, HeadRegion, plan_repairs

    frame = two()
    regions = []
    for index, one in enumerate(frame.people):
        assert one.head is not None
        box = one.head.box
        place = (box.x, box.y, box.width, box.height)
        mask = frame.heads == index + 1
        regions.append(HeadRegion(index, "", place, 0.0, 1.0, mask, 2.0))
    repairs, _ = plan_repairs(regions, FaceRules(min_height=8))
    assert len(repairs) == 2
    for repair in repairs:
        assert np.array_equal(repair.alpha > 0, seams.reach(frame, repair.head.index))


def test_a_byte_outside_the_masks_is_counted():
    frame = two()
    head = {"face": {"state": "repaired"}}
    on = Drawing(frame.rgb.copy(), frame.rgb, [head, {"face": {"state": "kept"}}])
    off = Drawing(frame.rgb, frame.rgb, [])
    on.pixels[10, 10] ^= 1  # in the head that was put back
    found = seams._bytes([frame], [on], [off])
    assert found[0].value == 0 and found[0].verdict == "ok"
    on.pixels[10, 44, 0] ^= 1  # in the head that was kept as it was
    on.pixels[63, 63, 1] ^= 1
    assert seams._bytes([frame], [on], [off])[0].value == 2


# --- bindings ------------------------------------------------------------------------------------


entry = SimpleNamespace(
    name="rehearsal", map_kinds=["pose", "depth", "normal"], multiple=32, native_pixels=256 * 256
)


def checked(frame: Frame, change=None) -> bindings.Found:
    found = bindings.Found()
    request, blobs = bindings.crowd_request(frame, entry.name)
    if change is not None:
        change(request)
    bindings._check_crowd(frame, request, blobs, entry, found)
    return found


def test_bindings_of_a_crowd_are_right():
    found = checked(two(loose=True))
    assert found.wrong == [] and found.regions == 2 and found.heads == 2


def test_swapped_masks_and_heads_are_found():
    def swap(name):
        def change(request):
            one, other = request["characters"]
            one[name], other[name] = other[name], one[name]

        return change

    assert any("stands" in words for words in checked(two(), swap("mask")).wrong)
    assert any("somebody else's place" in words for words in checked(two(), swap("head")).wrong)


# --- retakes -------------------------------------------------------------------------------------


class Hand:
    """Draws scores: by keyframe and take."""

    def __init__(self, scores: dict[tuple[int, int], float | None]) -> None:
        self.scores, self.asked = scores, []

    def draw(self, wanted):
        return [self._one(request) for request in wanted]

    def _one(self, request):
        self.asked.append((request.frame, request.take, request.seed))
        value = self.scores[request.frame, request.take]
        score = None if value is None else {"value": value}
        nothing = np.zeros((2, 2, 3), np.uint8)
        return Drawing(nothing, nothing, [{"character": "Ann", "score": score}])


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the bench reads of a request."""

    frame: int
    take: int = 1
    seed: int = 7
    shot: str = "1"


def test_keyframes_are_drawn_again_until_the_score_and_the_best_take_counts():
    scores = {(1, 1): 0.5, (2, 1): 0.1, (2, 2): 0.3, (2, 3): 0.2, (3, 1): None}
    hand, rule = Hand(scores), RetakeRule(0.4, 3)
    requests = [Asked(frame) for frame in (1, 2, 3)]
    takes = retakes.drawn_by_rule(hand, requests, [7, 7, 7], rule)
    assert [sorted(own) for own in takes] == [[1], [1, 2, 3], [1]]
    seeds = [seed for frame, _, seed in hand.asked if frame == 2]
    assert len(set(seeds)) == 3
    found = {figure.name: figure.value for figure in retakes.report(requests, takes)}
    assert found["retakes: worst frame, first takes"] == pytest.approx(0.1)
    assert found["retakes: worst frame, best takes"] == pytest.approx(0.3)
    assert found["retakes: worst frame, mean over the cast, gain"] == pytest.approx(0.2)
    assert found["retakes: drawings beyond the first takes"] == 2

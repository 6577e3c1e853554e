# SPDX-License-Identifier: GPL-3.0-or-later
"""Scores of heads: reading the record, the film's table, and the rule of retakes."""

import pytest

from addon.core import retakes, scores
from addon.core.retakes import Judged, RetakeRule


def entry(name="Ada", value=None, verdict=None, **others):
    score = None
    if value is not None:
        score = {"value": value, "probability": 0.9, "verdict": verdict, "embedder": "rehearsal"}
    return {
        "character": name,
        "box": [10, 20, 30, 40],
        "yaw": 4.0,
        "score": score,
        "no_score": None if score else "Seen from behind.",
        "face": None,
        **others,
    }


def frame(number, *heads, shot="a", take=1):
    return scores.Frame(shot, number, take, scores.read_heads(heads))


def test_the_record_of_the_contract_is_read():
    face = {
        "state": "repaired",
        "reason": None,
        "denoise": [0.6, 0.4],
        "loras": [["ada", 1.0]],
        "square": [0, 0, 64],
        "before": 0.41,
        "after": 0.625,
    }
    (head,) = scores.read_heads([entry(value=0.625, verdict="same", face=face)])
    assert (head.character, head.value, head.verdict) == ("Ada", 0.625, "same")
    assert (head.embedder, head.box, head.yaw) == ("rehearsal", (10, 20, 30, 40), 4.0)
    assert scores.in_words(head) == "0.62, on model"
    assert scores.face_in_words(head.face) == "Face repaired: 0.41 before, 0.62 after."


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ("repaired", None, "Face repaired."),
        ("repaired", "Not compared.", "Face repaired. Not compared."),
        ("kept", "The old head scored higher.", "kept as drawn: The old head scored higher."),
        ("skipped", "Head of 12 pixels.", "not repaired: Head of 12 pixels."),
    ],
)
def test_what_the_face_pass_did_in_words(state, reason, words):
    face = {"state": state, "reason": reason, "before": None, "after": None}
    (head,) = scores.read_heads([entry(face=face)])
    assert scores.face_in_words(head.face).endswith(words)


def test_a_head_without_a_score_says_why():
    (head,) = scores.read_heads([entry()])
    assert head.value is None and head.face is None
    assert scores.in_words(head) == "no score: Seen from behind."


def test_the_heads_are_found_in_a_sidecar():
    sidecar = {"record": {"keyframe": {"record": {"heads": [entry(), "noise"]}}}}
    assert scores.heads_of_sidecar(sidecar) == [entry()]
    for without in (None, {}, {"record": {"keyframe": {}}}, {"record": {"keyframe": None}}):
        assert scores.heads_of_sidecar(without) == []


@pytest.mark.parametrize("value", [True, "0.5", float("nan"), None])
def test_what_is_no_number_is_no_score(value):
    head = entry(value=0.5)
    head["score"]["value"] = value
    head["box"] = [1, 2, 3]
    (read,) = scores.read_heads([head, {"box": None}])
    assert read.value is None and read.box is None


def test_the_lowest_counts_only_heads_with_a_score():
    heads = scores.read_heads([entry("Ada", 0.6), entry("Ben", 0.3), entry("Cleo")])
    assert scores.lowest(heads) == 0.3
    assert scores.lowest(heads[2:]) is None and scores.lowest([]) is None


def test_the_table_of_a_film():
    frames = [
        frame(1, entry("Ada", 0.6, "same"), entry("Ben")),
        frame(10, entry("Ada", 0.2, "other"), entry("Ben", 0.5, "unsure")),
        frame(20, entry("Ada", 0.2, "other")),
        frame(30, entry("Cleo")),
    ]
    ada, ben, cleo = scores.table(frames)
    assert ada.mean == pytest.approx(1 / 3)
    assert (ada.worst.frame, ada.lowest, ada.scored, ada.unscored, ada.off) == (10, 0.2, 3, 0, 2)
    assert (ben.mean, ben.worst.frame, ben.scored, ben.unscored, ben.off) == (0.5, 10, 1, 1, 0)
    assert (cleo.mean, cleo.worst, cleo.lowest, cleo.unscored) == (None, None, None, 1)
    assert scores.table([]) == []


rule = RetakeRule(score=0.5, most=3)


@pytest.mark.parametrize(
    ("takes", "wanted"),
    [
        ([], None),
        ([(1, 0.5)], None),
        ([(1, 0.4)], 2),
        ([(1, 0.4), (2, 0.45)], 3),
        ([(1, 0.4), (2, 0.7)], None),
        ([(1, 0.4), (2, 0.3), (3, 0.2)], None),
        ([(1, None)], None),
        ([(1, None), (2, None)], None),
        ([(1, 0.4), (2, None)], 3),
        ([(2, 0.1)], 3),
    ],
)
def test_when_another_take_is_drawn(takes, wanted):
    assert retakes.next_take(rule, [Judged(*t) for t in takes]) == wanted


def test_numbers_of_two_embedders_are_not_compared():
    old, new = Judged(1, 0.9, "dlib"), Judged(2, 0.3, "rehearsal")
    assert retakes.best_take([old, new]) == 2
    assert retakes.next_take(rule, [old, new]) == 3
    assert retakes.best_score([old, new]) == 0.3
    by_dlib = entry("Ada", 0.9)
    by_dlib["score"]["embedder"] = "dlib"
    rows = scores.table([frame(1, by_dlib), frame(2, entry("Ada", 0.4)), frame(3, entry("Ada"))])
    assert [(r.embedder, r.mean, r.scored, r.unscored) for r in rows] == [
        ("dlib", 0.9, 1, 1),
        ("rehearsal", 0.4, 1, 0),
    ]


def test_a_take_is_judged_by_its_least_head():
    heads = scores.read_heads([entry("Ada", 0.6), entry("Ben", 0.3), entry("Cleo")])
    assert retakes.judge(4, heads) == Judged(4, 0.3, "rehearsal")
    assert retakes.judge(4, heads[2:]) == Judged(4, None)


def test_never_is_never():
    assert retakes.next_take(retakes.never, [Judged(1, -1.0)]) is None


@pytest.mark.parametrize(
    ("takes", "wanted"),
    [
        ([], None),
        ([(1, None)], None),
        ([(1, 0.4), (2, 0.6), (3, 0.5)], 2),
        ([(3, 0.6), (2, 0.6), (1, 0.4)], 2),
        ([(1, None), (2, -0.2)], 2),
    ],
)
def test_the_best_take_is_the_highest_and_of_equals_the_earliest(takes, wanted):
    assert retakes.best_take([Judged(*t) for t in takes]) == wanted


def test_takes_of_one_keyframe_differ_in_seed_and_names_only():
    one = {"take": 1, "seed": 7, "film": "a", "shot": "010", "prompt": "ink"}
    assert retakes.same_but_for_take(one, one | {"take": 2, "seed": 9, "shot": "015"})
    assert not retakes.same_but_for_take(one, one | {"take": 2, "prompt": "wash"})

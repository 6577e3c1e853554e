# SPDX-License-Identifier: GPL-3.0-or-later
"""Retakes in a render session, and scores on image planes, against a server that scores."""

import json

import pytest

from addon.core.retakes import RetakeRule, never
from tests.blender import render_scene
from tests.blender.render_scene import run
from tests.blender.scored_heads import by_take

rule = RetakeRule(score=0.5, most=3)


@pytest.fixture
def make(make, scene):
    """Makes a session over shot 010 (frames 1, 10, 20) with the rule."""

    def make_one(**settings):
        settings.setdefault("retakes", rule)
        return make(render_scene.read_shots(scene)[:1], **settings)

    return make_one


def takes(session, frame):
    return [(i.take, i.state.value) for i in session.items if i.frame == frame]


def drawn(server):
    return sorted(
        (r["frame"], r["take"]) for job in server.requests.values() for r in job["keyframes"]
    )


def shown(scene, frame):
    from addon.planes import planes

    return planes.picked_take(scene, scene.onmodel.shots[0].uid, frame)


def pick(scene, frame, take):
    """What the artist's click does."""
    from addon.planes import planes
    from addon.scene import shots

    uid = scene.onmodel.shots[0].uid
    shots.pick_take(scene, uid, frame, take)
    planes.pick_take(scene, uid, frame, take)


low_at_ten = {(10, 1): (0.9, 0.2), (10, 2): (0.3, 0.45), (10, 3): (0.25, 0.9)}


def test_takes_are_drawn_until_the_least_like_head_is_good_enough(make, scene, server):
    server.heads = by_take({(1, 1): (0.4, 0.8), (1, 2): (0.6, 0.7), **low_at_ten})
    session = make()
    assert run(session) == "done", session.message
    assert takes(session, 1) == [(1, "done"), (2, "done")]
    assert takes(session, 10) == [(1, "done"), (2, "done"), (3, "done")], "at most three"
    assert takes(session, 20) == [(1, "done")]
    assert (shown(scene, 1), shown(scene, 10), shown(scene, 20)) == (2, 2, 1)
    data = session.to_data()
    assert data["draws"] == 6
    assert data["retakes"]["draws"] == 3
    best = {k["frame"]: (k["best_take"], k["score"]) for k in data["retakes"]["keyframes"]}
    assert best == {1: (2, 0.6), 10: (2, 0.3), 20: (1, 0.9)}
    assert "3 retakes drawn; 1 keyframe stays under a score of 0.50." in session.notes
    seeds = {i.request.seed for i in session.items if i.frame == 10}
    assert len(seeds) == 3
    assert all(i.path.exists() and f"take_{i.take:02d}" in i.path.parts for i in session.items)


def test_retakes_send_no_picture_again(make, server):
    server.heads = by_take(low_at_ten)
    session = make(place=False)
    run(session, until=lambda: all(i.state.value == "done" for i in session.items[:3]))
    sent = server.image_bytes()
    assert run(session) == "done"
    assert len(session.items) == 5 and server.image_bytes() == sent


def test_a_second_run_counts_the_takes_on_disk(make, scene, server):
    server.heads = by_take(low_at_ten)
    first = make()
    run(first, until=lambda: takes(first, 10) and (2, "done") in takes(first, 10))
    first.close()
    before = drawn(server)
    second = make()
    assert run(second) == "done"
    assert takes(second, 10)[:2] == [(1, "kept"), (2, "kept")]
    assert shown(scene, 10) == 2
    third = make()
    assert run(third) == "done"
    assert takes(third, 10) == [(1, "kept"), (2, "kept"), (3, "kept")]
    assert third.to_data()["draws"] == 0
    assert drawn(server).count((10, 1)) == drawn(server).count((10, 2)) == 1
    assert before.count((10, 2)) == 1


def test_an_artists_pick_stays_and_is_not_retaken(make, scene, server):
    server.heads = by_take(low_at_ten)
    run(make(takes=2, retakes=never))
    pick(scene, 10, 1)
    session = make()
    assert run(session) == "done"
    assert takes(session, 10) == [(1, "kept")]
    assert shown(scene, 10) == 1
    # The scene changes, so all is drawn anew; what the artist picked is still what is shown.
    scene.onmodel.shots[0].prompt = "two friends part"
    again = make(takes=2)
    assert run(again) == "done"
    assert takes(again, 10) == [(1, "done"), (2, "done")]
    assert shown(scene, 10) == 1
    pick(scene, 10, 2)
    run(make(retakes=never))
    assert shown(scene, 10) == 2


def test_a_pick_in_the_middle_of_a_run_holds(make, scene, server):
    server.heads = by_take(low_at_ten)
    session = make()
    run(session, until=lambda: shown(scene, 10) == 1)
    pick(scene, 10, 1)
    assert run(session) == "done"
    assert shown(scene, 10) == 1


def test_a_take_that_is_picked_is_kept_up_to_date(make, scene, server):
    run(make(takes=2, retakes=never))
    pick(scene, 10, 2)
    scene.onmodel.shots[0].prompt = "two friends part"
    session = make(takes=1)
    assert run(session) == "done"
    assert takes(session, 10) == [(1, "done"), (2, "done")] and takes(session, 1) == [(1, "done")]
    assert shown(scene, 10) == 2


def test_a_take_that_the_artist_asks_for_is_shown_and_not_judged(make, scene, server):
    server.heads = by_take({(10, 2): (0.1, 0.1)})
    run(make())
    session = make(only_take=2, frames=frozenset({("010", 10)}))
    assert run(session) == "done"
    assert takes(session, 10) == [(2, "done")] and shown(scene, 10) == 2
    pick(scene, 10, 1)
    run(make(only_take=3, frames=frozenset({("010", 10)})))
    assert shown(scene, 10) == 3
    assert scene.onmodel.shots[0].keyframes[0].take == 3, "the artist's pick goes along"


def test_nothing_is_retaken_without_scores_and_that_is_said_once(make, server):
    server.heads = by_take({}, otherwise=(None, None))
    session = make(place=False)
    assert run(session) == "done"
    assert len(session.items) == 3
    said = [n for n in session.notes if "Portraits" in n]
    assert len(said) == 1 and "none was drawn again" in said[0]


def test_heads_without_a_score_do_not_count(make, server):
    server.heads = by_take({(10, 1): (None, 0.9), (20, 1): (None, 0.1), (20, 2): (None, 0.8)})
    session = make(place=False)
    assert run(session) == "done"
    assert [len(takes(session, f)) for f in (1, 10, 20)] == [1, 1, 2]


def test_no_rule_no_retakes(make, scene, server):
    server.heads = by_take(low_at_ten)
    for settings in ({"retakes": never}, {"retakes": None}, {"retakes": RetakeRule(0.5, 1)}):
        session = make(place=False, **settings)
        assert run(session) == "done"
        assert len(session.items) == 3 and session.to_data()["retakes"] is None


def test_the_films_own_rule(make, scene, server):
    server.heads = by_take(low_at_ten)
    settings = scene.onmodel.retakes
    settings.enabled, settings.score, settings.most = True, 0.5, 2
    session = make(place=False, retakes=None)
    assert run(session) == "done"
    assert len(takes(session, 10)) == 2
    settings.enabled = False
    assert len(make(place=False, retakes=None).items) == 3


def after_ten(server, what):
    """Does something once the first take of frame 10 is drawn."""
    heads = by_take(low_at_ten)

    def told(request):
        if (request["frame"], request["take"]) == (10, 1):
            what()
        return heads(request)

    server.heads = told


def test_a_retake_that_fails_is_said_and_the_others_stay(make, scene, server):
    after_ten(server, lambda: server.fail_first.add(10))
    session = make(retries=0)
    assert run(session) == "failed"
    assert takes(session, 10) == [(1, "done"), (2, "failed")]
    assert shown(scene, 10) == 1


def test_a_cancel_while_retakes_are_drawn(make, scene, server):
    after_ten(server, server.hold)
    session = make()
    run(session, until=lambda: len(takes(session, 10)) == 2)
    session.cancel()
    assert run(session) == "cancelled"
    assert takes(session, 10) == [(1, "done"), (2, "cancelled")]
    assert shown(scene, 10) == 1


def test_progress_never_goes_back(make, server):
    server.heads = by_take(low_at_ten)
    session = make(place=False)
    seen = [0.0]

    def look():
        seen.append(session.progress)
        return False

    run(session, until=look)
    assert seen == sorted(seen) and session.progress == 1.0


def test_scores_are_in_the_sidecar_and_on_the_plane(make, scene, server):
    from addon.core import scores
    from addon.planes import planes
    from addon.render.results import read_sidecar

    server.heads = by_take({(1, 1): (0.7, None)}, otherwise=(None, None))
    session = make(retakes=never)
    run(session)
    plane = planes.planes(scene)[0]
    assert plane["onmodel_score"] == plane["score Ada"] == pytest.approx(0.7)
    assert "score Ben" not in plane
    heads = scores.heads_of_sidecar(read_sidecar(session.items[0].path))
    assert [h["character"] for h in heads] == ["Ada", "Ben"]
    assert list(planes.heads_of(plane)) == scores.read_heads(heads)
    second = planes.planes(scene)[1]
    assert "onmodel_score" not in second and len(planes.heads_of(second)) == 2
    # A plane of an older version gets them with the next run, though nothing is drawn.
    planes.set_heads(plane, [])
    assert "score Ada" not in plane
    run(make(retakes=never))
    assert json.loads(planes.planes(scene)[0]["onmodel_heads"]) == heads


def test_undo_brings_back_the_best_take(make, scene, server):
    from addon.planes import planes

    server.heads = by_take(low_at_ten)
    session = make()
    run(session)
    planes.clear(scene)
    assert session.put_back() == 5
    assert shown(scene, 10) == 2


def test_the_face_pass_is_asked_for_as_set(make, scene, server):
    scene.onmodel.face_pass.first = 0.55
    session = make(place=False, retakes=None)
    run(session)
    assert session.items[0].request.face_pass.first == 0.55
    assert session.items[0].request.face_pass.enabled
    off = make(place=False, retakes=None, face_pass=False)
    run(off)
    assert not off.items[0].request.face_pass.enabled
    assert [i.state.value for i in off.items] == ["done"] * 3, "another drawing"


def test_waiting_for_a_training_is_said(make, server):
    server.hold()
    session = make(place=False)
    run(session, until=lambda: session.state.value == "drawing")
    server.add_event("job1", "waiting", message="Waits for the training of “ada”.", training="t")
    run(session, until=lambda: "training of “ada”" in session.message)
    assert session.waiting == "Waits for the training of “ada”."
    server.release()
    assert run(session) == "done"
    assert session.waiting == ""

# SPDX-License-Identifier: GPL-3.0-or-later
"""The render session in Blender, against a server inside the test process."""

import errno
import json

import bpy
import numpy as np
import pytest

from addon.core import png
from addon.core.client import ClientError
from tests.blender import capture_scene, render_scene
from tests.blender.render_scene import run


def states(session):
    return [item.state.value for item in session.items]


def test_a_film_is_drawn_written_and_placed(make, scene, server, tmp_path):
    from addon.planes import planes

    scene.frame_set(13)
    session = make()
    assert run(session) == "done", session.message
    assert session.progress == 1.0
    assert [(i.shot, i.frame, i.take) for i in session.items] == [
        ("010", 1, 1),
        ("010", 10, 1),
        ("010", 20, 1),
        ("020", 21, 1),
        ("020", 40, 1),
    ]
    first = session.items[0]
    expected = tmp_path / "out" / "test_film" / "010" / "take_01" / "test_film_010_0001.png"
    assert first.path == expected.resolve()
    assert png.decode(first.path.read_bytes()).shape == (180, 320, 3)
    sidecar = json.loads(first.path.with_suffix(".json").read_text())
    assert sidecar["request_key"] == first.request.key()
    assert sidecar["request"]["prompt"] == "two friends meet, ink and wash"
    assert [c["noun"] for c in sidecar["request"]["characters"]] == ["woman", "man"]
    timings = sidecar["record"]["timings"]
    stages = ["capture", "encode", "send", "wait", "fetch", "write", "place", "click_to_plane"]
    assert all(timings[s] >= 0 for s in stages)
    assert timings["click_to_plane"] >= timings["place"] + timings["wait"]
    placed = planes.planes(scene)
    assert [planes.key_of(p).frame for p in placed] == [1, 10, 20, 21, 40]
    assert json.loads(planes.request_of(placed[0])) == sidecar["request"]
    assert scene.frame_current == 13


def test_what_is_sent_is_what_was_captured(make, server):
    session = make(place=False)
    run(session)
    request = session.items[0].request
    maps = {m.kind: png.decode(server.blobs[m.blob]) for m in request.maps}
    height, width = request.canvas.height, request.canvas.width
    assert width % 32 == height % 32 == 0
    assert set(maps) == {"pose", "depth"}
    assert maps["pose"].shape == (height, width, 3) and maps["depth"].shape == (height, width)
    ada, ben = (png.decode(server.blobs[c.mask]) for c in request.characters)
    assert set(np.unique(ada)) == {0, 255}
    assert not np.any((ada > 0) & (ben > 0))
    head = request.characters[0].head
    assert np.all(ada[png.decode(server.blobs[head.mask]) > 0] == 255)
    assert request.seed == session.items[1].request.seed == 7
    assert session.items[3].request.seed == 99
    assert request.model_hash == server.info["models"][0]["hash"]


def test_a_second_run_sends_and_draws_nothing(make, scene, server):
    from addon.planes import planes

    run(make())
    sent, jobs = server.image_bytes(), len(server.jobs)
    before = [p.name for p in planes.planes(scene)]
    second = make()
    assert run(second) == "done"
    assert states(second) == ["kept"] * 5
    assert (second.bytes_sent, server.image_bytes(), len(server.jobs)) == (0, sent, jobs)
    assert [p.name for p in planes.planes(scene)] == before


def test_what_changed_is_drawn_again_and_the_old_one_kept(make, scene, server):
    run(make())
    scene.objects["Ada rig"].location.x -= 0.3
    bpy.context.view_layer.update()
    second = make()
    assert run(second) == "done"
    assert "kept" not in states(second)[:3]
    replaced = second.items[0].path.parent / "replaced"
    assert sorted(p.suffix for p in replaced.iterdir()) == [".json"] * 3 + [".png"] * 3


def test_what_the_models_own_settings_change_is_drawn_again(make, scene, server):
    one = {"place": False, "frames": frozenset({("010", 10)})}

    def checked():
        session = make(**one, check=True)
        run(session)
        return states(session)

    assert run(make(**one)) == "done"
    (model,) = server.info["models"]
    usual = model["sampling"]["default"]
    model["title"] = "Another name"
    assert checked() == ["kept"]
    for name, value in (("steps", 24), ("guidance", 4.5), ("method", "another")):
        before = usual[name]
        usual[name] = value
        assert checked() == ["changed"], name
        usual[name] = before
    usual["steps"] = 24
    second = make(**one)
    assert run(second) == "done" and states(second) == ["done"]
    (sent,) = server.requests["job2"]["keyframes"]
    pinned = {"preset": "default", "steps": 24, "guidance": 4.0, "method": "fake"}
    assert sent["sampling"] == pinned
    scene.onmodel.steps = 24  # what is drawn counts, and not who chose it
    usual["steps"] = 30
    assert checked() == ["kept"]
    scene.onmodel.steps = 0
    assert checked() == ["changed"]


def test_a_server_that_does_not_say_how_it_draws_is_told_of(make, server):
    del server.info["models"][0]["sampling"]
    session = make()
    assert run(session) == "failed" and not server.jobs
    assert "does not say how rehearsal draws" in session.message
    assert "update the server" in session.fix


def test_a_damaged_file_is_drawn_again(make, server):
    first = make(place=False)
    run(first)
    path = first.items[1].path
    path.write_bytes(path.read_bytes()[:-20])
    second = make(place=False)
    run(second)
    assert states(second) == ["kept", "done", "kept", "kept", "kept"]
    png.decode(path.read_bytes())


def test_takes_share_a_capture_and_differ_in_their_seed(make, server):
    session = make(takes=2, frames=frozenset({("010", 10)}))
    assert run(session) == "done"
    one, two = (i.request for i in session.items)
    assert one.maps == two.maps and one.seed != two.seed
    assert {i.path.parent.name for i in session.items} == {"take_01", "take_02"}


def test_the_scene_is_as_it_was_after_a_render_without_planes(make, scene):
    scene.frame_set(5)
    before = capture_scene.state()
    run(make(place=False))
    assert capture_scene.difference(before, capture_scene.state()) == {}


@pytest.mark.parametrize("when", ["planning", "capturing", "drawing"])
def test_a_cancel_is_exact_at_every_stage(make, scene, server, when):
    server.hold()
    other = server.add_job(
        {"client_key": "other", "title": "", "keyframes": [{"shot": "x", "frame": 1, "take": 1}]}
    )
    before = capture_scene.state()
    session = make()
    run(session, until=lambda: session.state.value == when)
    session.step()
    session.cancel()
    assert run(session) == "cancelled"
    assert set(states(session)) == {"cancelled"}
    assert other["state"] == "queued"
    assert all(j["state"] == "cancelled" for j in list(server.jobs.values())[1:])
    assert capture_scene.difference(before, capture_scene.state()) == {}
    assert not any(i.path.exists() for i in session.items)


def test_a_cancel_keeps_what_is_drawn(make, server):
    session = make(place=False)
    run(session, until=lambda: any(i.state.value == "done" for i in session.items))
    server.hold()
    session.cancel()
    run(session)
    done = [i for i in session.items if i.state.value == "done"]
    assert done and all(png.decode(i.path.read_bytes()).any() for i in done)


def test_a_step_never_blocks_while_the_server_does(make, server):
    server.hold()
    session = make(place=False)
    run(session, until=lambda: session.state.value == "drawing")
    for _ in range(50):
        session.step()  # comes back, with nothing new, though the server answers nobody
    assert session.state.value in ("sending", "drawing")
    assert not any(i.state.value == "done" for i in session.items)
    server.release()
    assert run(session) == "done"


def test_a_failed_keyframe_is_tried_again_alone(make, server):
    server.fail_first = {10}
    session = make(place=False)
    assert run(session) == "done"
    done = [e["keyframe"] for e in server.events["job1"] if e["type"] == "done"]
    assert len(done) == len(set(done)) == 3


def test_a_keyframe_that_keeps_failing_is_said_and_the_others_stay(make, server):
    server.fail_first = {10}
    session = make(place=False, retries=0)
    assert run(session) == "failed"
    assert session.failure.value == "keyframes"
    assert states(session) == ["done", "failed", "done", "done", "done"]
    assert "frame 10: The artist broke a pencil." in session.message
    assert session.fix == "Try again."
    second = make(place=False)
    assert run(second) == "done"
    assert states(second) == ["kept", "done", "kept", "kept", "kept"]


def test_no_server_is_said(make):
    def connect():
        raise ClientError("No server is connected.", "Start it.")

    session = make(client=connect)
    assert run(session) == "failed"
    assert (session.failure.value, session.message) == ("server", "No server is connected.")


def test_a_server_lost_for_good_keeps_what_is_drawn(make, server):
    session = make(place=False, patience=0.2)
    run(session, until=lambda: any(i.state.value == "done" for i in session.items))
    server.hold()
    server.stop()
    assert run(session) in ("failed", "done")
    done = [i for i in session.items if i.state.value == "done"]
    assert done and all(i.path.exists() for i in done)
    if session.state.value == "failed":
        assert session.failure.value == "server" and "does not answer" in session.message


def test_a_full_disk_loses_nothing(make, server, monkeypatch):
    from addon.render import results

    write = results.write_atomic

    def full(path, data, **options):
        if path.suffix == ".png" and "0010" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data, **options)

    monkeypatch.setattr(results, "write_atomic", full)
    session = make(place=False)
    assert run(session) == "failed"
    assert session.failure.value == "disk" and "full" in session.message
    assert not list(session.out_dir.rglob("*.part"))
    monkeypatch.undo()
    session.save_again()
    assert session.items[1].path.exists()
    second = make(place=False)
    assert run(second) == "done"
    assert states(second)[:2] == ["kept", "kept"]


def test_one_shot_that_cannot_be_captured_does_not_stop_the_others(make, scene):
    shots = render_scene.read_shots(scene)
    bpy.data.objects.remove(scene.objects["Camera 010"])
    session = make(shots, place=False)
    assert run(session) == "failed"
    assert states(session) == ["failed"] * 3 + ["done"] * 2
    assert "Camera 010" in session.message


def test_a_model_that_the_server_lacks_is_said(make, scene):
    scene.onmodel.model = "nonesuch"
    session = make()
    assert run(session) == "failed"
    assert "no model named nonesuch" in session.message and "rehearsal" in session.fix


def test_a_run_leaves_its_record(make):
    session = make(place=False)
    run(session)
    record = json.loads((session.run_folder / "run.json").read_text())
    assert record["state"] == "done" and len(record["keyframes"]) == 5
    job = json.loads((session.run_folder / "010.json").read_text())
    assert [k["frame"] for k in job["keyframes"]] == [1, 10, 20]


def walk_away(scene):
    """Lets Ada go off during shot 010, so that no two keyframes have the same depths."""
    rig = scene.objects["Ada rig"]
    rig.keyframe_insert("location", frame=1)
    rig.location.y += 5
    rig.keyframe_insert("location", frame=20)


def depth_blobs(session):
    return {
        (i.shot, i.frame): next(m.blob for m in i.request.maps if m.kind == "depth")
        for i in session.items
    }


def test_a_keyframe_alone_has_the_depth_map_that_it_has_among_the_others(make, scene, server):
    walk_away(scene)
    together = make(place=False)
    assert run(together) == "done"
    blobs = depth_blobs(together)
    assert len(set(blobs.values())) >= 4
    for frame in (1, 10, 20):
        alone = make(place=False, frames=frozenset({("010", frame)}))
        assert run(alone) == "done"
        assert depth_blobs(alone) == {("010", frame): blobs["010", frame]}
        assert states(alone) == ["kept"] and alone.bytes_sent == 0


def rename(scene, old, new):
    from addon.scene import shots

    shots.rename_shot(scene, next(r.uid for r in scene.onmodel.shots if r.name == old), new)


def test_a_renamed_shot_keeps_its_drawings_where_they_are(make, scene, server):
    from addon.planes import planes

    first = make()
    assert run(first) == "done"
    where = [i.path for i in first.items]
    sent, jobs = server.image_bytes(), len(server.jobs)
    rename(scene, "010", "015")
    second = make()
    assert run(second) == "done"
    assert {i.shot for i in second.items} == {"015", "020"}
    assert states(second) == ["kept"] * 5
    assert (server.image_bytes(), len(server.jobs)) == (sent, jobs)
    assert [i.path for i in second.items] == where
    assert [i.request.shot for i in second.items][:3] == ["015"] * 3
    assert len(planes.planes(scene)) == 5
    scene.objects["Ben rig"].location.x += 0.2
    bpy.context.view_layer.update()
    third = make()
    assert run(third) == "done"
    assert states(third)[0] == "done" and "/015/" in third.items[0].path.as_posix()
    assert len(planes.planes(scene)) == 5, "what is drawn anew takes the old one's place"
    assert where[0].exists()


def test_what_was_taken_away_is_put_back(make, scene, server):
    from addon.planes import planes

    session = make()
    assert run(session) == "done"
    assert session.put_back() == 0, "nothing is missing"
    everything = [p.name for p in planes.planes(scene)]
    uid = render_scene.read_shots(scene)[0].uid
    planes.remove(scene, planes.PlaneKey(uid, 10, 1))
    planes.clear(scene, render_scene.read_shots(scene)[1].uid)
    assert len(planes.planes(scene)) == 2
    assert session.put_back() == 3
    assert [p.name for p in planes.planes(scene)] == everything
    request = json.loads(planes.request_of(planes.planes(scene, uid, 10)[0]))
    assert request["frame"] == 10 and request["shot"] == "010"
    assert session.put_back() == 0


def test_results_are_put_back_into_the_scene_that_took_the_others_place(make, scene, server):
    """After an undo Blender has another scene in memory, without the planes."""
    from addon.planes import planes

    session = make()
    assert run(session) == "done"
    other = scene.copy()
    planes.clear(scene)
    for collection in [c for c in other.collection.children if c.name.startswith("Onmodel")]:
        other.collection.children.unlink(collection)
    session.scene = other
    assert session.put_back() == 5
    assert len(planes.planes(other)) == 5 and planes.planes(scene) == []


def test_only_what_was_drawn_is_put_back_and_nothing_without_planes(make, scene, server):
    from addon.planes import planes

    server.fail_first = {10}
    session = make(retries=0)
    assert run(session) == "failed"
    planes.clear(scene)
    assert session.put_back() == 4
    assert 10 not in {planes.key_of(p).frame for p in planes.planes(scene)}
    planes.clear(scene)
    unplaced = make(place=False)
    assert run(unplaced) == "done"
    assert unplaced.put_back() == 0 and planes.planes(scene) == []


def test_a_drawing_that_is_gone_from_the_disk_is_not_put_back_but_said(make, scene, server):
    from addon.planes import planes

    session = make()
    assert run(session) == "done"
    planes.clear(scene)
    session.items[0].path.unlink()
    session.put_back()
    assert len(planes.planes(scene)) == 4
    assert any("frame 1 is drawn" in note and "gone" in note for note in session.notes)


def test_a_check_says_what_changed_and_sends_and_writes_nothing(make, scene, server, tmp_path):
    walk_away(scene)
    fresh = make(check=True)
    assert run(fresh) == "done"
    assert states(fresh) == ["changed"] * 5 and fresh.message == "5 of 5 keyframes are to be drawn."
    assert not (tmp_path / "out").exists()
    assert run(make()) == "done"
    sent, jobs = server.image_bytes(), len(server.jobs)
    files = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    still = make(check=True)
    assert run(still) == "done"
    assert states(still) == ["kept"] * 5 and still.message == "Nothing changed since it was drawn."
    scene.objects["Camera 020"].location.x += 0.2
    bpy.context.view_layer.update()
    before = capture_scene.state()
    moved = make(check=True)
    assert run(moved) == "done"
    assert states(moved) == ["kept"] * 3 + ["changed"] * 2
    assert moved.message == "2 of 5 keyframes are to be drawn."
    assert capture_scene.difference(before, capture_scene.state()) == {}
    assert (server.image_bytes(), len(server.jobs)) == (sent, jobs)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == files

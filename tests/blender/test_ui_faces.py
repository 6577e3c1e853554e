# SPDX-License-Identifier: GPL-3.0-or-later
"""Scores, portraits and the settings of faces in the interface; nothing is drawn by a server."""

import json

import bpy
import numpy as np
import pytest

from addon.core import png
from addon.core.request import FacePass
from addon.core.retakes import RetakeRule
from addon.planes import planes
from addon.scene import cast, film, problems, server_words, settings_hash, shots
from addon.ui import drawing, preferences, status
from tests.blender import render_scene, whole_addon
from tests.blender.scored_heads import head
from tests.blender.test_ui import buttons, draw_all, words


@pytest.fixture
def scene(empty_scene):
    with whole_addon.registered():
        yield render_scene.make_film()


@pytest.fixture
def scored(scene, tmp_path):
    """Drawings with scores: frames 1, 10 (two takes) and 21; Ben has no score at frame 1."""
    path = tmp_path / "drawing.png"
    picture = np.zeros((180, 320, 3), np.uint8)
    picture[50:110, 100:180] = (200, 120, 90)
    path.write_bytes(png.encode(picture))
    box = [100, 50, 80, 60]
    heads = {
        (0, 1, 1): [head("Ada", 0.6, box), head("Ben", None)],
        (0, 10, 1): [head("Ada", 0.2), head("Ben", 0.7)],
        (0, 10, 2): [head("Ada", 0.5), head("Ben", 0.4)],
        (1, 21, 1): [head("Ada", 0.55), head("Ben", 0.9)],
    }
    for (index, frame, take), record in heads.items():
        row = scene.onmodel.shots[index]
        plane = planes.place(
            scene, row.camera, path, row.uid, frame, take, (frame, frame + 8), request_json="{}"
        )
        planes.set_heads(plane, record)
    scene.frame_set(1)
    return scene


def uid(scene, index=0):
    return scene.onmodel.shots[index].uid


def test_each_head_is_shown_with_score_verdict_and_what_the_face_pass_did(scored):
    log = draw_all()
    said = words(log)
    assert "0.60, on model" in said
    assert "no score It has no portraits." in said
    assert buttons(log).count("onmodel.portrait_from_drawing") == 2
    assert "Face repaired: 0.10 before, 0.60 after." in said.replace("  ", " ")
    scored.frame_set(10)
    said = words(draw_all())
    assert "0.50, on model" in said and "0.40, off model" in said
    assert "1:  0.20 2:  0.40" in said, "takes with their lowest scores"


def test_the_table_and_the_jump_to_the_worst(scored):
    rows = {r.character: r for r in planes.film_scores(scored)}
    assert rows["Ada"].mean == pytest.approx((0.6 + 0.5 + 0.55) / 3), "of the takes that are shown"
    assert (rows["Ben"].worst.frame, rows["Ben"].unscored) == (10, 1)
    log = draw_all()
    assert "010/10: 0.40" in words(log) and "1/3" in words(log)
    assert bpy.ops.onmodel.worst_go(who="Ben") == {"FINISHED"}
    assert scored.frame_current == 10 and scored.onmodel.shot_index == 0
    assert scored.camera == scored.onmodel.shots[0].camera
    active = bpy.context.view_layer.objects.active
    assert planes.key_of(active) == planes.PlaneKey(uid(scored), 10, 2)
    with pytest.raises(RuntimeError, match="has no score yet"):
        bpy.ops.onmodel.worst_go(who="Cleo")


def test_without_scores_there_is_no_such_panel(scene):
    said = words(draw_all())
    assert "mean" not in said and "worst frame" not in said


def test_a_pick_is_pinned_and_can_be_taken_back(scored):
    scored.frame_set(10)
    assert planes.picked_take(scored, uid(scored), 10) == 2
    bpy.ops.onmodel.take_pick(shot="010", frame=10, take=1)
    assert planes.picked_take(scored, uid(scored), 10) == 1
    assert shots.picked_take(scored, uid(scored), 10) == 1
    assert buttons(draw_all()).count("onmodel.take_pick") == 3, "the pin is there"
    bpy.ops.onmodel.take_pick(shot="010", frame=10, take=0)
    assert planes.picked_take(scored, uid(scored), 10) == 2, "the higher one: 0.4 and not 0.2"
    assert shots.picked_take(scored, uid(scored), 10) == 0
    bpy.ops.onmodel.take_pick(shot="010", frame=10, take=1)
    bpy.ops.onmodel.results_clear(what="take")
    assert shots.picked_take(scored, uid(scored), 10) == 0, "a take that is gone is picked no more"


def test_only_takes_of_the_same_request_compete(scored):
    (first, second) = planes.planes(scored, uid(scored), 10)
    first["onmodel_request"] = json.dumps({"prompt": "ink", "take": 1, "seed": 7})
    second["onmodel_request"] = json.dumps({"prompt": "wash", "take": 2, "seed": 9})
    request = {"prompt": "ink", "take": 3, "seed": 1}
    assert planes.show_best(scored, uid(scored), 10, request) == 1
    assert planes.picked_take(scored, uid(scored), 10) == 1
    assert planes.show_best(scored, uid(scored), 10, {"prompt": "oil"}) is None


def test_a_drawn_head_becomes_a_portrait(scored, tmp_path):
    with pytest.raises(RuntimeError, match="never saved"):
        bpy.ops.onmodel.portrait_from_drawing(who="Ada")
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "film.blend"))
    scene = bpy.context.scene
    before = settings_hash.of_shot(scene, shots.place(scene)[0])
    assert bpy.ops.onmodel.portrait_from_drawing(who="Ada") == {"FINISHED"}
    (reference,) = scene.onmodel.cast[0].references
    assert reference.filepath.startswith("//portraits")
    (portrait,) = cast.portraits_of(scene.onmodel.cast[0])
    assert portrait.path.parent == tmp_path / "portraits"
    pixels = png.decode(portrait.path.read_bytes())
    assert pixels.shape == (120, 120, 3) and tuple(pixels[60, 60]) == (200, 120, 90)
    assert settings_hash.of_shot(scene, shots.place(scene)[0]) != before
    with pytest.raises(RuntimeError, match="No head of Ben"):
        scene.frame_set(30)
        bpy.ops.onmodel.portrait_from_drawing(who="Ben")


@pytest.fixture
def faces(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    for k in range(9):
        (folder / f"{k}.png").write_bytes(png.encode(np.full((16, 16, 3), 20 * k, np.uint8)))
    return folder


def add(folder, names):
    files = [{"name": n} for n in names]
    return bpy.ops.onmodel.portraits_add(directory=str(folder), files=files)


def test_portraits_are_chosen_together_eight_at_most(scene, faces):
    assert add(faces, ["0.png", "1.png", "2.png"]) == {"FINISHED"}
    row = cast.active_row(scene)
    assert [p.path.name for p in cast.portraits_of(row)] == ["0.png", "1.png", "2.png"]
    assert all(r.image is not None for r in row.references)
    assert "Add Portraits" in words(draw_all())
    with pytest.raises(RuntimeError, match="8 portraits"):
        add(faces, [f"{k}.png" for k in range(3, 9)])
    assert len(row.references) == 8
    assert bpy.ops.onmodel.row_remove(of="references", index=0) == {"FINISHED"}
    with pytest.raises(RuntimeError, match="No picture was chosen"):
        add(faces, [])


def test_how_firmly_portraits_hold_is_asked_where_there_are_some(scene, faces):
    from addon.render import sources

    def offered():
        return [args[1] for name, _, args in draw_all() if name == "prop"]

    def weights():
        return [a.reference_weight for a in sources.actors_of(cast.read_cast(scene))]

    def now():
        return settings_hash.of_shot(scene, shots.place(scene)[0])

    assert "reference_weight" not in offered()
    add(faces, ["0.png"])
    assert "reference_weight" in offered() and weights() == [None, None]
    row, before = cast.active_row(scene), now()
    row.reference_weight = 0.4
    assert weights() == [None, None] and now() == before, "it is the server's until switched on"
    row.use_reference_weight = True
    assert weights() == [0.4, None] and now() != before
    before = now()
    row.reference_weight = 0.0
    assert weights() == [0.0, None] and now() != before


def test_the_cast_panel_says_what_holds_each_character(scene, faces):
    def said():
        held = [status.holding_of(scene, row) for row in scene.onmodel.cast]
        return words(draw_all()), [status.icon_of_holding(h) for h in held]

    text, icons = said()
    assert "Held by words alone." in text and icons == ["FONT_DATA"] * 2
    add(faces, ["0.png"])
    ada, ben = scene.onmodel.cast
    assert "if the server can." in said()[0]
    model = {"name": "rehearsal", "presets": []}
    adapter = {"name": "plus", "chosen": ["rehearsal"]}
    try:
        server_words.remember({"models": [model], "ip_adapters": [adapter]})
        lora = ben.loras.add()
        lora.name = "ben_v1"
        text, icons = said()
        assert "Held by its portraits (plus)." in text and icons == ["IMAGE_DATA", "LOCKED"]
        scene.onmodel.cast_index = 1
        assert "Held by its LoRA ben_v1." in said()[0]
        scene.onmodel.cast_index = 0
        server_words.remember({"models": [model], "ip_adapters": []})
        assert "words alone: the server has no IP-Adapter." in said()[0]
        ada.use_reference_weight = True
        text, icons = said()
        assert "Its portraits cannot hold it" in text and icons[0] == "ERROR"
        scene.onmodel.model = "another"
        assert "if the server can." in said()[0], "nothing is known of a model that is not there"
    finally:
        server_words.remember(None)


def test_a_packed_portrait_needs_no_file(scene, faces, tmp_path):
    from addon.render import sources
    from addon.render.requests import read_references

    add(faces, ["4.png"])
    row = cast.active_row(scene)
    data = (faces / "4.png").read_bytes()
    row.references[0].image.pack()
    (faces / "4.png").unlink()
    assert not [p for p in problems.validate(scene) if "portraits" in p.message]
    actors = sources.actors_of(cast.read_cast(scene))
    (blob,) = read_references(actors)[row.name]
    assert blob.data == data
    row.references[0].image.unpack(method="REMOVE")
    assert [p.message for p in problems.validate(scene) if "portraits" in p.message] == [
        f"{row.name}'s portraits were not found: 4.png."
    ]
    assert bpy.ops.onmodel.references_drop_lost() == {"FINISHED"}
    assert len(row.references) == 0


def test_paths_follow_the_file_when_it_is_saved_elsewhere(scene, faces, tmp_path):
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "film.blend"))
    add(faces, ["1.png"])
    assert bpy.context.scene.onmodel.cast[0].references[0].filepath == "//faces/1.png"
    elsewhere = tmp_path / "elsewhere" / "deep"
    elsewhere.mkdir(parents=True)
    bpy.ops.wm.save_as_mainfile(filepath=str(elsewhere / "film.blend"))
    (portrait,) = cast.portraits_of(bpy.context.scene.onmodel.cast[0])
    assert portrait.path.resolve() == (faces / "1.png").resolve()


def test_settings_of_faces_are_those_of_the_contract(scene):
    read = film.read_film(scene)
    assert read.face_pass == FacePass() and read.retakes is None
    scene.onmodel.face_pass.max_yaw = 75
    scene.onmodel.face_pass.size = 512
    scene.onmodel.retakes.enabled = True
    read = film.read_film(scene)
    assert read.face_pass == FacePass(max_yaw=75.0, size=512)
    assert read.retakes == RetakeRule()
    before = settings_hash.of_shot(scene, shots.place(scene)[0])
    scene.onmodel.face_pass.enabled = False
    assert film.read_film(scene).face_pass == FacePass(enabled=False)
    assert settings_hash.of_shot(scene, shots.place(scene)[0]) != before
    draw_all()


def test_waiting_for_a_training_is_on_the_panel(scene, tmp_path, monkeypatch):
    from addon.render.session import State
    from addon.render.settings import TakeSettings

    scene.onmodel.output = str(tmp_path)
    chosen = preferences.Defaults(mode="remote", url="http://127.0.0.1:9", token="x")
    order = drawing.Order(shots.read_shots(scene), TakeSettings())
    run = drawing.Drawing(scene, order, chosen)
    run.session.state = State.drawing
    run.session._heard.waiting = "Waits for the training of “ada”."
    run._tell()
    assert status.run.words.startswith("Waiting")
    assert "training of “ada”" in words(draw_all())
    run.close()
    status.forget()

# SPDX-License-Identifier: GPL-3.0-or-later
"""The add-on in Blender: comes and goes without a trace, its operators and panels work."""

import contextlib
import time

import bpy
import pytest

import addon
from addon.planes import planes, strips
from addon.render.items import ItemState
from addon.render.session import State
from addon.render.settings import TakeSettings
from addon.scene import server_words, shots
from addon.scene.errors import SceneError
from addon.ui import connection, drawing, lists, operators_results, parts, preferences, status
from addon.ui.connection import Connection, Link
from tests.addon.fake_server import FakeServer
from tests.blender import render_scene, whole_addon


@pytest.fixture
def scene(empty_scene):
    with whole_addon.registered():
        yield bpy.context.scene


def trace():
    """All that an add-on may leave behind."""
    handlers = bpy.app.handlers
    lists_of_handlers = [n for n in dir(handlers) if isinstance(getattr(handlers, n), list)]
    return {
        "types": {n for n in dir(bpy.types) if "onmodel" in n.casefold()},
        "classes": {
            c.__name__
            for base in (bpy.types.Panel, bpy.types.Operator, bpy.types.PropertyGroup)
            for c in base.__subclasses__()
            if getattr(c, "is_registered", False) and c.__module__.startswith("addon")
        },
        "operators": [n for n in dir(bpy.ops) if n == "onmodel"] and dir(bpy.ops.onmodel),
        "scene": hasattr(bpy.types.Scene, "onmodel"),
        "handlers": {
            n
            for n in lists_of_handlers
            if any(getattr(f, "__module__", "").startswith("addon") for f in getattr(handlers, n))
        },
        "timers": bpy.app.timers.is_registered(connection._look) or bool(lists._waiting),
    }


def test_twice_there_and_nothing_left(empty_scene):
    with whole_addon.registered():
        pass  # what other tests left is gone
    before = trace()
    assert not before["scene"]
    for _ in range(2):
        addon.register()
        there = trace()
        assert there["scene"]
        assert {"load_pre", "undo_post", "redo_post"} <= there["handlers"]
        assert "ONMODEL_PT_shots" in there["types"]
        connection.watch()
        addon.unregister()
        assert trace() == before


def test_registered_twice_is_an_error_and_harmless(scene):
    with pytest.raises(RuntimeError, match="already registered"):
        addon.register()
    assert hasattr(scene, "onmodel")


def test_settings_outlive_the_add_on(scene):
    scene.onmodel.prompt = "ink"
    addon.unregister()
    addon.register()
    assert bpy.context.scene.onmodel.prompt == "ink"


class Layout:
    """Stands for UILayout: takes what panels do and knows what they may not ask for."""

    functions = bpy.types.UILayout.bl_rna.functions
    properties = bpy.types.UILayout.bl_rna.properties

    def __init__(self, log):
        object.__setattr__(self, "log", log)

    def __setattr__(self, name, value):
        assert name in self.properties, f"UILayout has no {name}"
        prop = self.properties[name]
        if prop.type == "ENUM":
            assert value in prop.enum_items, f"{name} cannot be {value}"

    def __getattr__(self, name):
        assert name in self.functions, f"UILayout has no {name}()"
        parameters = self.functions[name].parameters
        icons = bpy.types.UILayout.bl_rna.functions["label"].parameters["icon"].enum_items

        def call(*args, **options):
            unknown = set(options) - set(parameters.keys()) - {"heading"}
            assert not unknown, f"{name}() takes no {unknown}"
            assert options.get("icon", "NONE") in icons, options.get("icon")
            if name == "prop":
                owner, path = args[0], args[1]
                assert path in owner.bl_rna.properties, f"{owner} has no {path}"
            self.log.append((name, options.get("text", ""), args))
            if name == "operator":
                module, operator = args[0].split(".")
                kind = getattr(getattr(bpy.ops, module), operator).get_rna_type()
                return Values(kind)
            if name == "template_list":
                draw_list(self, args)
            return Layout(self.log)

        return call


class Values:
    """The properties of a button: only those that the operator has."""

    def __init__(self, kind):
        object.__setattr__(self, "kind", kind)

    def __setattr__(self, name, value):
        assert name in self.kind.properties, f"{self.kind.identifier} has no {name}"


def draw_list(layout, args):
    cls = getattr(bpy.types, args[0])
    for item in getattr(args[2], args[3]):
        fake = type("List", (), {"placed": getattr(cls, "placed", {})})()
        cls.draw_item(fake, bpy.context, layout, args[2], item, 0, args[4], args[5])


def draw_all():
    """Draw every panel that would be seen; the words and buttons of all."""
    log = []
    for module in parts._modules:
        for cls in module.classes:
            if not issubclass(cls, (bpy.types.Panel, bpy.types.AddonPreferences)):
                continue
            if hasattr(cls, "poll") and not cls.poll(bpy.context):
                continue
            if issubclass(cls, bpy.types.AddonPreferences):
                continue
            fake = type("Panel", (), {"layout": Layout(log)})()
            for draw in ("draw_header_preset", "draw"):
                if draw in cls.__dict__:
                    getattr(cls, draw)(fake, bpy.context)
    return log


def words(log):
    return " ".join(str(text) for name, text, _ in log if text)


def buttons(log):
    return [args[0] for name, _, args in log if name == "operator"]


def test_an_empty_scene_says_what_to_do_first(scene):
    log = draw_all()
    assert "make your first shot" in words(log)
    assert "Add a rigged character" in words(log)
    assert "onmodel.shot_add_from_view" in buttons(log)
    assert "onmodel.server_start" in buttons(log)
    bpy.ops.object.camera_add()
    log = draw_all()
    assert "Bind a camera to a marker to make your first shot." in words(log)
    assert "onmodel.shot_add" in buttons(log)


@pytest.fixture
def storyboard(scene):
    """A rig in the cast and two shots, by the operators of the panel."""
    bpy.ops.object.camera_add()
    bpy.ops.onmodel.shot_add()
    bpy.context.scene.frame_set(50)
    bpy.ops.onmodel.shot_add()
    bpy.ops.object.armature_add()
    rig = bpy.context.object
    mesh = bpy.data.objects.new("Body", bpy.data.meshes.new("Body"))
    bpy.context.scene.collection.objects.link(mesh)
    mesh.parent = rig
    bpy.ops.onmodel.cast_add()
    return bpy.context.scene


def test_panels_of_a_storyboard_draw(storyboard):
    text = words(draw_all())
    assert "1\N{EN DASH}49" in text
    assert "Draw All (4 keyframes)" in text
    assert "recognised" in text


def test_every_state_of_the_server_is_drawn(storyboard, monkeypatch):
    real = connection.connection
    for link in Link:
        monkeypatch.setattr(real, "link", link)
        monkeypatch.setattr(real, "message", "Broken." if link is Link.failed else "")
        draw_all()
    monkeypatch.setattr(real, "link", Link.ready)
    server_words.remember(
        {"models": [{"name": "rehearsal", "title": "Rehearsal", "embedded": True, "presets": []}]}
    )
    assert "rehearsals" in words(draw_all())
    storyboard.onmodel.model = "flux"
    assert "no model named flux" in words(draw_all())
    server_words.remember(None)


def test_a_run_is_drawn(storyboard, monkeypatch):
    uid = storyboard.onmodel.shots[0].uid
    monkeypatch.setitem(status.live, uid, status.Standing("drawing", 1, 2))
    monkeypatch.setattr(status, "run", status.Run(active=True, share=0.5, words="Drawing 010"))
    log = draw_all()
    assert "onmodel.cancel" in buttons(log)
    assert ("progress", "Drawing 010") in [(n, t) for n, t, _ in log]
    assert "1/2" in words(log)
    trouble = status.Trouble("010/1: The disk is full.", "Free some space.")
    monkeypatch.setattr(
        status, "run", status.Run(outcome="1 of 2.", troubles=[trouble], retryable=True)
    )
    assert "The disk is full." in words(draw_all())


def test_standing_of_a_shot(storyboard):
    from addon.scene import settings_hash

    def now():
        return status.standing(storyboard, shots.place(storyboard)[0]).state

    assert now() == "new"
    placed = shots.place(storyboard)[0]
    placed.row.drawn = settings_hash.of_shot(storyboard, placed)
    assert now() == "done"
    placed.row.prompt = "rain"
    assert now() == "stale"


def test_operators_of_shots(storyboard):
    ops = bpy.ops.onmodel
    first, second = (s.uid for s in shots.read_shots(storyboard))
    storyboard.frame_set(60)
    ops.keyframe_mark(uid=second)
    assert shots.read_shots(storyboard)[1].keyframes == [50, 60, 250]
    ops.keyframe_mark(uid=second)
    assert shots.read_shots(storyboard)[1].keyframes == [50, 250]
    ops.shot_move(uid=first, step=1)
    assert [s.uid for s in shots.read_shots(storyboard)] == [second, first]
    ops.shot_go(uid=first)
    assert storyboard.frame_current == shots.find(storyboard, first).start
    ops.keyframe_step(step=-1)
    assert storyboard.frame_current == shots.find(storyboard, second).end
    with pytest.raises(RuntimeError, match="not in shot"):
        storyboard.frame_set(1)
        ops.keyframe_mark(uid=first)
    ops.shot_remove(uid=first)
    assert len(shots.read_shots(storyboard)) == 1


def test_operators_of_the_cast(storyboard):
    ops = bpy.ops.onmodel
    row = storyboard.onmodel.cast[0]
    assert [m.item.name for m in row.meshes] == ["Body"]
    for of in ("loras", "references", "joints", "meshes"):
        count = len(getattr(row, of))
        ops.row_add(of=of)
        assert len(getattr(row, of)) == count + 1
        draw_all()
        ops.row_remove(of=of, index=count)
        assert len(getattr(row, of)) == count
    ops.joint_correct(joint="nose")
    assert row.joints[0].joint == "nose"
    ops.cast_remove()
    assert len(storyboard.onmodel.cast) == 0
    ops.cast_add_all()
    assert len(storyboard.onmodel.cast) == 1


def test_drawing_without_a_saved_file_says_so(storyboard):
    with pytest.raises(RuntimeError, match=r"by hand|never saved|not known"):
        bpy.ops.onmodel.draw(what="all")
    assert not status.run.active


def test_remote_server_needs_leave_to_go_online(scene):
    if bpy.app.online_access:
        pytest.skip("this Blender may go online")
    link = Connection()
    link.begin(preferences.Defaults(mode="remote", url="http://192.0.2.7:8188", token="t"))
    assert link.link is Link.failed
    assert "Allow Online Access" in link.fix
    link.begin(preferences.Defaults(mode="remote", url=""))
    assert "No server address" in link.message


def test_a_server_that_is_not_there(scene):
    link = Connection()
    link.begin(preferences.Defaults(mode="remote", url="http://127.0.0.1:9", token="t"))
    assert link.link in (Link.shaking_hands, Link.failed)
    with contextlib.suppress(connection.ClientError):
        link.wait(20)
    assert link.link is Link.failed
    assert "127.0.0.1:9" in link.message
    with pytest.raises(connection.ClientError, match="No server is connected"):
        link.client()


@pytest.fixture
def server(monkeypatch):
    with FakeServer() as running:
        render_scene.calm(monkeypatch, running)
        yield running


@pytest.fixture
def film(empty_scene, server, monkeypatch, tmp_path):
    """A film of five keyframes and a server to draw it, as the panel would find them."""
    with whole_addon.registered():
        scene = render_scene.make_film()
        scene.onmodel.output = str(tmp_path)
        chosen = preferences.Defaults(mode="remote", url=server.url, token=server.token)
        monkeypatch.setattr(preferences, "get", lambda _context: chosen)
        yield scene


def test_a_script_draws_picks_clears(film, tmp_path):
    assert bpy.ops.onmodel.draw(what="shot") == {"FINISHED"}
    assert [planes.key_of(p).frame for p in planes.planes(film)] == [1, 10, 20]
    assert status.run.outcome == "3 keyframes drawn."
    assert status.standing(film, shots.place(film)[0]).state == "done"
    assert status.standing(film, shots.place(film)[1]).state == "new"
    assert len(list(tmp_path.rglob("*.png"))) == 3
    film.frame_set(10)
    assert bpy.ops.onmodel.draw(what="keyframe", only_take=2) == {"FINISHED"}
    first, second = (s.uid for s in shots.read_shots(film))
    assert planes.takes(film, first, 10) == [1, 2]
    assert planes.picked_take(film, first, 10) == 2
    draw_all()
    bpy.ops.onmodel.take_pick(shot="010", frame=10, take=1)
    assert planes.picked_take(film, first, 10) == 1
    assert film.onmodel.shots[0].keyframes[0].take == 1
    assert bpy.ops.onmodel.strips_place() == {"FINISHED"}
    assert len(strips.strips(film)) == 3
    assert bpy.ops.onmodel.draw(what="all") == {"FINISHED"}
    assert status.run.outcome == "2 keyframes drawn, 3 were drawn already."
    bpy.ops.onmodel.results_clear(what="take")
    assert planes.takes(film, first, 10) == [2]
    bpy.ops.onmodel.results_clear(what="shot")
    assert planes.planes(film, first) == []
    assert len(planes.planes(film, second)) == 2
    bpy.ops.onmodel.results_clear(what="all")
    assert planes.planes(film) == []
    assert "Drawings appear here" in words(draw_all())


def test_a_check_finds_what_moved_and_the_icon_turns(film):
    def states():
        return [status.standing(film, p).state for p in shots.place(film)]

    bpy.ops.onmodel.draw(what="shot")
    assert states() == ["done", "new"]
    film.objects["Ada rig"].location.x -= 0.3
    bpy.context.view_layer.update()
    assert states() == ["done", "new"], "not known before it is looked at"
    assert "Drawn; settings unchanged" in words(draw_all())
    assert bpy.ops.onmodel.draw(what="all", check=True) == {"FINISHED"}
    assert states() == ["stale", "new"]
    assert status.run.outcome == "5 of 5 keyframes are to be drawn."
    assert "Changed since it was drawn" in words(draw_all())
    film.objects["Ada rig"].location.x += 0.3
    bpy.context.view_layer.update()
    assert bpy.ops.onmodel.draw(what="all", check=True) == {"FINISHED"}
    assert states() == ["done", "new"]


def test_what_a_cancelled_run_found_changed_is_stale(film, server):
    bpy.ops.onmodel.draw(what="all")
    film.objects["Ada rig"].location.x -= 0.3
    bpy.context.view_layer.update()
    server.hold()
    order = drawing.Order(shots.read_shots(film), TakeSettings())
    run = drawing.begin(film, order, preferences.get(bpy.context))
    while run.session.state is not State.drawing:
        run.tick()
        time.sleep(0.005)
    bpy.ops.onmodel.cancel()
    while not run.tick():
        time.sleep(0.005)
    run.finish()
    drawing.end()
    assert run.session.state is State.cancelled
    assert [status.standing(film, p).state for p in shots.place(film)] == ["stale", "stale"]


@pytest.mark.parametrize("way", ["panel", "timeline", "camera too"])
def test_results_follow_a_renamed_shot(film, way, tmp_path):
    bpy.ops.onmodel.draw(what="all")
    files = sorted(tmp_path.rglob("*.png"))
    film.frame_set(10)
    uid = film.onmodel.shots[0].uid
    if way == "panel":
        film.onmodel.shots[0].name = "Meeting"
    else:
        film.timeline_markers["010"].name = "Meeting"
    if way == "camera too":
        shots.sync(film)
        shots.bind_camera(film, uid, film.objects["Camera 020"])
    assert shots.place(film)[0].name == "Meeting"
    key = operators_results.shown(film)
    assert key is not None and (key.shot, key.frame, key.take) == (uid, 10, 1)
    log = draw_all()
    assert "Meeting  \N{BULLET}  10" in words(log)
    assert "Drawings appear here" not in words(log)
    bpy.ops.onmodel.take_pick(shot="Meeting", frame=10, take=1)
    assert film.onmodel.shots[0].keyframes[-1].take == 1
    bpy.ops.onmodel.strips_place()
    assert [s.name[:7] for s in strips.strips(film)][:3] == ["Meeting"] * 3
    assert sorted(tmp_path.rglob("*.png")) == files
    if way != "camera too":
        assert status.standing(film, shots.place(film)[0]).state == "done"
    bpy.ops.onmodel.results_clear(what="shot")
    assert len(planes.planes(film)) == 2


def test_the_same_run_ticks_as_from_a_timer(film):
    order = drawing.Order(shots.read_shots(film), TakeSettings())
    run = drawing.begin(film, order, preferences.get(bpy.context))
    with pytest.raises(SceneError, match="drawing already"):
        drawing.begin(film, order, preferences.get(bpy.context))
    seen = set()
    end = time.monotonic() + 60
    while True:
        done = run.tick()
        seen |= {status.live[s.uid].state for s in order.shots}
        assert status.run.active is not done
        draw_all()
        if done:
            break
        assert time.monotonic() < end, status.run
        time.sleep(0.005)
    run.finish()
    drawing.end()
    assert {"queued", "drawing", "done"} <= seen
    assert [r.drawn != "" for r in film.onmodel.shots] == [True, True]


def test_a_cancelled_run_leaves_what_is_drawn(film):
    order = drawing.Order(shots.read_shots(film), TakeSettings())
    run = drawing.begin(film, order, preferences.get(bpy.context))
    while not any(i.state is ItemState.done for i in run.session.items):
        run.tick()
        time.sleep(0.005)
    bpy.ops.onmodel.cancel()
    while not run.tick():
        time.sleep(0.005)
    run.finish()
    drawing.end()
    assert run.session.state is State.cancelled
    assert planes.planes(film)
    assert not status.run.active


def test_opening_a_file_leaves_the_run(film):
    order = drawing.Order(shots.read_shots(film), TakeSettings())
    run = drawing.begin(film, order, preferences.get(bpy.context))
    run.tick()
    bpy.ops.wm.read_factory_settings(use_empty=True)
    assert run.session.ended
    assert drawing.current is None
    assert status.live == {}

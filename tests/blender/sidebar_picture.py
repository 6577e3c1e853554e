# SPDX-License-Identifier: GPL-3.0-or-later
"""The sidebar in a real window: starts the server, draws, takes a picture, stops the server.

    python -m tools.sidebar_picture                  (that runs this script, and finds a Blender)
    xvfb-run blender --factory-startup --python sidebar_picture.py -- \\
        FILM.blend OUT.png [--shot NAME ...] [--open PANEL ...] [--server URL TOKEN | --no-server]

Everything is done by the panel's own operators, as clicks do it: Start Server (the managed server
unless an address is given), Draw for the shot (without --shot: Draw All), undo and redo, Stop.
What was seen is written to stdout as one line of JSON; exits with 1 and a traceback where anything
is not as it should be. Needs `import` (ImageMagick).
"""

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import bpy

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
limit = 560.0
"""Seconds that all of it may take."""

seen: dict = {"blender": bpy.app.version_string}


def windowed() -> tuple[bpy.types.Window, bpy.types.Area, bpy.types.Region]:
    """The 3D viewport and its main region."""
    window = bpy.context.window_manager.windows[0]
    area = next(a for a in window.screen.areas if a.type == "VIEW_3D")
    return window, area, next(r for r in area.regions if r.type == "WINDOW")


def over():
    window, area, region = windowed()
    return bpy.context.temp_override(window=window, area=area, region=region)


def count_planes() -> int:
    from addon.planes import planes

    return len(planes.planes(bpy.context.scene))


def watch_ticks() -> None:
    """Notes the longest time that the add-on itself held the window, apart from Blender's redraws.

    While it captures, a tick is one render of a keyframe.
    """
    from addon.render.session import State
    from addon.ui import connection, drawing

    def timed(owner: type, name: Callable[[object], str]) -> None:
        tick = owner.tick

        def tick_timed(self):
            began, what = time.perf_counter(), name(self)
            result = tick(self)
            longest = seen.setdefault("longest_ticks", {})
            longest[what] = round(max(longest.get(what, 0.0), time.perf_counter() - began), 4)
            return result

        owner.tick = tick_timed

    timed(connection.Connection, lambda _: "connection")
    timed(
        drawing.Drawing,
        lambda d: "capturing" if d.session.state is State.capturing else "drawing",
    )


def until(condition: Callable[[], bool], name: str) -> Iterator[float]:
    """Looks again and again; notes how long it took and the longest that the window was held."""
    began = last = time.monotonic()
    longest, looks = 0.0, 0
    while not condition():
        yield 0.02
        now = time.monotonic()
        longest, last, looks = max(longest, now - last), now, looks + 1
    seen[name] = {
        "seconds": round(last - began, 2),
        "looks": looks,
        "longest_seconds_between_looks": round(longest, 3),
    }


def script(options: argparse.Namespace) -> Iterator[float]:
    """What is done, one thing after the other; yields the seconds to wait."""
    with over():
        bpy.ops.screen.screen_full_area(use_hide_panels=False)
    yield 0.5
    _, area, _ = windowed()
    space = area.spaces.active
    space.show_region_ui = True
    space.shading.color_type = "TEXTURE"
    yield 0.5
    sidebar = next(r for r in area.regions if r.type == "UI")
    sidebar.active_panel_category = "Onmodel"
    space.region_3d.view_perspective = "CAMERA"
    yield 0.5
    if options.server or not options.no_server:
        yield from start_server(options)
        yield from draw(options.shot)
    show_first(options.shot)
    with over():
        bpy.ops.view3d.view_center_camera()
    for _ in range(4):
        area.tag_redraw()
        yield 0.5
    subprocess.run(["import", "-window", "root", options.out], check=True)
    if options.server or not options.no_server:
        yield from undo_and_redo()
        yield from stop_server(managed=not options.server)


def start_server(options: argparse.Namespace) -> Iterator[float]:
    """Start Server, as a click does it: comes back at once, and the window lives meanwhile."""
    from addon.ui import connection, preferences

    if options.server:
        url, token = options.server
        chosen = preferences.Defaults(mode="remote", url=url, token=token)
        preferences.get = lambda _context: chosen
    with over():
        assert bpy.ops.onmodel.server_start("INVOKE_DEFAULT") == {"FINISHED"}
    link = connection.connection
    assert link.busy, f"{link.link.value}: {link.message} {link.fix}"
    yield from until(lambda: not link.busy, "start")
    assert link.link is connection.Link.ready, f"{link.message} {link.fix}"
    seen["server"] = {k: link.info.get(k) for k in ("version", "device")}
    seen["models"] = [m["name"] for m in link.info["models"]]


def draw(names: list[str]) -> Iterator[float]:
    """Draw, as a click does it."""
    from addon.ui import drawing, status

    bpy.ops.ed.undo_push(message="before")
    what = {"what": "shot", "shots": ",".join(names)} if names else {"what": "all"}
    with over():
        assert bpy.ops.onmodel.draw("INVOKE_DEFAULT", **what) == {"RUNNING_MODAL"}
    yield from until(lambda: drawing.current is None, "draw")
    assert not status.run.troubles, status.run.troubles
    seen["outcome"], seen["planes"] = status.run.outcome, count_planes()
    assert count_planes() > 0


def show_first(names: list[str]) -> None:
    """Look at the second keyframe of the (first) shot, with the shot selected in the list."""
    from addon.scene import shots

    scene = bpy.context.scene
    every = shots.read_shots(scene)
    shot = next((s for s in every if s.name in names), every[0])
    scene.frame_set(shot.keyframes[min(1, len(shot.keyframes) - 1)])
    scene.camera = scene.objects[shot.camera]
    scene.onmodel.shot_index = next(
        k for k, row in enumerate(scene.onmodel.shots) if row.uid == shot.uid
    )


def undo_and_redo() -> Iterator[float]:
    """One undo takes all planes of the run away, redo brings them back."""
    drawn = count_planes()
    for operator, wanted in ((bpy.ops.ed.undo, 0), (bpy.ops.ed.redo, drawn)):
        with over():
            operator()
        yield 0.5
        assert count_planes() == wanted, f"{count_planes()} planes, not {wanted}"


def stop_server(managed: bool) -> Iterator[float]:
    """Stop, as a click does it: a server that was started here ends."""
    from addon.core.server_process import is_alive
    from addon.ui import connection

    link = connection.connection
    address = link.address
    with over():
        assert bpy.ops.onmodel.server_stop("INVOKE_DEFAULT") == {"FINISHED"}
    yield from until(lambda: link.link is connection.Link.off, "stop")
    if managed:
        assert address is not None and not is_alive(address.pid), "the server lives on"


def open_only(labels: list[str]) -> None:
    """Has the panels of the tab closed but these; before they are registered."""
    from addon.ui import parts

    for module in parts._modules:
        for panel in module.classes:
            if issubclass(panel, bpy.types.Panel):
                panel.bl_options = set() if panel.bl_label in labels else {"DEFAULT_CLOSED"}


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("film")
    parser.add_argument("out")
    parser.add_argument("--shot", action="append", default=[])
    parser.add_argument("--open", action="append", default=[], metavar="LABEL")
    parser.add_argument("--server", nargs=2, metavar=("URL", "TOKEN"))
    parser.add_argument("--no-server", action="store_true")
    return parser.parse_args(sys.argv[sys.argv.index("--") + 1 :])


def main() -> None:
    options = read_options()
    bpy.context.preferences.view.show_splash = False
    bpy.context.preferences.use_preferences_save = False
    bpy.ops.wm.open_mainfile(filepath=options.film, load_ui=False)
    import addon

    if options.open:
        open_only(options.open)
    addon.register()
    watch_ticks()
    steps = script(options)
    end = time.monotonic() + limit

    def go() -> float:
        try:
            assert time.monotonic() < end, f"it took too long; so far: {seen}"
            return next(steps)
        except StopIteration:
            print(json.dumps(seen), flush=True)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - Blender would go on without a word
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    bpy.app.timers.register(go, first_interval=1.0, persistent=True)


main()

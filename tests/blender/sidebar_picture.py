# SPDX-License-Identifier: GPL-3.0-or-later
"""The sidebar in a real window: opens a film, draws it if a server is given, takes a picture.

    xvfb-run blender --factory-startup --python sidebar_picture.py -- FILM.blend OUT.png [URL TOKEN]

Needs `import` (ImageMagick). With a server it clicks Draw All (the modal operator), then checks
that one undo takes all planes away and redo brings them back. Exits with 1 and a traceback else.
"""

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import bpy

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
limit = 240.0
"""Seconds that all of it may take."""


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


def script(out: str, server: list[str]) -> Iterator[float]:
    """What is done, one thing after the other; yields the seconds to wait."""
    with over():
        bpy.ops.screen.screen_full_area(use_hide_panels=False)
    yield 0.5
    _, area, _ = windowed()
    space = area.spaces.active
    space.show_region_ui = True
    space.shading.color_type = "TEXTURE"
    yield 0.5
    next(r for r in area.regions if r.type == "UI").active_panel_category = "Onmodel"
    bpy.context.scene.frame_set(25)
    space.region_3d.view_perspective = "CAMERA"
    yield 0.5
    if server:
        yield from draw(server)
    for _ in range(3):
        area.tag_redraw()
        yield 0.5
    subprocess.run(["import", "-window", "root", out], check=True)
    if server:
        drawn = count_planes()
        for operator, wanted in ((bpy.ops.ed.undo, 0), (bpy.ops.ed.redo, drawn)):
            with over():
                operator()
            yield 0.5
            assert count_planes() == wanted, f"{count_planes()} planes, not {wanted}"


def draw(server: list[str]) -> Iterator[float]:
    """Draw All, as a click does it."""
    from addon.ui import drawing, preferences, status

    chosen = preferences.Defaults(mode="remote", url=server[0], token=server[1])
    preferences.get = lambda _context: chosen
    bpy.ops.ed.undo_push(message="before")
    with over():
        assert bpy.ops.onmodel.draw("INVOKE_DEFAULT", what="all") == {"RUNNING_MODAL"}
    while drawing.current is not None:
        yield 0.2
    assert not status.run.troubles, status.run.troubles


def main() -> None:
    film, out, *server = sys.argv[sys.argv.index("--") + 1 :]
    bpy.context.preferences.view.show_splash = False
    bpy.context.preferences.use_preferences_save = False
    bpy.ops.wm.open_mainfile(filepath=film, load_ui=False)
    import addon

    addon.register()
    steps = script(out, server)
    end = time.monotonic() + limit

    def go() -> float:
        try:
            assert time.monotonic() < end, "it took too long"
            return next(steps)
        except StopIteration:
            os._exit(0)
        except BaseException:  # noqa: BLE001 - Blender would go on without a word
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    bpy.app.timers.register(go, first_interval=1.0, persistent=True)


main()

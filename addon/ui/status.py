# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lists say with an icon: how a shot stands, how well a rig is understood, what holds a
character."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import bpy

from ..core import holding
from ..scene import cast, film, server_words, settings_hash, shots
from ..scene.errors import SceneError


@dataclass(frozen=True)
class Standing:
    """How a shot stands. state: new, queued, drawing, done, failed or stale.

    stale follows what is typed at once; what moved in the scene is only known after a check or a
    run, for it has to be captured.

    done, all: keyframes. message: why it failed.
    """

    state: str
    done: int = 0
    all: int = 0
    message: str = ""


icons = {
    "new": "RADIOBUT_OFF",
    "queued": "SORTTIME",
    "drawing": "GREASEPENCIL",
    "done": "CHECKMARK",
    "failed": "ERROR",
    "stale": "FILE_REFRESH",
}

words = {
    "new": "Not drawn yet",
    "queued": "Waiting to be drawn",
    "drawing": "Being drawn",
    "done": "Drawn; settings unchanged",
    "failed": "Failed",
    "stale": "Changed since it was drawn",
}

live: dict[str, Standing] = {}
"""Shots of the running or last render, by uid. Not in the .blend: undo must not touch it."""


def standing(scene: bpy.types.Scene, placed: shots.Placed) -> Standing:
    """How this shot stands now."""
    now = live.get(placed.uid)
    if now is not None and now.state != "new":
        return now
    if placed.row is None or not placed.row.drawn:
        return Standing("new")
    same = placed.row.drawn == settings_hash.of_shot(scene, placed)
    return Standing("done" if same else "stale")


def draw_shot(layout: bpy.types.UILayout, scene: bpy.types.Scene, placed: shots.Placed) -> None:
    """The icon of a shot in the list, with how many keyframes are through while it is drawn."""
    now = standing(scene, placed)
    text = f"{now.done}/{now.all}" if now.state == "drawing" and now.all else ""
    layout.label(text=text, icon=icons[now.state])


def icon_of_character(scene: bpy.types.Scene, row: bpy.types.PropertyGroup) -> str:
    """How well the character is bound: all joints, some, or not at all."""
    if not row.enabled:
        return "RADIOBUT_OFF"
    try:
        member = cast.read_member(scene, row)
    except SceneError:
        return "ERROR"
    return "CHECKMARK" if not member.rig_map.unmapped else "INFO"


holds = {"lora": "LOCKED", "both": "LOCKED", "portraits": "IMAGE_DATA", "words": "FONT_DATA"}


def holding_of(scene: bpy.types.Scene, row: bpy.types.PropertyGroup) -> holding.Holding:
    """What holds the character in drawings of the scene's model, as far as the server has told."""
    model = server_words.model(scene.onmodel.model.strip())
    # Of a model that the server lacks nothing is known; that it is lacking is said when drawing.
    adapters = holding.adapters_of(server_words.info()) if model is not None else None
    return holding.held(
        film.read_loras(row.loras),
        sum(p.is_there for p in cast.portraits_of(row)),
        cast.reference_weight_of(row),
        adapters,
        str(model["name"]) if model is not None else "",
    )


def icon_of_holding(found: holding.Holding) -> str:
    """The icon of what holds a character."""
    return "ERROR" if found.refused else holds[found.by]


@dataclass
class Trouble:
    """A failure of the last run, for the panel."""

    message: str
    fix: str = ""


@dataclass
class Run:
    """The running render for the panel: share of all work done 0..1, what is being done, and
    after it what came of it. order: the last run's, for another try."""

    active: bool = False
    share: float = 0.0
    words: str = ""
    detail: str = ""
    outcome: str = ""
    troubles: list[Trouble] = field(default_factory=list)
    retryable: bool = False
    order: Any = None


run = Run()


def forget() -> None:
    """Nothing was drawn: another file is open, or the add-on goes."""
    live.clear()
    run.__init__()  # type: ignore[misc]

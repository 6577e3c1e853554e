# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether what the artist typed changed since a shot was drawn.

A hash over the settings that the shot's drawing depends on: cheap enough for every redraw of the
sidebar. Poses and sets are not in it: whether they moved is only known by capturing again. Nor are
names, which change no drawing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json

import bpy

from . import cast, film, shots
from .errors import SceneError

changed = "changed"
"""Kept in place of a hash when a run or a check saw that what the shot shows has changed."""


def of_shot(scene: bpy.types.Scene, placed: shots.Placed) -> str:
    """The hash of the shot's settings, the film's and the cast's among them. Needs its row."""
    row = placed.row
    assert row is not None
    try:
        maps = [[m.kind, m.weight, m.start, m.end] for m in film.read_film(scene).maps]
    except SceneError:
        maps = []
    s = scene.onmodel
    values = [
        [placed.start, placed.end, placed.marker.camera.name],
        [row.prompt, row.negative_prompt, row.first, row.last],
        [row.use_seed and row.seed, row.use_resolution and [row.width, row.height], row.takes],
        sorted(k.frame for k in row.keyframes if k.marked),
        [s.prompt, s.negative_prompt, s.seed, s.takes, s.model, s.preset, s.steps],
        [s.use_guidance and round(s.guidance, 4), s.native_side, maps],
        _loras(s.loras),
        dataclasses.astuple(film.read_face_pass(s.face_pass)),
        [_character(c) for c in s.cast if c.enabled],
    ]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _character(row: bpy.types.PropertyGroup) -> list[object]:
    values = [row.name, row.noun, row.trigger, row.prompt, _loras(row.loras), _portraits(row)]
    weight = cast.reference_weight_of(row)
    # Left to the server it adds nothing, so that shots drawn before there was one stay drawn.
    return values if weight is None else [*values, weight]


def _portraits(row: bpy.types.PropertyGroup) -> list[str]:
    return [p.path.name for p in cast.portraits_of(row)]


def _loras(rows: bpy.types.bpy_prop_collection) -> list[list[object]]:
    return [[r.name, r.weight] for r in film.read_loras(rows)]

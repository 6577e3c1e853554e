# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands between the scene and its drawings, in sentences, each with its repair.

The panel draws these with a button, the command line prints them (`--dry-run`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import bpy

from ..core import rigs
from . import cast, film, shots
from .errors import SceneError

levels = ("error", "warning")

_few = 4
"""As many names are listed in a sentence; of more, the rest is counted."""


@dataclass(frozen=True)
class Problem:
    """Something to put right.

    level: "error" when nothing can be drawn before, "warning" when it only may not be as wished.
    message: what is wrong; fix: what to do. fix_operator: a Blender operator that does it
    (`bl_idname`), called with `fix_values`; fix_label: the words on its button. about: the uid of
    the shot or the name of the character concerned, or empty.
    """

    level: str
    message: str
    fix: str
    fix_operator: str = ""
    fix_label: str = ""
    fix_values: dict[str, Any] = field(default_factory=dict)
    about: str = ""


def validate(scene: bpy.types.Scene, output_given: bool = False) -> list[Problem]:
    """All problems of the scene, errors first. Writes nothing and renders nothing.

    output_given: the output folder comes from elsewhere (`--out`), so that of the film may lack.
    """
    found = [
        *_of_shots(scene),
        *_of_cast(scene),
        *_of_film(scene, output_given),
    ]
    return sorted(found, key=lambda p: levels.index(p.level))


# --- shots ---------------------------------------------------------------------------------------


def _of_shots(scene: bpy.types.Scene) -> Iterator[Problem]:
    placed = shots.place(scene)
    if not placed:
        yield _no_shot(scene)
        return
    if not any(p.row is None or p.row.enabled for p in placed):
        yield Problem("error", "Every shot is switched off.", "Tick the shots to draw.")
    names = Counter(p.marker.name.casefold() for p in placed)
    starts = Counter(p.marker.frame for p in placed)
    for p in placed:
        if names[p.marker.name.casefold()] > 1 and p.marker.name != p.name:
            yield Problem(
                "warning",
                f"Several markers are named {p.marker.name}; this shot is called {p.name}.",
                "Files are named by their shots, which need names of their own.",
                "onmodel.shots_name_markers",
                "Rename the Marker",
                about=p.uid,
            )
        if p.shot is None and starts[p.marker.frame] > 1:
            yield Problem(
                "error",
                f"Two cameras are bound at frame {p.marker.frame}; {p.name} would not be drawn.",
                "Move one of the two markers on the timeline.",
                about=p.uid,
            )
        elif p.shot is None:
            yield Problem(
                "warning",
                f"Shot {p.name} lies outside the film's frames"
                f" ({scene.frame_start}-{scene.frame_end}).",
                "It is not drawn. Move its marker, or the scene's start or end frame.",
                about=p.uid,
            )
        yield from _of_shot(scene, p)


def _no_shot(scene: bpy.types.Scene) -> Problem:
    if not any(o.type == "CAMERA" for o in scene.objects):
        return Problem(
            "error",
            "The scene has no camera, so there is no shot to draw.",
            "Make a shot from the view: its camera is placed where you look from.",
            "onmodel.shot_add_from_view",
            "Shot from View",
        )
    return Problem(
        "error",
        "No camera is bound to a marker, so there is no shot to draw.",
        "Bind a camera to a marker where the shot begins.",
        "onmodel.shot_add",
        "Make a Shot Here",
    )


def _of_shot(scene: bpy.types.Scene, p: shots.Placed) -> Iterator[Problem]:
    camera = p.marker.camera
    if camera.name not in scene.objects:
        yield Problem(
            "error",
            f"The camera of shot {p.name}, {camera.name}, is not in this scene.",
            "Bind another camera to the shot.",
            about=p.uid,
        )
    elif camera.data.type not in {"PERSP", "ORTHO"}:
        yield Problem(
            "error",
            f"The camera of shot {p.name}, {camera.name}, is panoramic.",
            "Make it perspective or orthographic.",
            about=p.uid,
        )
    if p.shot is None or p.row is None or not p.row.enabled:
        return
    marked = [k.frame for k in p.row.keyframes if k.marked]
    stray = sorted(f for f in marked if not p.start <= f <= p.end)
    if stray:
        yield Problem(
            "warning",
            f"Shot {p.name} ({p.start}-{p.end}) has keyframes outside it: {_listed(stray)}.",
            "They are not drawn. Unmark them, or move the shot's marker.",
            "onmodel.keyframes_drop_stray",
            "Unmark Them",
            {"uid": p.uid},
            about=p.uid,
        )
    if not p.shot.keyframes:
        yield Problem(
            "warning",
            f"Shot {p.name} has no keyframe, so nothing of it is drawn.",
            "Switch on its first or last frame, or mark another one.",
            "onmodel.keyframe_first",
            "Draw Its First Frame",
            {"uid": p.uid},
            about=p.uid,
        )
    if not (p.row.prompt.strip() or scene.onmodel.prompt.strip()):
        yield Problem(
            "warning",
            f"Shot {p.name} has no prompt.",
            "Say in a few words what it shows.",
            about=p.uid,
        )


# --- cast ----------------------------------------------------------------------------------------


def _of_cast(scene: bpy.types.Scene) -> Iterator[Problem]:
    rows = [r for r in scene.onmodel.cast if r.enabled]
    if not rows:
        yield _no_cast(scene)
    names = Counter(r.name.strip().casefold() for r in rows)
    for name, count in names.items():
        if count > 1:
            shown = next(r.name for r in rows if r.name.strip().casefold() == name)
            yield Problem(
                "error", f"Two characters are named {shown}.", "Give each a name of its own."
            )
    yield from _of_shared_meshes(scene, rows)
    for row in rows:
        yield from check_character(scene, row)


def _no_cast(scene: bpy.types.Scene) -> Problem:
    if not any(o.type == "ARMATURE" for o in scene.objects):
        return Problem(
            "warning",
            "The scene has no armature, so no character can be drawn.",
            "Add a rigged character (Mixamo, Rigify, MakeHuman, UE or VRM), then put it in the"
            " cast.",
        )
    return Problem(
        "warning",
        "Nobody is in the cast, so no character is held on-model.",
        "Take the scene's rigs into the cast.",
        "onmodel.cast_add_all",
        "Cast All Rigs",
    )


def _of_shared_meshes(
    scene: bpy.types.Scene, rows: list[bpy.types.PropertyGroup]
) -> Iterator[Problem]:
    owner: dict[bpy.types.Object, str] = {}
    for row in rows:
        for mesh in cast.meshes_of(scene, row):
            other = owner.setdefault(mesh, row.name)
            if other != row.name:
                yield Problem(
                    "error",
                    f"The mesh {mesh.name} belongs to both {other} and {row.name}.",
                    "Remove it from one of them.",
                    about=row.name,
                )


def check_character(scene: bpy.types.Scene, row: bpy.types.PropertyGroup) -> Iterator[Problem]:
    """The problems of one character: armature, meshes, rig, portraits."""
    name = row.name
    try:
        member = cast.read_member(scene, row)
    except SceneError as error:
        operator, label = "", ""
        if row.armature is None or row.armature.name not in scene.objects:
            operator, label = "onmodel.cast_bind", "Bind the Selected Rig"
        elif not cast.meshes_of(scene, row):
            operator, label = "onmodel.cast_find_meshes", "Find Meshes"
        values = {"who": name} if operator else {}
        yield Problem("error", error.message, error.fix, operator, label, values, name)
        return
    missing = rigs.in_words(member.rig_map.unmapped)
    if missing:
        yield Problem(
            "warning",
            f"{name}'s rig has no bone for: {_listed(missing)}.",
            "The pose is drawn without. Bind them by hand if the rig has them (Cast > Rig and"
            " Meshes).",
            about=name,
        )
    bones = member.armature.data.bones
    for joint in row.joints:
        if joint.joint not in rigs.joint_names or joint.bone not in bones:
            what = f"{joint.joint or 'no joint'} to {joint.bone or 'no bone'}"
            yield Problem(
                "warning",
                f"{name}'s rig correction ({what}) does not fit the armature.",
                "Choose a joint and a bone that exist, or remove the correction.",
                about=name,
            )
    lost = [p.path.name for p in cast.portraits_of(row) if not p.is_there]
    if lost:
        yield Problem(
            "warning",
            f"{name}'s portraits were not found: {_listed(lost)}.",
            "Choose the files again, or remove them.",
            "onmodel.references_drop_lost",
            "Remove Them",
            {"who": name},
            about=name,
        )
    if all(m.hide_render for m in member.meshes):
        yield Problem(
            "warning",
            f"All meshes of {name} are hidden in renders, so {name} is not drawn.",
            "Show them in renders (the camera icon in the outliner).",
            about=name,
        )


# --- film ----------------------------------------------------------------------------------------


def _of_film(scene: bpy.types.Scene, output_given: bool) -> Iterator[Problem]:
    try:
        read = film.read_film(scene)
    except SceneError as error:
        yield Problem("error", error.message, error.fix)
        return
    if not read.maps:
        yield Problem(
            "warning",
            "All maps are off, so the drawing does not follow the scene.",
            "Switch on pose and depth (Film > Maps).",
        )
    if read.output is None and not output_given:
        yield Problem(
            "error",
            "The file was never saved, so there is no folder for the drawings beside it.",
            "Save the file, or choose another output folder (Film > Output).",
            "wm.save_as_mainfile",
            "Save the File",
        )


def _listed(things: list[Any]) -> str:
    shown = ", ".join(str(t) for t in things[:_few])
    return f"{shown} and {len(things) - _few} more" if len(things) > _few else shown

# SPDX-License-Identifier: GPL-3.0-or-later
"""The panels about faces: portraits, face pass, retakes, and how like the drawn heads are."""

from __future__ import annotations

import bpy

from ..core import scores
from ..core.portraits import most_portraits, most_turned
from ..planes import planes
from ..scene import shots
from . import text
from .operators_results import shown
from .panels_scene import OfCharacter, OfFilm, Sidebar, draw_own, member_of

_icons = {"same": "CHECKMARK", "unsure": "QUESTION", "other": "ERROR"}
_no_verdict = "RADIOBUT_OFF"
_no_score = "HIDE_ON"
_dash = "\N{EN DASH}"


class ONMODEL_PT_cast_portraits(OfCharacter, bpy.types.Panel):
    bl_label = "Portraits"
    bl_order = 1

    def draw(self, context: bpy.types.Context) -> None:
        member = member_of(context)
        layout = self.layout
        if not member.references:
            text.wrapped(
                layout,
                "Pictures of the character's face, to compare drawings with and to hold it by"
                " where it has no LoRA; three are usual. Without them no drawing has a score.",
            )
        column = layout.column(align=True)
        for index, reference in enumerate(member.references):
            row = column.row(align=True)
            image = reference.image
            preview = image.preview_ensure() if image is not None else None
            row.label(text="", icon_value=preview.icon_id if preview else 0)
            # The image's path is kept right by Blender; without an image the typed one is all.
            row.prop(image if image is not None else reference, "filepath", text="")
            button = row.operator("onmodel.row_remove", text="", icon="X")
            button.of, button.index = "references", index
        add = layout.row()
        add.enabled = len(member.references) < most_portraits
        add.operator("onmodel.portraits_add", text="Add Portraits", icon="ADD")
        if member.references:
            hold = layout.column()
            hold.use_property_split = True
            hold.use_property_decorate = False
            draw_own(hold, member, "use_reference_weight", "Hold", ["reference_weight"])


class ONMODEL_PT_film_faces(OfFilm, bpy.types.Panel):
    bl_label = "Face Pass"
    bl_order = 3

    def draw_header(self, context: bpy.types.Context) -> None:
        self.layout.prop(context.scene.onmodel.face_pass, "enabled", text="")

    def draw(self, context: bpy.types.Context) -> None:
        group = context.scene.onmodel.face_pass
        layout = self.layout
        layout.active = group.enabled
        layout.use_property_split = True
        layout.use_property_decorate = False
        column = layout.column(align=True)
        column.prop(group, "first")
        column.prop(group, "second")
        layout.prop(group, "keep_if_better")
        column = layout.column(align=True)
        for name in ("min_height", "min_visible", "max_yaw"):
            column.prop(group, name)
        column = layout.column(align=True)
        column.prop(group, "feather")
        column.prop(group, "size")


class ONMODEL_PT_film_retakes(OfFilm, bpy.types.Panel):
    bl_label = "Retakes"
    bl_order = 4

    def draw_header(self, context: bpy.types.Context) -> None:
        self.layout.prop(context.scene.onmodel.retakes, "enabled", text="")

    def draw(self, context: bpy.types.Context) -> None:
        settings = context.scene.onmodel
        layout = self.layout
        layout.active = settings.retakes.enabled
        text.wrapped(
            layout, "Draw again until all faces are like their portraits, and show the best take."
        )
        column = layout.column(align=True)
        column.use_property_split = True
        column.use_property_decorate = False
        column.prop(settings.retakes, "score", text="Until Score")
        column.prop(settings.retakes, "most", text="At Most Takes")
        if settings.cast and not any(c.references for c in settings.cast if c.enabled):
            text.wrapped(layout, "No character has portraits yet (Cast > Portraits).", icon="INFO")


class _OfResults(Sidebar):
    bl_parent_id = "ONMODEL_PT_results"


class ONMODEL_PT_faces(_OfResults, bpy.types.Panel):
    bl_label = "Faces"
    bl_order = 0

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return bool(_heads_here(context.scene))

    def draw(self, context: bpy.types.Context) -> None:
        for head in _heads_here(context.scene):
            _draw_head(self.layout, head)


def _heads_here(scene: bpy.types.Scene) -> tuple[scores.HeadScore, ...]:
    """The heads of the drawing that is shown at the current frame."""
    key = shown(scene)
    if key is None:
        return ()
    drawn = planes.planes(scene, key.shot, key.frame)
    return next((planes.heads_of(p) for p in drawn if planes.key_of(p) == key), ())


def _draw_head(layout: bpy.types.UILayout, head: scores.HeadScore) -> None:
    """A character's score and verdict, then what the face pass did or why there is no score."""
    column = layout.column(align=True)
    row = column.row(align=True)
    scored = head.value is not None
    icon = _icons.get(head.verdict, _no_verdict) if scored else _no_score
    row.label(text=head.character, icon=icon)
    words = row.row()
    words.alignment = "RIGHT"
    words.alert = head.verdict == "other"
    words.label(text=scores.in_words(head) if scored else "no score")
    if head.box is not None and abs(head.yaw or 0.0) <= most_turned:
        use = row.operator("onmodel.portrait_from_drawing", text="", icon="IMAGE_DATA")
        use.who = head.character
    note = column.column(align=True)
    note.active = False
    if not scored:
        text.wrapped(note, head.no_score or "The server gave no score.", icon="BLANK1")
    if head.face is not None:
        text.wrapped(note, scores.face_in_words(head.face), icon="BLANK1")


class ONMODEL_PT_film_scores(_OfResults, bpy.types.Panel):
    bl_label = "Scores of the Film"
    bl_order = 1

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return bool(planes.film_scores(context.scene))

    def draw(self, context: bpy.types.Context) -> None:
        scene = context.scene
        names = shots.names(scene)
        column = self.layout.column(align=True)
        _columns(column, "", "mean", "none").label(text="worst frame")
        rows = planes.film_scores(scene)
        several = len({r.embedder for r in rows if r.scored}) > 1
        for found in rows:
            name = found.character + (f" ({found.embedder})" if several else "")
            mean = _dash if found.mean is None else f"{found.mean:.2f}"
            unscored = f"{found.unscored}/{found.scored + found.unscored}"
            worst = _columns(column, name, mean, unscored)
            if found.worst is None:
                worst.label(text=_dash)
                continue
            where = f"{names.get(found.worst.shot, '?')}/{found.worst.frame}"
            go = worst.operator("onmodel.worst_go", text=f"{where}: {found.lowest:.2f}")
            go.who, go.embedder = found.character, found.embedder


def _columns(layout: bpy.types.UILayout, name: str, mean: str, unscored: str) -> bpy.types.UILayout:
    """A line of the table, and its place for the worst frame."""
    line = layout.split(factor=0.22, align=True)
    line.label(text=name)
    rest = line.split(factor=0.2, align=True)
    rest.label(text=mean)
    last = rest.split(factor=0.76, align=True)
    worst = last.row(align=True)
    last.label(text=unscored)
    return worst


classes = (
    ONMODEL_PT_cast_portraits,
    ONMODEL_PT_film_faces,
    ONMODEL_PT_film_retakes,
    ONMODEL_PT_faces,
    ONMODEL_PT_film_scores,
)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The panels about what is in the scene: cast, shots, film."""

from __future__ import annotations

import bpy

from ..core import rigs
from ..core.request import map_kinds
from ..scene import cast, shots
from . import lists, server_menus, status, text


class Sidebar:
    """Mixin: a panel in the tab Onmodel of the 3D viewport's sidebar."""

    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "Onmodel"


class ONMODEL_PT_cast(Sidebar, bpy.types.Panel):
    bl_label = "Cast"
    bl_idname = "ONMODEL_PT_cast"
    bl_order = 1

    def draw(self, context: bpy.types.Context) -> None:
        layout = self.layout
        settings = context.scene.onmodel
        if not settings.cast:
            _draw_empty_cast(layout, context)
            return
        row = layout.row()
        row.template_list(
            "ONMODEL_UL_cast", "", settings, "cast", settings, "cast_index", rows=2, sort_lock=True
        )
        side = row.column(align=True)
        side.operator("onmodel.cast_add", text="", icon="ADD")
        side.operator("onmodel.cast_remove", text="", icon="REMOVE")
        member = cast.active_row(context.scene)
        if member is None:
            return
        held = status.holding_of(context.scene, member)
        said = layout.column()
        said.alert = held.refused
        text.wrapped(said, held.words, icon=status.icon_of_holding(held))
        column = layout.column()
        column.use_property_split = True
        column.use_property_decorate = False
        column.prop(member, "armature", text="Rig")
        column.prop(member, "noun", text="Is a", placeholder="woman, man, child, robot")
        column.prop(member, "prompt", text="Looks", placeholder="red coat, grey beard")
        column.prop(member, "trigger", text="Trigger", placeholder="the LoRA's word")


def _draw_empty_cast(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    found = cast.uncast_rigs(context.scene)
    column = layout.column()
    if found:
        names = "one rig" if len(found) == 1 else f"{len(found)} rigs"
        text.wrapped(column, f"Who is in the film? The scene has {names}.", icon="COMMUNITY")
        big = column.column()
        big.scale_y = 1.3
        big.operator(
            "onmodel.cast_add_all",
            text="Cast the Rig" if len(found) == 1 else "Cast All Rigs",
            icon="OUTLINER_OB_ARMATURE",
        )
        column.operator("onmodel.cast_add", text="Cast the Selected Rig")
        return
    text.wrapped(
        column,
        "Add a rigged character to the scene (Mixamo, Rigify, MakeHuman, Unreal or VRM), then cast"
        " it here.",
        icon="COMMUNITY",
    )
    column.operator("onmodel.cast_add", text="Cast the Selected Rig", icon="OUTLINER_OB_ARMATURE")


class OfCharacter(Sidebar):
    """Mixin: a part of the Cast panel about the selected character."""

    bl_parent_id = "ONMODEL_PT_cast"
    bl_options = {"DEFAULT_CLOSED"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return cast.active_row(context.scene) is not None


def member_of(context: bpy.types.Context) -> bpy.types.PropertyGroup:
    """The selected character, which the panel's poll has seen."""
    member = cast.active_row(context.scene)
    assert member is not None
    return member


class ONMODEL_PT_cast_loras(OfCharacter, bpy.types.Panel):
    bl_label = "LoRAs"
    bl_order = 0

    def draw(self, context: bpy.types.Context) -> None:
        member = member_of(context)
        if not member.loras:
            text.wrapped(
                self.layout, "A LoRA trained on this character holds its face and clothes."
            )
        column = self.layout.column(align=True)
        for index, lora in enumerate(member.loras):
            draw_lora(column, lora, "onmodel.row_remove", index).of = "loras"
        self.layout.operator("onmodel.row_add", text="Add LoRA", icon="ADD").of = "loras"


def draw_lora(
    layout: bpy.types.UILayout, lora: bpy.types.PropertyGroup, remove: str, index: int
) -> bpy.types.OperatorProperties:
    """A row for one LoRA; the properties of its remove button."""
    row = layout.row(align=True)
    row.prop(lora, "enabled", text="")
    row.prop(lora, "name", text="", placeholder="Name on the server")
    weight = row.row(align=True)
    weight.scale_x = 0.55
    weight.prop(lora, "weight", text="")
    button = row.operator(remove, text="", icon="X")
    button.index = index
    return button


class ONMODEL_PT_cast_rig(OfCharacter, bpy.types.Panel):
    bl_label = "Rig and Meshes"
    bl_order = 2

    def draw(self, context: bpy.types.Context) -> None:
        member = member_of(context)
        layout = self.layout
        _draw_rig_check(layout, member)
        column = layout.column(align=True)
        for index, joint in enumerate(member.joints):
            row = column.row(align=True)
            row.prop(joint, "joint", text="")
            button = row.operator("onmodel.row_remove", text="", icon="X")
            button.of, button.index = "joints", index
            row = column.row(align=True)
            row.prop(joint, "bone", text="", icon="BONE_DATA")
            row.prop(joint, "end", text="")
            column.separator(factor=0.5)
        layout.operator("onmodel.row_add", text="Bind a Joint by Hand", icon="ADD").of = "joints"
        layout.separator()
        column = layout.column(align=True)
        for index, mesh in enumerate(member.meshes):
            row = column.row(align=True)
            row.prop(mesh, "item", text="")
            button = row.operator("onmodel.row_remove", text="", icon="X")
            button.of, button.index = "meshes", index
        row = layout.row(align=True)
        row.operator("onmodel.cast_find_meshes", icon="VIEWZOOM")
        row.operator("onmodel.row_add", text="", icon="ADD").of = "meshes"


def _draw_rig_check(layout: bpy.types.UILayout, member: bpy.types.PropertyGroup) -> None:
    """Which rig it is and which joints it lacks, each with a button to bind it by hand."""
    if member.armature is None:
        text.wrapped(layout, "Choose the rig that plays this character.", icon="ERROR")
        layout.operator("onmodel.cast_bind")
        return
    found = cast.rig_map_of(member)
    if not found.joints:
        text.wrapped(layout, found.problem, icon="ERROR")
        return
    layout.label(
        text=f"{found.family or 'Bound by hand'}: {len(found.joints)} joints", icon="CHECKMARK"
    )
    if found.guessed:
        text.wrapped(
            layout,
            f"Placed by the head bone: {', '.join(rigs.in_words(found.guessed))}.",
            icon="BLANK1",
        )
    if not found.unmapped:
        return
    text.wrapped(layout, f"No bone for: {', '.join(rigs.in_words(found.unmapped))}.", icon="INFO")
    single = [j for j in found.unmapped if j in rigs.body_joints]
    grid = layout.grid_flow(columns=2, align=True, even_columns=True)
    for joint in single:
        grid.operator("onmodel.joint_correct", text=joint.replace("_", " ")).joint = joint


class ONMODEL_PT_shots(Sidebar, bpy.types.Panel):
    bl_label = "Shots"
    bl_idname = "ONMODEL_PT_shots"
    bl_order = 2

    def draw(self, context: bpy.types.Context) -> None:
        layout = self.layout
        scene = context.scene
        settings = scene.onmodel
        placed = shots.place(scene)
        if not placed and not settings.shots:
            _draw_no_shots(layout, context)
            return
        lists.ONMODEL_UL_shots.placed = {p.uid: p for p in placed}
        lists.sync_soon(scene, placed)
        row = layout.row()
        row.template_list(
            "ONMODEL_UL_shots",
            "",
            settings,
            "shots",
            settings,
            "shot_index",
            rows=5,
            sort_lock=True,
        )
        side = row.column(align=True)
        side.operator("onmodel.shot_add", text="", icon="ADD")
        side.operator("onmodel.shot_remove", text="", icon="REMOVE")
        side.separator()
        side.operator("onmodel.shot_move", text="", icon="TRIA_UP").step = -1
        side.operator("onmodel.shot_move", text="", icon="TRIA_DOWN").step = 1
        side.separator()
        side.operator("onmodel.shot_add_from_view", text="", icon="OUTLINER_OB_CAMERA")
        active = shots.active_row(scene)
        now = next((p for p in placed if active is not None and p.uid == active.uid), None)
        if now is None or now.row is None:
            return
        column = layout.column(align=True)
        column.prop(now.row, "prompt", text="", placeholder="What does the shot show?")
        column.prop(now.row, "negative_prompt", text="", placeholder="Avoid")
        _draw_keyframes(layout, scene, now)


def _draw_no_shots(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """The first thing to do: bind a camera to a marker."""
    column = layout.column()
    if any(o.type == "CAMERA" for o in context.scene.objects):
        text.wrapped(
            column, "Bind a camera to a marker to make your first shot.", icon="CAMERA_DATA"
        )
        big = column.column()
        big.scale_y = 1.3
        big.operator(
            "onmodel.shot_add",
            text=f"Make a Shot at Frame {context.scene.frame_current}",
            icon="MARKER_HLT",
        )
        column.operator("onmodel.shot_add_from_view", text="Shot from View")
        return
    text.wrapped(
        column, "Look where the camera should stand, then make your first shot.", icon="CAMERA_DATA"
    )
    big = column.column()
    big.scale_y = 1.3
    big.operator("onmodel.shot_add_from_view", text="Shot from View", icon="OUTLINER_OB_CAMERA")


def _draw_keyframes(
    layout: bpy.types.UILayout, scene: bpy.types.Scene, placed: shots.Placed
) -> None:
    """First, last and marked frames; a click goes there."""
    here = scene.frame_current
    frames = placed.shot.keyframes if placed.shot else []
    column = layout.column(align=True)
    row = column.row(align=True)
    row.prop(placed.kept, "first", toggle=True, icon="PREV_KEYFRAME")
    row.prop(placed.kept, "last", toggle=True, icon="NEXT_KEYFRAME")
    mark = row.row(align=True)
    marked = any(k.frame == here and k.marked for k in placed.kept.keyframes)
    mark.enabled = marked or (placed.start <= here <= placed.end and here not in frames)
    mark.operator(
        "onmodel.keyframe_mark",
        text=f"Mark {here}",
        icon="KEYFRAME_HLT" if marked else "KEYFRAME",
        depress=marked,
    )
    if frames:
        grid = column.grid_flow(columns=min(5, len(frames)), align=True, even_columns=True)
        for frame in frames:
            grid.operator(
                "onmodel.keyframe_go", text=str(frame), depress=frame == here
            ).frame = frame


class ONMODEL_PT_shot_settings(Sidebar, bpy.types.Panel):
    bl_label = "Shot Settings"
    bl_parent_id = "ONMODEL_PT_shots"
    bl_options = {"DEFAULT_CLOSED"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        row = shots.active_row(context.scene)
        return row is not None and not row.detached

    def draw(self, context: bpy.types.Context) -> None:
        scene = context.scene
        row = shots.active_row(scene)
        assert row is not None
        layout = self.layout
        layout.use_property_split = True
        layout.use_property_decorate = False
        marker = shots.find(scene, row.uid).marker
        layout.prop(marker, "camera")
        draw_own(layout, row, "use_seed", "Seed", ["seed"])
        draw_own(layout, row, "use_resolution", "Size", ["width", "height"])
        draw_own(layout, row, "use_handles", "Handles", ["handles"])
        layout.prop(row, "takes")


def draw_own(
    layout: bpy.types.UILayout,
    row: bpy.types.PropertyGroup,
    switch: str,
    heading: str,
    values: list[str],
) -> None:
    """A switch and, beside it, what it switches from the film's to the shot's own."""
    line = layout.row(heading=heading, align=True)
    line.prop(row, switch, text="")
    fields = line.row(align=True)
    fields.active = getattr(row, switch)
    for name in values:
        fields.prop(row, name, text="")


class ONMODEL_PT_film(Sidebar, bpy.types.Panel):
    bl_label = "Film"
    bl_idname = "ONMODEL_PT_film"
    bl_order = 3
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        settings = context.scene.onmodel
        layout = self.layout
        column = layout.column(align=True)
        column.prop(settings, "prompt", text="", placeholder="Style of the film: ink, 1930s, fog")
        column.prop(settings, "negative_prompt", text="", placeholder="Avoid in every shot")
        column = layout.column()
        column.use_property_split = True
        column.use_property_decorate = False
        pair = column.column(align=True)
        pair.prop(settings, "seed")
        pair.prop(settings, "takes")
        column.prop(settings, "film", placeholder="the file's name")
        column.prop(settings, "output")


class OfFilm(Sidebar):
    """Mixin: a part of the Film panel."""

    bl_parent_id = "ONMODEL_PT_film"
    bl_options = {"DEFAULT_CLOSED"}


class ONMODEL_PT_film_maps(OfFilm, bpy.types.Panel):
    bl_label = "Maps"
    bl_order = 0

    def draw(self, context: bpy.types.Context) -> None:
        settings = context.scene.onmodel
        text.wrapped(self.layout, "What the drawing follows, how strictly, and how long.")
        column = self.layout.column(align=True)
        for kind in map_kinds:
            group = getattr(settings, kind)
            row = column.row(align=True)
            row.prop(group, "use", text=server_menus.map_titles[kind], toggle=True)
            values = row.row(align=True)
            values.active = group.use
            values.prop(group, "weight", text="")
            values.prop(group, "end", text="")


class ONMODEL_PT_film_sampling(OfFilm, bpy.types.Panel):
    bl_label = "Sampling"
    bl_order = 1

    def draw(self, context: bpy.types.Context) -> None:
        settings = context.scene.onmodel
        layout = self.layout
        layout.use_property_split = True
        layout.use_property_decorate = False
        server_menus.draw_choice(layout, settings, "preset", "ONMODEL_MT_presets")
        layout.prop(settings, "steps")
        draw_own(layout, settings, "use_guidance", "Guidance", ["guidance"])
        layout.prop(settings, "native_side")


class ONMODEL_PT_film_loras(OfFilm, bpy.types.Panel):
    bl_label = "Style LoRAs"
    bl_order = 2

    def draw(self, context: bpy.types.Context) -> None:
        settings = context.scene.onmodel
        column = self.layout.column(align=True)
        for index, lora in enumerate(settings.loras):
            draw_lora(column, lora, "onmodel.film_lora_remove", index)
        self.layout.operator("onmodel.film_lora_add", text="Add LoRA", icon="ADD")


classes = (
    ONMODEL_PT_cast,
    ONMODEL_PT_cast_loras,
    ONMODEL_PT_cast_rig,
    ONMODEL_PT_shots,
    ONMODEL_PT_shot_settings,
    ONMODEL_PT_film,
    ONMODEL_PT_film_maps,
    ONMODEL_PT_film_sampling,
    ONMODEL_PT_film_loras,
)

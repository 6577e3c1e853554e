# SPDX-License-Identifier: GPL-3.0-or-later
"""The cast of a scene: reading it, and finding a character's parts by itself."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

import bpy

from ..core import rigs
from ..core.portraits import Portrait, most_portraits
from ..core.request import Lora
from .errors import SceneError
from .film import read_loras

log = logging.getLogger(__name__)

_rig_words = re.compile(r"(?i)(^|[\s_.-])(rig|armature|metarig|skeleton|deform|def)(?=$|[\s_.-])")
_rig_maps: dict[tuple[str, ...], rigs.RigMap] = {}
_kept_rig_maps = 64


@dataclass(frozen=True)
class PortraitFile:
    """A portrait as the scene names it. path: absolute. image: the .blend's image of it, which may
    be packed; None where there is none."""

    path: Path
    image: bpy.types.Image | None = None

    @property
    def is_packed(self) -> bool:
        return self.image is not None and self.image.packed_file is not None

    @property
    def is_there(self) -> bool:
        """Whether its bytes can be had: from the .blend file, or from the disk."""
        return self.is_packed or self.path.is_file()

    def read_packed(self) -> Portrait:
        """The portrait without Blender's data: what is packed comes along."""
        packed = self.image.packed_file if self.image is not None else None
        return Portrait(self.path, bytes(packed.data) if packed is not None else None)


@dataclass(frozen=True)
class CastMember:
    """A character and what plays it in the scene.

    meshes: objects of type MESH, at least one. references: the portraits that are there.
    rig_map: which bone end is which joint, hand corrections included. reference_weight: how firmly
    the portraits hold it, 0..2; None leaves it to the server.
    """

    name: str
    armature: bpy.types.Object
    meshes: list[bpy.types.Object]
    noun: str
    rig_map: rigs.RigMap
    trigger: str = ""
    prompt: str = ""
    loras: list[Lora] = field(default_factory=list)
    references: list[PortraitFile] = field(default_factory=list)
    reference_weight: float | None = None


def read_cast(scene: bpy.types.Scene) -> list[CastMember]:
    """The characters that are in the cast, in the artist's order.

    Raises SceneError for one without an armature or meshes, with a rig of which no joint is known,
    or whose name another one has. What is merely doubtful is for `problems.validate` to say.
    """
    members: list[CastMember] = []
    for row in scene.onmodel.cast:
        if not row.enabled:
            continue
        member = read_member(scene, row)
        if any(m.name.casefold() == member.name.casefold() for m in members):
            raise SceneError(
                f"Two characters are named {member.name}.", "Give each a name of its own."
            )
        members.append(member)
    return members


def read_member(scene: bpy.types.Scene, row: bpy.types.PropertyGroup) -> CastMember:
    """One character. Raises SceneError as `read_cast` does."""
    name = row.name.strip()
    if not name:
        raise SceneError("A character has no name.", "Name it in the Cast panel.")
    armature = row.armature
    if armature is None or armature.name not in scene.objects:
        raise SceneError(
            f"{name} has no armature in this scene.",
            "Choose the rig that plays this character in the Cast panel.",
        )
    meshes = meshes_of(scene, row)
    if not meshes:
        raise SceneError(
            f"{name} has no mesh in this scene.",
            "Use Find Meshes in the Cast panel, or add the body by hand.",
        )
    rig_map = rig_map_of(row)
    if not rig_map.joints:
        raise SceneError(
            f"No joint of {name}'s rig {armature.name} was recognised.",
            rig_map.problem or "Bind its joints to bones by hand (Cast > Rig and Meshes).",
        )
    return CastMember(
        name=name,
        armature=armature,
        meshes=meshes,
        noun=row.noun.strip() or "person",
        rig_map=rig_map,
        trigger=row.trigger.strip(),
        prompt=row.prompt.strip(),
        loras=read_loras(row.loras),
        references=[p for p in portraits_of(row) if p.is_there],
        reference_weight=reference_weight_of(row),
    )


def reference_weight_of(row: bpy.types.PropertyGroup) -> float | None:
    """How firmly the character's portraits hold it, 0..2; None: the server decides."""
    return round(row.reference_weight, 4) if row.use_reference_weight else None


def meshes_of(scene: bpy.types.Scene, row: bpy.types.PropertyGroup) -> list[bpy.types.Object]:
    """The character's meshes that are still in the scene."""
    return [m.item for m in row.meshes if m.item is not None and m.item.name in scene.objects]


def portraits_of(row: bpy.types.PropertyGroup) -> list[PortraitFile]:
    """The character's portraits, whether they are there or not; rows left empty are left out."""
    return [_portrait(r) for r in row.references if r.filepath.strip() or r.image is not None]


def _portrait(reference: bpy.types.PropertyGroup) -> PortraitFile:
    # The image's path is the truer one: Blender keeps it right when the file is saved elsewhere.
    image = reference.image
    text = image.filepath if image is not None else reference.filepath
    return PortraitFile(Path(bpy.path.abspath(text)), image)


def add_portrait(row: bpy.types.PropertyGroup, path: Path) -> None:
    """Give the character a portrait; its path is kept relative to the .blend file if it can be.

    Raises SceneError for more than `most_portraits`.
    """
    if len(row.references) >= most_portraits:
        raise SceneError(
            f"{row.name} has {most_portraits} portraits, and more make nothing better.",
            "Remove one of them first.",
        )
    text = str(path)
    if bpy.data.filepath:
        try:
            text = bpy.path.relpath(text)
        except ValueError:
            log.debug("%s is on another drive than the file: its path stays absolute.", path)
    reference = row.references.add()
    reference.filepath = text
    row.reference_index = len(row.references) - 1


# --- rigs ----------------------------------------------------------------------------------------


def rig_map_of(row: bpy.types.PropertyGroup) -> rigs.RigMap:
    """What the rig tables find in the armature, with the artist's corrections laid over it.

    A correction that names an unknown joint or bone changes nothing; `problems.validate` names it.
    """
    found = _automatic_rig_map(row.armature)
    bones = row.armature.data.bones
    for correction in row.joints:
        if correction.joint in rigs.joint_names and correction.bone in bones:
            found = found.with_override(correction.joint, correction.bone, correction.end)
    return found


def _automatic_rig_map(armature: bpy.types.Object) -> rigs.RigMap:
    """The rig map of an armature's bones, kept so that panels can ask on every redraw."""
    bones = armature.data.bones
    parents = {b.name: b.parent.name if b.parent else None for b in bones}
    key = tuple(f"{name}\n{parent}" for name, parent in parents.items())
    if key not in _rig_maps:
        if len(_rig_maps) >= _kept_rig_maps:
            _rig_maps.clear()
        _rig_maps[key] = rigs.map_bones(list(parents), parents)
    return _rig_maps[key]


def joint_names() -> list[str]:
    """The joints that can be bound by hand."""
    return list(rigs.joint_names)


def bones_beside(correction: bpy.types.PropertyGroup) -> list[str]:
    """The bones of the armature that a correction belongs to, for its search field."""
    for row in correction.id_data.onmodel.cast:
        if row.armature and any(j == correction for j in row.joints):
            return [b.name for b in row.armature.data.bones]
    return []


# --- edits ---------------------------------------------------------------------------------------


def add_character(
    scene: bpy.types.Scene, armature: bpy.types.Object | None
) -> bpy.types.PropertyGroup:
    """Take an armature and all that it moves into the cast. Returns the new row.

    armature: an armature, or a mesh that one moves.
    """
    rig = armature_of(armature)
    if rig is None:
        raise SceneError(
            "No armature is selected.", "Select the rig of a character, then add it to the cast."
        )
    settings = scene.onmodel
    for other in settings.cast:
        if other.armature == rig:
            raise SceneError(
                f"{rig.name} already plays {other.name}.", "Select the rig of another character."
            )
    row = settings.cast.add()
    row.armature = rig
    row.name = free_name(_name_of_rig(rig), [r.name for r in settings.cast])
    find_meshes(scene, row)
    settings.cast_index = len(settings.cast) - 1
    return row


def active_row(scene: bpy.types.Scene) -> bpy.types.PropertyGroup | None:
    """The selected character."""
    settings = scene.onmodel
    known = 0 <= settings.cast_index < len(settings.cast)
    return settings.cast[settings.cast_index] if known else None


def uncast_rigs(scene: bpy.types.Scene) -> list[bpy.types.Object]:
    """The armatures of the scene that move a mesh and play nobody yet, by name."""
    played = {r.armature for r in scene.onmodel.cast}
    bodies = [o for o in scene.objects if o.type == "MESH" and not o.hide_render]
    movers = {a for a in map(armature_of, bodies) if a is not None}
    found = [a for a in movers if a not in played and a.name in scene.objects]
    return sorted(found, key=lambda a: a.name)


def drop_lost_references(row: bpy.types.PropertyGroup) -> int:
    """Remove the portraits whose files are gone; returns how many."""
    lost = [k for k, r in enumerate(row.references) if not _portrait(r).is_there]
    for index in reversed(lost):
        row.references.remove(index)
    return len(lost)


def armature_of(item: bpy.types.Object | None) -> bpy.types.Object | None:
    """The object itself if it is an armature, else the armature that moves it, else None."""
    if item is None or item.type == "ARMATURE":
        return item
    for modifier in item.modifiers:
        if modifier.type == "ARMATURE" and modifier.object:
            return modifier.object
    return armature_of(item.parent) if item.parent else None


def find_meshes(scene: bpy.types.Scene, row: bpy.types.PropertyGroup) -> int:
    """Add the meshes that the character's armature moves and that are not yet listed.

    Those with an Armature modifier for it, and those parented to it or to one of its bones, also
    through other objects. Bone shapes (hidden in renders) are left out. Returns how many were new.
    """
    if row.armature is None:
        raise SceneError(f"{row.name} has no armature.", "Choose one first.")
    listed = {m.item for m in row.meshes}
    new = [
        item
        for item in scene.objects
        if item.type == "MESH"
        and item not in listed
        and not item.hide_render
        and armature_of(item) == row.armature
    ]
    for item in sorted(new, key=lambda o: o.name):
        row.meshes.add().item = item
    return len(new)


def free_name(wanted: str, taken: list[str]) -> str:
    """The wanted name, with a number behind it when it is taken."""
    used = {name.casefold() for name in taken}
    name, number = wanted, 2
    while name.casefold() in used:
        name, number = f"{wanted} {number}", number + 1
    return name


def _name_of_rig(armature: bpy.types.Object) -> str:
    """A character's name out of its rig's: "RIG-Ada.001" and "ada_armature" are Ada's."""
    name = re.sub(r"\.\d+$", "", armature.name)
    name = _rig_words.sub(" ", name)
    name = re.sub(r"[\s_.-]+", " ", name).strip()
    if not name:
        return "Character"
    return name[0].upper() + name[1:]

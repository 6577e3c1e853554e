# SPDX-License-Identifier: GPL-3.0-or-later
"""The head of a character: which part of its meshes it is, where it is seen, where it looks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import bpy
import numpy as np

from ..core.projection import View
from ..core.request import Box
from . import raster
from .passes import Passes

head_attribute = "onmodel_head"
"""A POINT attribute of a mesh; where it is 0.5 or more (or True) the vertex is of the head. It
wins over the weights."""

_least_weight = 0.5

_jaw = 0.12
"""How far the chin may lie below the head bone, in torso lengths."""


@dataclass(frozen=True)
class CapturedHead:
    """A head on the canvas, hair and ears included; `request.Head` with its mask as an array.

    box: of the whole head, seen or not; may lie partly outside of the canvas. yaw, pitch: degrees,
    see `request.Head`. visible: 0..1. mask: (H, W) uint8, 255 where the head is seen.
    """

    box: Box
    yaw: float
    pitch: float
    visible: float
    mask: np.ndarray


# --- which vertices ------------------------------------------------------------------------------


def head_bones(head_bone: str, parents: Mapping[str, str | None]) -> frozenset[str]:
    """The head bone and all bones below it: eyes, jaw, hair.

    Rigify hangs the deforming bones of a face on the head's original bone, which lies beside it.
    """
    children: dict[str, list[str]] = {}
    for bone, parent in parents.items():
        if parent:
            children.setdefault(parent, []).append(bone)
    found: set[str] = set()
    base = head_bone.removeprefix("DEF-")
    waiting = [head_bone, *(b for b in (base, f"ORG-{base}", f"MCH-{base}") if b in parents)]
    while waiting:
        bone = waiting.pop()
        if bone not in found:
            found.add(bone)
            waiting.extend(children.get(bone, ()))
    return frozenset(found)


def hangs_on_head(
    item: bpy.types.Object, armature: bpy.types.Object, bones: frozenset[str]
) -> bool:
    """Whether a bone of the head carries the whole object, directly or through other objects."""
    if item.parent == armature and item.parent_type == "BONE":
        return item.parent_bone in bones
    for constraint in item.constraints:
        if constraint.type in {"CHILD_OF", "COPY_TRANSFORMS", "ARMATURE"} and not constraint.mute:
            targets = getattr(constraint, "targets", None) or [constraint]
            if any(t.target == armature and t.subtarget in bones for t in targets):
                return True
    deformed = any(m.type == "ARMATURE" and m.object for m in item.modifiers)
    if item.parent is None or deformed or item.parent == armature:
        return False
    return hangs_on_head(item.parent, armature, bones)


def head_vertices(
    item: bpy.types.Object, mesh: bpy.types.Mesh, bones: frozenset[str]
) -> np.ndarray:
    """(V,) bool: the vertices of `mesh`, a state of the object's mesh, that are of the head."""
    marked = mesh.attributes.get(head_attribute)
    if marked and marked.domain == "POINT" and marked.data_type in {"FLOAT", "BOOLEAN", "INT"}:
        values = np.empty(len(mesh.vertices), bool if marked.data_type == "BOOLEAN" else np.float32)
        marked.data.foreach_get("value", values)
        return values >= _least_weight
    groups = {g.index for g in item.vertex_groups if g.name in bones}
    if not groups:
        return np.zeros(len(mesh.vertices), bool)
    return np.fromiter(
        (
            sum(g.weight for g in v.groups if g.group in groups) >= _least_weight
            for v in mesh.vertices
        ),
        bool,
        len(mesh.vertices),
    )


def head_triangles(mesh: bpy.types.Mesh, of_head: np.ndarray | None) -> np.ndarray:
    """(T, 3) int32 vertex numbers of the triangles that are of the head.

    of_head: (V,) bool; None takes all. A triangle belongs where most of its corners do.
    """
    mesh.calc_loop_triangles()
    triangles = np.empty(len(mesh.loop_triangles) * 3, np.int32)
    mesh.loop_triangles.foreach_get("vertices", triangles)
    triangles = triangles.reshape(-1, 3)
    if of_head is None:
        return triangles
    return triangles[of_head[triangles].sum(axis=1) >= 2]


# --- where it is seen ----------------------------------------------------------------------------


def find_head(
    triangles_world: np.ndarray,
    skull: np.ndarray,
    whole_objects: Iterable[int],
    own: np.ndarray,
    passes: Passes,
    view: View,
    yaw_pitch: tuple[float, float],
) -> CapturedHead | None:
    """The head on the canvas; None where it is not before the camera or is not known.

    triangles_world: (T, 3, 3) of the head's meshes. skull: (T,) bool, those that count for
    `visible`: hair that falls behind the shoulders is not a head that something covers.
    whole_objects: indices on `passes.ids` of objects that are head altogether (hair strands, that
    have no triangles, too). own: (H, W) bool, the character's visible pixels.
    """
    height, width = own.shape
    seen = np.isin(passes.ids, list(whole_objects)) if whole_objects else np.zeros_like(own)
    share = float(seen.any())
    reach = np.empty((0, 2))  # points that the box has to hold
    if seen.any():
        rows, columns = np.nonzero(seen)
        reach = np.array(
            [(columns.min(), rows.min()), (columns.max() + 1, rows.max() + 1)], np.float64
        )
    corners = view.project(triangles_world.reshape(-1, 3), width, height).reshape(-1, 3, 3)
    before = corners[:, :, 2].min(axis=1) > view.clip_start
    corners, skull = corners[before], skull[before]
    if len(corners):
        perspective = view.projection == "perspective"
        seen_hair = raster.cover(corners[~skull], passes.z, perspective, view.clip_start)[1]
        covered, nearest = raster.cover(corners[skull], passes.z, perspective, view.clip_start)
        seen = seen | ((nearest | seen_hair) & own)
        if covered.any():
            share = int((covered & seen).sum()) / int(covered.sum())
        reach = np.concatenate([reach, corners[:, :, :2].reshape(-1, 2)])
    if not len(reach):
        return None
    low, high = reach.min(axis=0), reach.max(axis=0)
    return CapturedHead(
        box=Box(*(round(float(v), 3) for v in (low[0], low[1], *(high - low)))),
        yaw=round(yaw_pitch[0], 2),
        pitch=round(yaw_pitch[1], 2),
        visible=round(share, 4),
        mask=seen.astype(np.uint8) * 255,
    )


@dataclass(frozen=True)
class HeadAxes:
    """A posed head in the world: position of its bone, unit vectors (3,) to where the face and the
    crown point, and the length of the torso in metres."""

    position: np.ndarray
    forward: np.ndarray
    up: np.ndarray
    torso: float

    def skull(self, triangles_world: np.ndarray) -> np.ndarray:
        """(T,) bool: the triangles (T, 3, 3) that do not hang below the jaw."""
        height = (triangles_world.mean(axis=1) - self.position) @ self.up
        found = height > -_jaw * self.torso
        return found if found.any() else np.ones(len(found), bool)


def head_axes(
    rest_joints: Mapping[str, np.ndarray], rest_head: np.ndarray, posed_head: np.ndarray
) -> HeadAxes:
    """Where a head is and where it looks.

    rest_joints: joint name -> (3,) at rest, in armature space: whichever axis a rig was built
    along, a person at rest looks along left x up. Without shoulders and hips the armature is taken
    to look along -Y, as Blender's do. rest_head: (4, 4) head bone at rest in armature space.
    posed_head: (4, 4) in the world.
    """
    up, forward = np.array([0.0, 0.0, 1.0]), np.array([0.0, -1.0, 0.0])
    torso = 0.5
    if {"left_shoulder", "right_shoulder", "left_hip", "right_hip"} <= set(rest_joints):
        left, right = rest_joints["left_shoulder"], rest_joints["right_shoulder"]
        spine = (left + right - rest_joints["left_hip"] - rest_joints["right_hip"]) / 2
        front = np.cross(left - right, spine)
        if np.linalg.norm(front) > 1e-9:
            torso = float(np.linalg.norm(spine))
            up, forward = spine / torso, front / np.linalg.norm(front)
    moved = (posed_head @ np.linalg.inv(rest_head))[:3, :3]
    posed_up, posed_forward = moved @ up, moved @ forward
    length = float(np.linalg.norm(posed_up))
    return HeadAxes(
        posed_head[:3, 3],
        posed_forward / np.linalg.norm(posed_forward),
        posed_up / length,
        torso * length,
    )


def yaw_and_pitch(direction: np.ndarray, position: np.ndarray, view: View) -> tuple[float, float]:
    """Degrees by which a face turns away from the camera; signs as in `request.Head`.

    direction: (3,) unit, position: (3,) of the head, both in the world. Measured against the line
    from the head to the camera, so that a face at the picture's edge that looks into the lens has
    yaw 0; with an orthographic camera against the view axis.
    """
    rigid = view.rigid()
    right, toward = rigid[:3, 0], rigid[:3, 2]
    if view.projection == "perspective":
        line = rigid[:3, 3] - position
        if np.linalg.norm(line) > 1e-6:
            toward = line / np.linalg.norm(line)
    right = right - toward * (right @ toward)
    right = right / np.linalg.norm(right)
    up = np.cross(toward, right)
    x, y, z = direction @ right, direction @ up, direction @ toward
    return math.degrees(math.atan2(x, z)), math.degrees(math.asin(max(-1.0, min(1.0, float(y)))))

# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read of each character while the render's depsgraph is there: plain numbers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import bpy
import numpy as np

from ..core import rigs
from . import heads

if TYPE_CHECKING:
    from ..scene.cast import CastMember

face_attribute = "onmodel_face"
"""A POINT attribute of a mesh, integer: which face point the vertex is, iBUG 0 to 67, 68 and 69
the right and left pupil, -1 for all others. Face points are captured only where it is."""

face_points = 70

_no_vertices = (np.empty(0, np.int32), np.empty(0, np.int64))

_reordering = frozenset(
    (
        *("NODES", "BOOLEAN", "DECIMATE", "REMESH", "SCREW", "SKIN", "WELD", "MASK"),
        *("BEVEL", "BUILD", "WIREFRAME", "EXPLODE", "FLUID", "OCEAN"),
    )
)
"""Modifiers after which the mesh's first vertices are not those of the original."""

_torso = 0.5
"""Metres from the hips to the shoulders of a grown person."""


@dataclass(frozen=True)
class Figure:
    """A character at a frame, in the world.

    joints: joint name -> (3,). rest: the same at rest, in armature space. scale: its size against
    a grown person. head_rest, head_posed: (4, 4) of the head bone, in armature space and in the
    world; None without one. head_triangles: (T, 3, 3). head_objects: indices of the objects that
    are head altogether. face: (70, 3), NaN for points that the meshes do not name.
    present: whether the armature takes part in the render at all.
    """

    joints: dict[str, np.ndarray]
    rest: dict[str, np.ndarray]
    scale: float
    head_rest: np.ndarray | None
    head_posed: np.ndarray | None
    head_triangles: np.ndarray
    head_objects: list[int]
    face: np.ndarray
    present: bool


@dataclass
class Watcher:
    """Reads one character at any number of frames; what does not change is worked out once."""

    member: CastMember
    indices: Mapping[bpy.types.Object, int]
    _labels: dict[str, np.ndarray] = field(default_factory=dict)
    _face: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bones = self.member.armature.data.bones
        parents = {b.name: b.parent.name if b.parent else None for b in bones}
        head = self.member.rig_map.head
        self.head = head if head in parents else None
        self.head_bones = heads.head_bones(self.head, parents) if self.head else frozenset()
        self.rest = {
            joint: np.array(getattr(bones[bone], f"{end}_local"))
            for joint, (bone, end) in self.member.rig_map.joints.items()
            if bone in bones
        }
        self.guessed: dict[str, np.ndarray] = {}
        if self.head:
            head_at = np.array(bones[self.head].head_local)
            self.guessed = rigs.face_at_rest(self.rest, head_at, self.member.rig_map.guessed)

    def read(self, depsgraph: bpy.types.Depsgraph) -> Figure:
        """The character as `depsgraph` has it."""
        armature = self.member.armature.evaluated_get(depsgraph)
        world = np.array(armature.matrix_world)
        bones = armature.pose.bones
        joints = {
            joint: world[:3, :3] @ np.array(getattr(bones[bone], end)) + world[:3, 3]
            for joint, (bone, end) in self.member.rig_map.joints.items()
            if bone in bones
        }
        head_rest = head_posed = None
        if self.head:
            head_rest = np.array(self.member.armature.data.bones[self.head].matrix_local)
            head_posed = world @ np.array(bones[self.head].matrix)
            moved = head_posed @ np.linalg.inv(head_rest)
            for joint, place in self.guessed.items():
                joints[joint] = moved[:3, :3] @ place + moved[:3, 3]
        triangles, whole, face = self._read_meshes(depsgraph)
        return Figure(
            joints,
            self.rest,
            self._scale(world),
            head_rest,
            head_posed,
            triangles,
            whole,
            face,
            armature.is_evaluated,
        )

    def _read_meshes(
        self, depsgraph: bpy.types.Depsgraph
    ) -> tuple[np.ndarray, list[int], np.ndarray]:
        triangles, whole = [np.empty((0, 3, 3))], []
        face = np.full((face_points, 3), np.nan)
        for item in self.member.meshes:
            evaluated = item.evaluated_get(depsgraph)
            if not evaluated.is_evaluated or item not in self.indices:
                continue
            on_head = heads.hangs_on_head(item, self.member.armature, self.head_bones)
            if on_head:
                whole.append(self.indices[item])
            if evaluated.type != "MESH" or evaluated.data is None:
                continue
            mesh = evaluated.data
            of_head = None if on_head else self._head_label(item, mesh)
            numbers, vertices = self._face_vertices(item, mesh)
            if (of_head is not None and not of_head.any()) and not len(numbers):
                continue
            world = np.array(evaluated.matrix_world)
            points = np.empty(len(mesh.vertices) * 3, np.float32)
            mesh.vertices.foreach_get("co", points)
            points = points.reshape(-1, 3) @ world[:3, :3].T + world[:3, 3]
            triangles.append(points[heads.head_triangles(mesh, of_head)])
            face[numbers] = points[vertices]
        return np.concatenate(triangles), whole, face

    def _head_label(self, item: bpy.types.Object, mesh: bpy.types.Mesh) -> np.ndarray:
        """(V,) bool. Modifiers that add vertices make it a question to the evaluated mesh."""
        if len(mesh.vertices) != len(item.data.vertices):
            return heads.head_vertices(item, mesh, self.head_bones)
        key = item.name_full
        if key not in self._labels:
            self._labels[key] = heads.head_vertices(item, item.data, self.head_bones)
        return self._labels[key]

    def _face_vertices(
        self, item: bpy.types.Object, mesh: bpy.types.Mesh
    ) -> tuple[np.ndarray, np.ndarray]:
        """Face point numbers and the vertices of `mesh` they are."""
        key = item.name_full
        if len(mesh.vertices) == len(item.data.vertices):
            if key not in self._face:
                self._face[key] = _marked_vertices(item.data)
            return self._face[key]
        shuffled = any(m.show_render and m.type in _reordering for m in item.modifiers)
        if shuffled or len(mesh.vertices) < len(item.data.vertices):
            return _no_vertices
        # Subdivision, mirror and the like put the vertices they add behind the first ones.
        return _marked_vertices(item.data)

    def _scale(self, world: np.ndarray) -> float:
        size = abs(np.linalg.det(world[:3, :3])) ** (1 / 3)
        ends = [f"{side}_{joint}" for joint in ("shoulder", "hip") for side in ("left", "right")]
        if not set(ends) <= set(self.rest):
            return 1.0
        a, b, c, d = (self.rest[e] for e in ends)
        length = float(np.linalg.norm((a + b) / 2 - (c + d) / 2)) * size
        return float(np.clip(length / _torso, 0.02, 50.0))


def _marked_vertices(mesh: bpy.types.Mesh) -> tuple[np.ndarray, np.ndarray]:
    marked = mesh.attributes.get(face_attribute)
    if marked is None or marked.domain != "POINT" or marked.data_type != "INT":
        return _no_vertices
    values = np.empty(len(mesh.vertices), np.int32)
    marked.data.foreach_get("value", values)
    vertices = np.flatnonzero((values >= 0) & (values < face_points))
    return values[vertices], vertices

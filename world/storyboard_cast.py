# SPDX-License-Identifier: GPL-3.0-or-later
"""The two people of the sample as rigged, dressed meshes (bpy)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bpy
import numpy as np
from mathutils import Vector
from mathutils.bvhtree import BVHTree
from mathutils.kdtree import KDTree

from world import body, people, rigging
from world.storyboard_set import material

expressions = ("smiling", "laughing", "surprised")
triggers = {"Mara": "maravel", "Jonas": "jonskar"}
"""The invented word of each person's LoRA, see `world.storyboard_loras`."""
lora_folder = Path(__file__).parents[1] / "server" / "onmodel" / "rehearsal" / "sample_loras"
"""Where every server finds them (`onmodel.models.registry`)."""


@dataclass
class Actor:
    """A person in the scene. who: identity; mesh: the skinned object; figure: its numbers."""

    name: str
    who: people.Identity
    figure: people.Figure
    rig: rigging.Rig
    mesh: bpy.types.Object


def identities() -> dict[str, people.Identity]:
    """Mara, slim and fair in red and black, and Jonas, heavy and dark in yellow and blue."""
    return {
        "Mara": people.identity(
            11,
            male=False,
            age=0.5,
            muscle=0.5,
            weight=0.40,
            height=0.52,
            people=(0.05, 0.15, 0.80),
            head_shape="oval",
            skin="fair",
            hair="blond",
            hair_length="long",
            beard=False,
            eyes="blue",
            top="sweater",
            top_colour="red",
            bottom="skirt",
            bottom_colour="black",
        ),
        "Jonas": people.identity(
            23,
            male=True,
            age=0.62,
            muscle=0.68,
            weight=0.74,
            height=0.44,
            people=(0.75, 0.10, 0.15),
            head_shape="square",
            skin="brown",
            hair="black",
            hair_length="short",
            beard=True,
            eyes="brown",
            top="t-shirt",
            top_colour="yellow",
            bottom="trousers",
            bottom_colour="blue",
        ),
    }


def lora_file(name: str) -> Path:
    """A person's LoRA, whether it is made or not."""
    return lora_folder / f"{name}.safetensors"


def build(name: str, who: people.Identity, family: str, collection: bpy.types.Collection) -> Actor:
    """Rig and mesh of one person. family: "mixamo" or "rigify"."""
    figure = people.figure(who)
    base = people.shape(who)
    base = base + (figure.heads - body.bone_ends(base)[0])[0]  # feet on the floor, as the figure
    make = {"mixamo": rigging.mixamo, "rigify": rigging.rigify}[family]
    rig = make(f"{name} rig", base, collection)
    tidy = _tidied(figure)
    moved = tidy - figure.vertices
    figure = dataclasses.replace(figure, vertices=tidy)
    mesh = _mesh(name, who, figure)
    collection.objects.link(mesh)
    if family == "mixamo":
        rigging.bind(mesh, rig, figure.weights, figure.bones)
    else:
        names, weights = rig.dense_weights(len(base))
        rigging.bind(mesh, rig, _carried(base, weights, figure.vertices), names)
    for expression in expressions:
        _shape_key(mesh, expression, people.figure(who, expression).vertices + moved)
    return Actor(name, who, figure, rig, mesh)


def _tidied(figure: people.Figure) -> np.ndarray:
    """Vertices (N, 3) with even hems, round shoes, and hair and top outside what they cover."""
    out = figure.vertices.copy()
    for part in ("top", "bottom"):
        for loop in _borders(figure.faces[figure.part == part]):
            axis = _loop_axis(figure, out[loop])
            along = out[loop] @ axis
            out[loop] += (np.median(along) - along)[:, None] * axis
    _round_shoes(figure, out)
    at = {n.split(":")[1]: figure.heads[i] for i, n in enumerate(figure.bones)}
    hips = np.abs(out[:, 2] - at["LeftUpLeg"][2]) < 0.22
    torso = np.abs(out[:, 0]) < abs(at["LeftArm"][0])
    _keep_outside(figure, out, _of(figure, "top") & hips & torso, ("bottom",), 0.008)
    low = out[:, 2] < at["Neck"][2] + 0.06
    _keep_outside(figure, out, _of(figure, "hair") & low, ("top", "head", "skin"), 0.016)
    return out


def _of(figure: people.Figure, part: str) -> np.ndarray:
    """(N,) the vertices of a part."""
    mine = np.zeros(len(figure.vertices), bool)
    mine[np.unique(figure.faces[figure.part == part])] = True
    return mine


def _loop_axis(figure: people.Figure, points: np.ndarray) -> np.ndarray:
    """What the open edge of a garment is cut across: the arm for a sleeve, else the vertical."""
    at = {n.split(":")[1]: figure.heads[i] for i, n in enumerate(figure.bones)}
    middle = points.mean(axis=0)
    if abs(middle[0]) < abs(at["LeftArm"][0]):
        return np.array([0.0, 0.0, 1.0])
    side = "Left" if middle[0] > 0 else "Right"
    upper = at[f"{side}ForeArm"] - at[f"{side}Arm"]
    lower = at[f"{side}Hand"] - at[f"{side}ForeArm"]
    axis = upper if (middle - at[f"{side}ForeArm"]) @ lower < 0 else lower
    return np.asarray(axis / np.linalg.norm(axis))


def _round_shoes(figure: people.Figure, out: np.ndarray) -> None:
    """Smooth the bare toes into a shoe: repeated means of the neighbours, then a little wider."""
    faces = figure.faces[figure.part == "shoes"]
    edges = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2)
    edges = np.concatenate([edges, edges[:, ::-1]])
    fixed = np.concatenate(_borders(faces))
    inner = np.setdiff1d(np.unique(faces), fixed)
    start = out.copy()
    for _ in range(40):
        total = np.zeros_like(out)
        np.add.at(total, edges[:, 0], out[edges[:, 1]])
        count = np.bincount(edges[:, 0], minlength=len(out))[inner, None]
        out[inner] = total[inner] / count
    for sign in (1, -1):  # smoothing shrinks: back to the foot's length and width
        foot = inner[start[inner, 0] * sign > 0]
        low, high = start[foot].min(axis=0), start[foot].max(axis=0)
        now_low, now_high = out[foot].min(axis=0), out[foot].max(axis=0)
        out[foot] = (out[foot] - now_low) / (now_high - now_low) * (high - low) + low


def _keep_outside(
    figure: people.Figure,
    out: np.ndarray,
    movable: np.ndarray,
    parts: tuple[str, ...],
    gap: float,
) -> None:
    """Push vertices (N,) bool `movable` to at least `gap` metres outside the faces of `parts`."""
    under = figure.faces[np.isin(figure.part, parts)]
    tree = BVHTree.FromPolygons(out.tolist(), [list(dict.fromkeys(f)) for f in under.tolist()])
    for i in np.flatnonzero(movable).tolist():
        point = Vector(out[i])
        place, normal, _, distance = tree.find_nearest(point)
        lack = gap - (point - place).dot(normal)
        if distance < 0.08 and lack > 0:
            out[i] += np.array(normal) * lack


def _borders(faces: np.ndarray) -> list[np.ndarray]:
    """The open edges of some quads as groups of connected vertices."""
    edges = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2), axis=1)
    edges, count = np.unique(edges[edges[:, 0] != edges[:, 1]], axis=0, return_counts=True)
    groups: dict[int, int] = {}

    def find(i: int) -> int:
        while groups.setdefault(i, i) != i:
            i = groups[i]
        return i

    for a, b in edges[count == 1].tolist():
        groups[find(a)] = find(b)
    loops: dict[int, list[int]] = {}
    for i in list(groups):
        loops.setdefault(find(i), []).append(i)
    return [np.array(v) for v in loops.values()]


def _carried(base: np.ndarray, weights: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Weights (V, B) of the base mesh on a figure's vertices (N, 3): mean of the three nearest.

    Joint cubes are no surface and are left out.
    """
    groups = ["body", "helper-tights", "helper-skirt", "helper-hair", "helper-l-eye"]
    groups += ["helper-r-eye", "helper-upper-teeth", "helper-lower-teeth", "helper-tongue"]
    surface = np.concatenate([body.group(g) for g in groups])
    tree = KDTree(len(surface))
    for i in surface.tolist():
        tree.insert(base[i], i)
    tree.balance()
    out = np.zeros((len(vertices), weights.shape[1]))
    for row, vertex in enumerate(vertices):
        found = tree.find_n(vertex, 3)
        near = np.array([1 / (distance**2 + 1e-8) for _, _, distance in found])
        out[row] = (near / near.sum()) @ weights[[i for _, i, _ in found]]
    return out


def _mesh(name: str, who: people.Identity, figure: people.Figure) -> bpy.types.Object:
    faces = [list(dict.fromkeys(f)) for f in figure.faces.tolist()]
    mesh = bpy.data.meshes.new(name)
    mesh.from_pydata(figure.vertices.tolist(), [], faces)
    materials, slots = _colours(name, who, figure)
    for m in materials:
        mesh.materials.append(m)
    mesh.polygons.foreach_set("material_index", slots)
    mesh.polygons.foreach_set("use_smooth", np.ones(len(faces), bool))
    point = mesh.attributes.new("onmodel_face", "INT", "POINT")
    numbers = np.full(len(figure.vertices), -1, np.int32)
    for i, vertex in enumerate(figure.landmarks.tolist()):
        if vertex >= 0 and numbers[vertex] >= 0:  # a corner of the mouth, outer and inner
            away = np.linalg.norm(figure.vertices - figure.vertices[vertex], axis=1)
            vertex = int(np.argmin(np.where(numbers < 0, away, np.inf)))
        if vertex >= 0:
            numbers[vertex] = i
    point.data.foreach_set("value", numbers)
    head = np.zeros(len(figure.vertices), np.int32)
    head[np.unique(figure.faces[_is_head(figure)])] = 1
    mesh.attributes.new("onmodel_head", "INT", "POINT").data.foreach_set("value", head)
    mesh.update()
    return bpy.data.objects.new(name, mesh)


def _is_head(figure: people.Figure) -> np.ndarray:
    """(M,) faces of the head: skin, hair, beard, ears, eyes, mouth; the neck is not of it."""
    of_head = np.isin(figure.part, ("head", "hair", "eyes", "mouth"))
    chin = figure.landmarks[8]
    middle = figure.vertices[figure.faces].mean(axis=1)
    neck = figure.heads[figure.bones.index("mixamorig:Head")]
    floor = figure.vertices[chin, 2] - 0.012 if chin >= 0 else neck[2]
    # From the chin the edge falls away to the back of the neck, where the hair begins.
    behind = np.clip(middle[:, 1] - figure.vertices[chin, 1], 0, 0.14)
    return of_head & ((middle[:, 2] > floor + behind * 0.25) | (figure.part == "hair"))


def _colours(
    name: str, who: people.Identity, figure: people.Figure
) -> tuple[list[bpy.types.Material], np.ndarray]:
    """Materials, and the slot (M,) of each face: the nearest of its part's plain colours."""
    skin, hair = people.skins[who.skin], people.hairs[who.hair]
    lips = tuple(np.array(skin) * (0.86, 0.58, 0.58))
    plain: dict[str, Any] = {
        "skin": skin,
        "hair": hair,
        "lips": lips,
        "top": people.cloths[who.top_colour],
        "bottom": people.cloths[who.bottom_colour],
        "shoes": tuple(np.array(people.cloths[who.bottom_colour]) * 0.25 + 0.04),
        "eye white": (0.95, 0.95, 0.95),
        "iris": people.irises[who.eyes],
        "pupil": (0.02, 0.02, 0.02),
        "teeth": (0.93, 0.92, 0.88),
        "tongue": (0.60, 0.25, 0.25),
    }
    choice = {
        "skin": ("skin",),
        "head": ("skin", "hair", "lips"),
        "hair": ("hair",),
        "eyes": ("eye white", "iris", "pupil"),
        "mouth": ("teeth", "tongue"),
        "top": ("top",),
        "bottom": ("bottom",),
        "shoes": ("shoes",),
    }
    words = list(plain)
    slots = np.zeros(len(figure.faces), np.int32)
    colour = figure.colours[figure.faces].mean(axis=1)
    for part, names in choice.items():
        mine = np.flatnonzero(figure.part == part)
        far = [np.linalg.norm(colour[mine] - np.array(plain[n]), axis=1) for n in names]
        if part == "head":  # the blend of hair into skin is no lip
            far[2] = far[2] + np.where(_near_mouth(figure)[mine], 0.0, 9.0)
        slots[mine] = np.array([words.index(n) for n in names])[np.argmin(far, axis=0)]
    return [material(f"{name} {w}", c) for w, c in plain.items()], slots


def _near_mouth(figure: people.Figure) -> np.ndarray:
    """(M,) faces about the mouth."""
    corners = figure.vertices[figure.landmarks[48:60]]
    middle = figure.vertices[figure.faces].mean(axis=1)
    low, high = corners.min(axis=0) - 0.006, corners.max(axis=0) + 0.006
    return np.asarray(((middle > low) & (middle < high))[:, (0, 2)].all(axis=1))


def _shape_key(mesh: bpy.types.Object, name: str, vertices: np.ndarray) -> None:
    if mesh.data.shape_keys is None:
        mesh.shape_key_add(name="Basis")
    key = mesh.shape_key_add(name=name)
    key.data.foreach_set("co", vertices.astype(np.float32).ravel())
    key.value = 0.0


def key_expression(actor: Actor, expression: str, frame: int) -> None:
    """Key the face at a frame: one of `expressions`, or "neutral"."""
    for key in actor.mesh.data.shape_keys.key_blocks[1:]:
        key.value = 1.0 if key.name == expression else 0.0
        key.keyframe_insert("value", frame=frame)

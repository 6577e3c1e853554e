# SPDX-License-Identifier: GPL-3.0-or-later
"""The park of the sample storyboard: ground, paths, trees, a bench, a lamp, hills (bpy).

Colours are near those of the "forest" set that the embedded model was trained on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import bpy

Colour = tuple[float, float, float]
Point = tuple[float, float, float]

grass: Colour = (0.40, 0.60, 0.26)
gravel: Colour = (0.80, 0.73, 0.58)
bark: Colour = (0.42, 0.29, 0.18)
leaves: Sequence[Colour] = ((0.20, 0.47, 0.22), (0.25, 0.53, 0.22), (0.33, 0.58, 0.26))
hill: Colour = (0.48, 0.66, 0.52)
wood: Colour = (0.64, 0.42, 0.24)
iron: Colour = (0.24, 0.25, 0.27)
glass: Colour = (0.98, 0.93, 0.72)
sky: Colour = (0.55, 0.75, 0.90)

bench_seat = 0.46
"""Height of the bench's seat, metres."""
bench_at = (1.35, 0.25)


def material(name: str, colour: Colour, roughness: float = 0.9) -> bpy.types.Material:
    """A flat material, the same in Solid, Material and Rendered view. colour: sRGB 0..1."""
    found = bpy.data.materials.get(name)
    if found:
        return found
    m = bpy.data.materials.new(name)
    linear = (*(_linear(c) for c in colour), 1.0)
    m.use_nodes = True
    shader = m.node_tree.nodes["Principled BSDF"]
    shader.inputs["Base Color"].default_value = linear
    shader.inputs["Roughness"].default_value = roughness
    m.diffuse_color = linear
    m.roughness = roughness
    return m


def _linear(c: float) -> float:
    return c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4


class _Shape:
    """Vertices and faces with a material each, gathered into one mesh."""

    def __init__(self) -> None:
        self.vertices: list[Point] = []
        self.faces: list[list[int]] = []
        self.slots: list[int] = []
        self.materials: list[bpy.types.Material] = []

    def add(
        self, points: Sequence[Point], faces: Sequence[Sequence[int]], m: bpy.types.Material
    ) -> None:
        if m not in self.materials:
            self.materials.append(m)
        start = len(self.vertices)
        self.vertices.extend(points)
        for face in faces:
            self.faces.append([start + i for i in face])
            self.slots.append(self.materials.index(m))

    def box(self, centre: Point, size: Point, m: bpy.types.Material, tilt: float = 0.0) -> None:
        """tilt: degrees about x."""
        c, s = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
        points = []
        for i in range(8):
            x, y, z = (size[k] / 2 * (1 if i >> k & 1 else -1) for k in range(3))
            points.append((centre[0] + x, centre[1] + c * y - s * z, centre[2] + s * y + c * z))
        sides = [[0, 2, 3, 1], [4, 5, 7, 6], [0, 1, 5, 4], [2, 6, 7, 3], [0, 4, 6, 2], [1, 3, 7, 5]]
        self.add(points, sides, m)

    def ring(
        self,
        centre: Point,
        low: float,
        high: float,
        height: float,
        m: bpy.types.Material,
        sides: int = 10,
    ) -> None:
        """A closed cylinder or cone (high 0) that stands on `centre`."""
        x, y, z = centre
        turns = [2 * math.pi * i / sides for i in range(sides)]
        points = [(x + low * math.cos(a), y + low * math.sin(a), z) for a in turns]
        faces: list[list[int]] = [list(range(sides - 1, -1, -1))]
        if high > 0:
            points += [(x + high * math.cos(a), y + high * math.sin(a), z + height) for a in turns]
            faces += [
                [i, (i + 1) % sides, sides + (i + 1) % sides, sides + i] for i in range(sides)
            ]
            faces.append(list(range(sides, 2 * sides)))
        else:
            points.append((x, y, z + height))
            faces += [[i, (i + 1) % sides, sides] for i in range(sides)]
        self.add(points, faces, m)

    def mesh(self, name: str) -> bpy.types.Mesh:
        mesh = bpy.data.meshes.new(name)
        mesh.from_pydata(self.vertices, [], self.faces)
        for m in self.materials:
            mesh.materials.append(m)
        mesh.polygons.foreach_set("material_index", self.slots)
        mesh.validate()
        mesh.update()
        return mesh


def build(parent: bpy.types.Collection) -> None:
    """Put the whole set into `parent`, with a collection for the trees."""
    _ground(parent)
    _put("Bench", _bench(), parent, (*bench_at, 0.0))
    _put("Lamp", _lamp(), parent, (3.0, 0.45, 0.0))
    trees = bpy.data.collections.new("Trees")
    parent.children.link(trees)
    _trees(trees)
    _sun(parent)
    _sky()


def _put(
    name: str,
    mesh: bpy.types.Mesh,
    collection: bpy.types.Collection,
    at: Point,
    turn: float = 0.0,
    scale: float = 1.0,
) -> bpy.types.Object:
    obj = bpy.data.objects.new(name, mesh)
    obj.location, obj.rotation_euler.z, obj.scale = at, turn, (scale, scale, scale)
    collection.objects.link(obj)
    return obj


def _ground(collection: bpy.types.Collection) -> None:
    shape = _Shape()
    size = 60.0
    square = [(-size, -size, 0.0), (size, -size, 0.0), (size, size, 0.0), (-size, size, 0.0)]
    shape.add(square, [[0, 1, 2, 3]], material("Grass", grass))
    _put("Ground", shape.mesh("Ground"), collection, (0, 0, 0))
    paths = _Shape()
    stone = material("Gravel", gravel)
    along = [(-60, -1.95), (60, -1.95), (60, -0.35), (-60, -0.35)]
    away = [(-2.0, -0.35), (-0.4, -0.35), (-0.6, 60), (-1.8, 60)]
    for corners in (along, away):
        paths.add([(x, y, 0.006) for x, y in corners], [[0, 1, 2, 3]], stone)
    _put("Paths", paths.mesh("Paths"), collection, (0, 0, 0))
    far = _Shape()
    green = material("Hills", hill)
    for x, y, r, h in ((-30, 62, 30, 9), (8, 70, 36, 12), (48, 60, 28, 8), (-62, 30, 26, 8)):
        far.ring((x, y, -0.1), r, 0, h, green, sides=24)
    _put("Hills", far.mesh("Hills"), collection, (0, 0, 0))


def _bench() -> bpy.types.Mesh:
    shape = _Shape()
    plank, metal = material("Bench wood", wood), material("Iron", iron, 0.5)
    for y in (-0.17, -0.02, 0.13):
        shape.box((0, y, bench_seat - 0.02), (1.7, 0.13, 0.04), plank)
    for z in (0.66, 0.82):
        shape.box((0, 0.255 + (z - 0.66) * 0.25, z), (1.7, 0.035, 0.12), plank, tilt=-14)
    for x in (-0.72, 0.72):
        shape.box((x, -0.18, 0.21), (0.05, 0.05, 0.42), metal)
        shape.box((x, 0.20, 0.21), (0.05, 0.05, 0.42), metal)
        shape.box((x, 0.01, 0.41), (0.05, 0.44, 0.03), metal)
        shape.box((x, 0.265, 0.64), (0.05, 0.03, 0.52), metal, tilt=-14)
    return shape.mesh("Bench")


def _lamp() -> bpy.types.Mesh:
    shape = _Shape()
    metal, light = material("Iron", iron, 0.5), material("Lamp glass", glass, 0.3)
    shape.ring((0, 0, 0), 0.13, 0.08, 0.35, metal)
    shape.ring((0, 0, 0.35), 0.05, 0.04, 2.55, metal)
    shape.ring((0, 0, 2.9), 0.10, 0.17, 0.36, light)
    shape.ring((0, 0, 3.26), 0.21, 0, 0.18, metal)
    return shape.mesh("Lamp")


def _tree(name: str, green: bpy.types.Material, tall: float) -> bpy.types.Mesh:
    shape = _Shape()
    shape.ring((0, 0, 0), 0.17, 0.12, 1.3, material("Bark", bark))
    for i, (r, z) in enumerate(((1.15, 0.9), (0.92, 0.9 + tall * 0.28), (0.66, 0.9 + tall * 0.54))):
        shape.ring((0, 0, z), r, 0, tall * (0.52 - 0.04 * i), green, sides=12)
    return shape.mesh(name)


def _trees(collection: bpy.types.Collection) -> None:
    kinds = [
        _tree(f"Fir {i + 1}", material(f"Leaves {i + 1}", c), tall)
        for i, (c, tall) in enumerate(zip(leaves, (3.4, 4.4, 3.9), strict=True))
    ]
    places = [(-5.2, 1.6), (-3.6, 2.6), (0.6, 2.9), (2.6, 2.2), (4.6, 1.9), (6.4, 2.8)]
    places += [(-7.4, 1.0), (-9.5, 2.4), (-12, 0.9), (-15, 2.2), (-19, 1.2), (-24, 2.6)]
    places += [(-6.5, -3.6), (-9.0, -4.4), (-12.5, -3.4), (-17, -4.2), (-22, -3.3)]
    places += [(-4.3, 5.2), (1.9, 5.4), (-4.9, 8.2), (2.7, 8.8), (-5.6, 12), (3.6, 13)]
    places += [(7.5, 6.2), (5.6, 9.5), (-8.6, 6.4), (-11, 9.8), (9.8, 1.8), (13, 3.0), (11, 8)]
    places += [(-6.2, 18), (4.8, 19), (-8, 26), (6.2, 27), (16, 14), (-16, 15), (20, 5)]
    dice = random.Random(7)
    for i, (x, y) in enumerate(places):
        mesh = kinds[i % 3]
        _put(
            f"Tree {i + 1:02d}",
            mesh,
            collection,
            (x, y, 0.0),
            turn=dice.uniform(0, math.tau),
            scale=dice.uniform(0.85, 1.25),
        )


def _sun(collection: bpy.types.Collection) -> None:
    light = bpy.data.lights.new("Sun", "SUN")
    light.energy, light.angle, light.color = 3.2, 0.06, (1.0, 0.96, 0.88)
    sun = bpy.data.objects.new("Sun", light)
    sun.location = (-4, -6, 9)
    sun.rotation_euler = (math.radians(42), math.radians(-12), math.radians(-34))
    collection.objects.link(sun)


def _sky() -> None:
    world = bpy.data.worlds.new("Sky")
    linear = tuple(_linear(c) for c in sky)
    world.color = linear
    world.use_nodes = True
    background = world.node_tree.nodes["Background"]
    background.inputs["Color"].default_value = (*linear, 1.0)
    background.inputs["Strength"].default_value = 0.9
    bpy.context.scene.world = world

# SPDX-License-Identifier: GPL-3.0-or-later
"""Twelve simple sets as coloured quads. Metres, z up, the floor at z = 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray
Colour = tuple[float, float, float]

floors: dict[str, Colour] = {
    "forest": (0.20, 0.38, 0.12),
    "city": (0.42, 0.42, 0.44),
    "beach": (0.88, 0.78, 0.55),
    "snow": (0.93, 0.95, 0.98),
    "night street": (0.24, 0.24, 0.34),
    "room": (0.50, 0.34, 0.22),
    "desert": (0.82, 0.55, 0.32),
    "park": (0.40, 0.60, 0.26),
    "studio": (0.62, 0.62, 0.64),
    "kitchen": (0.70, 0.66, 0.60),
    "stage": (0.42, 0.26, 0.15),
    "bridge": (0.60, 0.57, 0.54),
}
skies: dict[str, Colour] = {
    "forest": (0.55, 0.75, 0.90),
    "city": (0.70, 0.78, 0.88),
    "beach": (0.45, 0.72, 0.95),
    "snow": (0.80, 0.86, 0.93),
    "night street": (0.07, 0.09, 0.26),
    "room": (0.86, 0.80, 0.70),
    "desert": (0.98, 0.80, 0.55),
    "park": (0.55, 0.75, 0.90),
    "studio": (0.70, 0.70, 0.72),
    "kitchen": (0.90, 0.95, 0.96),
    "stage": (0.20, 0.03, 0.06),
    "bridge": (0.62, 0.80, 0.95),
}
tints: dict[str, Colour] = {
    "night street": (0.80, 0.84, 1.04),
    "stage": (1.08, 0.98, 0.94),
    "snow": (0.97, 1.0, 1.05),
    "beach": (1.06, 1.0, 0.92),
    "desert": (1.08, 0.98, 0.85),
    "room": (1.05, 0.97, 0.85),
}
names = tuple(floors)


@dataclass
class _Builder:
    points: list[Array] = field(default_factory=list)
    colours: list[Array] = field(default_factory=list)

    def quad(self, corners: Array | list, colour: Array | Colour) -> None:
        self.points.append(np.asarray(corners, dtype=float))
        self.colours.append(np.asarray(colour, dtype=float))

    def box(
        self,
        x: float,
        y: float,
        half: tuple[float, float],
        height: float,
        colour: Array | Colour,
        low: float = 0.0,
    ) -> None:
        """A box about (x, y) from z = low to z = height; half: half its sides."""
        w, d = half
        foot = [(x - w, y - d, low), (x + w, y - d, low), (x + w, y + d, low), (x - w, y + d, low)]
        head = [(a, b, height) for a, b, _ in foot]
        for i in range(4):
            j = (i + 1) % 4
            self.quad([foot[i], foot[j], head[j], head[i]], colour)
        self.quad(head, colour)
        if low > 0:
            self.quad(foot[::-1], colour)

    def cone(
        self, base: tuple[float, float, float], radius: float, height: float, colour: Array | Colour
    ) -> None:
        x, y, z = base
        for k in range(8):
            a, b = k * np.pi / 4, (k + 1) * np.pi / 4
            foot = [(x + radius * np.cos(t), y + radius * np.sin(t), z) for t in (a, b)]
            top = (x, y, z + height)
            self.quad([*foot, top, top], np.asarray(colour) * (0.85 + 0.15 * (k % 2)))


@dataclass(frozen=True)
class SetMesh:
    """vertices (4 n, 3), faces (n, 4) that share no vertex, colours (4 n, 3) sRGB."""

    vertices: Array
    faces: Array
    colours: Array


def build(name: str, rng: np.random.Generator) -> SetMesh:
    """A set of `names`, furnished at random and turned about the origin."""
    b = _Builder()
    b.quad([(-60, -60, 0), (60, -60, 0), (60, 60, 0), (-60, 60, 0)], floors[name])
    furnish = _furnish.get(name)
    if furnish is not None:
        furnish(b, rng)
    vertices = np.concatenate(b.points)
    angle = float(rng.uniform(0, 2 * np.pi)) if name not in ("beach", "park", "bridge") else 0.0
    c, s = np.cos(angle), np.sin(angle)
    vertices = vertices @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])
    faces = np.arange(len(vertices)).reshape(-1, 4)
    return SetMesh(vertices, faces, np.clip(np.repeat(b.colours, 4, axis=0), 0, 1))


def before(scene: SetMesh, matrix_world: Array, distance: float) -> SetMesh:
    """The set as seen by a camera, (4, 4) camera to world, without what would stand in its way.

    Quads nearer than `distance` (m along the view axis) go, the floor excepted; so do those that
    turn their back on the camera: walls that it looks through from outside.
    """
    quads = scene.vertices[scene.faces]
    middle = quads.mean(1)
    away = middle - matrix_world[:3, 3]
    facing = np.cross(quads[:, 1] - quads[:, 0], quads[:, 2] - quads[:, 0])
    kept = ((facing * away).sum(1) < 0) & (away @ -matrix_world[:3, 2] > distance)
    kept[0] = True
    colours = scene.colours[scene.faces][kept].reshape(-1, 3)
    faces = np.arange(4 * int(kept.sum())).reshape(-1, 4)
    return SetMesh(quads[kept].reshape(-1, 3), faces, colours)


def _ring(
    rng: np.random.Generator, count: int, near: float, far: float
) -> list[tuple[float, float]]:
    turns, distances = rng.uniform(0, 2 * np.pi, count), rng.uniform(near, far, count)
    return [
        (float(np.cos(a) * d), float(np.sin(a) * d)) for a, d in zip(turns, distances, strict=True)
    ]


def _trees(leaf: Colour) -> Callable[[_Builder, np.random.Generator], None]:
    def furnish(b: _Builder, rng: np.random.Generator) -> None:
        for x, y in _ring(rng, 40, 3.2, 16):
            b.box(x, y, (0.15, 0.15), 1.2, (0.30, 0.19, 0.10))
            b.cone((x, y, 0.9), 1.1, float(rng.uniform(2.5, 5)), leaf)

    return furnish


def _city(b: _Builder, rng: np.random.Generator) -> None:
    for x, y in _ring(rng, 26, 6, 20):
        grey = float(rng.uniform(0.35, 0.8))
        b.box(x, y, (1.6, 1.6), float(rng.uniform(3, 14)), np.array([1, 0.95, 0.9]) * grey)


def _night(b: _Builder, rng: np.random.Generator) -> None:
    for x, y in _ring(rng, 26, 6, 20):
        height = float(rng.uniform(3, 14))
        b.box(x, y, (1.6, 1.6), height, np.array([0.9, 0.9, 1.3]) * float(rng.uniform(0.16, 0.30)))
        side = x - 1.62 * np.sign(x)
        for z in np.arange(0.6, height - 1, 1.6):
            corners = [(side, y - 0.5, z), (side, y + 0.5, z), (side, y + 0.5, z + 0.9)]
            b.quad([*corners, (side, y - 0.5, z + 0.9)], (0.95, 0.85, 0.4))


def _beach(b: _Builder, rng: np.random.Generator) -> None:
    shore = float(rng.uniform(3, 8))
    water = (0.10, 0.42, 0.70)
    b.quad([(-60, shore, 0.02), (60, shore, 0.02), (60, 60, 0.02), (-60, 60, 0.02)], water)
    b.quad([(-60, -60, 0.02), (60, -60, 0.02), (60, -shore, 0.02), (-60, -shore, 0.02)], water)


def _room(b: _Builder, rng: np.random.Generator) -> None:
    wall = np.array((0.80, 0.72, 0.60))
    for k in range(4):
        c, s = np.cos(k * np.pi / 2), np.sin(k * np.pi / 2)
        turned = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])

        def flat(
            x0: float, x1: float, z0: float, z1: float, y: float, turned: Array = turned
        ) -> Array:
            corners = np.array([(x0, y, z0), (x1, y, z0), (x1, y, z1), (x0, y, z1)])
            return corners @ turned.T

        shade = wall * (0.92 + 0.08 * (k % 2))
        b.quad(flat(-3.5, 3.5, 0, 3, 3.5), shade)
        picture = (0.60, 0.82, 0.98) if k % 2 else (0.45, 0.25, 0.20)
        b.quad(flat(-1 + k * 0.3, 0.6 + k * 0.3, 1, 2.3, 3.48), picture)
        b.quad(flat(-3.4, -1.4, 0, 0.9, 3.0), (0.35, 0.20, 0.12))
        b.quad(flat(-3.5, 3.5, 0, 0.12, 3.49), (0.93, 0.90, 0.85))


def _desert(b: _Builder, rng: np.random.Generator) -> None:
    for x, y in _ring(rng, 14, 6, 20):
        size = float(rng.uniform(0.6, 2.5))
        b.cone((x, y, 0), size, float(rng.uniform(0.5, 2.5)), (0.70, 0.42, 0.24))


def _park(b: _Builder, rng: np.random.Generator) -> None:
    """The kin of the sample storyboard's park (`world.storyboard_set`): its colours and things."""
    gravel, bark, hill = (0.80, 0.73, 0.58), (0.42, 0.29, 0.18), (0.48, 0.66, 0.52)
    leaves = ((0.20, 0.47, 0.22), (0.25, 0.53, 0.22), (0.33, 0.58, 0.26))
    y = float(rng.uniform(-1.5, 0.4))
    b.quad(
        [(-60, y - 0.8, 0.006), (60, y - 0.8, 0.006), (60, y + 0.8, 0.006), (-60, y + 0.8, 0.006)],
        gravel,
    )
    x = float(rng.uniform(-3, 3))
    b.quad(
        [
            (x - 0.8, y + 0.8, 0.006),
            (x + 0.8, y + 0.8, 0.006),
            (x + 0.6, 60, 0.006),
            (x - 0.6, 60, 0.006),
        ],
        gravel,
    )
    for u, v in _ring(rng, 5, 55, 72):
        b.cone((u, v, -0.1), float(rng.uniform(26, 36)), float(rng.uniform(8, 12)), hill)
    for k, (u, v) in enumerate(_ring(rng, 34, 2.4, 24)):
        tall, size = float(rng.uniform(3.4, 4.4)), float(rng.uniform(0.85, 1.25))
        b.box(u, v, (0.13 * size, 0.13 * size), 1.3 * size, bark)
        for i, (r, z) in enumerate(
            ((1.15, 0.9), (0.92, 0.9 + tall * 0.28), (0.66, 0.9 + tall * 0.54))
        ):
            height = tall * (0.52 - 0.04 * i) * size
            b.cone((u, v, z * size), r * size, height, leaves[k % 3])
    _bench(b, rng)
    u, v = float(rng.choice([-1, 1]) * rng.uniform(1.2, 4)), float(rng.uniform(0.4, 3))
    b.box(u, v, (0.045, 0.045), 2.9, (0.24, 0.25, 0.27))
    b.box(u, v, (0.13, 0.13), 3.26, (0.98, 0.93, 0.72), low=2.9)


def _bench(b: _Builder, rng: np.random.Generator) -> None:
    u, v = float(rng.uniform(-2, 2)), float(rng.uniform(0.1, 1.5))
    wood, iron = (0.64, 0.42, 0.24), (0.24, 0.25, 0.27)
    b.box(u, v, (0.85, 0.22), 0.46, wood, low=0.42)
    for z in (0.60, 0.76):
        b.box(u, v + 0.26, (0.85, 0.02), z + 0.12, wood, low=z)
    for x in (-0.72, 0.72):
        b.box(u + x, v - 0.17, (0.025, 0.025), 0.42, iron)
        b.box(u + x, v + 0.22, (0.025, 0.025), 0.80, iron)


def _wall(side: int, half: float) -> Callable[[float, float, float, float, float], Array]:
    """Upright rectangles (x0, x1, z0, z1, distance before the wall) on wall `side` of a square."""
    c, s = np.cos(side * np.pi / 2), np.sin(side * np.pi / 2)
    turned = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])

    def flat(x0: float, x1: float, z0: float, z1: float, before: float) -> Array:
        y = half - before
        return np.array([(x0, y, z0), (x1, y, z0), (x1, y, z1), (x0, y, z1)]) @ turned.T

    return flat


def _kitchen(b: _Builder, rng: np.random.Generator) -> None:
    """Tiled walls, worktops with cupboards below and above, a window."""
    front = np.array(((0.24, 0.56, 0.56), (0.30, 0.50, 0.66), (0.52, 0.62, 0.44))[rng.integers(3)])
    for side in range(4):
        flat = _wall(side, 3.2)
        b.quad(flat(-3.2, 3.2, 0, 3, 0), np.array((0.84, 0.85, 0.80)) * (0.95 + 0.05 * (side % 2)))
        for z in (1.05, 1.25, 1.45):
            b.quad(flat(-3.2, 3.2, z, z + 0.012, 0.01), (0.74, 0.78, 0.78))
        for x in np.arange(-3.0, 2.9, 0.8):
            b.quad(flat(x, x + 0.76, 0.08, 0.86, 0.55), front)
            b.quad(flat(x + 0.3, x + 0.46, 0.74, 0.77, 0.56), (0.85, 0.85, 0.85))
            if side % 2:
                b.quad(flat(x, x + 0.76, 1.75, 2.5, 0.3), front * 1.1)
        b.quad(flat(-3.2, 3.2, 0.86, 0.92, 0.57), (0.45, 0.33, 0.24))
        if side % 2 == 0:
            b.quad(flat(-0.9, 0.9, 1.2, 2.4, 0.015), (0.60, 0.84, 0.98))
            b.quad(flat(-0.03, 0.03, 1.2, 2.4, 0.02), (0.97, 0.97, 0.97))


def _stage(b: _Builder, rng: np.random.Generator) -> None:
    """Red curtains in folds all round, lamps above."""
    for side in range(4):
        flat = _wall(side, 4.5)
        for k, x in enumerate(np.arange(-4.5, 4.4, 0.45)):
            red = np.array((0.56, 0.06, 0.11)) * (1.0 if k % 2 else 0.72)
            b.quad(flat(x, x + 0.45, 0, 6, 0.05 * (k % 2)), red)
        b.quad(flat(-4.5, 4.5, 3.0, 3.5, 0.2), (0.90, 0.70, 0.22))
    for x, y in _ring(rng, 8, 2.5, 4):
        b.box(x, y, (0.12, 0.12), 3.0, (1.0, 0.95, 0.70), low=2.75)


def _bridge(b: _Builder, rng: np.random.Generator) -> None:
    """A stone bridge over a river: water on both sides, parapets, posts, far hills."""
    half = float(rng.uniform(1.6, 2.4))
    water = (0.16, 0.46, 0.62)
    for sign in (-1, 1):
        far, near = sorted((sign * 60, sign * half))
        b.quad([(-60, far, 0.01), (60, far, 0.01), (60, near, 0.01), (-60, near, 0.01)], water)
        b.box(0, sign * half, (30, 0.10), 0.75, (0.68, 0.52, 0.42))
        for x in np.arange(-27, 28, 3.0):
            b.box(float(x), sign * half, (0.18, 0.18), 1.15, (0.58, 0.42, 0.34))
    for u, v in _ring(rng, 7, 55, 72):
        b.cone(
            (u, v, -0.1), float(rng.uniform(20, 32)), float(rng.uniform(6, 14)), (0.42, 0.58, 0.40)
        )


def with_stool(scene: SetMesh, seat: Array) -> SetMesh:
    """The set with a stool under a seat, (3,) metres."""
    b = _Builder()
    x, y, height = (float(c) for c in seat)
    b.box(x, y, (0.20, 0.20), height, (0.52, 0.36, 0.22))
    faces = np.arange(len(scene.vertices), len(scene.vertices) + 4 * len(b.points)).reshape(-1, 4)
    return SetMesh(
        np.concatenate([scene.vertices, *b.points]),
        np.concatenate([scene.faces, faces]),
        np.concatenate([scene.colours, np.repeat(b.colours, 4, axis=0)]),
    )


_furnish: dict[str, Callable[[_Builder, np.random.Generator], None]] = {
    "forest": _trees((0.10, 0.36, 0.13)),
    "snow": _trees((0.75, 0.85, 0.85)),
    "city": _city,
    "night street": _night,
    "beach": _beach,
    "room": _room,
    "desert": _desert,
    "park": _park,
    "kitchen": _kitchen,
    "stage": _stage,
    "bridge": _bridge,
}

# SPDX-License-Identifier: GPL-3.0-or-later
"""Random poses, and posing a figure by linear blend skinning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from world.people import Figure

Array = np.ndarray

_arms: dict[str, tuple[float, float, float]] = {
    # drop from the A-pose, swing forward, elbow; degrees
    "down": (38, 4, 12),
    "hip": (15, -12, 95),
    "up": (-75, 10, 35),
    "wave": (-10, 10, -110),
    "front": (28, 45, 60),
    "bent": (34, 15, 80),
    "out": (-30, 0, 8),
}
legs = ("stand", "step", "walk", "sit")


def turn(axis: str, degrees: float) -> Array:
    """A rotation matrix (3, 3) about a world axis "x", "y" or "z"."""
    angle = np.radians(degrees)
    c, s = np.cos(angle), np.sin(angle)
    i = "xyz".index(axis)
    j, k = (i + 1) % 3, (i + 2) % 3
    m = np.eye(3)
    m[j, j] = m[k, k] = c
    m[j, k], m[k, j] = -s, s
    return m


def random_pose(rng: np.random.Generator) -> dict[str, Array]:
    """Rotations (3, 3) by bone name without prefix, world axes, about the bone's head."""

    def some(scale: float) -> float:
        return float(rng.normal(0, scale))

    out: dict[str, Array] = {}
    names = list(_arms)
    odds = np.array([4, 1, 1, 1, 1, 1, 1]) / 10
    for side, sign in (("Left", 1), ("Right", -1)):
        kind = str(rng.choice(names, p=odds))
        drop, forward, elbow = _arms[kind]
        out[f"{side}Arm"] = turn("z", -sign * (forward + some(6))) @ turn(
            "y", sign * (drop + some(7))
        )
        bend = elbow + some(8)
        if kind in ("hip", "wave"):
            out[f"{side}ForeArm"] = turn("y", sign * bend)
        elif kind in ("front", "bent", "down"):
            out[f"{side}ForeArm"] = turn("x", -bend)
        else:
            out[f"{side}ForeArm"] = turn("z", -sign * bend)
        out[f"{side}Hand"] = turn("x", some(10)) @ turn("y", some(10))
        curl = float(rng.choice([0, 10, 35, 60]))
        for finger in ("Index", "Middle", "Ring", "Pinky"):
            for joint in "123":
                out[f"{side}Hand{finger}{joint}"] = turn("y", sign * (curl + some(4)))
    out.update(_random_legs(rng, some))
    out["Spine1"] = turn("z", some(8)) @ turn("x", some(5)) @ turn("y", some(4))
    # Now and then a look over the shoulder.
    aside = float(rng.choice([-1, 1])) * float(rng.uniform(25, 55)) if rng.random() < 0.25 else 0.0
    out["Neck"] = turn("z", 0.4 * aside + some(8)) @ turn("x", some(4))
    out["Head"] = turn("z", 0.6 * aside + some(16)) @ turn("x", some(8)) @ turn("y", some(5))
    return out


def _random_legs(rng: np.random.Generator, some) -> dict[str, Array]:  # type: ignore[no-untyped-def]
    kind = str(rng.choice(legs, p=[0.45, 0.2, 0.2, 0.15]))
    first, second = rng.permutation(["Left", "Right"])
    out: dict[str, Array] = {}
    if kind == "stand":
        for side, sign in (("Left", 1), ("Right", -1)):
            out[f"{side}UpLeg"] = turn("y", sign * float(rng.uniform(-2, 8))) @ turn("x", some(3))
    elif kind in ("step", "walk"):
        angle = float(rng.uniform(10, 22) if kind == "step" else rng.uniform(20, 38))
        out[f"{first}UpLeg"] = turn("x", -angle)
        out[f"{first}Leg"] = turn("x", angle * 0.5)
        out[f"{second}UpLeg"] = turn("x", angle * 0.6)
        out[f"{second}Leg"] = turn("x", angle * 0.7)
    else:
        for side in ("Left", "Right"):
            out[f"{side}UpLeg"] = turn("x", -80 + some(4))
            out[f"{side}Leg"] = turn("x", 80 + some(6))
    return out


@dataclass(frozen=True)
class Posed:
    """vertices (N, 3), bone heads and tails (B, 3); metres, feet on z = 0."""

    vertices: Array
    heads: Array
    tails: Array

    def moved(self, rotation: Array, offset: Array) -> Posed:
        """The same, turned by (3, 3) about the origin and then moved by (3,)."""
        return Posed(*(p @ rotation.T + offset for p in (self.vertices, self.heads, self.tails)))


def pose_figure(person: Figure, rotations: Mapping[str, Array]) -> Posed:
    """The figure posed: rotations by bone name without prefix, world axes, parents first."""
    count = len(person.bones)
    matrices = np.tile(np.eye(4), (count, 1, 1))
    for i, bone in enumerate(person.bones):
        local = np.eye(4)
        rotation = rotations.get(bone.split(":")[-1])
        if rotation is not None:
            local[:3, :3] = rotation
            local[:3, 3] = person.heads[i] - rotation @ person.heads[i]
        parent = person.parents[i]
        matrices[i] = local if parent < 0 else matrices[parent] @ local
    flat = person.weights @ matrices.reshape(count, 16).astype(np.float32)
    blend = flat.reshape(-1, 4, 4)
    vertices = np.einsum("nij,nj->ni", blend[:, :3, :3], person.vertices) + blend[:, :3, 3]
    ends = [
        np.einsum("nij,nj->ni", matrices[:, :3, :3], e) + matrices[:, :3, 3]
        for e in (person.heads, person.tails)
    ]
    ground = np.array([0.0, 0.0, vertices[:, 2].min()])
    return Posed(vertices - ground, ends[0] - ground, ends[1] - ground)

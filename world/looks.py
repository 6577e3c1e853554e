# SPDX-License-Identifier: GPL-3.0-or-later
"""The two looks: "realistic", soft light, and "animated", flat colour, big eyes, a larger head."""

from __future__ import annotations

import functools

import numpy as np

from world import body

Array = np.ndarray
Triple = tuple[float, float, float]

looks = ("realistic", "animated")
lights: tuple[Triple, ...] = (
    (-0.45, 0.50, 0.74),
    (0.45, 0.50, 0.74),
    (-0.75, 0.30, 0.59),
    (0.75, 0.30, 0.59),
    (0.0, 0.75, 0.66),
    (-0.20, 0.25, 0.95),
    (0.25, 0.20, 0.95),
    (-0.60, 0.70, 0.39),
    (0.60, 0.70, 0.39),
)
"""Directions to the light in camera space: x right, y up, z towards the camera."""


def _step(low: float, high: float, x: Array) -> Array:
    """0 below low, 1 above high, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def ball(look: str, light: int, side: int = 128) -> Array:
    """(side, side, 3) linear light on a white ball, row 0 at the bottom: a matcap.

    Realistic: the sky's and the ground's light, a key light that wraps round by a third, and a
    faint rim. Animated: two tones.
    """
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(axis, axis)
    length = np.maximum(1.0, np.hypot(x, y))
    x, y = x / length, y / length
    z = np.sqrt(np.clip(1 - x * x - y * y, 0, 1))
    direction = np.array(lights[light]) / np.linalg.norm(lights[light])
    towards = (np.stack([x, y, z], axis=-1) @ direction)[..., None]
    if look == "animated":
        lit = _step(0.10, 0.20, towards)
        return lit * np.array((0.98, 0.97, 0.94)) + (1 - lit) * np.array((0.53, 0.50, 0.57))
    sky = (0.5 + 0.5 * y)[..., None]
    around = sky * np.array((0.40, 0.42, 0.46)) + (1 - sky) * np.array((0.20, 0.18, 0.17))
    key = np.clip((towards + 0.33) / 1.33, 0, None) ** 1.3 * np.array((0.80, 0.77, 0.72))
    rim = 0.10 * ((1 - z)[..., None] ** 3)
    return around + key + rim


def saturated(colours: Array, strength: float) -> Array:
    """sRGB colours (..., 3) with their distance from grey times `strength`, clipped to 0..1."""
    grey = colours @ np.array((0.299, 0.587, 0.114))
    return np.clip(grey[..., None] + (colours - grey[..., None]) * strength, 0, 1)


def over(picture: Array, sky: Triple, gain: Triple, look: str) -> Array:
    """(H, W, 3) uint8: a picture (H, W, 4) before a sky that lightens downwards, times `gain`."""
    ramp = np.linspace(0.93, 1.08, picture.shape[0])[:, None, None]
    alpha = picture[..., 3:]
    rgb = picture[..., :3] * alpha + np.asarray(sky) * ramp * (1 - alpha)
    rgb = rgb * np.asarray(gain)
    if look == "animated":
        rgb = saturated(rgb, 1.2)
    return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)


@functools.cache
def _head_share() -> Array:
    """(V,) 0..1: how much a base vertex (joint cubes included) belongs to the head."""
    at = body.rig().bones.index("mixamorig:Neck")
    neck = float(body.bone_ends(body.base().vertices)[0][at, 2])
    share = _step(neck - 0.01, neck + 0.07, body.base().vertices[:, 2])
    share[body.group("helper-hair")] = 1.0
    return share


eye_growth = 0.5
"""How much wider drawn people's eyes are; they are about two thirds higher."""


def stylise(rest: Array, eyes: float = eye_growth, head: float = 0.13) -> Array:
    """A body at rest, base vertices (V, 3), with eyes and head larger by these shares."""
    rest = rest.copy()
    for side in ("left", "right"):
        body.morph(rest, f"expression/units/caucasian/eye-{side}-opened-up", 0.6)
    out = rest.copy()
    for side in "lr":
        ball_points = body.group(f"helper-{side}-eye")
        centre = rest[ball_points].mean(0)
        radius = np.linalg.norm(rest[ball_points] - centre, axis=1).max()
        away = rest - centre
        near = 1 - _step(0.9, 4.2, np.linalg.norm(away, axis=1) / radius)
        near[ball_points] = 1.0
        # Apart a little, or the inner corners would meet over the nose.
        aside = np.array([np.sign(centre[0]) * 0.12 * radius, 0, -0.1 * radius])
        out += near[:, None] * (away * eyes * np.array((0.9, 0.1, 1.3)) + aside)
    bones = body.rig().bones
    pivot = body.bone_ends(rest)[0][bones.index("mixamorig:Neck")]
    return out + _head_share()[:, None] * (out - pivot) * head

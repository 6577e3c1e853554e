# SPDX-License-Identifier: GPL-3.0-or-later
"""Where things are on the base mesh's head: face frame, landmarks, hairline, brows, lips, beard."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from world import body

Array = np.ndarray


@dataclass(frozen=True)
class FaceFrame:
    """The measures of one head at rest, metres.

    left_eye, right_eye, mouth, skull (3,): centres (the subject's left and right). unit: distance
    between the eyes. crown: height from the eyes to the top of the head.
    """

    left_eye: Array
    right_eye: Array
    mouth: Array
    skull: Array
    unit: float
    crown: float

    @property
    def eye_y(self) -> float:
        return float(self.left_eye[1] + self.right_eye[1]) / 2

    @property
    def eye_z(self) -> float:
        return float(self.left_eye[2] + self.right_eye[2]) / 2

    def before_face(self, points: Array) -> Array:
        """(n,) bool: points (n, 3) that hang before the face, below the hairline."""
        ahead = points[:, 1] < self.eye_y + 0.42 * self.unit
        return ahead & (points[:, 2] < self.eye_z + 0.62 * self.crown)


def face_frame(rest: Array) -> FaceFrame:
    """The face frame of a shaped body, base vertices (V, 3)."""
    eyes = {s: rest[body.group(f"helper-{s}-eye")].mean(0) for s in "lr"}
    unit = float(eyes["l"][0] - eyes["r"][0])
    lips, _ = body.target("mouth/mouth-upperlip-volume-incr")
    top = float(rest[body.group("body"), 2].max())
    height = float(eyes["l"][2] + eyes["r"][2]) / 2
    depth = float(eyes["l"][1] + eyes["r"][1]) / 2
    skull = np.array([0.0, depth + 1.4 * unit, height])
    return FaceFrame(eyes["l"], eyes["r"], rest[lips].mean(0), skull, unit, top - height)


def _step(low: float, high: float, x: Array) -> Array:
    """0 below low, 1 above high, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def scalp_cover(points: Array, face: FaceFrame, temples: str = "shaved") -> Array:
    """How much of each point (n, 3) of the head hair covers, 0..1.

    temples: "shaved", "combed" (hair drawn back over them) or "hidden" (it falls over the ears).
    """
    u = face.unit
    side = np.abs(points[:, 0])
    back = points[:, 1] - face.eye_y
    up = (points[:, 2] - face.eye_z) / face.crown
    soft = 0.03
    above = _step(0.60 - soft, 0.60 + soft, up)
    temple = _step(-0.15, -0.07, up) * _step(1.33 * u, 1.48 * u, back) * (side < 1.55 * u)
    nape = _step(-0.75, -0.66, up) * _step(2.0 * u, 2.2 * u, back) * (side < 1.45 * u)
    if temples == "combed":
        edge = (0.70 + 0.35 * np.clip(0.6 - up, 0, 1)) * u
        soft_edge = np.clip((back - edge) / (0.12 * u), 0, 1)
        temple = np.maximum(temple, soft_edge * _step(0.14, 0.22, up))
    if temples == "hidden":
        temple = _step(-0.30, -0.20, up) * _step(0.90 * u, 1.02 * u, back) * (side < 1.7 * u)
    return np.maximum.reduce([above, temple, nape])


def head_colours(
    points: Array,
    face: FaceFrame,
    lips: Array,
    *,
    skin: Array,
    hair: Array,
    bald: bool,
    beard: bool,
    brow: float,
    male: bool,
    temples: str = "shaved",
    eye_growth: float = 0.0,
) -> tuple[Array, Array]:
    """Colours (n, 3) of a head's points (n, 3) at rest, and how much hair covers each (n,).

    lips: (n,) how much a point is lip. skin, hair: sRGB (3,). eye_growth: share by which the eyes
    are larger than people's.
    """
    u = face.unit
    colours = np.tile(skin, (len(points), 1))

    def paint(colour: Array, share: Array) -> None:
        nonlocal colours
        colours = colours * (1 - share[:, None]) + colour * share[:, None]

    blush = np.zeros(len(points))
    for eye in (face.left_eye, face.right_eye):
        d = points - (eye + np.array([0, 0, -0.75 * u]))
        blush = np.maximum(blush, np.exp(-(d[:, 0] ** 2 + d[:, 2] ** 2) / (0.3 * u) ** 2))
    ahead = points[:, 1] < face.eye_y + 0.6 * u
    paint(skin * np.array([1.0, 0.86, 0.84]), 0.5 * blush * ahead)
    full = 0.35 if male else 0.85
    paint(skin * np.array([0.88, 0.55, 0.55]), full * _step(0.22, 0.40, lips))
    if beard:
        low = points[:, 2] - face.mouth[2]
        x = np.abs(points[:, 0])
        front = points[:, 1] < face.eye_y + 1.2 * u
        chin = _step(-1.35 * u, -1.2 * u, low) * (1 - _step(0.05 * u, 0.13 * u, low))
        chin *= 1 - _step(1.1 * u, 1.25 * u, x)
        jaw = _step(0.78 * u, 0.88 * u, x) * (1 - _step(0.50 * u, 0.7 * u, low))
        jaw *= _step(-1.0 * u, -0.9 * u, low)
        lip = _step(0.08 * u, 0.14 * u, low) * (1 - _step(0.36 * u, 0.44 * u, low))
        lip *= (1 - _step(0.42 * u, 0.5 * u, x)) * (points[:, 1] < face.eye_y)
        share = np.maximum.reduce([chin * front, jaw * front, lip])
        paint(hair * 0.88 + skin * 0.12, share * (1 - _step(0.22, 0.40, lips)))
    for eye in (face.left_eye, face.right_eye):
        d = (points - eye) / u
        arch = 0.37 * (1 + 0.35 * eye_growth) - 0.16 * (d[:, 0] / 0.42) ** 2
        thick = 0.075 * brow * (1 - 0.35 * np.abs(d[:, 0]) / 0.42)
        on = 1 - _step(0.7, 1.35, np.abs(d[:, 2] - arch) / thick)
        on *= (1 - _step(0.38, 0.46, np.abs(d[:, 0]))) * (d[:, 1] < 0.35)
        paint(hair * 0.75 + skin * 0.15, on)
        # The lash line: darkens the lids' edge so that eyes read from afar.
        wide, high = 0.27 * (1 + eye_growth), 0.13 * (1 + 0.6 * eye_growth)
        rim = np.hypot(d[:, 0] / wide, d[:, 2] / high)
        lash = (1 - _step(1.0, 1.35, rim)) * (d[:, 1] < 0.1) * (d[:, 2] > -0.02)
        paint(skin * 0.30, (0.40 if eye_growth else 0.75) * lash)
    cover = np.zeros(len(points)) if bald else scalp_cover(points, face, temples)
    paint(hair, _step(0.3, 0.7, cover))
    return colours, cover


def _nearest(points: Array, candidates: Array, goal: Array) -> int:
    return int(candidates[np.argmin(((points[candidates] - goal) ** 2).sum(1))])


def _furthest(points: Array, candidates: Array, direction: tuple[float, float, float]) -> int:
    return int(candidates[np.argmax(points[candidates] @ np.array(direction))])


@functools.cache
def landmarks_on_base() -> tuple[Array, Array]:
    """Base vertices of the 68 iBUG points and the right and left pupil (70,); of the ears (2,).

    Order and sides as the iBUG 300-W annotation: 0-16 jaw from the subject's right ear to the
    left, 17-26 brows, 27-35 nose, 36-47 eyes (right first), 48-59 outer and 60-67 inner lips.
    """
    v = body.base().vertices
    face = face_frame(v)
    u = face.unit
    skin = body.group("body")
    skin = skin[v[skin, 2] > face.mouth[2] - 1.6 * u]
    right, left = _ear(v, skin, face, -1), _ear(v, skin, face, 1)
    jaw = _jaw(v, skin, face, right, left)
    brows = [_on_brow(v, skin, face.right_eye, u, x) for x in (-0.42, -0.22, 0, 0.2, 0.4)]
    brows += [_on_brow(v, skin, face.left_eye, u, x) for x in (-0.4, -0.2, 0, 0.22, 0.42)]
    eyes = _eye(v, skin, face.right_eye, u) + _eye(v, skin, face.left_eye, u)
    pupils = [_pupil(v, "r"), _pupil(v, "l")]
    points = jaw + brows + _nose(v, skin, face) + eyes + _lips(v) + pupils
    return np.array(points), np.array([right, left])


def _ear(v: Array, skin: Array, face: FaceFrame, sign: int) -> int:
    """The skin just before the ear, at the height of the eyes' lower third."""
    goal = np.array(
        [sign * 1.22 * face.unit, face.eye_y + 1.25 * face.unit, face.eye_z - 0.3 * face.unit]
    )
    return _nearest(v, skin, goal)


def _jaw(v: Array, skin: Array, face: FaceFrame, right: int, left: int) -> list[int]:
    u = face.unit
    centre = np.array([0, 0, face.mouth[2] + 0.35 * u])
    out = [right]
    for k in range(1, 16):
        angle = np.pi * (1 + k / 16)
        turn = abs(np.cos(angle))
        # Nearer the chin the outline runs further in front; what lies behind is the neck.
        limit = face.eye_y + (0.15 + 1.05 * turn) * u
        near = skin[(v[skin, 1] < limit) & (v[skin, 1] > limit - 0.75 * u)]
        away = v[near] - centre
        across = np.abs(-np.sin(angle) * away[:, 0] + np.cos(angle) * away[:, 2])
        near = near[across < 0.14 * u]
        out.append(_furthest(v, near, (float(np.cos(angle)), 0.0, float(np.sin(angle)))))
    return [*out, left]


def _on_brow(v: Array, skin: Array, eye: Array, u: float, x: float) -> int:
    height = 0.37 - 0.16 * (x / 0.42) ** 2
    return _nearest(v, skin, eye + np.array([x * u, -0.3 * u, height * u]))


def _nose(v: Array, skin: Array, face: FaceFrame) -> list[int]:
    u = face.unit
    middle = skin[np.abs(v[skin, 0]) < 0.03 * u]
    middle = middle[
        (v[middle, 2] > face.mouth[2] + 0.2 * u) & (v[middle, 2] < face.eye_z + 0.2 * u)
    ]
    tip = _furthest(v, middle, (0, -1, 0))
    bridge_z = np.linspace(face.eye_z + 0.05 * u, v[tip, 2], 4)[:3]
    front = middle[v[middle, 1] < face.eye_y + 0.05 * u]
    bridge = [int(front[np.argmin(np.abs(v[front, 2] - z))]) for z in bridge_z]
    base_z = v[tip, 2] - 0.17 * u
    under = [
        _nearest(v, skin, np.array([x * u, v[tip, 1] + (0.12 + 0.8 * abs(x)) * u, base_z]))
        for x in (-0.26, -0.13, 0, 0.13, 0.26)
    ]
    return [*bridge, tip, *under]


def _eye(v: Array, skin: Array, eye: Array, u: float) -> list[int]:
    """Six points of the lids' edge, from the picture's left corner, clockwise as seen."""
    goals = ((-0.24, 0), (-0.09, 0.085), (0.09, 0.085), (0.24, 0), (0.09, -0.075), (-0.09, -0.075))
    return [_nearest(v, skin, eye + np.array([x * u, -0.17 * u, z * u])) for x, z in goals]


def _pupil(v: Array, side: str) -> int:
    return _furthest(v, body.group(f"helper-{side}-eye"), (0, -1, 0))


def _lips(v: Array) -> list[int]:
    """12 outer points from the right corner over the upper lip and back, 8 inner ones."""
    parts = []
    for name in ("upperlip", "lowerlip"):
        indices, offsets = body.target(f"mouth/mouth-{name}-volume-incr")
        strength = np.linalg.norm(offsets, axis=1)
        parts.append(indices[strength > 0.25 * strength.max()])
    upper, lower = parts
    both = np.concatenate(parts)
    corner_r, corner_l = _furthest(v, both, (-1, 0, 0)), _furthest(v, both, (1, 0, 0))
    half = float(v[corner_l, 0])

    def edge(part: Array, x: float, up: float, ahead: float) -> int:
        near = part[np.abs(v[part, 0] - x * half) < 0.13 * half]
        return _furthest(v, near, (0, -ahead, up))

    xs = (-0.62, -0.3, 0, 0.3, 0.62)
    outer_up = [edge(upper, x, 1, 0) for x in xs]
    outer_low = [edge(lower, -x, -1, 0) for x in xs]
    inner_up = [edge(upper, x, -1, 0.6) for x in (-0.45, 0, 0.45)]
    inner_low = [edge(lower, -x, 1, 0.6) for x in (-0.45, 0, 0.45)]
    return [corner_r, *outer_up, corner_l, *outer_low, corner_r, *inner_up, corner_l, *inner_low]

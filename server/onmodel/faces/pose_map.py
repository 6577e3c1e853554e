# SPDX-License-Identifier: GPL-3.0-or-later
"""The pose map of a head's square, drawn anew of the request's joints.

Cut out of the keyframe's pose map and enlarged, sticks and dots would grow with the head: the dots
of a small face become one white blob, which tells a ControlNet nothing. Drawn in the square they
are as large as in any picture of its size, which is what ControlNets were trained on.

It is the drawing of addon/core/openpose.py (controlnet_aux's, see there), with Pillow's shapes
instead of cv2's pixels; tests/server/test_face_pass.py holds the two together.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from onmodel.faces.crops import Square

_limbs = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10)),
    *((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
_colours = (
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0)),
    *((0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255)),
    *((0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
)
_fingers = tuple((0 if j == 0 else 4 * f + j, 4 * f + j + 1) for f in range(5) for j in range(4))
_hand_radius, _face_radius, _stick = 4, 3, 4

_Point = tuple[float, float]
_Points = list[_Point | None]


def draw(characters: Sequence[dict[str, Any]], square: Square, side: int) -> np.ndarray | None:
    """(side, side, 3) uint8 RGB: the joints of a request's characters that the square shows.

    Far characters first. Points are drawn where they are "visible" and in the square; a limb needs
    both its ends. None where the square shows nobody's joint: nothing is known of the pose there.
    """
    image = Image.new("RGB", (side, side))
    pen = ImageDraw.Draw(image)
    poses = [c.get("pose") or {} for c in characters]
    drawn = False
    for pose in sorted(poses, key=_distance, reverse=True):
        body = _inside(pose.get("body"), square, side)
        hands = [_inside(pose.get(name), square, side) for name in ("left_hand", "right_hand")]
        face = _inside(pose.get("face"), square, side)
        _draw_body(pen, body, _stick * stick_ratio(side))
        for hand in hands:
            _draw_hand(pen, hand)
        for point in face:
            _dot(pen, point, _face_radius, (255, 255, 255))
        drawn |= any(point is not None for points in (body, *hands, face) for point in points)
    return np.array(image) if drawn else None


def stick_ratio(side: int) -> int:
    """As addon/core/openpose.py has it: xinsir's rule for SDXL."""
    return 1 if side < 500 else min(2 + side // 1000, 7)


def _distance(pose: dict[str, Any]) -> float:
    depths = sorted(p["z"] for p in pose.get("body") or [] if p is not None and p["z"] > 0)
    return float(depths[len(depths) // 2]) if depths else 0.0


def _inside(points: Sequence[dict[str, Any] | None] | None, square: Square, side: int) -> _Points:
    """Canvas points in pixels of the enlarged square; None for those that are not drawn."""
    scale = side / square.side
    found: _Points = []
    for p in points or []:
        place = None
        if p is not None and p["state"] == "visible":
            x, y = (p["x"] - square.left) * scale, (p["y"] - square.top) * scale
            place = (x, y) if 0 <= x <= side and 0 <= y <= side else None
        found.append(place)
    return found


def _draw_body(pen: ImageDraw.ImageDraw, points: _Points, size: int) -> None:
    for (a, b), colour in zip(_limbs, _colours, strict=False):
        ends = _both(points, a, b)
        if ends is not None:
            dark = tuple(int(c * 0.6) for c in colour)
            pen.polygon(_ellipse(*ends, size), fill=dark)
    for point, colour in zip(points, _colours, strict=False):
        _dot(pen, point, size, colour)


def _both(points: _Points, a: int, b: int) -> tuple[_Point, _Point] | None:
    """Both ends of a limb, where both are there."""
    if max(a, b) >= len(points):
        return None
    first, second = points[a], points[b]
    return None if first is None or second is None else (first, second)


def _ellipse(a: _Point, b: _Point, size: int) -> list[tuple[int, int]]:
    """A stick between two joints: an ellipse as long as the limb, `size` to each side."""
    middle = (int((a[0] + b[0]) / 2), int((a[1] + b[1]) / 2))
    half = int(math.dist(a, b) / 2)
    turn = math.atan2(a[1] - b[1], a[0] - b[0])
    outline = []
    for degree in range(0, 360, 3):
        along, across = half * math.cos(math.radians(degree)), size * math.sin(math.radians(degree))
        x = middle[0] + along * math.cos(turn) - across * math.sin(turn)
        y = middle[1] + along * math.sin(turn) + across * math.cos(turn)
        outline.append((round(x), round(y)))
    return outline


def _draw_hand(pen: ImageDraw.ImageDraw, points: _Points) -> None:
    for number, (a, b) in enumerate(_fingers):
        ends = _both(points, a, b)
        if ends is not None:
            hue = colorsys.hsv_to_rgb(number / len(_fingers), 1.0, 1.0)
            colour = tuple(round(c * 255) for c in hue)
            pen.line([(int(x), int(y)) for x, y in ends], fill=colour, width=2)
    for point in points:
        _dot(pen, point, _hand_radius, (0, 0, 255))


def _dot(
    pen: ImageDraw.ImageDraw, point: _Point | None, radius: int, colour: tuple[int, int, int]
) -> None:
    if point is not None:
        x, y = int(point[0]), int(point[1])
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

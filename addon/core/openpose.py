# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenPose drawings: body, hands and face as the pose ControlNets were trained on them.

The drawing is the one of `controlnet_aux.open_pose` (form "b" of the two in use: one call per
person, limb colours times 0.6), pixel for pixel, with numpy alone. What cv2 does there is
rebuilt from its documented behaviour: `ellipse2Poly` (whole degrees, vertices rounded to even),
`fillConvexPoly` (8-connected outline plus 16.16 fixed-point spans), `circle` (midpoint) and
`line` with thickness 2 (a rectangle with a round of radius 1 at each end).

Everything is turned into horizontal spans in painting order and painted at once.
Sticks and body joints are scaled as the SDXL models of xinsir want it, see `stick_ratio`.
"""

from __future__ import annotations

import colorsys
import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from .request import Keypoint, Pose

body_limbs = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10)),
    *((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
body_colours = (
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0)),
    *((0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255)),
    *((0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
)
hand_limbs = tuple((0 if j == 0 else 4 * f + j, 4 * f + j + 1) for f in range(5) for j in range(4))

# Palette: 0 black, 1..18 joints, 19..35 limbs, 36..55 hand limbs, 56 hand joints, 57 face.
_limb_base, _hand_base, _hand_joint, _face_dot = 19, 36, 56, 57
_hand_radius, _face_radius = 4, 3
_hand_thickness = 2

_one = 1 << 16
_half = _one >> 1

# cv2's table of sines: seven decimals, single precision.
_sine = np.round(np.sin(np.radians(np.arange(451))), 7).astype(np.float32).astype(np.float64)

_Spans = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Row, first column, last column (inclusive) and palette entry of each span, in painting order."""


def stick_ratio(width: int, height: int) -> int:
    """How many times the 4 px of a stick and of a joint's radius are drawn at this canvas size.

    The rule of xinsir's SDXL ControlNets (openpose and union), from the longer side.
    """
    longest = max(width, height)
    return 1 if longest < 500 else min(2 + longest // 1000, 7)


def palette() -> np.ndarray:
    """The colours of `draw_pose_indexed`: (58, 3) uint8 RGB, entry 0 is black."""
    limbs = [tuple(int(c * 0.6) for c in colour) for colour in body_colours[: len(body_limbs)]]
    hand = [
        tuple(round(c * 255) for c in colorsys.hsv_to_rgb(i / len(hand_limbs), 1.0, 1.0))
        for i in range(len(hand_limbs))
    ]
    colours = [(0, 0, 0), *body_colours, *limbs, *hand, (0, 0, 255), (255, 255, 255)]
    return np.array(colours, np.uint8)


def draw_pose(
    people: Sequence[Pose],
    width: int,
    height: int,
    hands: bool = True,
    face: bool = True,
    ratio: int | None = None,
) -> np.ndarray:
    """Draw the people's skeletons on black.

    people: from far to near; a nearer person's sticks cover those of a farther one.
    width, height: of the canvas in pixels. Points are in canvas pixels.
    hands, face: whether these are drawn too. Their dots and lines keep one size (radius 4, line 2,
        face radius 3): the models that take them were not trained on scaled ones.
    ratio: times 4 px for sticks and body joints; None takes `stick_ratio` of the canvas.

    A point is drawn when its state is "visible"; a limb needs both its ends.
    Returns (height, width, 3) uint8 RGB.
    """
    entries = draw_pose_indexed(people, width, height, hands, face, ratio).reshape(-1)
    picture = np.zeros((height, width, 3), np.uint8)
    # Most of it is black: only what is drawn is looked up.
    drawn = np.flatnonzero(entries)
    picture.reshape(-1, 3)[drawn] = palette()[entries[drawn]]
    return picture


def draw_pose_indexed(
    people: Sequence[Pose],
    width: int,
    height: int,
    hands: bool = True,
    face: bool = True,
    ratio: int | None = None,
) -> np.ndarray:
    """As `draw_pose`, but (height, width) uint8 entries of `palette()`: a third of the bytes."""
    size = 4 * (stick_ratio(width, height) if ratio is None else ratio)
    spans: list[_Spans] = []
    for pose in people:
        spans += _body_spans(_drawable(pose.body, width, height), size)
        if hands:
            for hand in (pose.left_hand, pose.right_hand):
                spans += _hand_spans(_drawable(hand, width, height))
        if face:
            dots = _off_border(_drawable(pose.face, width, height))
            spans += _dots([p for p in dots if p], _face_radius, _face_dot)
    canvas = np.zeros((height, width), np.uint8)
    _paint(canvas, spans)
    return canvas


def apply_facing(pose: Pose, yaw: float, pitch: float = 0.0) -> Pose:
    """The pose with the face points marked "hidden" that such a head does not show.

    yaw, pitch: of the head in degrees, as in `request.Head` (yaw > 0 looks to the picture's right).
    From behind, nose, eyes and the whole face go and the ears stay: with a nose drawn the models
    turn the head to the camera. From the side, the far eye and the far ear go.
    """
    facing = math.degrees(
        math.acos(max(-1.0, min(1.0, math.cos(math.radians(yaw)) * math.cos(math.radians(pitch)))))
    )
    turn = abs((yaw + 180.0) % 360.0 - 180.0)
    looks_right = (yaw + 180.0) % 360.0 - 180.0 > 0
    far_eye, far_ear = (15, 17) if looks_right else (14, 16)
    gone: set[int] = set()
    # A profile shows nose and near eye until a little past a right angle.
    behind = facing > 100.0
    if behind:
        gone |= {0, 14, 15}
    if 70.0 < turn < 110.0:
        gone.add(far_eye)
    if 45.0 < turn < 135.0:
        gone.add(far_ear)
    body = [_hidden(p) if i in gone else p for i, p in enumerate(pose.body)]
    face = [_hidden(p) for p in pose.face] if behind else pose.face
    return dataclasses.replace(pose, body=body, face=face)


def _hidden(point: Keypoint | None) -> Keypoint | None:
    if point is None or point.state != "visible":
        return point
    return dataclasses.replace(point, state="hidden")


_Points = list[tuple[float, float] | None]


def _drawable(points: Sequence[Keypoint | None], width: int, height: int) -> _Points:
    return [
        (p.x, p.y)
        if p is not None and p.state == "visible" and 0 <= p.x <= width and 0 <= p.y <= height
        else None
        for p in points
    ]


def _off_border(points: _Points) -> _Points:
    """The reference drawing takes hand and face points in row or column 0 for missing ones."""
    return [p if p and int(p[0]) > 0 and int(p[1]) > 0 else None for p in points]


def _body_spans(points: _Points, size: int) -> list[_Spans]:
    ends, entries = [], []
    for i, (a, b) in enumerate(body_limbs):
        if max(a, b) < len(points):
            first, second = points[a], points[b]
            if first and second:
                ends.append((*first, *second))
                entries.append(_limb_base + i)
    spans = []
    if ends:
        shape, x, y = _outline_and_fill(*_ellipses(np.array(ends, np.float64), size))
        spans.append(_row_spans(shape, x, y, np.array(entries)))
    joints = [(p, 1 + i) for i, p in enumerate(points) if p]
    if joints:
        spans += _dots([p for p, _ in joints], size, np.array([entry for _, entry in joints]))
    return spans


def _hand_spans(points: _Points) -> list[_Spans]:
    points = _off_border(points)
    lines, entries = [], []
    for i, (a, b) in enumerate(hand_limbs):
        if max(a, b) < len(points):
            first, second = points[a], points[b]
            if first and second:
                lines.append((int(first[0]), int(first[1]), int(second[0]), int(second[1])))
                entries.append(_hand_base + i)
    spans = []
    if lines:
        shape, x, y = _thick_lines(np.array(lines, np.int64), _hand_thickness)
        spans.append(_row_spans(shape, x, y, np.array(entries)))
    return spans + _dots([p for p in points if p], _hand_radius, _hand_joint)


def _ellipses(ends: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Limbs as polygons. ends: (N, 4) x0 y0 x1 y1. Returns x and y, each (N, 361) int64.

    Centre, half length and angle are cut to whole numbers, as the reference does.
    """
    x0, y0, x1, y1 = ends.T
    centre_x = ((x0 + x1) / 2).astype(np.int64)[:, None]
    centre_y = ((y0 + y1) / 2).astype(np.int64)[:, None]
    half = (np.sqrt((y0 - y1) ** 2 + (x0 - x1) ** 2) / 2).astype(np.int64)[:, None]
    angle = np.degrees(np.arctan2(y0 - y1, x0 - x1)).astype(np.int64) % 360
    cosine, sine = _sine[450 - angle][:, None], _sine[angle][:, None]
    degrees = np.arange(361)
    along, across = half * _sine[450 - degrees], size * _sine[degrees]
    x = np.rint(centre_x + (along * cosine - across * sine)).astype(np.int64)
    y = np.rint(centre_y + (along * sine + across * cosine)).astype(np.int64)
    return x, y


def _outline_and_fill(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels that bound convex polygons (N, V) with whole vertices, row by row.

    Returns shape number, x, y of the outline's pixels (Bresenham, from left to right, ties stay)
    and of the ends of the fill's spans.
    """
    shape = np.repeat(np.arange(x.shape[0]), x.shape[1])
    x0, y0 = np.roll(x, 1, axis=1).ravel(), np.roll(y, 1, axis=1).ravel()
    x1, y1 = x.ravel(), y.ravel()
    keep = (x0 != x1) | (y0 != y1)
    shape, x0, y0, x1, y1 = (a[keep] for a in (shape, x0, y0, x1, y1))
    fill = _fill_edges(shape, x0 << 16, y0, x1 << 16, y1, y.max(axis=1))

    swap = x1 < x0
    x0, x1 = np.where(swap, x1, x0), np.where(swap, x0, x1)
    y0, y1 = np.where(swap, y1, y0), np.where(swap, y0, y1)
    dx, dy = x1 - x0, np.abs(y1 - y0)
    steep = dy > dx
    major, minor = np.maximum(dx, dy), np.minimum(dx, dy)
    edge, k = _steps(major + 1)
    side = (2 * minor[edge] * k + major[edge] - 1) // (2 * major[edge])
    tall = steep[edge]
    px = x0[edge] + np.where(tall, side, k)
    py = y0[edge] + np.where(tall, k, side) * np.sign(y1 - y0)[edge]
    return (
        np.concatenate([shape[edge], fill[0]]),
        np.concatenate([px, fill[1]]),
        np.concatenate([py, fill[2]]),
    )


def _fill_edges(
    shape: np.ndarray,
    x0: np.ndarray,
    y0: np.ndarray,
    x1: np.ndarray,
    y1: np.ndarray,
    bottom: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each edge crosses its rows. x in 16.16 fixed point, y in rows, bottom: last row (N,).

    An edge owns the rows from its upper vertex to the one before its lower vertex; the edge that
    ends on the last row owns that one too.
    """
    keep = y0 != y1
    shape, x0, y0, x1, y1 = (a[keep] for a in (shape, x0, y0, x1, y1))
    down = y1 > y0
    xs, xe = np.where(down, x0, x1), np.where(down, x1, x0)
    ys, ye = np.minimum(y0, y1), np.maximum(y0, y1)
    rows = ye - ys
    slope = _divide(2 * (xe - xs) + rows, 2 * rows)
    edge, k = _steps(rows + (ye == bottom[shape]))
    return shape[edge], (xs[edge] + slope[edge] * k + _half) >> 16, ys[edge] + k


def _thick_lines(lines: np.ndarray, thickness: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lines (N, 4) x0 y0 x1 y1 of whole pixels as bounding pixels: shape number, x, y."""
    count = lines.shape[0]
    start, end = lines[:, :2], lines[:, 2:]
    dx, dy = (start[:, 0] - end[:, 0]).astype(float), (end[:, 1] - start[:, 1]).astype(float)
    length = np.hypot(dx, dy)
    reach = np.divide(thickness * _half, length, out=np.zeros(count), where=length > 0)
    off = np.rint(np.stack([dy * reach, dx * reach], 1)).astype(np.int64)
    p, q = start << 16, end << 16
    corners = np.stack([p + off, p - off, q - off, q + off], 1)
    shape = np.repeat(np.arange(count), 4)
    a, b = np.roll(corners, 1, axis=1).reshape(-1, 2), corners.reshape(-1, 2)
    row_a, row_b = (a[:, 1] + _half) >> 16, (b[:, 1] + _half) >> 16
    bottom = np.maximum(row_a, row_b).reshape(count, 4).max(axis=1)
    long = np.repeat(length > 0, 4)
    fill = _fill_edges(shape[long], a[long, 0], row_a[long], b[long, 0], row_b[long], bottom)
    outline = _fixed_lines(shape[long], a[long], b[long])
    rounds = _stamp(1)
    ends = np.concatenate([start, end])
    number = np.repeat(np.tile(np.arange(count), 2), 2 * len(rounds[0]))
    dots_x = ends[:, 0, None] + np.concatenate([rounds[1], rounds[2]])
    dots_y = ends[:, 1, None] + np.concatenate([rounds[0], rounds[0]])
    return (
        np.concatenate([fill[0], outline[0], number]),
        np.concatenate([fill[1], outline[1], dots_x.ravel()]),
        np.concatenate([fill[2], outline[2], dots_y.ravel()]),
    )


def _fixed_lines(
    shape: np.ndarray, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of lines between 16.16 points a and b, each (N, 2)."""
    delta = b - a
    wide = np.abs(delta[:, 0]) > np.abs(delta[:, 1])
    swap = np.where(wide, delta[:, 0], delta[:, 1]) < 0
    a, b = np.where(swap[:, None], b, a), np.where(swap[:, None], a, b)
    # Columns: the axis that is stepped by whole pixels, the other one.
    a, b = (np.where(wide[:, None], p, p[:, ::-1]) for p in (a, b))
    long, side = b[:, 0] - a[:, 0], b[:, 1] - a[:, 1]
    slope = _divide(side * _one, long | 1)
    edge, k = _steps((long >> 16) + 1)
    along = np.concatenate([((a[:, 0] + _half) >> 16)[edge] + k, (b[:, 0] + _half) >> 16])
    across = (a[edge, 1] + _half + slope[edge] * k) >> 16
    across = np.concatenate([across, (b[:, 1] + _half) >> 16])
    flat = np.concatenate([wide[edge], wide])
    x, y = np.where(flat, along, across), np.where(flat, across, along)
    return np.concatenate([shape[edge], shape]), x, y


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whole division towards zero, as in C; b > 0."""
    return np.sign(a) * (np.abs(a) // b)


def _steps(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each item i, counts[i] rows (i, 0), (i, 1), …, as two arrays."""
    item = np.repeat(np.arange(len(counts)), counts)
    return item, np.arange(len(item)) - np.repeat(np.cumsum(counts) - counts, counts)


def _row_spans(shape: np.ndarray, x: np.ndarray, y: np.ndarray, entries: np.ndarray) -> _Spans:
    """From bounding pixels to one span per shape and row, shapes in order."""
    low_x, low_y = x.min(), y.min()
    columns, rows = int(x.max() - low_x) + 1, int(y.max() - low_y) + 1
    line = shape * rows + (y - low_y)
    key = np.sort(line * columns + (x - low_x))
    line = key // columns
    first = np.flatnonzero(np.concatenate([[True], line[1:] != line[:-1]]))
    last = np.concatenate([first[1:], [len(key)]]) - 1
    line = line[first]
    left, right = key[first] - line * columns + low_x, key[last] - line * columns + low_x
    return line % rows + low_y, left, right, entries[line // rows]


@functools.lru_cache(maxsize=16)
def _stamp(radius: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A filled circle about (0, 0), by the midpoint rule: rows, first columns, last columns."""
    reach = np.zeros(2 * radius + 1, np.int64)
    error, dx, dy, plus, minus = 0, radius, 0, 1, 2 * radius - 1
    while dx >= dy:
        for row, half in ((dy, dx), (dx, dy)):
            for y in (radius - row, radius + row):
                reach[y] = max(reach[y], half)
        dy += 1
        error += plus
        plus += 2
        if error > 0:
            error -= minus
            dx -= 1
            minus -= 2
    return np.arange(-radius, radius + 1), -reach, reach


def _dots(
    points: Sequence[tuple[float, float]], radius: int, entry: np.ndarray | int
) -> list[_Spans]:
    if not points:
        return []
    rows, left, right = _stamp(radius)
    at = np.array(points, np.float64).astype(np.int64)
    entries = np.repeat(np.broadcast_to(entry, len(points)), len(rows))
    x, y = at[:, :1], at[:, 1:]
    return [((y + rows).ravel(), (x + left).ravel(), (x + right).ravel(), entries)]


def _paint(canvas: np.ndarray, spans: list[_Spans]) -> None:
    if not spans:
        return
    height, width = canvas.shape
    row, left, right, entry = (np.concatenate(parts) for parts in zip(*spans, strict=True))
    left, right = np.maximum(left, 0), np.minimum(right, width - 1)
    keep = (row >= 0) & (row < height) & (left <= right)
    row, left, right, entry = row[keep], left[keep], right[keep], entry[keep]
    span, k = _steps(right - left + 1)
    # Later pixels win: numpy assigns in order.
    canvas.reshape(-1)[(row * width + left)[span] + k] = entry.astype(np.uint8)[span]

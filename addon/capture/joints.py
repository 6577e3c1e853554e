# SPDX-License-Identifier: GPL-3.0-or-later
"""Points of a body on the canvas, each with whether it is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..core import rigs
from ..core.projection import View
from ..core.request import Keypoint
from .passes import Passes

body_depths = np.array(
    (
        *(0.06, 0.30, 0.17, 0.09, 0.07, 0.17, 0.09, 0.07, 0.24),
        *(0.12, 0.10, 0.24, 0.12, 0.10, 0.06, 0.06, 0.10, 0.10),
    )
)
"""How deep under the skin each of `rigs.body_joints` lies at the most, in metres of a grown person:
a joint is inside the limb, and from the side half of the pelvis lies before a hip. Generous for
the trunk: detectors give hips and shoulders that an arm crosses."""

hand_depth = 0.03
face_depth = 0.018

_disc = np.array([(0, 0), *((np.cos(a), np.sin(a)) for a in np.arange(8) * np.pi / 4)], float)
_disc_share = 0.3
"""The part of the depth that is looked at around a point: a joint is not hidden by a thread."""

_in_front = 0.002
"""Metres by which what hides a point must be nearer: surfaces that touch do not."""


def body_points(known: Mapping[str, np.ndarray], face: np.ndarray) -> np.ndarray:
    """(18, 3) body points in the world, NaN where there is none.

    known: joint name -> (3,). face: (70, 3) face points, NaN for unknown ones. The neck is the
    middle of the shoulders, as in the data that the pose models learned from; nose and eyes are
    the face's own where it has them.
    """
    points = _by_name(known, rigs.body_joints)
    shoulders = (points[2] + points[5]) / 2
    if np.isfinite(shoulders).all():
        points[1] = shoulders
    for i, first, size in ((0, 30, 1), (14, 36, 6), (15, 42, 6)):
        part = face[first : first + size]
        part = part[np.isfinite(part).all(axis=1)]
        if len(part) * 2 > size:
            points[i] = part.mean(axis=0)
    return points


def hand_points(known: Mapping[str, np.ndarray], side: str) -> np.ndarray:
    """(21, 3) points of a hand, all NaN where the rig has no finger: a wrist alone is no hand."""
    points = _by_name(known, rigs.hand_joints(side))
    if not np.isfinite(points[1:]).any():
        points[0] = np.nan
    return points


def _by_name(known: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    nothing = np.full(3, np.nan)
    return np.array([known.get(name, nothing) for name in names], np.float64)


def keypoints(
    points: np.ndarray,
    depths: np.ndarray | float,
    own: np.ndarray,
    passes: Passes,
    view: View,
) -> list[Keypoint | None]:
    """Points in the world to keypoints on the canvas with their states.

    points: (N, 3), rows of NaN for points that do not exist (None). depths: metres, (N,) or one:
    how far before a point its own surface may be. own: (H, W) bool, the character's pixels.

    Hidden is a point where on most of a small disc around it something is nearer: the character's
    own surface by more than the depth, anything else at all.
    """
    height, width = own.shape
    known = np.isfinite(points).all(axis=1)
    if not known.any():
        return [None] * len(points)
    placed = view.project(np.where(known[:, None], points, 0.0), width, height)
    hidden = _hidden(placed, np.broadcast_to(depths, len(points)), own, passes, view)
    found: list[Keypoint | None] = []
    for i, (x, y, z) in enumerate(placed):
        if not known[i]:
            found.append(None)
            continue
        if z <= 0:
            state = "behind"
        elif not (0 <= x < width and 0 <= y < height):
            state = "outside"
        else:
            state = "hidden" if hidden[i] else "visible"
        found.append(Keypoint(round(float(x), 3), round(float(y), 3), round(float(z), 4), state))
    return found


def _hidden(
    placed: np.ndarray, depths: np.ndarray, own: np.ndarray, passes: Passes, view: View
) -> np.ndarray:
    """(N,) bool for points on the canvas (x, y, z)."""
    height, width = own.shape
    z = placed[:, 2]
    scale = width / (view.frustum[1] - view.frustum[0])
    reach = z if view.projection == "perspective" else np.ones_like(z)
    radius = _disc_share * depths * scale / np.where(reach > 1e-6, reach, np.inf)
    spots = placed[:, None, :2] + _disc[None] * np.minimum(radius, width)[:, None, None]
    # Points far outside are finite but too large for an index.
    column = np.floor(np.clip(spots[:, :, 0], -1, width)).astype(np.int64)
    row = np.floor(np.clip(spots[:, :, 1], -1, height)).astype(np.int64)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column, row = np.clip(column, 0, width - 1), np.clip(row, 0, height - 1)
    limit = z[:, None] - np.where(own[row, column], depths[:, None], _in_front)
    blocked = inside & (passes.z[row, column] < limit)
    return blocked.sum(axis=1) * 2 > inside.sum(axis=1)

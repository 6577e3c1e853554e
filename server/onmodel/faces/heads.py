# SPDX-License-Identifier: GPL-3.0-or-later
"""Which heads of a keyframe are drawn again, in which order, and why the others are not.

Whose head it is, where it is, how it is turned and what covers it come with the request; nothing
is guessed from the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from onmodel.faces.crops import Square, feather, mask_bounds, square_around
from onmodel.faces.skull import Box, skull_box

head_points = (0, 14, 15, 16, 17)
"""Nose, eyes and ears among COCO-18's body points."""


@dataclass(frozen=True)
class FaceRules:
    """When a head is repaired, and how much around it goes along.

    max_yaw: degrees from facing the camera; beyond them no face is seen. min_height: pixels of the
    skull, which is what the scorer looks at; below them there is nothing to repair from.
    min_visible: the least part of the head that nothing covers. margin: around the head, as a part
    of its longer side. multiple: the square's side comes in these steps, pixels. feather: the soft
    edge, as a part of the head's height. size: of the enlarged square, pixels; a square that is
    larger already was drawn well enough.
    """

    max_yaw: float = 100.0
    min_height: float = 24.0
    min_visible: float = 0.25
    margin: float = 0.35
    multiple: int = 8
    feather: float = 0.04
    size: int = 1024


@dataclass(frozen=True)
class HeadRegion:
    """A head in the picture. index: its character's place in the request.

    box: left, top, width, height in canvas pixels, the covered parts included. yaw: degrees from
    facing the camera. visible: the part of the head that nothing covers, 0..1. mask: (H, W) bool,
    its visible pixels (face, hair, beard, ears). distance: metres from the camera, None unknown.
    skull: the box without hanging hair (`skull_box`), None: the same box.
    """

    index: int
    name: str
    box: Box
    yaw: float
    visible: float
    mask: np.ndarray
    distance: float | None = None
    skull: Box | None = None


@dataclass(frozen=True)
class Repair:
    """A head to be drawn again. alpha: (H, W) float32, where and how much of it is put back."""

    head: HeadRegion
    square: Square
    alpha: np.ndarray


@dataclass(frozen=True)
class Skip:
    """A character whose head is left as it is. reason: a sentence for the record."""

    index: int
    name: str
    reason: str


def head_regions(
    request: dict[str, Any], read_mask: Callable[[str, str], np.ndarray]
) -> tuple[list[HeadRegion], list[Skip]]:
    """The heads that a KeyframeRequest names, and the characters without one.

    read_mask: SHA-256 and character's name to (H, W) bool.
    """
    heads, skips = [], []
    for index, character in enumerate(request.get("characters", [])):
        name, head = character["name"], character.get("head")
        if head is None:
            skips.append(Skip(index, name, "Its head is not in the picture."))
        elif head.get("mask") is None:
            skips.append(Skip(index, name, "Nothing of its head is seen."))
        else:
            box = head["box"]
            place = (box["x"], box["y"], box["width"], box["height"])
            mask = read_mask(head["mask"], name)
            away = head_distance(character.get("pose") or {})
            yaw, visible = float(head["yaw"]), float(head["visible"])
            skull = skull_box(character)
            heads.append(HeadRegion(index, name, place, yaw, visible, mask, away, skull))
    return heads, skips


def head_distance(pose: dict[str, Any]) -> float | None:
    """Metres to a head along the view axis: the median of its nose, eyes and ears."""
    body = pose.get("body") or []
    points = [body[i] for i in head_points if i < len(body) and body[i] is not None]
    depths = [float(p["z"]) for p in points if p["z"] > 0]
    return median(depths) if depths else None


def plan_repairs(heads: Sequence[HeadRegion], rules: FaceRules) -> tuple[list[Repair], list[Skip]]:
    """What to repair, far heads first and near ones last, and what to leave, with the reasons.

    Where a distance is not known, all heads are ordered by their height in the picture.
    """
    repairs, skips = [], []
    for head in heads:
        made = _judge(head, heads, rules)
        if isinstance(made, Repair):
            repairs.append(made)
        else:
            skips.append(Skip(head.index, head.name, made))
    known = all(repair.head.distance is not None for repair in repairs)
    repairs.sort(key=lambda r: -(r.head.distance or 0.0) if known else r.head.box[3])
    return repairs, skips


def hidden(visible: float, least: float) -> str:
    """The sentence on a head of which too little is seen; both 0..1."""
    return f"It is hidden: {visible * 100:.0f} % are seen, of at least {least * 100:.0f} %."


def _judge(head: HeadRegion, heads: Sequence[HeadRegion], rules: FaceRules) -> Repair | str:
    """The repair of a head, or the reason against it."""
    yaw = abs((head.yaw + 180.0) % 360.0 - 180.0)
    if yaw > rules.max_yaw:
        return f"It looks away from the camera: {yaw:.0f}° of at most {rules.max_yaw:.0f}°."
    _, _, _, tall = head.skull or head.box
    if tall < rules.min_height:
        return f"It is too small: {tall:.0f} of at least {rules.min_height:.0f} pixels."
    bounds = mask_bounds(head.mask)
    if bounds is None:
        return "Nothing of its head is seen."
    if head.visible < rules.min_visible:
        return hidden(head.visible, rules.min_visible)
    height, width = head.mask.shape
    square = square_around(bounds, rules.margin, rules.multiple, width, height)
    if square is None:
        return "It is larger than any square of the picture."
    if square.side >= rules.size:
        return f"It is drawn large already: {square.side} pixels of {rules.size}."
    allowed = np.ones_like(head.mask)
    for other in heads:
        if other is not head:
            allowed &= ~other.mask
    alpha = feather(head.mask, max(1, round(head.box[3] * rules.feather)), allowed)
    return Repair(head, square, alpha)

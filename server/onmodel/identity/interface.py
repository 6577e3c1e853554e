# SPDX-License-Identifier: GPL-3.0-or-later
"""What every face embedder promises, and the cut of a head that they share.

A picture is (H, W, 3) uint8, RGB, rows from the top. A head box is (x0, y0, x1, y1) in pixels of
that picture, x to the right and y down, pixel edges (so a 10 x 10 picture is 0, 0, 10, 10): skull,
face and ears from crown to chin, without long hair, as a map of a bald stand-in gives it. It may
reach over the picture's border. Yaw is the turn of the head from the camera in degrees: 0 faces
the camera, 90 is a profile that looks to the picture's right edge, -90 to its left, 180 is the back
of the head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

Array = np.ndarray
HeadBox = tuple[float, float, float, float]
Embedding = Array
"""(size,) float32 of length 1."""

least_inside = 0.6
"""Share of the head box that has to lie in the picture."""


@dataclass(frozen=True)
class NoFace:
    """Why there is no number. kind: "small", "turned", "outside", "undetected" or "no box".

    reason: a sentence for people.
    """

    kind: str
    reason: str


class Embedder(Protocol):
    """Turns a head into a point on a sphere, so that the same person's heads lie close together.

    name: what the registry and the calibration file call it. size: numbers in an embedding.
    least_pixels: heads smaller than that are refused (`unfit`).
    """

    @property
    def name(self) -> str:
        """What the registry calls it."""

    @property
    def size(self) -> int:
        """Numbers in an embedding."""

    @property
    def least_pixels(self) -> float:
        """Of the longer side of a head's box."""

    def embed(
        self, image: Array, head: HeadBox | None = None, yaw: float | None = None
    ) -> Embedding | NoFace:
        """The embedding of the head in the box (none: of the largest face found), or why not."""


def cosine(a: Embedding, b: Embedding) -> float:
    """Cosine similarity of two vectors, -1 to 1."""
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if lengths == 0:
        raise ValueError("A vector of length 0 has no direction.")
    return float(np.clip(float(np.dot(a, b)) / lengths, -1.0, 1.0))


def unit(vector: Array) -> Embedding:
    """The vector at length 1, float32."""
    length = float(np.linalg.norm(vector))
    if not math.isfinite(length) or length == 0:
        raise ValueError("An embedding came out empty or not finite.")
    return (np.asarray(vector, dtype=np.float64) / length).astype(np.float32)


def check_picture(image: Array) -> None:
    """Raises ValueError where this is no (H, W, 3) uint8 picture."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"A picture is (H, W, 3) uint8, this is {image.shape} {image.dtype}.")


def head_size(head: HeadBox) -> float:
    """Pixels of the longer side of a head box."""
    return max(head[2] - head[0], head[3] - head[1])


def unfit(width: int, height: int, head: HeadBox, least: float) -> NoFace | None:
    """Why a head in this box of a picture of width x height pixels cannot be scored, whatever is
    seen of it, or None. least: pixels."""
    if head[2] <= head[0] or head[3] <= head[1]:
        raise ValueError(f"The head box {head} has no area.")
    across = max(0.0, min(head[2], width) - max(head[0], 0.0))
    down = max(0.0, min(head[3], height) - max(head[1], 0.0))
    inside = across * down / ((head[2] - head[0]) * (head[3] - head[1]))
    if inside < least_inside:
        return NoFace("outside", f"Only {inside:.0%} of the head lies in the picture.")
    if head_size(head) < least:
        return NoFace("small", f"The head is {head_size(head):.0f} px high; {least:.0f} is least.")
    return None


def unusable(
    image: Array, head: HeadBox, yaw: float | None, least: float, widest: float
) -> NoFace | None:
    """Why this head cannot be scored, or None. least: pixels; widest: degrees of yaw."""
    found = unfit(image.shape[1], image.shape[0], head, least)
    if found is not None:
        return found
    if yaw is not None and abs((yaw + 180) % 360 - 180) > widest:
        turned = abs((yaw + 180) % 360 - 180)
        return NoFace(
            "turned", f"The head is turned {turned:.0f}° away; {widest:.0f}° is the most."
        )
    return None


def box_from_pose(pose: dict[str, Any]) -> HeadBox:
    """A head box worked out of a pose, for samples that carry none.

    Face points as in OpenPose (68 and two pupils), ears 16 and 17 of the body; the crown lies 0.6
    of the way from chin to brows above the brows, the back of the head behind the ears.
    """
    face = np.array([p[:2] for p in pose["face"]], dtype=np.float64)
    ears = np.array([pose["body"][i][:2] for i in (16, 17)], dtype=np.float64)
    brows, chin, between = face[17:27].mean(0), face[8], ears.mean(0)
    up = brows - chin
    back = between + 0.35 * (between - face[27])
    points = np.concatenate([face, ears, [brows + 0.6 * up, between + 0.55 * up, back]])
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    return (float(x0), float(y0), float(x1), float(y1))


def square(head: HeadBox, margin: float) -> HeadBox:
    """The square about a head box's centre, its side `margin` times the longer side of the box."""
    half = head_size(head) * margin / 2
    x, y = (head[0] + head[2]) / 2, (head[1] + head[3]) / 2
    return (x - half, y - half, x + half, y + half)


def cut(image: Array, box: HeadBox, size: int) -> Array:
    """(size, size, 3) uint8: the box of the picture, resampled; beyond its border, its edge."""
    check_picture(image)
    height, width = image.shape[:2]
    x0, y0 = math.floor(box[0]) - 1, math.floor(box[1]) - 1
    x1, y1 = math.ceil(box[2]) + 1, math.ceil(box[3]) + 1
    rows = np.clip(np.arange(y0, y1), 0, height - 1)
    columns = np.clip(np.arange(x0, x1), 0, width - 1)
    patch = Image.fromarray(np.ascontiguousarray(image[rows][:, columns]))
    inner = (box[0] - x0, box[1] - y0, box[2] - x0, box[3] - y0)
    return np.asarray(patch.resize((size, size), Image.Resampling.BICUBIC, box=inner))

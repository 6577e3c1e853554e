# SPDX-License-Identifier: GPL-3.0-or-later
"""InsightFace's recognition models (ArcFace), from files the person has; never downloaded.

The packs (buffalo_l, antelopev2) are licensed for non-commercial research only: the person has to
name the folder and to agree, and every score says what it was made with.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
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
    square,
    unit,
    unusable,
)
from onmodel.models.errors import ModelError

name = "insightface"
least_pixels = 24.0
widest_yaw = 80.0
work_margin = 2.2
work_size = 480
licence = (
    "InsightFace's packs may be used for non-commercial research only; their makers license other "
    "use. The code (MIT) and the packs have different licences."
)


def missing(pack: Path | None) -> str:
    """What is missing, in a sentence, or "". Imports nothing."""
    absent = [p for p in ("insightface", "onnxruntime") if importlib.util.find_spec(p) is None]
    if absent:
        return f"Not installed: {' and '.join(absent)}. Run: pip install {' '.join(absent)}"
    if pack is None:
        return "No pack was given. Name the folder that holds its .onnx files; none is downloaded."
    if not pack.is_dir():
        return f"{pack} is no folder. Give the folder that holds the pack's .onnx files."
    if not any(pack.glob("*.onnx")):
        return f"{pack} holds no .onnx files. Unpack buffalo_l or antelopev2 there."
    return ""


class InsightFaces:
    """512 numbers a face (what the pack's recognition model gives)."""

    name = name
    least_pixels = least_pixels

    def __init__(
        self,
        pack: Path,
        accept_licence: bool,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        """pack: folder of .onnx files with a detector and a recognition model. providers: ONNX
        Runtime's, in order. accept_licence: the person agreed to `licence`.

        Raises ModelError where something is missing or not agreed to.
        """
        reason = missing(pack)
        if reason:
            raise ModelError("The InsightFace embedder cannot be used.", reason)
        if not accept_licence:
            raise ModelError(licence, "Agree to that (--accept-licence), or use another embedder.")
        self.pack, self.providers = pack, list(providers)

    @functools.cached_property
    def _models(self) -> tuple[Any, Any]:
        """Detector and recognition model of the pack, told apart by insightface itself."""
        import onnxruntime
        from insightface import model_zoo

        unknown = sorted(set(self.providers) - set(onnxruntime.get_available_providers()))
        if unknown:
            have = ", ".join(onnxruntime.get_available_providers())
            raise ModelError(f"ONNX Runtime has no {', '.join(unknown)} here.", f"It has: {have}.")
        found: dict[str, Any] = {}
        for file in sorted(self.pack.glob("*.onnx")):
            model = model_zoo.get_model(str(file), providers=self.providers)
            if model is not None:
                found.setdefault(model.taskname, model)
        lacking = [task for task in ("detection", "recognition") if task not in found]
        if lacking:
            raise ModelError(
                f"The pack {self.pack.name} has no model for {' and '.join(lacking)}.",
                "Give a whole pack, such as buffalo_l.",
            )
        found["detection"].prepare(ctx_id=-1, input_size=(work_size, work_size), det_thresh=0.5)
        found["recognition"].prepare(ctx_id=-1)
        return found["detection"], found["recognition"]

    @functools.cached_property
    def size(self) -> int:
        """Numbers in an embedding."""
        return int(self._models[1].output_shape[-1])

    def embed(
        self, image: Array, head: HeadBox | None = None, yaw: float | None = None
    ) -> Embedding | NoFace:
        """See interface.Embedder. A box says where to look; the detector gives the five points."""
        check_picture(image)
        if head is not None:
            refused = unusable(image, head, yaw, least_pixels, widest_yaw)
            if refused is not None:
                return refused
            image = cut(image, square(head, work_margin), work_size)
        return self._describe(image, head is not None)

    def points(self, image: Array) -> list[Array]:
        """Five points (5, 2) px of every face found: the eyes, the nose's tip, the mouth's
        corners."""
        check_picture(image)
        flipped = np.ascontiguousarray(image[:, :, ::-1])  # OpenCV's colour order
        _, points = self._models[0].detect(flipped, max_num=0)
        return [] if points is None else [np.asarray(one, dtype=np.float64) for one in points]

    def _describe(self, image: Array, cut_out: bool) -> Embedding | NoFace:
        from insightface.app.common import Face

        detector, recognition = self._models
        flipped = np.ascontiguousarray(image[:, :, ::-1])  # OpenCV's colour order
        boxes, points = detector.detect(flipped, max_num=0)
        if len(boxes) == 0 or points is None:
            return NoFace("undetected", "InsightFace's detector found no face in the picture.")
        best = _nearest_middle(boxes, image.shape) if cut_out else _largest(boxes)
        face = Face(bbox=boxes[best, :4], kps=points[best], det_score=boxes[best, 4])
        return unit(np.asarray(recognition.get(flipped, face)).ravel())


def _largest(boxes: Array) -> int:
    return int(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argmax())


def _nearest_middle(boxes: Array, shape: tuple[int, ...]) -> int:
    """A known head is the middle of its cut; a neighbour's face may lie at the border."""
    middle = (boxes[:, :2] + boxes[:, 2:4]) / 2 - np.array([shape[1], shape[0]]) / 2
    return int((middle**2).sum(1).argmin())

# SPDX-License-Identifier: GPL-3.0-or-later
"""Heads in a picture that no 3D scene comes with: where they are, and which pixels are theirs.

The finders are the face embedders' own (onmodel.identity): the rehearsal world's for the embedded
model, InsightFace's where the person has a pack, else dlib's. A head's mask comes from a face
parser where there is one, else from an oval that its five landmarks place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw

from onmodel.faces.crops import Square, square_around
from onmodel.identity import dlib_faces, find, insightface_faces
from onmodel.identity.interface import Array, Embedder, NoFace
from onmodel.models.errors import ModelError

Box = tuple[float, float, float, float]
"""left, top, width, height in pixels of the picture."""

half_width, top, bottom = 1.5, -1.8, 2.0
"""The oval of a head in distances between the eyes, from the middle between them, down positive:
about 63 mm between the eyes of a head that is 230 mm high, wide enough for ears, and a little over
for hair and beard. Rounded averages of anthropometric tables; an oval is coarser than their
spread."""
around = 0.35
"""What a parser sees around the oval, as a part of its longer side."""


@dataclass(frozen=True)
class FoundHead:
    """A head in a picture. outline: (n, 2) px, a polygon about face, hair, beard and ears."""

    box: Box
    outline: Array


Finder = Callable[[Array], list[FoundHead]]
"""Heads in a picture (H, W, 3) uint8 RGB, from left to right."""


class Parser(Protocol):
    """Tells a head's pixels."""

    def head(self, image: Array) -> Array:
        """(H, W) bool: face, hair, beard and ears in a picture (H, W, 3) uint8 of one head."""


def finder_for(embedder: Embedder | None) -> Finder:
    """The finder that goes with an embedder. Raises ModelError where there is none."""
    if isinstance(embedder, dlib_faces.DlibFaces):
        return lambda image: _ordered(_by_dlib(p) for p in embedder.points(image))
    if isinstance(embedder, insightface_faces.InsightFaces):
        return lambda image: _ordered(_by_insightface(p) for p in embedder.points(image))
    if embedder is not None and embedder.name == "rehearsal":
        return _rehearsal
    raise ModelError(
        "Nothing here can find faces in a picture.",
        "Install dlib's (pip install --no-deps -r requirements/faces.txt), or name the folder of "
        "an InsightFace pack with --pack.",
    )


def _ordered(heads: Any) -> list[FoundHead]:
    return sorted(heads, key=lambda head: head.box[0])


def _by_dlib(points: Array) -> FoundHead:
    """From the corners of both eyes and the root of the nose."""
    return oval(points[0:2].mean(0), points[2:4].mean(0), points[4], 0.75)


def _by_insightface(points: Array) -> FoundHead:
    """From both eyes and the corners of the mouth."""
    return oval(points[0], points[1], points[3:5].mean(0), 1.12)


def oval(eye: Array, other: Array, below: Array, drop: float) -> FoundHead:
    """The head about two eyes and a point `drop` eye distances below their middle, (2,) px each.

    In a face that is turned away the eyes move together, and the drop says how large it is.
    """
    if other[0] < eye[0]:
        eye, other = other, eye
    middle = (eye + other) / 2
    across = other - eye
    length = float(np.linalg.norm(across))
    level = across / length if length > 0 else np.array([1.0, 0.0])
    down = np.array([-level[1], level[0]])
    scale = max(length, abs(float((below - middle) @ down)) / drop, 1.0)
    angles = np.arange(48) / 48 * 2 * math.pi
    centre = middle + down * scale * (top + bottom) / 2
    wide = np.cos(angles)[:, None] * level * half_width
    tall = np.sin(angles)[:, None] * down * (bottom - top) / 2
    outline = centre + scale * (wide + tall)
    (x0, y0), (x1, y1) = outline.min(0), outline.max(0)
    return FoundHead((float(x0), float(y0), float(x1 - x0), float(y1 - y0)), outline)


def _rehearsal(image: Array) -> list[FoundHead]:
    """The largest head of a picture of the rehearsal world."""
    box = find.find_head(image)
    if isinstance(box, NoFace):
        return []
    x0, y0, x1, y1 = box
    angles = np.arange(48) / 48 * 2 * math.pi
    half = np.array([(x1 - x0) / 2, (y1 - y0) / 2])
    ring = np.stack([np.cos(angles), np.sin(angles)], 1)
    outline = np.array([(x0 + x1) / 2, (y0 + y1) / 2]) + ring * half * 1.08
    return [FoundHead((x0, y0, x1 - x0, y1 - y0), outline)]


def head_mask(image: Array, head: FoundHead, parser: Parser | None) -> Array:
    """(H, W) bool: the head's pixels; the whole outline without a parser, or where it sees none."""
    height, width = image.shape[:2]
    inside = polygon(head.outline, width, height)
    if parser is None:
        return inside
    (x0, y0), (x1, y1) = head.outline.min(0), head.outline.max(0)
    square = square_around((x0, y0, x1, y1), around, 1, width, height) or _largest(width, height)
    middle = head.outline.mean(0)
    near = polygon(middle + (head.outline - middle) * (1 + around), width, height)
    mask = np.zeros((height, width), bool)
    part = np.ascontiguousarray(image[square.rows_columns])
    mask[square.rows_columns] = parser.head(part)
    mask &= near
    return mask if (mask & inside).any() else inside


def _largest(width: int, height: int) -> Square:
    side = min(width, height)
    return Square((width - side) // 2, (height - side) // 2, side)


def polygon(points: Array, width: int, height: int) -> Array:
    """(height, width) bool: the pixels of a polygon (n, 2) px."""
    shown = Image.new("L", (width, height))
    ImageDraw.Draw(shown).polygon([(float(x), float(y)) for x, y in points], fill=255)
    return np.asarray(shown) > 0


class RehearsalParser:
    """The rehearsal world's: the judge's labels of head and hair, at 128 x 128."""

    def head(self, image: Array) -> Array:
        """See Parser."""
        small = np.asarray(Image.fromarray(image).resize((128, 128), Image.Resampling.BOX))
        labels = find.judge().parts(small[None])[0]
        return _enlarged(np.isin(labels, (2, 3)), image.shape)


head_words = frozenset(
    {
        *("skin", "face", "nose", "eye", "eyes", "brow", "eyebrow", "brows", "eyebrows", "ear"),
        *("ears", "earring", "mouth", "lip", "lips", "teeth", "hair", "beard", "moustache"),
        *("mustache", "glasses", "eyeglass", "eyeglasses"),
    }
)
"""Words in the labels of face parsers (CelebAMask-HQ's and their like) that belong to a head."""


class FolderParser:
    """A semantic segmentation model of faces from a folder in transformers' layout.

    Its labels say what it knows: those with a word of `head_words` are the head.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ModelError where the folder holds no such model. Nothing is fetched."""
        from transformers import AutoModelForSemanticSegmentation

        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{folder} holds no face parser: config.json is missing.",
                "Give the folder of a semantic segmentation model in transformers' layout.",
            )
        try:
            self._net = AutoModelForSemanticSegmentation.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True
            ).eval()
        except (OSError, ValueError) as error:
            raise ModelError(f"The face parser in {folder} cannot be loaded: {error}.") from error
        names = self._net.config.id2label
        self._wanted = [int(i) for i, name in names.items() if head_words & set(_words(name))]
        if not self._wanted:
            raise ModelError(
                f"The model in {folder} has no label of a face or of hair.",
                "Give one that was trained on face parts, as CelebAMask-HQ names them.",
            )
        file = folder / "preprocessor_config.json"
        told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        self._mean = np.array(told.get("image_mean", (0.485, 0.456, 0.406)), np.float32)
        self._std = np.array(told.get("image_std", (0.229, 0.224, 0.225)), np.float32)
        size = told.get("size", {})
        self._side = int(size.get("height", 512)) if isinstance(size, dict) else 512

    def head(self, image: Array) -> Array:
        """See Parser."""
        import torch

        side = (self._side, self._side)
        small = np.asarray(Image.fromarray(image).resize(side, Image.Resampling.BILINEAR))
        x = (small.astype(np.float32) / 255 - self._mean) / self._std
        with torch.inference_mode():
            logits = self._net(pixel_values=torch.from_numpy(x).permute(2, 0, 1)[None]).logits
        labels = logits[0].argmax(0).numpy()
        return _enlarged(np.isin(labels, self._wanted), image.shape)


def _words(name: str) -> Sequence[str]:
    return "".join(c if c.isalpha() else " " for c in str(name).lower()).split()


def _enlarged(mask: Array, shape: tuple[int, ...]) -> Array:
    soft = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(soft.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)) >= 128

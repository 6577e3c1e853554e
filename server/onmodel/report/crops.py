# SPDX-License-Identifier: GPL-3.0-or-later
"""Heads cut out of drawings, to be seen large."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

around = 1.7
"""Side of a crop over the longer side of its head box."""


def head_crop(png: Path, box: tuple[float, float, float, float], side: int) -> Image.Image:
    """A square about a head, inside the picture, brought to side x side pixels, RGB.

    box: left, top, width, height in pixels of the picture. Raises OSError where it cannot be read.
    """
    left, top, width, height = box
    height = min(height, 1.4 * width)  # the box holds hanging hair, too
    with Image.open(png) as image:
        picture = image.convert("RGB")
    length = max(1, min(round(around * max(width, height)), *picture.size))
    x, y = (
        min(max(round(middle - length / 2), 0), limit - length)
        for middle, limit in zip((left + width / 2, top + height / 2), picture.size, strict=True)
    )
    part = picture.crop((x, y, x + length, y + length))
    return part.resize((side, side), Image.Resampling.LANCZOS)

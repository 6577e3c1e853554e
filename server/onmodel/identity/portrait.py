# SPDX-License-Identifier: GPL-3.0-or-later
"""Reference portraits as files: their pixels, and the head box that a renderer may have left in.

A PNG may say where its head is in a text chunk (PNG specification, 11.3.3) with the keyword
`onmodel:head` and four numbers "left,top,right,bottom" in pixels, skull with face and ears, without
hanging hair. It travels within the file, so no request needs to know of it.
"""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from onmodel.identity.interface import Array, HeadBox
from onmodel.identity.references import Reference

keyword = "onmodel:head"
most_pixels = 64_000_000


class PortraitError(Exception):
    """A reference that cannot be read. The message says why."""


def read(data: bytes) -> Reference:
    """The portrait of a PNG or JPEG file, turned as its EXIF says. Raises PortraitError."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > most_pixels:
                raise PortraitError(f"It has {image.width} x {image.height} pixels: too many.")
            told = image.info.get(keyword)
            turned = ImageOps.exif_transpose(image)
            pixels = np.asarray(turned.convert("RGB"))
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise PortraitError(f"It cannot be read as a picture: {error}.") from error
    return Reference(pixels, None if told is None else _box(str(told)))


def write(pixels: Array, head: HeadBox) -> bytes:
    """A PNG of (H, W, 3) uint8 that says where its head is."""
    info = PngImagePlugin.PngInfo()
    info.add_text(keyword, ",".join(f"{edge:g}" for edge in head))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def _box(text: str) -> HeadBox:
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError as error:
        raise PortraitError(f"Its head box “{text[:40]}” is not left,top,right,bottom.") from error
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
        raise PortraitError(f"Its head box “{text[:40]}” has no area.")
    return (x0, y0, x1, y1)

# SPDX-License-Identifier: GPL-3.0-or-later
"""A request and its blobs to a `Picture`: prompts composed, maps and masks decoded and checked."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from onmodel.generate.errors import RequestProblem
from onmodel.jobs.artist import BlobReader
from onmodel.models.family import ControlMap, Look, Picture, RegionPrompt
from onmodel.models.registry import ModelEntry

side_limit = 8192
png_limit = 256 << 20

map_words = {"pose": "pose", "depth": "depth", "normal": "normal", "lineart": "line"}


def picture(
    request: dict[str, Any],
    blobs: BlobReader,
    entry: ModelEntry,
    loras: Sequence[tuple[tuple[str, float], ...]] = (),
    looks: Sequence[Look | None] = (),
) -> Picture:
    """Everything the family needs for one keyframe. Raises RequestProblem.

    loras: for each of the request's characters, the (adapter, weight) that act in its region.
    looks: for each the portraits that hold it there.
    """
    from onmodel.generate.regions import character_prompt

    canvas = request["canvas"]
    width, height = int(canvas["width"]), int(canvas["height"])
    check_canvas(width, height, entry)
    maps = []
    for m in sorted(request.get("maps", []), key=lambda m: str(m["kind"])):
        what = f"the {map_words.get(m['kind'], m['kind'])} map"
        if m["kind"] not in entry.map_kinds:
            raise RequestProblem(
                f"The model “{entry.name}” cannot follow {what}.",
                _kinds_fix(entry),
            )
        image = decode(blobs.read(m["blob"]), width, height, what, "RGB")
        weight, start, end = (float(m.get(k, d)) for k, d in map_defaults)
        if weight > 0 and end > start:
            maps.append(ControlMap(m["kind"], image, weight, start, end))
    regions = []
    for i, c in enumerate(request.get("characters", [])):
        own = loras[i] if loras else ()
        look = looks[i] if looks else None
        prompt = character_prompt(c.get("trigger", ""), c["noun"], c.get("prompt", ""))
        what = f"the mask of “{c['name']}”"
        mask = decode(blobs.read(c["mask"]), width, height, what, "L") >= 128
        if (prompt or own or look) and mask.any():
            regions.append(RegionPrompt(prompt, mask, own, look))
    return Picture(
        prompt=request["prompt"],
        negative=request.get("negative_prompt", ""),
        width=width,
        height=height,
        seed=int(request["seed"]),
        maps=maps,
        regions=regions,
    )


map_defaults = (("weight", 1.0), ("start", 0.0), ("end", 1.0))


def check_canvas(width: int, height: int, entry: ModelEntry) -> None:
    """The canvas must be of a size that the model can draw. Raises RequestProblem."""
    if width < entry.multiple or height < entry.multiple:
        raise RequestProblem(f"The canvas of {width}x{height} pixels is too small to draw.")
    if max(width, height) > side_limit or width * height > 4 * entry.native_pixels:
        raise RequestProblem(
            f"The canvas of {width}x{height} pixels is far beyond what “{entry.name}” draws "
            f"(about {entry.native_pixels:,} pixels in all).",
            "Send the shot again from the add-on: it chooses the canvas by the model.",
        )
    if width % entry.multiple or height % entry.multiple:
        raise RequestProblem(
            f"The canvas of {width}x{height} pixels is not in steps of {entry.multiple}, as "
            f"“{entry.name}” needs.",
            "Send the shot again from the add-on: it chooses the canvas by the model.",
        )


def decode(data: bytes, width: int, height: int, what: str, mode: str) -> np.ndarray:
    """The pixels of a PNG that must have the canvas's size.

    mode: "RGB" gives (H, W, 3), "L" gives (H, W), both uint8. what: named in errors. The size is
    read from the header before any pixel is unpacked. Raises RequestProblem.
    """
    if len(data) > png_limit or not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise RequestProblem(f"{_upper(what)} is not a PNG image.", _resend)
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures; the size check below is stricter.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=["PNG"])
        if image.size != (width, height):
            raise RequestProblem(
                f"{_upper(what)} has {image.size[0]}x{image.size[1]} pixels, but the canvas has "
                f"{width}x{height}.",
                _resend,
            )
        if image.mode not in ("L", "RGB", "RGBA", "P", "1", "LA"):
            raise RequestProblem(f"{_upper(what)} is not an 8-bit PNG.", _resend)
        return np.array(image.convert(mode))
    except Image.DecompressionBombError as error:
        raise RequestProblem(
            f"{_upper(what)} has far more pixels than the canvas of {width}x{height}.", _resend
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
        raise RequestProblem(f"{_upper(what)} is a damaged PNG image.", _resend) from error


def crop_box(canvas: dict[str, Any]) -> tuple[int, int, int, int]:
    """left, top, right, bottom of the frame on the canvas, whole pixels inside the canvas."""
    crop, width, height = canvas["crop"], int(canvas["width"]), int(canvas["height"])
    left = min(max(round(crop["x"]), 0), width - 1)
    top = min(max(round(crop["y"]), 0), height - 1)
    right = min(max(round(crop["x"] + crop["width"]), left + 1), width)
    bottom = min(max(round(crop["y"] + crop["height"]), top + 1), height)
    return left, top, right, bottom


_resend = "Send the shot again from the add-on."


def _kinds_fix(entry: ModelEntry) -> str:
    if entry.map_kinds:
        return f"It follows: {', '.join(entry.map_kinds)}. Turn the other maps off."
    return "Put a union ControlNet for it into the controlnet folder of Onmodel's data."


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]

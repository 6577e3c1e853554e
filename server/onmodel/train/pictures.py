# SPDX-License-Identifier: GPL-3.0-or-later
"""Opening training pictures: what cannot be trained on says why, what is changed is noted."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

formats = ("PNG", "JPEG", "WEBP")
largest_pixels = 100_000_000
"""Largest picture that is decoded: 300 MB as RGB."""

under_transparency = (127, 127, 127)


class PictureError(Exception):
    """A picture cannot be used; the text is a sentence for people."""


def open_picture(path: Path) -> tuple[Image.Image, list[str]]:
    """A picture as upright 8-bit sRGB, and notes on what was done to it. Raises PictureError.

    EXIF rotation is applied; an embedded colour profile is converted to sRGB; transparency is laid
    over mid grey; 16 bits become 8. Refused: animations, CMYK without a profile, floating point,
    more than 100 million pixels (judged by the header, before decoding), and what does not decode.
    """
    image = _open(path)
    notes: list[str] = []
    if _sixteen_bits(path, image):
        notes.append("16 bits brought down to 8")
    profile = image.info.get("icc_profile")
    image = _upright(image, notes)
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        image = image.convert("I").point(lambda v: v * (1 / 257)).convert("L")
    if image.mode == "CMYK" and not profile:
        raise PictureError("It is CMYK without a colour profile: save it as sRGB.")
    if image.mode in ("F", "HSV", "LAB", "YCbCr"):
        raise PictureError(f"Its pixels are {image.mode}: save it as 8-bit sRGB.")
    image = _opaque(image, notes)
    if profile:
        image = _to_srgb(image, profile, notes)
    if image.mode in ("L", "1"):
        notes.append("it has no colour")
    return image.convert("RGB"), notes


def open_mask(path: Path) -> Image.Image:
    """A mask as 8-bit grey ("L"), 255 is the character, 0 also where transparent.

    Raises PictureError.
    """
    image = _upright(_open(path), [])
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        return image.convert("I").point(lambda v: v * (1 / 257)).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return image.convert("L")


def open_map(path: Path) -> Image.Image:
    """A map (pose, depth, …) as 8-bit RGB; 16-bit depth keeps its upper bits. PictureError."""
    image = _open(path)
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        image = image.convert("I").point(lambda v: v * (1 / 257)).convert("L")
    return image.convert("RGB")


def pixel_digest(image: Image.Image) -> str:
    """sha256 of mode, size and pixels."""
    head = f"{image.mode} {image.width} {image.height} ".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()


def _open(path: Path) -> Image.Image:
    """The decoded picture."""
    try:
        with warnings.catch_warnings():
            # The limit below is stricter than the size that Pillow warns of.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=formats)
        if image.width * image.height > largest_pixels:
            raise PictureError(_too_large(f"{image.width} x {image.height}"))
        frames = int(getattr(image, "n_frames", 1))
        if frames > 1:
            raise PictureError(f"It is an animation of {frames} pictures.")
        image.load()
    except Image.DecompressionBombError as error:
        raise PictureError(_too_large("It")) from error
    except UnidentifiedImageError as error:
        raise PictureError("It is not a PNG, JPEG or WebP, whatever its name says.") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise PictureError(f"It cannot be decoded: {error}.") from error
    return image


def _too_large(what: str) -> str:
    return f"{what} is larger than {largest_pixels // 1_000_000} million pixels: make it smaller."


def _sixteen_bits(path: Path, image: Image.Image) -> bool:
    """Pillow reads 16-bit colour PNGs as 8-bit without a word: ask the header (PNG, 11.2.2)."""
    if image.mode.startswith("I"):
        return True
    if image.format != "PNG":
        return False
    with path.open("rb") as file:
        head = file.read(25)
    return len(head) == 25 and head[24] == 16


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    turned = ImageOps.exif_transpose(image)
    orientation = image.getexif().get(0x0112, 1)
    if orientation not in (0, 1):
        notes.append("turned as its EXIF says")
    return turned


def _opaque(image: Image.Image, notes: list[str]) -> Image.Image:
    """The picture without transparency."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image.convert("RGB") if image.mode == "P" else image
    image = image.convert("RGBA")
    low = image.getchannel("A").getextrema()[0]
    if isinstance(low, int | float) and low < 255:
        notes.append("transparency laid over grey")
        under = Image.new("RGBA", image.size, (*under_transparency, 255))
        image = Image.alpha_composite(under, image)
    return image.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes, notes: list[str]) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source).strip()
        if "srgb" in name.lower():
            return image
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        if image.mode == "CMYK":
            raise PictureError(f"Its CMYK profile cannot be used: {error}.") from error
        notes.append(f"its colour profile cannot be used, taken as sRGB: {error}")
        return image
    notes.append(f"converted from {name} to sRGB")
    return image if converted is None else converted

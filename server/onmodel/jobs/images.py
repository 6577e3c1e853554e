# SPDX-License-Identifier: GPL-3.0-or-later
"""What an image file says of itself in its first bytes, read without decoding a pixel.

Nothing is decoded before these checks pass, so a small file cannot ask for gigabytes of memory.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

max_side = 8192
"""Pixels. Wider than any canvas (4096) or portrait that makes sense."""

head_bytes = 1 << 20
"""The most of a file's beginning that `read_header` needs: a JPEG's size follows its metadata."""

png_magic = b"\x89PNG\r\n\x1a\n"
jpeg_magic = b"\xff\xd8\xff"


class ImageError(ValueError):
    """Bytes that are no image we take; the message is a sentence, `fix` says what to do."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


@dataclass(frozen=True)
class ImageHeader:
    """kind: "png" or "jpeg". Size in pixels. bits: per channel. channels: 1..4."""

    kind: str
    width: int
    height: int
    bits: int
    channels: int


def media_type(head: bytes) -> str:
    """The fixed content type of bytes that begin with `head`; never one a browser would run."""
    if head.startswith(png_magic):
        return "image/png"
    if head.startswith(jpeg_magic):
        return "image/jpeg"
    return "application/octet-stream"


def read_header(head: bytes) -> ImageHeader:
    """The header of a PNG or JPEG from its first `head_bytes` bytes (or all, if it is shorter).

    Raises ImageError for any other file, a broken header or a side over `max_side`.
    """
    if head.startswith(png_magic):
        found = _read_png(head)
    elif head.startswith(jpeg_magic):
        found = _read_jpeg(head)
    else:
        raise ImageError(
            "This file is neither a PNG nor a JPEG image.",
            "Send maps and masks as PNG, references as PNG or JPEG.",
        )
    if found.width < 1 or found.height < 1:
        raise ImageError("This image has no pixels.", "Export it again.")
    if max(found.width, found.height) > max_side:
        raise ImageError(
            f"This image is {found.width} x {found.height} pixels; "
            f"the largest side the server takes is {max_side}.",
            "Scale it down and send it again.",
        )
    return found


def _read_png(head: bytes) -> ImageHeader:
    if len(head) < 33 or head[8:16] != b"\x00\x00\x00\rIHDR":
        raise ImageError("This PNG is broken: it has no header.", "Export it again.")
    width, height, bits, colour = struct.unpack(">IIBB", head[16:26])
    # PNG, table 11.1: grey, RGB, palette, grey + alpha, RGB + alpha.
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour)
    if channels is None or bits not in (1, 2, 4, 8, 16):
        raise ImageError("This PNG is broken: its pixel format is unknown.", "Export it again.")
    return ImageHeader("png", width, height, bits, channels)


def _read_jpeg(head: bytes) -> ImageHeader:
    """Walks the JPEG's segments (ITU T.81, B.1.1) to the frame header, which holds the size."""
    at = 2
    while at + 4 <= len(head):
        if head[at] != 0xFF:
            break
        marker = head[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers that carry no length
            at += 2
            continue
        (length,) = struct.unpack(">H", head[at + 2 : at + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if length < 8 or at + 10 > len(head):
                break
            bits, height, width, channels = struct.unpack(">BHHB", head[at + 4 : at + 10])
            return ImageHeader("jpeg", width, height, bits, channels)
        if marker in (0xD9, 0xDA) or length < 2:
            break
        at += 2 + length
    raise ImageError("This JPEG is broken: its size cannot be found.", "Export it again.")

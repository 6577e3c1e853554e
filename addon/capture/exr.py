# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the one kind of OpenEXR file that `passes.py` has Blender write.

Blender cannot give a script the passes of a render in the background, nor load a multilayer EXR.
A file without compression is a header and plain rows of numbers: numpy reads it in place, every
Blender version writes it alike, and nothing is left in `bpy.data`.
Source of the layout: the document "OpenEXR File Layout".
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

_magic = b"v/1\x01"
_part_flags = 0x1800  # deep data, several parts
_float32 = 2


class ExrError(ValueError):
    """Not a whole, uncompressed, single-part EXR of 32-bit floats."""


def read_channels(path: Path) -> dict[str, np.ndarray]:
    """All channels by their names ("ViewLayer.Depth.Z").

    Returns (H, W) float32 views of one buffer, row 0 on top.
    Raises ExrError for other files and for a file that ends too early (a full disk), OSError.
    """
    data = path.read_bytes()
    try:
        channels, width, height, start = _read_header(data)
    except (struct.error, ValueError, IndexError) as error:
        raise ExrError(f"{path.name} has no readable header: {error}") from error
    row = 8 + 4 * width * len(channels)
    first = start + 8 * height
    if len(data) < first + row * height:
        raise ExrError(f"{path.name} ends after {len(data)} of {first + row * height} bytes.")
    if struct.unpack_from("<Q", data, start)[0] != first:
        raise ExrError(f"{path.name} does not keep its rows in order.")
    block: np.ndarray = np.ndarray(
        (height, len(channels), width), "<f4", data, first + 8, (row, 4 * width, 4)
    )
    return {name: block[:, i] for i, name in enumerate(channels)}


def _read_header(data: bytes) -> tuple[list[str], int, int, int]:
    """Channel names in the order of the file, width, height, where the row table begins."""
    if data[:4] != _magic:
        raise ExrError("it is not an EXR file")
    if struct.unpack_from("<I", data, 4)[0] & _part_flags:
        raise ExrError("it has several parts")
    channels: list[str] = []
    width = height = 0
    at = 8
    while data[at] != 0:
        name, at = _text(data, at)
        _, at = _text(data, at)
        size = struct.unpack_from("<i", data, at)[0]
        value = data[at + 4 : at + 4 + size]
        at += 4 + size
        if name == "channels":
            channels = _read_channel_list(value)
        elif name == "dataWindow":
            left, top, right, bottom = struct.unpack("<4i", value)
            width, height = right - left + 1, bottom - top + 1
        elif name == "compression" and value != b"\0":
            raise ExrError("it is compressed")
    if not channels or width <= 0 or height <= 0:
        raise ExrError("it holds no picture")
    return channels, width, height, at + 1


def _read_channel_list(value: bytes) -> list[str]:
    names, at = [], 0
    while value[at] != 0:
        name, at = _text(value, at)
        kind, _, step_x, step_y = struct.unpack_from("<4i", value, at)
        if (kind, step_x, step_y) != (_float32, 1, 1):
            raise ExrError(f"its channel {name} is not one 32-bit float a pixel")
        names.append(name)
        at += 16
    return names


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(b"\0", at)
    return data[at:end].decode(), end + 1

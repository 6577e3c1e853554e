# SPDX-License-Identifier: GPL-3.0-or-later
"""Portraits of a character: reading them, and where to cut one out of a drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import png

most_portraits = 8
"""Of one character. Three are usual; more slow every comparison down."""

max_bytes = 32 * 1024 * 1024

head_margin = 0.25
"""Around a head that is cut out of a drawing, as a share of the longer side of its box."""

most_turned = 60.0
"""Degrees from facing the camera up to which a drawn head makes a portrait."""

_jpeg_start = b"\xff\xd8\xff"


class PortraitError(ValueError):
    """A portrait that cannot be used. message: what is wrong; fix: what to do about it."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(f"{message} {fix}")
        self.message = message
        self.fix = fix


@dataclass(frozen=True)
class Portrait:
    """A picture of a character's face. packed: its bytes, where they lie in the .blend file."""

    path: Path
    packed: bytes | None = None

    def read(self, character: str) -> bytes:
        """The bytes of the PNG or JPEG file. Raises PortraitError.

        character: whose it is, for the sentence.
        """
        what = f"The portrait {self.path.name} of {character}"
        data = self.packed
        try:
            if data is None and self.path.stat().st_size <= max_bytes:
                data = self.path.read_bytes()
        except OSError as error:
            raise PortraitError(
                f"{what} cannot be read: {error.strerror or error}.",
                "Choose it again (Cast > Portraits), or remove it there.",
            ) from None
        if data is None or len(data) > max_bytes:
            raise PortraitError(
                f"{what} is larger than {max_bytes // 2**20} MB.", "Save it smaller."
            )
        if not data.startswith((png.signature, _jpeg_start)):
            raise PortraitError(f"{what} is neither PNG nor JPEG.", "Save it as one of these.")
        return data


def head_square(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """The part of a picture to cut out for a head: left, top, right, bottom in whole pixels.

    box: left, top, width, height of the head in pixels. It is a square about the head's middle
    with `head_margin` around, moved into the picture; where the picture is smaller, all there is.
    """
    left, top, across, down = box
    side = max(across, down) * (1.0 + 2.0 * head_margin)
    wide, tall = min(round(side), width), min(round(side), height)
    x = min(max(round(left + across / 2 - side / 2), 0), width - wide)
    y = min(max(round(top + down / 2 - side / 2), 0), height - tall)
    return x, y, x + wide, y + tall

# SPDX-License-Identifier: GPL-3.0-or-later
"""How a verdict looks: a colour, a shape and a word, so that nobody has to tell colours apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

ink: Colour = (232, 232, 230)
faint: Colour = (150, 150, 152)
colours: dict[str, Colour] = {
    "same": (98, 190, 120),
    "unsure": (226, 172, 66),
    "other": (236, 108, 98),
    "ink": ink,
    "": faint,
}
"""By verdict; "ink" for plain text; "" for what matters less, heads without a verdict too."""
size = 14
line_height = 21
_side, _gap = 11, 9


@dataclass(frozen=True)
class HeadLine:
    """A head, or a character, in one line. mark: the verdict whose shape stands first.

    name stands in a column; parts: texts with a key of `colours` each.
    """

    mark: str
    name: str
    parts: Sequence[tuple[str, str]]


def lines_width(lines: Sequence[HeadLine]) -> int:
    """Pixels that lines below each other need; 0 for none."""
    font, names = ImageFont.load_default(size), _names(lines)
    return max((names + int(_after(line, font)) + 1 for line in lines), default=0)


def draw_lines(image: Image.Image, x: int, y: int, lines: Sequence[HeadLine]) -> None:
    """Draws lines of `line_height` pixels each into an RGB image, from the left top corner x, y."""
    draw = ImageDraw.Draw(image)
    font, names = ImageFont.load_default(size), _names(lines)
    for number, line in enumerate(lines):
        top = y + number * line_height
        draw_mark(image, x, top + (line_height - _side) // 2, line.mark)
        draw.text((x + _side + _gap, top + 2), line.name, fill=ink, font=font)
        at = float(x + names)
        for text, colour in line.parts:
            draw.text((at, top + 2), text, fill=colours[colour], font=font)
            at += font.getlength(text) + _gap


def draw_mark(image: Image.Image, x: int, y: int, verdict: str) -> None:
    """A disc for "same", a half disc for "unsure", a cross for "other", a dash for none."""
    last = 4 * _side - 1  # drawn four times as large, for smooth edges
    large = Image.new("L", (last + 1, last + 1))
    draw = ImageDraw.Draw(large)
    if verdict == "same":
        draw.ellipse((0, 0, last, last), fill=255)
    elif verdict == "unsure":
        draw.ellipse((0, 0, last, last), outline=255, width=5)
        draw.pieslice((0, 0, last, last), 90, 270, fill=255)
    elif verdict == "other":
        draw.line([(4, 4), (last - 4, last - 4)], fill=255, width=10)
        draw.line([(4, last - 4), (last - 4, 4)], fill=255, width=10)
    else:
        draw.line([(0, last // 2), (last, last // 2)], fill=255, width=6)
    shape = large.resize((_side, _side), Image.Resampling.BOX)
    image.paste(colours.get(verdict, faint), (x, y, x + _side, y + _side), shape)


def _names(lines: Sequence[HeadLine]) -> int:
    """From a line's left edge to what follows its name."""
    font = ImageFont.load_default(size)
    widest = max((font.getlength(line.name) for line in lines), default=0.0)
    return int(_side + _gap + widest + _gap) + 1


def _after(line: HeadLine, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> float:
    return sum(font.getlength(text) + _gap for text, _ in line.parts) - _gap

# SPDX-License-Identifier: GPL-3.0-or-later
"""The contact sheet: a row per shot, each drawn keyframe with its maps and its heads' scores.

Grey surround and small type, as a light table: nothing competes with the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

from onmodel.report.marks import HeadLine, draw_lines, faint, ink, line_height, lines_width

surround = (38, 38, 40)
paper = (52, 52, 55)
gap = 10
margin = 36


@dataclass(frozen=True)
class Cell:
    """One keyframe: its drawing (None: not drawn), its maps top to bottom, a caption, its heads.

    before: the same without the face pass, to show beside it.
    """

    caption: str
    drawing: Image.Image | None
    maps: Sequence[Image.Image] = field(default_factory=list)
    note: str = ""
    heads: Sequence[HeadLine] = ()
    before: Image.Image | None = None


@dataclass(frozen=True)
class Row:
    """One shot: its name, what its prompt says, its keyframes in film order."""

    title: str
    subtitle: str
    cells: Sequence[Cell]


def contact_sheet(
    title: str, rows: Sequence[Row], height: int = 288, summary: Sequence[HeadLine] = ()
) -> Image.Image:
    """Draws the sheet, RGB. height: of one drawing, in pixels; maps share that height.

    summary: lines under the title, one a character. Raises ValueError where there is nothing to
    show.
    """
    if not rows or not any(row.cells for row in rows):
        raise ValueError("A contact sheet needs at least one keyframe.")
    strips = [_row(row, height) for row in rows]
    heading = ImageFont.load_default(26)
    needed = max(int(heading.getlength(title)) + 1, lines_width(summary))
    width = max(needed, *(strip.width for strip in strips)) + 2 * margin
    head = 54 + (len(summary) * line_height + 14 if summary else 0)
    total = margin + head + sum(strip.height + 26 for strip in strips) + margin - 26
    sheet = Image.new("RGB", (width, total), surround)
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin - 8), title, fill=ink, font=heading)
    draw_lines(sheet, margin, margin + 36, summary)
    y = margin + head
    for strip in strips:
        sheet.paste(strip, (margin, y))
        y += strip.height + 26
    return sheet


def _row(row: Row, height: int) -> Image.Image:
    cells = [_cell(cell, height) for cell in row.cells]
    head = 34
    width = sum(c.width for c in cells) + 22 * max(0, len(cells) - 1)
    title_font, small = ImageFont.load_default(19), ImageFont.load_default(14)
    title_width = int(title_font.getlength(row.title))
    needed = title_width + 16 + int(small.getlength(row.subtitle))
    tall = max((cell.height for cell in cells), default=0)
    strip = Image.new("RGB", (max(width, needed), head + tall), surround)
    draw = ImageDraw.Draw(strip)
    draw.text((0, 2), row.title, fill=ink, font=title_font)
    draw.text((title_width + 16, 7), row.subtitle, fill=faint, font=small)
    x = 0
    for cell in cells:
        strip.paste(cell, (x, head))
        x += cell.width + 22
    return strip


def _cell(cell: Cell, height: int) -> Image.Image:
    maps = _map_column(cell.maps, height)
    if cell.drawing is not None:
        drawing = _fit(cell.drawing.convert("RGB"), height)
    else:
        drawing = _missing(cell.note or "not drawn", height)
    before = _fit(cell.before.convert("RGB"), height) if cell.before is not None else None
    beside = [part for part in (maps, before) if part is not None]
    column = sum(part.width + gap for part in beside)
    wide = max(drawing.width, lines_width(cell.heads))
    tall = height + 24 + line_height * len(cell.heads)
    picture = Image.new("RGB", (column + wide, tall), surround)
    draw, small = ImageDraw.Draw(picture), ImageFont.load_default(13)
    x = 0
    for part in beside:
        picture.paste(part, (x, 0))
        if part is before:
            draw.text((x, height + 5), "before the face pass", fill=faint, font=small)
        x += part.width + gap
    picture.paste(drawing, (column, 0))
    draw.text((column, height + 5), cell.caption, fill=faint, font=small)
    draw_lines(picture, column, height + 24, cell.heads)
    return picture


def _map_column(maps: Sequence[Image.Image], height: int) -> Image.Image | None:
    if not maps:
        return None
    small = (height - gap * (len(maps) - 1)) // len(maps)
    fitted = [_fit(image.convert("RGB"), small) for image in maps]
    column = Image.new("RGB", (max(i.width for i in fitted), height), surround)
    for number, image in enumerate(fitted):
        column.paste(image, (0, number * (small + gap)))
    return column


def _fit(image: Image.Image, height: int) -> Image.Image:
    width = max(1, round(image.width * height / image.height))
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _missing(reason: str, height: int) -> Image.Image:
    image = Image.new("RGB", (height, height), paper)
    draw = ImageDraw.Draw(image)
    draw.multiline_text((16, height // 2 - 10), reason, fill=faint, font=ImageFont.load_default(14))
    return image

# SPDX-License-Identifier: GPL-3.0-or-later
"""The sheet of heads before and after the face pass: pairs of crops, a row per character.

Both are taken from finished drawings: a folder that was drawn without the face pass, and one with
it and otherwise the same. A drawing holds its head after the pass only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from onmodel.report.contact_sheet import margin, surround
from onmodel.report.crops import head_crop
from onmodel.report.film import Head, Keyframe, film_table
from onmodel.report.marks import HeadLine, draw_lines, faint, ink, line_height, lines_width

log = logging.getLogger(__name__)

_states = {"repaired": "repaired", "kept": "kept as drawn", "skipped": "left alone"}


@dataclass(frozen=True)
class Pair:
    """One head in two drawings of the same keyframe."""

    before: tuple[Keyframe, Head]
    after: tuple[Keyframe, Head]


def pairs_of(before: Sequence[Keyframe], after: Sequence[Keyframe]) -> list[Pair]:
    """The heads that both folders show: same shot, frame, take, seed and character.

    Heads without a box and heads that the pass left alone are no pair; what is missing in one of
    the folders, or was drawn from another seed, is logged.
    """
    former = {(k.shot, k.frame, k.take): k for k in before}
    pairs = []
    for keyframe in after:
        old = former.get((keyframe.shot, keyframe.frame, keyframe.take))
        if old is None or old.seed != keyframe.seed:
            why = "is not in the folder before" if old is None else "has another seed there"
            log.warning("%s is left out: it %s.", keyframe.title, why)
            continue
        heads = {head.character: head for head in old.heads}
        for head in keyframe.heads:
            worked = head.face is not None and head.face.state != "skipped"
            if worked and head.box is not None and head.character in heads:
                pairs.append(Pair((old, heads[head.character]), (keyframe, head)))
    return pairs


def before_after_sheet(title: str, pairs: Sequence[Pair], side: int = 150) -> Image.Image:
    """Draws the sheet, RGB. side: of one crop, in pixels.

    Raises ValueError where there is no pair.
    """
    if not pairs:
        raise ValueError("No head was drawn again in these drawings.")
    names = list(dict.fromkeys(pair.after[1].character for pair in pairs))
    rows = [(name, [p for p in pairs if p.after[1].character == name]) for name in names]
    per_line = 6
    cells = [[_cell(pair, side) for pair in own] for _, own in rows]
    wide = max(cell.width for row in cells for cell in row)
    tall = max(cell.height for row in cells for cell in row)
    most = min(per_line, max(map(len, cells)))
    lines = [-(-len(row) // per_line) for row in cells]
    heading, small = ImageFont.load_default(26), ImageFont.load_default(14)
    notes = [_gain(name, pairs) for name in names]
    need = max(
        int(heading.getlength(title)),
        *(int(small.getlength(note)) + 120 for note in notes),
        most * (wide + 26) - 26,
    )
    total = 2 * margin + 46 + sum(40 + count * (tall + 18) for count in lines)
    sheet = Image.new("RGB", (need + 2 * margin, total), surround)
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, margin - 8), title, fill=ink, font=heading)
    y = margin + 46
    for (name, _), row, note in zip(rows, cells, notes, strict=True):
        draw.text((margin, y), name, fill=ink, font=ImageFont.load_default(19))
        at = margin + int(ImageFont.load_default(19).getlength(name)) + 16
        draw.text((at, y + 5), note, fill=faint, font=small)
        y += 34
        for number, cell in enumerate(row):
            column, line = number % per_line, number // per_line
            sheet.paste(cell, (margin + column * (wide + 26), y + line * (tall + 18)))
        y += -(-len(row) // per_line) * (tall + 18) + 6
    return sheet


def _gain(name: str, pairs: Sequence[Pair]) -> str:
    """How many heads were repaired and what it brought, in words."""
    keyframes = {id(p.after[0]): p.after[0] for p in pairs}
    row = next(r for r in film_table(keyframes.values()) if r.character == name)
    counts = [f"{row.faces[s]} {words}" for s, words in _states.items() if row.faces.get(s)]
    if row.gain is not None:
        gain = row.gain
        counts.append(
            f"repaired heads {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] cosine"
        )
    return ", ".join(counts)


def _cell(pair: Pair, side: int) -> Image.Image:
    keyframe, head = pair.after
    face = head.face
    assert head.box is not None and face is not None
    old = head_crop(pair.before[0].png, head.box, side)
    new = head_crop(keyframe.png, head.box, side)
    before = face.before if face.before is not None else pair.before[1].value
    if head.value is None:
        line = HeadLine("", head.words, [])
    elif face.state == "repaired" and before is not None:
        line = HeadLine(head.verdict, f"{before:.2f} to {head.value:.2f}", _words(head))
    else:
        said = [*_words(head), ("repair not kept", "")] if face.state == "kept" else _words(head)
        line = HeadLine(head.verdict, f"{head.value:.2f}", said)
    width = max(2 * side + 4, lines_width([line]))
    cell = Image.new("RGB", (width, side + 24 + line_height), surround)
    cell.paste(old, (0, 0))
    cell.paste(new, (side + 4, 0))
    draw = ImageDraw.Draw(cell)
    draw.text((0, side + 5), keyframe.title, fill=faint, font=ImageFont.load_default(13))
    draw_lines(cell, 0, side + 24, [line])
    return cell


def _words(head: Head) -> list[tuple[str, str]]:
    return [(head.words, head.verdict)]

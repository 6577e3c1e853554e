# SPDX-License-Identifier: GPL-3.0-or-later
"""The identity of checkpoints as a curve with its intervals, drawn with Pillow."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from onmodel.identity.report import Interval

_width, _height = 900, 480
_left, _top, _right, _bottom = 70, 50, 30, 50
_ink, _faint, _band = (30, 30, 30), (205, 205, 205), (196, 216, 240)
_line, _chosen, _base = (38, 92, 160), (200, 60, 30), (130, 130, 130)


def draw(
    points: Sequence[tuple[int, Interval | None]],
    base: Interval | None,
    best: int | None,
    title: str,
) -> bytes:
    """PNG. points: step and identity; those without a number are left out of the line.

    base: of the base model's drawings, a dashed line. best: step to mark.
    """
    known = [(step, value) for step, value in points if value is not None]
    image = Image.new("RGB", (_width, _height), "white")
    pen = ImageDraw.Draw(image)
    pen.text((_left, 16), title, _ink, ImageFont.load_default(16))
    lows = [v.low for _, v in known] + ([base.low] if base else [])
    highs = [v.high for _, v in known] + ([base.high] if base else [])
    low, high = _limits(min(lows, default=0.0), max(highs, default=1.0))
    last = max((step for step, _ in points), default=1)

    def at(step: float, value: float) -> tuple[float, float]:
        x = _left + step / last * (_width - _left - _right)
        y = _height - _bottom - (value - low) / (high - low) * (_height - _top - _bottom)
        return x, y

    _grid(pen, at, low, high, last)
    if known:
        upper = [at(s, v.high) for s, v in known]
        lower = [at(s, v.low) for s, v in known]
        if len(known) > 1:
            pen.polygon(upper + lower[::-1], _band)
        pen.line([at(s, v.value) for s, v in known], _line, 3)
    if base is not None:
        _dashed(pen, at(0, base.value), at(last, base.value))
    for step, value in known:
        x, y = at(step, value.value)
        pen.line([at(step, value.low), at(step, value.high)], _line, 1)
        size, colour = (7, _chosen) if step == best else (4, _line)
        pen.ellipse((x - size, y - size, x + size, y + size), colour)
        if step == best:
            pen.text((x, y - 26), f"{value.value:.3f}", _chosen, ImageFont.load_default(14), "mm")
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def _limits(low: float, high: float) -> tuple[float, float]:
    """Round tenths around the values."""
    return math.floor(low * 10) / 10, max(math.ceil(high * 10), math.floor(low * 10) + 1) / 10


def _grid(pen: ImageDraw.ImageDraw, at: object, low: float, high: float, last: int) -> None:
    assert callable(at)
    font = ImageFont.load_default(12)
    for tenth in range(round(low * 10), round(high * 10) + 1):
        (x0, y), (x1, _) = at(0, tenth / 10), at(last, tenth / 10)
        pen.line([(x0, y), (x1, y)], _faint, 1)
        pen.text((x0 - 10, y), f"{tenth / 10:.1f}", _ink, font, "rm")
    for quarter in range(5):
        step = round(last * quarter / 4)
        x, y = at(step, low)
        pen.text((x, y + 8), str(step), _ink, font, "ma")
    pen.text((_width - _right, _height - 22), "step", _ink, font, "rm")


def _dashed(pen: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float]) -> None:
    x, y = start
    while x < end[0]:
        pen.line([(x, y), (min(x + 8, end[0]), y)], _base, 2)
        x += 14
    pen.text((end[0], y - 10), "without LoRA", _base, ImageFont.load_default(12), "rm")

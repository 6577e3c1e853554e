# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
from onmodel.report.contact_sheet import Cell, Row, contact_sheet, surround
from PIL import Image


def test_drawings_and_maps_stand_in_shot_rows():
    red, blue = Image.new("RGB", (64, 36), "red"), Image.new("L", (64, 36), 255)
    rows = [
        Row("010", "city", [Cell("frame 1", red, [blue, blue]), Cell("frame 24", red, [blue])]),
        Row("020", "room", [Cell("frame 25", None, note="the server has gone")]),
    ]
    sheet = contact_sheet("Film", rows, height=100)
    colours = {c for _, c in sheet.getcolors(maxcolors=10**6)}
    assert (255, 0, 0) in colours and (255, 255, 255) in colours and surround in colours
    reds = [xy for xy in _pixels(sheet, (255, 0, 0))]
    assert len(reds) == pytest.approx(2 * 100 * 178, rel=0.02)
    assert max(y for _, y in reds) < sheet.height / 2


def test_nothing_to_show_is_said():
    with pytest.raises(ValueError, match="at least one keyframe"):
        contact_sheet("Film", [])


def _pixels(image, colour):
    data = image.load()
    return [(x, y) for x in range(image.width) for y in range(image.height) if data[x, y] == colour]

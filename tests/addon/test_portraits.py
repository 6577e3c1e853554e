# SPDX-License-Identifier: GPL-3.0-or-later
"""Portraits: what can be used, and the square about a head."""

import numpy as np
import pytest

from addon.core import png, portraits
from addon.core.portraits import Portrait, PortraitError


@pytest.fixture
def picture():
    return png.encode(np.full((8, 8, 3), 90, np.uint8))


def test_a_file_and_a_packed_one_are_read(tmp_path, picture):
    path = tmp_path / "ada.png"
    path.write_bytes(picture)
    assert Portrait(path).read("Ada") == picture
    assert Portrait(tmp_path / "gone.png", picture).read("Ada") == picture
    path.write_bytes(b"\xff\xd8\xff\xe0 and so on")
    assert Portrait(path).read("Ada").startswith(b"\xff\xd8")


def test_what_cannot_be_used_says_what_to_do(tmp_path, picture, monkeypatch):
    with pytest.raises(PortraitError, match=r"gone.png of Ada cannot be read.*remove it"):
        Portrait(tmp_path / "gone.png").read("Ada")
    words = tmp_path / "words.png"
    words.write_text("no picture")
    with pytest.raises(PortraitError, match="neither PNG nor JPEG"):
        Portrait(words).read("Ada")
    monkeypatch.setattr(portraits, "max_bytes", 4)
    for large in (Portrait(words), Portrait(words, picture)):
        with pytest.raises(PortraitError, match="larger than"):
            large.read("Ada")


@pytest.mark.parametrize(
    ("box", "square"),
    [
        ((40, 30, 20, 20), (35, 25, 65, 55)),
        ((40, 30, 10, 20), (30, 25, 60, 55)),
        ((0, 0, 20, 20), (0, 0, 30, 30)),
        ((90, 70, 20, 20), (70, 50, 100, 80)),
        ((0, 0, 100, 80), (0, 0, 100, 80)),
    ],
)
def test_the_square_about_a_head_lies_in_the_picture(box, square):
    assert portraits.head_square(box, 100, 80) == square

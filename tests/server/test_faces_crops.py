# SPDX-License-Identifier: GPL-3.0-or-later
"""The face pass's geometry: squares, feathers, not one byte outside, who is skipped and why."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from onmodel.faces.crops import (
    Square,
    enlarge,
    enlarge_map,
    enlarge_mask,
    feather,
    mask_bounds,
    paste,
    square_around,
)
from onmodel.faces.heads import (
    FaceRules,
    HeadRegion,
    head_distance,
    head_regions,
    plan_repairs,
)

width, height = 320, 200


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width] + 0.5
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


def head(name: str = "Ann", x: float = 160, y: float = 90, radius: float = 25, **more):
    box = (x - radius, y - radius, 2 * radius, 2 * radius)
    values = {"yaw": 10.0, "visible": 1.0, "mask": disc(x, y, radius), "distance": None} | more
    return HeadRegion(0, name, box, **values)


def test_squares_hold_their_head_and_lie_inside():
    """Anywhere on the canvas, also at its borders, with and without a margin."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        x, y = rng.uniform(-20, width + 20), rng.uniform(-20, height + 20)
        w, h = rng.uniform(2, 150, 2)
        bounds = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        margin, multiple = rng.choice([0.0, 0.35, 1.0]), int(rng.choice([1, 8, 64]))
        square = square_around(bounds, margin, multiple, width, height)
        left, top = max(bounds[0], 0), max(bounds[1], 0)
        right, bottom = min(bounds[2], width), min(bounds[3], height)
        if right <= left or bottom <= top:
            assert square is None
            continue
        assert square.left <= left and square.top <= top
        assert square.left + square.side >= right and square.top + square.side >= bottom
        assert square.left >= 0 and square.left + square.side <= width
        assert square.top >= 0 and square.top + square.side <= height


def test_sides_come_in_steps_with_the_margin_around():
    assert square_around((100, 50, 150, 90), 0.25, 8, width, height) == Square(85, 30, 80)
    assert square_around((100, 50, 151, 90), 0.25, 8, width, height).side == 80
    assert square_around((0, 0, 50, 50), 0.25, 8, width, height) == Square(0, 0, 80)
    assert square_around((10, 0, 210, 200), 0.5, 8, width, height).side == 200
    assert square_around((10, 0, 211, 200), 0.5, 8, width, height) is None


def test_there_and_back_is_the_picture():
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns // 2, rows // 2 + columns // 4], -1).astype(np.uint8)
    square = Square(40, 20, 96)
    large = enlarge(image, square, 384)
    assert large.shape == (384, 384, 3)
    back = paste(image, large, square, np.ones((height, width), np.float32))
    assert np.abs(back.astype(int) - image).max() <= 1
    assert enlarge_map(image[..., 0], square, 192).shape == (192, 192)
    middle = enlarge_map(image, square, 192)[96, 96].astype(int)
    assert np.abs(middle - image[20 + 48, 40 + 48]).max() <= 1
    mask = enlarge_mask(disc(88, 68, 20), square, 384)
    assert mask.dtype == np.float32 and mask.min() == 0 and mask.max() == 1
    assert abs(mask.mean() - np.pi * 20**2 / 96**2) < 0.005


@pytest.mark.parametrize("radius", [0, 1, 3, 9])
def test_not_one_byte_changes_outside_the_feathered_mask(radius):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    mask = disc(30, 60, 28)
    alpha = feather(mask, radius)
    square = square_around(mask_bounds(mask), 0.35, 8, width, height)
    repaired = rng.integers(0, 255, (256, 256, 3), dtype=np.uint8)
    before = image.copy()
    out = paste(image, repaired, square, alpha)
    assert np.array_equal(image, before)
    assert np.array_equal(out[alpha == 0], image[alpha == 0])
    assert (out[mask] != image[mask]).mean() > 0.8
    # The feather ends within `radius` of the mask, and reaches 1 deep inside.
    grown = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        grown[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1] = True
    assert not alpha[~grown].any()
    assert alpha[60, 30] == 1 and alpha.max() == 1


def test_a_feather_is_a_ramp_and_stops_before_others():
    mask = np.zeros((height, width), bool)
    mask[:, :100] = True
    row = feather(mask, 4)[100, 94:106]
    assert np.allclose(row, [1, 1, *(np.arange(8, 0, -1) / 9), 0, 0])
    allowed = np.zeros_like(mask)
    allowed[:, :102] = True
    kept = feather(mask, 4, allowed)[100]
    assert kept[101] > 0 and not kept[102:].any()
    # At the canvas's border a head is whole: nothing beyond it thins the mask out.
    assert feather(mask, 4)[0, 0] == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"yaw": 140.0}, "looks away from the camera: 140°"),
        ({"yaw": -220.0}, "looks away from the camera: 140°"),
        ({"radius": 8}, "too small: 16 of at least 24"),
        ({"visible": 0.1}, "hidden: 10 % are seen"),
        ({"mask": np.zeros((height, width), bool)}, "Nothing of its head"),
        ({"mask": np.ones((height, width), bool)}, "larger than any square"),
    ],
)
def test_skipped_heads_say_why(changes, words):
    repairs, (skip,) = plan_repairs([head(**changes)], FaceRules())
    assert not repairs and skip.name == "Ann" and words in skip.reason
    assert plan_repairs([head(yaw=-350.0)], FaceRules())[0]


def test_large_heads_need_no_repair():
    assert "drawn large already" in plan_repairs([head()], FaceRules(size=80))[1][0].reason


def test_far_heads_come_first_and_keep_out_of_near_ones():
    near = head("Near", x=150, radius=40, distance=2.0)
    covered = disc(200, 90, 25) & ~near.mask
    far = head("Far", x=200, mask=covered, distance=5.0)
    repairs, skips = plan_repairs([near, far], FaceRules())
    assert [r.head.name for r in repairs] == ["Far", "Near"] and not skips
    assert not repairs[0].alpha[near.mask].any() and not repairs[1].alpha[far.mask].any()
    # Without a distance the smaller head counts as the farther one.
    unknown = head("Near", x=150, radius=40)
    assert [r.head.name for r in plan_repairs([unknown, far], FaceRules())[0]] == ["Far", "Near"]


def test_heads_come_from_the_request():
    mask = disc(160, 90, 25)

    def point(z: float) -> dict:
        return {"x": 0.0, "y": 0.0, "z": z, "state": "visible"}

    body = [None] * 18
    body[0], body[14], body[16], body[1] = point(3.0), point(2.9), point(-1.0), point(9.0)
    box = {"x": 135.0, "y": 65.0, "width": 50.0, "height": 50.0}
    seen = {"box": box, "yaw": 5.0, "pitch": 0.0, "visible": 0.9, "mask": "a" * 64}
    characters = [
        {"name": "Ann", "head": seen, "pose": {"body": body}},
        {"name": "Bob", "head": None, "pose": {"body": []}},
        {"name": "Eve", "head": seen | {"mask": None}},
    ]
    (ann,), skips = head_regions({"characters": characters}, lambda sha256, name: mask)
    assert ann.distance == pytest.approx(2.95) and ann.box[2] == 50 and ann.index == 0
    assert [(s.index, s.name) for s in skips] == [(1, "Bob"), (2, "Eve")]
    assert head_distance({}) is None


def test_geometry_needs_no_torch():
    code = "import sys, onmodel.faces.heads; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

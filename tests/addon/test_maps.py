# SPDX-License-Identifier: GPL-3.0-or-later
import math

import numpy as np
import pytest

from addon.core import depth, lines, normals

inf = np.inf


def test_depth_is_disparity_near_white_far_black_background_black():
    z = np.array([[1.0, 2.0, 4.0, inf, np.nan, 0.0, -1.0, 0.5, 9.0]], np.float32)
    assert depth.depth_map(z, 1.0, 4.0).tolist() == [[255, 85, 0, 0, 0, 0, 0, 255, 0]]
    # Disparity, not distance: half way between 1 and 1/4.
    assert abs(int(depth.depth_map(np.float32([[1.6]]), 1.0, 4.0)[0, 0]) - 128) <= 1
    master = depth.depth_master(z, 1.0, 4.0)
    assert master.dtype == np.uint16 and master[0, :3].tolist() == [65535, 21845, 0]


def test_the_range_is_of_all_keyframes_and_stray_pixels_do_not_spend_it():
    near_frame = np.full((100, 100), 2.0, np.float32)
    far_frame = np.full((100, 100), 10.0, np.float32)
    near_frame[0, 0], far_frame[:, :50] = 0.01, inf
    near, far = depth.depth_range([near_frame, far_frame])
    assert near == pytest.approx(2.0) and far == pytest.approx(10.0)


def test_the_range_of_large_frames_is_that_of_all_their_pixels():
    # Columns repeat with a period that a coarse sample could meet by accident.
    z = np.tile(np.linspace(1, 30, 64, dtype=np.float32), (1024, 16))
    near, far = depth.depth_range([z])
    assert near == pytest.approx(np.percentile(z, 0.5), rel=0.05)
    assert far == pytest.approx(np.percentile(z, 98), rel=0.05)


def test_a_flat_wall_and_nothing_at_all_have_a_range():
    near, far = depth.depth_range([np.full((8, 8), 3.0, np.float32)])
    assert near == pytest.approx(3.0) and far > near
    assert (depth.depth_map(np.full((8, 8), 3.0, np.float32), near, far) == 255).all()
    empty = np.full((8, 8), inf, np.float32)
    for frames in ([], [empty]):
        near, far = depth.depth_range(frames)
        assert not depth.depth_map(empty, near, far).any()


@pytest.mark.parametrize("ends", [(0, 1), (2, 2), (3, 1), (1, inf), (math.nan, 2)])
def test_a_range_that_is_none_is_refused(ends):
    with pytest.raises(ValueError, match="near < far"):
        depth.depth_map(np.ones((2, 2), np.float32), *ends)


def colour(normal, matrix=None):
    picture = normals.normal_map(
        np.array([[normal]], np.float32),
        np.eye(4) if matrix is None else matrix,
        np.zeros((1, 1), bool),
    )
    return picture[0, 0].tolist()


def test_red_is_left_green_is_up_blue_is_toward_the_camera():
    assert colour((0, 0, 1)) == [128, 128, 255]
    assert colour((-1, 0, 0)) == [255, 128, 128]
    assert colour((1, 0, 0)) == [0, 128, 128]
    assert colour((0, 1, 0)) == [128, 255, 128]
    assert colour((0, -5, 0)) == [128, 0, 128]  # of any length


def test_normals_turn_with_the_camera_and_scale_does_not_matter():
    # The camera of a new Blender scene turned to look along +y: its right is +x, its up is +z.
    matrix = np.array([[1, 0, 0, 4], [0, 0, -1, 5], [0, 1, 0, 6], [0, 0, 0, 1]], float)
    for scaled in (matrix, matrix @ np.diag([2, 3, 0.1, 1])):
        assert colour((0, -1, 0), scaled) == [128, 128, 255]
        assert colour((0, 0, 1), scaled) == [128, 255, 128]
        assert colour((-1, 0, 0), scaled) == [255, 128, 128]


def test_every_direction_keeps_its_length():
    directions = np.random.default_rng(0).normal(size=(40, 50, 3)).astype(np.float32)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    picture = normals.normal_map(directions, matrix, np.zeros((40, 50), bool))
    back = (picture.astype(float) / 255 * 2 - 1) * [-1, 1, 1]
    unit = directions / np.linalg.norm(directions, axis=2, keepdims=True)
    assert np.abs(back - unit @ turn).max() < 1.5 / 127.5


def test_background_and_missing_normals_have_the_background_colour():
    field = np.zeros((1, 4, 3), np.float32)
    field[0, 1] = (np.nan, np.nan, np.nan)
    field[0, 2] = field[0, 3] = (1, 0, 0)
    picture = normals.normal_map(field, np.eye(4), np.array([[False, True, True, False]]))
    assert picture[0, :3].tolist() == [[128, 128, 255]] * 3
    assert picture[0, 3].tolist() == [0, 128, 128]


# --- lines ---------------------------------------------------------------------------------------


def wall(size, z=4.0):
    """A wall that faces the camera: distances, normals, no objects."""
    facing = np.zeros((size, size, 3), np.float32)
    facing[..., 2] = 1
    return np.full((size, size), z, np.float32), facing, np.zeros((size, size), int)


def test_flat_things_have_no_lines_not_even_a_floor_seen_at_a_low_angle():
    z, facing, ids = wall(256)
    assert not lines.line_map(z, facing, ids).any()
    rows = np.arange(1, 257, dtype=np.float32)
    floor = np.repeat((200 / rows)[:, None], 256, axis=1)  # 200 m to 0.8 m in one picture
    up = np.zeros_like(facing)
    up[..., 1] = 1
    assert not lines.line_map(floor, up, ids).any()


@pytest.mark.parametrize(("size", "width"), [(256, 1), (1024, 2)])
def test_a_silhouette_is_a_closed_line_on_what_is_in_front(size, width):
    z, facing, ids = wall(size)
    a, b = size // 4, size // 2
    z[a:b, a:b] = 3.0
    picture = lines.line_map(z, facing, ids)
    assert set(np.unique(picture)) == {0, 255}
    across = np.flatnonzero(picture[(a + b) // 2])
    expected = [a, b - 1] if width == 1 else [a - 1, a, b - 1, b]
    assert across.tolist() == expected
    corner = picture[a - width + 1 : b + width - 1, a] == 255
    assert corner.all()


def test_creases_and_borders_of_objects_are_lines_and_gentle_bends_are_not():
    z, facing, ids = wall(256)
    facing[:, 128:] = (math.sin(1.0), 0, math.cos(1.0))
    assert np.flatnonzero(lines.line_map(z, facing, ids)[100]).tolist() == [127]
    z, facing, ids = wall(256)
    facing[:, 128:] = (math.sin(0.2), 0, math.cos(0.2))
    assert not lines.line_map(z, facing, ids).any()
    ids[:, 200:] = 7
    assert np.flatnonzero(lines.line_map(z, facing, ids)[100]).tolist() == [199]


def test_the_border_to_the_background_is_a_line_and_specks_are_not():
    z, facing, ids = wall(256)
    z[:100], facing[:100] = inf, 0
    picture = lines.line_map(z, facing, ids)
    assert np.flatnonzero(picture[:, 50]).tolist() == [100]
    z, facing, ids = wall(256)
    z[40, 40] = 2.0
    assert not lines.line_map(z, facing, ids).any()
    tiny = np.ones((1, 2), np.float32)
    assert lines.line_map(tiny, np.zeros((1, 2, 3)), np.zeros((1, 2), int)).shape == (1, 2)


def test_the_bands_that_maps_are_made_in_leave_no_trace(monkeypatch):
    draw = np.random.default_rng(3)
    z = np.where(draw.random((150, 90)) < 0.1, inf, draw.uniform(2, 2.2, (150, 90)))
    field = draw.normal(size=(150, 90, 3)).astype(np.float32)
    ids = draw.integers(0, 2, (150, 90)).cumsum(axis=0) // 40
    background = ~np.isfinite(z)
    found = []
    for rows in (7, 64, 1000):
        monkeypatch.setattr(lines, "_band", rows)
        monkeypatch.setattr(normals, "_band", rows)
        found.append(
            (lines.line_map(z, field, ids), normals.normal_map(field, np.eye(4), background))
        )
    assert found[0][0].any()
    for other in found[1:]:
        assert all((a == b).all() for a, b in zip(found[0], other, strict=True))

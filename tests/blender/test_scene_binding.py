# SPDX-License-Identifier: GPL-3.0-or-later
"""Pairing markers with stored shots, and numbering."""

import pytest

from addon.scene.binding import Mark, bind, uid_for

a, b = Mark(1, "010", "A"), Mark(25, "020", "B")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param([a, b], id="nothing"),
        pytest.param([a, Mark(40, "020", "B")], id="moved"),
        pytest.param([a, Mark(25, "finale", "B")], id="renamed"),
        pytest.param([a, Mark(25, "020", "C")], id="another camera"),
        pytest.param([a, Mark(40, "020", "C")], id="another camera and moved"),
        pytest.param([a, Mark(40, "finale", "B")], id="renamed and moved"),
        pytest.param([Mark(25, "010", "A"), Mark(1, "020", "B")], id="swapped in time"),
        pytest.param([Mark(1, "020", "A"), Mark(25, "010", "B")], id="swapped names"),
    ],
)
def test_a_shot_survives(change):
    # The one marker whose camera, name or frame is still its own keeps its row.
    assert bind(change, [a, b]) == [0, 1]


def test_order_of_markers_is_free():
    assert bind([b, a], [a, b]) == [1, 0]


def test_one_camera_many_shots():
    rows = [Mark(1, "010", "A"), Mark(25, "020", "A"), Mark(50, "030", "A")]
    moved = [Mark(3, "010", "A"), Mark(20, "020", "A"), Mark(50, "dusk", "A")]
    assert bind(moved, rows) == [0, 1, 2]


def test_a_copied_marker_is_a_new_shot():
    assert bind([a, Mark(12, "010", "A")], [a]) == [0, None]


def test_a_lost_row_comes_back_only_for_its_own_marker():
    lost = Mark(25, "020", "B", detached=True)
    assert bind([a, Mark(60, "dusk", "B")], [a, lost]) == [0, None]
    assert bind([a, Mark(60, "020", "B")], [a, lost]) == [0, 1]


def test_uids_are_repeatable_and_unique():
    first = uid_for(a, "A", [])
    assert first == uid_for(a, "A", [])
    assert uid_for(a, "A", [first]) != first

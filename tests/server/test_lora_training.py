# SPDX-License-Identifier: GPL-3.0-or-later
"""The data that a person of the world is trained on."""

from __future__ import annotations

import numpy as np

from world.lora_training import by_head, head_of


def test_a_head_weighs_as_much_as_the_rest_of_its_person():
    mask = np.zeros((100, 60), np.uint8)
    mask[10:20, 20:30] = 255
    mask[20:70, 10:40] = 255
    weights = by_head(mask, [20, 10, 30, 20])
    head, body = weights[10:20, 20:30], weights[20:70, 10:40]
    assert (head == 255).all() and (weights[mask == 0] == 0).all()
    assert abs(float(body.sum()) / (100 * 255) - 1.5) < 0.1  # a tenth is the least: 1500 / 10 cells
    near = by_head(mask, [10, 10, 40, 60])
    assert (near == mask).all()
    assert by_head(mask, None) is mask


def test_hair_to_the_hips_is_no_head():
    assert head_of([103, 3, 142, 89], [104, 4, 129, 34]) == (103, 3, 142, 64)
    assert head_of([8, 12, 214, 219], [8, 12, 198, 200]) == (8, 12, 214, 219)
    assert head_of(None, None) is None


def test_weights_stand_in_proportion_where_they_may():
    mask = np.full((40, 40), 255, np.uint8)
    weights = by_head(mask, [0, 0, 40, 10])
    assert (weights[:10] == 255).all()
    assert abs(float(weights[10:].sum()) / float(weights[:10].sum()) - 1) < 0.01

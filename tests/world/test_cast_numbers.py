# SPDX-License-Identifier: GPL-3.0-or-later
"""Arithmetic of the cast's benches: assignment, CIEDE2000 on published pairs, steps at a border."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bench.cast_numbers import assigned, delta_e, grouped, steps

published = (
    ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
    ((50.0, 3.1571, -77.2803), (50.0, 0.0, -82.7485), 2.8615),
    ((50.0, 2.8361, -74.0200), (50.0, 0.0, -82.7485), 3.4412),
    ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0000),
    ((50.0, -1.1848, -84.8006), (50.0, 0.0, -82.7485), 1.0000),
    ((50.0, -0.9009, -85.5211), (50.0, 0.0, -82.7485), 1.0000),
    ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
    ((50.0, -1.0, 2.0), (50.0, 0.0, 0.0), 2.3669),
    ((50.0, 2.4900, -0.0010), (50.0, -2.4900, 0.0009), 7.1792),
    ((50.0, 2.4900, -0.0010), (50.0, -2.4900, 0.0010), 7.1792),
    ((50.0, 2.4900, -0.0010), (50.0, -2.4900, 0.0011), 7.2195),
    ((50.0, 2.4900, -0.0010), (50.0, -2.4900, 0.0012), 7.2195),
    ((50.0, -0.0010, 2.4900), (50.0, 0.0009, -2.4900), 4.8045),
    ((50.0, -0.0010, 2.4900), (50.0, 0.0010, -2.4900), 4.8045),
    ((50.0, -0.0010, 2.4900), (50.0, 0.0011, -2.4900), 4.7461),
    ((50.0, 2.5, 0.0), (50.0, 0.0, -2.5), 4.3065),
    ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
    ((50.0, 2.5, 0.0), (61.0, -5.0, 29.0), 22.8977),
    ((50.0, 2.5, 0.0), (56.0, -27.0, -3.0), 31.9030),
    ((50.0, 2.5, 0.0), (58.0, 24.0, 15.0), 19.4535),
    ((50.0, 2.5, 0.0), (50.0, 3.1736, 0.5854), 1.0000),
    ((50.0, 2.5, 0.0), (50.0, 3.2972, 0.0), 1.0000),
    ((50.0, 2.5, 0.0), (50.0, 1.8634, 0.5757), 1.0000),
    ((50.0, 2.5, 0.0), (50.0, 3.2592, 0.3350), 1.0000),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((63.0109, -31.0961, -5.8663), (62.8187, -29.7946, -4.0864), 1.2630),
    ((61.2901, 3.7196, -5.3901), (61.4292, 2.2480, -4.9620), 1.8731),
    ((35.0831, -44.1164, 3.7933), (35.0232, -40.0716, 1.5901), 1.8645),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((36.4612, 47.8580, 18.3852), (36.2715, 50.5065, 21.2231), 1.4146),
    ((90.8027, -2.0831, 1.4410), (91.1528, -1.6435, 0.0447), 1.4441),
    ((90.9257, -0.5406, -0.9208), (88.6381, -0.8985, -0.7239), 1.5381),
    ((6.7747, -0.2908, -2.4247), (5.8714, -0.0985, -2.2286), 0.6377),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
)
"""CIELAB pairs and their CIEDE2000: table 1 of Sharma, Wu, Dalal 2005, all 34."""


def test_colour_differences_are_those_of_the_published_pairs():
    one, other = (np.array([pair[side] for pair in published]) for side in (0, 1))
    wanted = np.array([pair[2] for pair in published])
    assert np.abs(delta_e(one, other) - wanted).max() < 1e-4
    assert np.abs(delta_e(other, one) - wanted).max() < 1e-4


def test_heads_are_assigned_so_that_the_sum_is_largest():
    assert assigned(np.array([[0.9, 0.1], [0.2, 0.3]])) == (0, 1)
    # The first head is most like the second character, but so is the second, and much more.
    assert assigned(np.array([[0.5, 0.6], [0.0, 0.9]])) == (0, 1)
    assert assigned(np.array([[0.1, 0.8], [0.7, 0.6]])) == (1, 0)
    rng = np.random.default_rng(3)
    for n in (3, 4, 5):
        alike = rng.normal(size=(n, n))
        best = max(
            sum(alike[i, j] for i, j in enumerate(order))
            for order in itertools.permutations(range(n))
        )
        assert sum(alike[i, j] for i, j in enumerate(assigned(alike))) == pytest.approx(best)


def test_an_assignment_of_no_numbers_is_refused():
    with pytest.raises(ValueError, match="square of numbers"):
        assigned(np.array([[0.1, np.nan], [0.2, 0.3]]))
    with pytest.raises(ValueError, match="square of numbers"):
        assigned(np.zeros((2, 3)))


def test_steps_are_taken_across_the_border_and_one_further_in():
    lab = np.zeros((9, 12, 3))
    mask = np.zeros((9, 12), bool)
    mask[2:7, 3:9] = True
    lab[mask] = (40.0, 0.0, 0.0)
    across, inside = steps(lab, mask)
    # Two rows and two columns of borders, every pixel of them once.
    assert len(across) == len(inside) == 2 * 5 + 2 * 6
    assert across.min() > 20 and inside.max() == 0


def test_a_mask_of_one_pixel_has_no_inside():
    mask = np.zeros((5, 5), bool)
    mask[2, 2] = True
    across, inside = steps(np.zeros((5, 5, 3)), mask)
    assert len(across) == len(inside) == 0


def test_values_are_grouped_by_whose_they_are():
    assert grouped([("b", 1.0), ("a", 2.0), ("b", 3.0)]) == [
        ([2.0], [0.0]),
        ([1.0, 3.0], [0.0, 0.0]),
    ]

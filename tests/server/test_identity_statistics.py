# SPDX-License-Identifier: GPL-3.0-or-later
"""Thresholds, rates and intervals against values known from elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onmodel.identity import calibrate, report


def test_auc_counts_pairs_and_halves_ties():
    assert calibrate.auc(np.array([0.9, 0.8]), np.array([0.1, 0.2, 0.3])) == 1.0
    assert calibrate.auc(np.array([0.5]), np.array([0.5, 0.5])) == 0.5
    # 0.8 beats all three, 0.4 beats one, ties one: (3 + 1.5) / 6.
    assert calibrate.auc(np.array([0.8, 0.4]), np.array([0.3, 0.4, 0.6])) == pytest.approx(0.75)


def test_auc_is_the_mann_whitney_count_on_random_numbers():
    rng = np.random.default_rng(3)
    g, i = rng.normal(1, 1, 37).round(1), rng.normal(0, 1, 53).round(1)
    counted = ((g[:, None] > i).sum() + 0.5 * (g[:, None] == i).sum()) / (37 * 53)
    assert calibrate.auc(g, i) == pytest.approx(counted)


def test_auc_of_two_normals_is_what_theory_says():
    rng = np.random.default_rng(1)
    g, i = rng.normal(1.5, 1, 20_000), rng.normal(0, 1, 20_000)
    theory = 0.5 * (1 + math.erf(1.5 / math.sqrt(2) / math.sqrt(2)))
    assert calibrate.auc(g, i) == pytest.approx(theory, abs=0.005)
    rate, threshold = calibrate.equal_error(g, i)
    assert rate == pytest.approx(0.5 * (1 - math.erf(0.75 / math.sqrt(2))), abs=0.006)
    assert threshold == pytest.approx(0.75, abs=0.03)


def test_threshold_lets_no_more_than_its_share_of_impostors_pass():
    i = np.arange(1000) / 1000
    threshold = calibrate.threshold_at(i, 0.01)
    assert (i >= threshold).sum() == 10
    assert (i >= np.nextafter(threshold, 0)).sum() == 11
    few = np.array([0.1, 0.3])
    assert (few >= calibrate.threshold_at(few, 0.01)).sum() == 0


def test_logistic_finds_the_odds_of_two_normals():
    # Equal spread s: log odds = (m1 - m0) / s^2 * x - (m1^2 - m0^2) / (2 s^2).
    rng = np.random.default_rng(2)
    g, i = rng.normal(0.6, 0.2, 30_000), rng.normal(0.1, 0.2, 60_000)
    slope, offset = calibrate.fit_logistic(g, i)
    assert slope == pytest.approx(12.5, rel=0.03)
    assert offset == pytest.approx(-0.35 / 0.08, rel=0.04)


def test_logistic_of_pairs_without_overlap_stays_finite():
    slope, offset = calibrate.fit_logistic(np.array([0.8, 0.9, 0.95]), np.linspace(-0.2, 0.2, 12))
    assert 0 < slope < 1000
    assert math.isfinite(offset)


def test_calibration_reads_its_own_file_and_names_verdicts(tmp_path):
    rng = np.random.default_rng(4)
    made = calibrate.calibrate("x", rng.normal(0.7, 0.1, 50), rng.normal(0, 0.2, 500), "a test")
    made.save(tmp_path / "c.json")
    again = calibrate.Calibration.load(tmp_path / "c.json")
    assert again == made
    assert again.verdict(0.9) == "same"
    assert again.verdict(-0.5) == "other"
    assert again.verdict((again.equal + again.accept) / 2) == "unsure"
    assert again.probability(0.9) > 0.95 > 0.05 > again.probability(-0.5)
    (tmp_path / "c.json").write_text('{"embedder": "x"}')
    with pytest.raises(calibrate.CalibrationError, match="no calibration"):
        calibrate.Calibration.load(tmp_path / "c.json")


def test_too_few_pairs_are_refused_with_what_to_do():
    with pytest.raises(calibrate.CalibrationError, match="more pictures"):
        calibrate.calibrate("x", np.array([0.5]), np.zeros(40), "a test")


def cast(people: int, pictures: int, spread: float) -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(5)
    out = {}
    for name in range(people):
        centre = rng.normal(size=16)
        shown = centre + spread * rng.normal(size=(pictures, 16))
        out[str(name)] = [row / np.linalg.norm(row) for row in shown]
    return out


def test_a_cast_calibrates_itself_with_intervals():
    found = calibrate.calibrate_cast("x", cast(6, 4, 0.4), draws=200)
    assert found.calibration.genuine == 6 * 6
    assert found.calibration.impostors == 15 * 16
    assert found.accept.low <= found.accept.value <= found.accept.high
    assert found.auc.low > 0.8


def test_a_cast_of_one_is_no_cast():
    with pytest.raises(calibrate.CalibrationError):
        calibrate.calibrate_cast("x", cast(1, 4, 0.4))


def test_mean_has_about_the_interval_of_the_normal_theory():
    x = np.random.default_rng(6).normal(2, 1, 400)
    found = report.mean(x)
    half = 1.96 * x.std(ddof=1) / 20
    assert found.value == pytest.approx(x.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)


def test_pairing_takes_out_what_both_share():
    rng = np.random.default_rng(7)
    shared = rng.normal(0, 1, 60)
    before, after = shared, shared + 0.1 + rng.normal(0, 0.05, 60)
    paired, plain = report.paired_difference(after, before), report.mean_difference(after, before)
    assert paired.above(0)
    assert not plain.above(0)
    assert paired.value == pytest.approx(plain.value)
    with pytest.raises(ValueError, match="paired"):
        report.paired_difference(after, before[1:])


def test_characters_that_disagree_widen_the_interval():
    agree = [([0.5, 0.6, 0.55], [0.3, 0.4, 0.35])] * 4
    differ = [([0.9, 0.9, 0.9], [0.3, 0.3, 0.3]), ([0.3, 0.3, 0.3], [0.5, 0.5, 0.5])] * 2
    assert report.grouped_difference(agree).above(0.19)
    found = report.grouped_difference(differ)
    assert found.value == pytest.approx(0.2)
    assert not found.above(0)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"), [(81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611)]
)
def test_wilson_interval_as_printed_by_newcombe(hits, n, low, high):
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I.
    found = report.share(hits, n)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_delong_interval_covers_and_matches_its_formula():
    g, i = np.array([0.8, 0.4]), np.array([0.3, 0.4, 0.6])
    found = report.auc_interval(g, i)
    assert found.value == pytest.approx(0.75)
    # Placements of the genuine 1 and 0.5, of the impostors 1, 0.75 and 0.5: variances 1/8 and 1/16.
    assert found.high - found.value <= 1.96 * math.sqrt(1 / 16 + 1 / 48) + 1e-9
    assert found.value - found.low == pytest.approx(1.96 * math.sqrt(1 / 16 + 1 / 48), rel=1e-3)


def test_rank_one_meets_its_own_person_among_strangers():
    gallery = np.eye(30)
    found = report.rank_one(gallery[:12], range(12), gallery, strangers=20)
    assert (found.value, found.n) == (1.0, 12)
    wrong = report.rank_one(gallery[:12], range(12, 24), gallery, strangers=29)
    assert wrong.value == 0.0
    with pytest.raises(ValueError, match="strangers"):
        report.rank_one(gallery, range(30), gallery, strangers=30)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Statistics for the benches: means, differences, AUC and identification, each with its interval.

Intervals are percentile bootstraps (Efron & Tibshirani 1993, chapter 13) unless said otherwise,
with a fixed seed, so that a bench prints the same twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
level = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval. n: what it was made of."""

    value: float
    low: float
    high: float
    n: int = 0

    def above(self, bar: float) -> bool:
        """Whether the whole interval lies above the bar."""
        return self.low > bar

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def percentile_interval(value: float, draws: Array, n: int = 0) -> Interval:
    """The middle 95 % of bootstrap draws about an estimate."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high), n)


def _draw_means(values: Array, draws: int, rng: np.random.Generator) -> Array:
    return values[rng.integers(len(values), size=(draws, len(values)))].mean(1)


def _numbers(values: Sequence[float] | Array, least: int) -> Array:
    out = np.asarray(values, dtype=np.float64)
    if out.ndim != 1 or len(out) < least or not np.isfinite(out).all():
        raise ValueError(f"At least {least} finite numbers are needed, there are {out.shape}.")
    return out


def mean(values: Sequence[float] | Array, draws: int = 4000, seed: int = 0) -> Interval:
    """The mean of independent values."""
    x = _numbers(values, 2)
    found = _draw_means(x, draws, np.random.default_rng(seed))
    return percentile_interval(float(x.mean()), found, len(x))


def clustered_mean(groups: Sequence[Sequence[float]], draws: int = 4000, seed: int = 0) -> Interval:
    """The mean of all values of all groups. Groups (a film's shots) are drawn again, whole.

    Frames of one shot resemble each other, and count for less than as many shots would (cluster
    bootstrap, Davison & Hinkley 1997, 3.8). With one group only, its values are drawn.
    """
    parts = [_numbers(group, 1) for group in groups if len(group)]
    if len(parts) < 2:
        return mean(np.concatenate(parts) if parts else [], draws, seed)
    sums, counts = np.array([p.sum() for p in parts]), np.array([len(p) for p in parts])
    chosen = np.random.default_rng(seed).integers(len(parts), size=(draws, len(parts)))
    found = sums[chosen].sum(1) / counts[chosen].sum(1)
    total = int(counts.sum())
    return percentile_interval(float(sums.sum() / total), found, total)


def paired_difference(
    after: Sequence[float] | Array,
    before: Sequence[float] | Array,
    draws: int = 4000,
    seed: int = 0,
) -> Interval:
    """Mean of after - before, pair by pair (same seed, same shot)."""
    a, b = _numbers(after, 2), _numbers(before, 2)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}.")
    return mean(a - b, draws, seed)


def mean_difference(
    a: Sequence[float] | Array, b: Sequence[float] | Array, draws: int = 4000, seed: int = 0
) -> Interval:
    """Mean of a less mean of b, two samples that are not paired."""
    x, y = _numbers(a, 2), _numbers(b, 2)
    rng = np.random.default_rng(seed)
    found = _draw_means(x, draws, rng) - _draw_means(y, draws, rng)
    return percentile_interval(float(x.mean() - y.mean()), found, len(x) + len(y))


def grouped_difference(
    groups: Sequence[tuple[Sequence[float], Sequence[float]]], draws: int = 4000, seed: int = 0
) -> Interval:
    """Mean paired difference over characters, each counting the same.

    groups: (after, before) of one character each, paired. Both characters and their pictures are
    drawn again (a two-stage bootstrap, Davison & Hinkley 1997, 3.8), since pictures of one
    character depend on each other: with few characters the interval is honestly wide.
    """
    parts = []
    for after, before in groups:
        a, b = _numbers(after, 1), _numbers(before, 1)
        if len(a) != len(b):
            raise ValueError(f"{len(a)} values cannot be paired with {len(b)}.")
        parts.append(a - b)
    if not parts:
        raise ValueError("There is no character to compare.")
    rng = np.random.default_rng(seed)
    means = np.stack([_draw_means(part, draws, rng) for part in parts], axis=1)
    chosen = rng.integers(len(parts), size=(draws, len(parts)))
    found = np.take_along_axis(means, chosen, axis=1).mean(1)
    value = float(np.mean([part.mean() for part in parts]))
    return percentile_interval(value, found, sum(len(part) for part in parts))


def share(hits: int, n: int) -> Interval:
    """A share hits / n with Wilson's score interval (Wilson 1927)."""
    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"{hits} of {n} is no share.")
    z, p = 1.959963984540054, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, middle - half), min(1.0, middle + half), n)


def ranks(values: Array) -> Array:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[inverse]


def auc_interval(
    genuine: Sequence[float] | Array,
    impostor: Sequence[float] | Array,
) -> Interval:
    """AUC with DeLong's interval (DeLong et al. 1988, by ranks as Sun & Xu 2014)."""
    g, i = _numbers(genuine, 2), _numbers(impostor, 2)
    m, n = len(g), len(i)
    both = ranks(np.concatenate([g, i]))
    of_genuine = (both[:m] - ranks(g)) / n
    of_impostor = 1 - (both[m:] - ranks(i)) / m
    value = float(of_genuine.mean())
    spread = math.sqrt(of_genuine.var(ddof=1) / m + of_impostor.var(ddof=1) / n)
    half = 1.959963984540054 * spread
    return Interval(value, max(0.0, value - half), min(1.0, value + half), m + n)


def rank_one(
    probes: Array, truth: Sequence[int] | Array, gallery: Array, strangers: int, seed: int = 0
) -> Interval:
    """How often a probe is most like its own person among strangers; Wilson's interval.

    probes (N, d) and gallery (P, d): unit vectors; truth (N,): each probe's place in the gallery.
    Each probe meets its own person and `strangers` others drawn from the gallery.
    """
    own = np.asarray(truth, dtype=np.int64)
    if strangers < 1 or strangers > len(gallery) - 1:
        raise ValueError(f"A gallery of {len(gallery)} has no {strangers} strangers.")
    rng = np.random.default_rng(seed)
    hits = 0
    for probe, place in zip(probes, own, strict=True):
        others = np.delete(np.arange(len(gallery)), place)
        others = rng.choice(others, size=strangers, replace=False)
        hits += bool(float(gallery[place] @ probe) > float((gallery[others] @ probe).max()))
    return share(hits, len(own))

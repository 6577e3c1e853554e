# SPDX-License-Identifier: GPL-3.0-or-later
"""From similarities of genuine and impostor pairs to thresholds and probabilities.

Genuine pairs show one person twice, impostor pairs two people. Sources: AUC as the Mann-Whitney
statistic and its meaning, Fawcett 2006, "An introduction to ROC analysis"; false accept rate and
equal error rate, ISO/IEC 19795-1; logistic calibration, Platt 1999, with his targets.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from onmodel.identity.interface import Array, Embedding, unit
from onmodel.identity.report import Interval, percentile_interval, ranks


class CalibrationError(Exception):
    """There are too few pairs to say anything. The message says what is missing."""


@dataclass(frozen=True)
class Calibration:
    """How similarities of one embedder are read.

    accept: cosine at which one impostor pair in a hundred passes. equal: cosine of the equal error
    rate. slope, offset: probability = 1 / (1 + exp(-(slope * cosine + offset))), for as many
    genuine pairs as impostors. source: what it was measured on.
    """

    embedder: str
    accept: float
    equal: float
    slope: float
    offset: float
    auc: float
    eer: float
    genuine: int
    impostors: int
    source: str

    def probability(self, cosine: float) -> float:
        """Chance that it is the same person, if same and other were equally likely before."""
        return float(_sigmoid(np.array(self.slope * cosine + self.offset)))

    def verdict(self, cosine: float) -> str:
        """ "same", "unsure" or "other": at `accept`, between, below `equal` (the lower of both)."""
        low, high = sorted((self.equal, self.accept))
        return "same" if cosine >= high else "other" if cosine < low else "unsure"

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote. Raises CalibrationError where it is something else."""
        try:
            return cls(**json.loads(path.read_text()))
        except (TypeError, json.JSONDecodeError) as error:
            raise CalibrationError(f"{path} is no calibration: {error}.") from error


def _sigmoid(x: Array) -> Array:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), 1 - 1 / (1 + np.exp(-np.abs(x))))


def auc(genuine: Array, impostor: Array) -> float:
    """Chance that a genuine pair is more similar than an impostor pair, ties counting half."""
    g, i = _pairs(genuine, impostor)
    order = ranks(np.concatenate([g, i]))
    return float((order[: len(g)].sum() - len(g) * (len(g) + 1) / 2) / (len(g) * len(i)))


def error_rates(genuine: Array, impostor: Array) -> tuple[Array, Array, Array]:
    """Thresholds in rising order, false accepts and false rejects at each (accept when >= t)."""
    g, i = (np.sort(part) for part in _pairs(genuine, impostor))
    thresholds = np.unique(np.concatenate([g, i, [np.inf]]))
    accepts = 1 - np.searchsorted(i, thresholds, side="left") / len(i)
    rejects = np.searchsorted(g, thresholds, side="left") / len(g)
    return thresholds, accepts, rejects


def equal_error(genuine: Array, impostor: Array) -> tuple[float, float]:
    """(rate, threshold) where false accepts and false rejects are equal, the mean of both there.

    Between two neighbouring cosines every threshold makes the same errors: the middle is taken,
    which for pairs without overlap is the middle of the gap.
    """
    thresholds, accepts, rejects = error_rates(genuine, impostor)
    at = int(np.argmin(np.abs(accepts - rejects)))
    below = thresholds[max(at - 1, 0)]
    found = (below + thresholds[at]) / 2 if np.isfinite(thresholds[at]) else below
    return float((accepts[at] + rejects[at]) / 2), float(found)


def threshold_at(impostor: Array, rate: float = 0.01) -> float:
    """The least threshold that lets no more than `rate` of the impostor pairs pass."""
    i = np.sort(np.asarray(impostor, dtype=np.float64))
    if len(i) == 0:
        raise CalibrationError("There are no impostor pairs.")
    allowed = math.floor(rate * len(i) + 1e-9)
    return float(np.nextafter(i[len(i) - 1 - allowed], np.inf))


def fit_logistic(genuine: Array, impostor: Array) -> tuple[float, float]:
    """(slope, offset) of Platt's calibration with both kinds weighing the same, by Newton's way.

    Targets are Platt's (n+1)/(n+2) and 1/(n+2), so that separable pairs give finite numbers.
    """
    g, i = _pairs(genuine, impostor)
    x = np.concatenate([g, i])
    target = np.concatenate(
        [np.full(len(g), (len(g) + 1) / (len(g) + 2)), np.full(len(i), 1 / (len(i) + 2))]
    )
    weight = np.concatenate([np.full(len(g), 0.5 / len(g)), np.full(len(i), 0.5 / len(i))])
    middle, spread = float(x.mean()), float(x.std()) or 1.0
    design = np.stack([(x - middle) / spread, np.ones_like(x)], axis=1)

    def loss(at: Array) -> float:
        z = design @ at
        return float((weight * (np.logaddexp(0, z) - target * z)).sum())

    beta = np.zeros(2)
    for _ in range(100):
        p = _sigmoid(design @ beta)
        slope = design.T @ (weight * (p - target))
        bend = (design * (weight * p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(bend, slope)
        size = 1.0
        while loss(beta - size * step) > loss(beta) and size > 1e-6:
            size /= 2
        beta = beta - size * step
        if float(np.abs(size * step).max()) < 1e-9:
            break
    return float(beta[0] / spread), float(beta[1] - beta[0] * middle / spread)


def calibrate(embedder: str, genuine: Array, impostor: Array, source: str) -> Calibration:
    """The calibration of an embedder from similarities of pairs.

    Raises CalibrationError with fewer than three genuine or ten impostor pairs.
    """
    g, i = _pairs(genuine, impostor)
    if len(g) < 3 or len(i) < 10:
        raise CalibrationError(
            f"{len(g)} genuine and {len(i)} impostor pairs are too few; 3 and 10 are the least. "
            "Give more characters, or more pictures of each."
        )
    rate, equal = equal_error(g, i)
    slope, offset = fit_logistic(g, i)
    return Calibration(
        embedder=embedder,
        accept=round(threshold_at(i), 4),
        equal=round(equal, 4),
        slope=round(slope, 4),
        offset=round(offset, 4),
        auc=round(auc(g, i), 4),
        eer=round(rate, 4),
        genuine=len(g),
        impostors=len(i),
        source=source,
    )


def cast_pairs(cast: dict[str, Sequence[Embedding]]) -> tuple[Array, Array]:
    """Similarities of all genuine and all impostor pairs of a cast: character -> embeddings."""
    genuine: list[float] = []
    impostor: list[float] = []
    for shown in cast.values():
        genuine += [float(a @ b) for a, b in itertools.combinations(shown, 2)]
    for one, other in itertools.combinations(cast.values(), 2):
        impostor += [float(a @ b) for a in one for b in other]
    return np.array(genuine), np.array(impostor)


@dataclass(frozen=True)
class CastCalibration:
    """A calibration on a cast itself, with 95 % intervals from drawing the characters again."""

    calibration: Calibration
    accept: Interval
    auc: Interval


def calibrate_cast(
    embedder: str, cast: dict[str, Sequence[Embedding]], draws: int = 500, seed: int = 0
) -> CastCalibration:
    """Thresholds from a cast's own pictures.

    The bootstrap draws characters, not pairs, since pairs of one character depend on each other;
    a character drawn twice gives no impostor pairs with itself.
    """
    genuine, impostor = cast_pairs(cast)
    result = calibrate(embedder, genuine, impostor, f"a cast of {len(cast)}")
    names = sorted(cast)
    within = {n: cast_pairs({n: cast[n]})[0] for n in names}
    between = {
        (a, b): (np.stack(cast[a]) @ np.stack(cast[b]).T).ravel()
        for a, b in itertools.combinations(names, 2)
        if len(cast[a]) and len(cast[b])
    }
    rng = np.random.default_rng(seed)
    accepts, areas = [], []
    for _ in range(draws):
        drawn = sorted(names[k] for k in rng.integers(len(names), size=len(names)))
        g = np.concatenate([within[n] for n in drawn])
        parts = [between[p] for p in itertools.combinations(drawn, 2) if p in between]
        if len(g) == 0 or not parts:
            continue
        i = np.concatenate(parts)
        accepts.append(threshold_at(i))
        areas.append(auc(g, i))
    if len(areas) < 20:
        raise CalibrationError(
            f"A cast of {len(cast)} with {len(genuine)} genuine pairs gives no interval. "
            "Give more characters, or more pictures of each."
        )
    return CastCalibration(
        result,
        percentile_interval(result.accept, np.array(accepts)),
        percentile_interval(result.auc, np.array(areas)),
    )


@dataclass(frozen=True)
class Member:
    """A character as a calibration knows it; each row or item a unit embedding.

    references: its portraits. variants: for each portrait, the same head as a drawing would show
    it. good: heads of drawings that a person found right.
    """

    references: Sequence[Embedding]
    variants: Sequence[Sequence[Embedding]] = ()
    good: Sequence[Embedding] = ()


least_heads, least_impostors = 6, 30
"""Genuine heads and impostor pairs below which a cast has no thresholds of its own. Variants of a
portrait are no heads: with one character of three portraits, a fifth of its drawings would be
called another's."""


def member_pairs(cast: Mapping[str, Member], strangers: Array | None = None) -> tuple[Array, Array]:
    """Cosines of genuine and of impostor heads with a character's mean reference.

    This is what a score is (references.score), so that thresholds mean the same: a portrait and
    its variants are measured against the mean of the character's other portraits, good drawings
    against the mean of all; everybody else's heads and strangers (N, d) are impostors.
    """
    genuine: list[float] = []
    impostor: list[float] = []
    for name, member in cast.items():
        shown = np.stack(member.references)
        middle = unit(shown.mean(0))
        genuine += [float(head @ middle) for head in member.good]
        for place in range(len(shown)) if len(shown) > 1 else ():
            others = unit(np.delete(shown, place, axis=0).mean(0))
            looks = [shown[place], *(member.variants[place] if member.variants else ())]
            genuine += [float(head @ others) for head in looks]
        for other, someone in cast.items():
            if other != name:
                heads = [*someone.references, *itertools.chain(*someone.variants), *someone.good]
                impostor += [float(head @ middle) for head in heads]
        if strangers is not None and len(strangers):
            impostor += [float(value) for value in strangers @ middle]
    return np.array(genuine), np.array(impostor)


def calibrate_members(
    embedder: str, cast: Mapping[str, Member], strangers: Array | None = None
) -> Calibration:
    """Thresholds of a cast from its own heads. Raises CalibrationError where they are too few."""
    heads = sum(
        len(m.good) + (len(m.references) if len(m.references) > 1 else 0) for m in cast.values()
    )
    genuine, impostor = member_pairs(cast, strangers)
    if heads < least_heads or len(impostor) < least_impostors:
        raise CalibrationError(
            f"{heads} heads beside other portraits of their own and {len(impostor)} impostor "
            f"pairs are too few; {least_heads} and {least_impostors} are the least. Give more "
            "characters, or more portraits of each."
        )
    people = f"a cast of {len(cast)}"
    if strangers is not None and len(strangers):
        people += " among strangers"
    return calibrate(embedder, genuine, impostor, people)


def _pairs(genuine: Array, impostor: Array) -> tuple[Array, Array]:
    g, i = np.asarray(genuine, dtype=np.float64), np.asarray(impostor, dtype=np.float64)
    if len(g) == 0 or len(i) == 0:
        raise CalibrationError(f"There are {len(g)} genuine and {len(i)} impostor pairs.")
    if not (np.isfinite(g).all() and np.isfinite(i).all()):
        raise CalibrationError("A similarity is not a number.")
    return g, i

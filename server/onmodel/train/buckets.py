# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes that pictures are trained at, and the order in which a run shows them.

The order is a pure function of the plan's seed and the step, so a run that resumes needs no state
for it, and needs no random numbers of any library: it sorts by hashes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from onmodel.train.dataset import Picture
from onmodel.train.plan import DataPlan, PlanError, TrainingPlan

Size = tuple[int, int]


@dataclass(frozen=True)
class Fit:
    """How a picture comes to its bucket.

    bucket: width, height in pixels. resized: size after scaling, before the crop. crop: left,
    top of the bucket in the resized picture, pixels. lost: share of the picture's pixels that the
    crop takes away.
    """

    bucket: Size
    resized: Size
    crop: Size
    lost: float

    def apply(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        """The picture (or its mask, or a map) at the bucket's size."""
        left, top = self.crop
        box = (left, top, left + self.bucket[0], top + self.bucket[1])
        resized = image if image.size == self.resized else image.resize(self.resized, resample)
        return resized.crop(box)


@dataclass(frozen=True)
class Showing:
    """One picture in a batch. index: into the pictures. flipped: mirrored left to right."""

    index: int
    flipped: bool = False


def bucket_sizes(resolution: int, step: int, low: int, high: int) -> tuple[Size, ...]:
    """Sizes whose sides are multiples of step in low..high and whose area is the largest that
    does not exceed resolution² (the rule of NovelAI's aspect ratio bucketing, 2022)."""
    budget = resolution * resolution
    low, high = -(-low // step) * step, high // step * step
    found: set[Size] = set()
    for side in range(low, high + 1, step):
        other = min(high, budget // side // step * step)
        if other >= low:
            found |= {(side, other), (other, side)}
    square = resolution // step * step
    if low <= square <= high:
        found.add((square, square))
    return tuple(sorted(found))


def fit(width: int, height: int, plan: DataPlan) -> Fit:
    """The bucket of the nearest aspect, and what is cropped. Raises PlanError if there is none.

    Without `upscale`, only buckets that the picture fills are taken; a picture too small for all
    of them gets the largest size of its own that is a multiple of the step.
    """
    sizes = _sizes(plan.resolution, plan.bucket_step, plan.min_bucket, plan.max_bucket)
    if not plan.upscale:
        fitting = [s for s in sizes if s[0] <= width and s[1] <= height]
        nearest = _nearest(fitting, width, height) if fitting else None
        own = _own_size(width, height, plan)
        # A bucket of another aspect would throw away more than a smaller one of its own does.
        if nearest is None or _aspect_error(nearest, width, height) > 0.2 > _aspect_error(
            own, width, height
        ):
            nearest = own
    else:
        nearest = _nearest(sizes, width, height) if sizes else (0, 0)
    if min(nearest) <= 0:
        raise PlanError(
            f"No bucket fits {width} x {height}.",
            "Lower data.min_bucket or data.bucket_step, or set data.upscale.",
        )
    scale = max(nearest[0] / width, nearest[1] / height)
    resized = (max(nearest[0], round(width * scale)), max(nearest[1], round(height * scale)))
    crop = ((resized[0] - nearest[0]) // 2, (resized[1] - nearest[1]) // 2)
    lost = 1 - (nearest[0] * nearest[1]) / (resized[0] * resized[1])
    return Fit(nearest, resized, crop, lost)


@lru_cache(maxsize=16)
def _sizes(resolution: int, step: int, low: int, high: int) -> tuple[Size, ...]:
    return bucket_sizes(resolution, step, low, high)


def _aspect_error(size: Size, width: int, height: int) -> float:
    return abs(math.log(max(1, size[0]) / max(1, size[1]) * height / width))


def _nearest(sizes: Sequence[Size], width: int, height: int) -> Size:
    """The nearest aspect; of two equally near the larger area, then the first by size."""
    return min(sizes, key=lambda s: (round(_aspect_error(s, width, height), 6), -s[0] * s[1], s))


def _own_size(width: int, height: int, plan: DataPlan) -> Size:
    """The picture's own aspect, within the budget and its own pixels."""
    scale = min(1.0, math.sqrt(plan.resolution**2 / (width * height)))
    step = plan.bucket_step
    return (int(width * scale + 0.5) // step * step, int(height * scale + 0.5) // step * step)


class Order:
    """Which pictures each step shows.

    An epoch shows every picture of the character `repeats` times, and as many showings of
    regularisation pictures, which are gone through in turn over the epochs. A batch holds one
    bucket's pictures; a bucket's last batch may be smaller. Batches run on over the ends of
    epochs where a step accumulates several.
    """

    def __init__(self, pictures: Sequence[Picture], plan: TrainingPlan) -> None:
        self.plan = plan
        self.fits = tuple(fit(p.width, p.height, plan.data) for p in pictures)
        self._own = _by_bucket(pictures, self.fits, False)
        self._other = _by_bucket(pictures, self.fits, True)
        self.showings = sum(len(v) for v in self._own.values())
        self._quota = _quotas({b: len(v) for b, v in self._other.items()}, self.showings)
        self.buckets = tuple(sorted({*self._own, *self._quota}))
        batch = plan.schedule.batch
        self.batches_per_epoch = sum(-(-self.in_bucket(b) // batch) for b in self.buckets)
        self.full_batches = sum(self.in_bucket(b) // batch for b in self.buckets)
        self._kept: tuple[int, list[tuple[Showing, ...]]] = (-1, [])
        if not self.showings:
            raise PlanError("There is no picture to train on.", "See why each one was refused.")

    def in_bucket(self, bucket: Size) -> int:
        """Showings of a bucket in an epoch, regularisation pictures included."""
        return len(self._own.get(bucket, ())) + self._quota.get(bucket, 0)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        schedule = self.plan.schedule
        if schedule.steps is not None:
            return schedule.steps
        return -(-(schedule.epochs or 0) * self.batches_per_epoch // schedule.accumulate)

    @property
    def epochs(self) -> float:
        """Epochs of the whole run."""
        return self.steps * self.plan.schedule.accumulate / self.batches_per_epoch

    def batch_at(self, step: int) -> tuple[tuple[Showing, ...], ...]:
        """The batches of a step, counted from 0: as many as the plan accumulates.

        Each batch holds pictures of one bucket.
        """
        accumulate = self.plan.schedule.accumulate
        found = []
        for number in range(step * accumulate, (step + 1) * accumulate):
            epoch, place = divmod(number, self.batches_per_epoch)
            found.append(self._batches(epoch)[place])
        return tuple(found)

    def epoch_at(self, step: int) -> int:
        """The epoch, from 0, in which a step's first batch lies."""
        return step * self.plan.schedule.accumulate // self.batches_per_epoch

    def _batches(self, epoch: int) -> list[tuple[Showing, ...]]:
        """All batches of an epoch; the last epoch asked for is kept."""
        if self._kept[0] != epoch:
            self._kept = (epoch, self._shuffle(epoch))
        return self._kept[1]

    def _shuffle(self, epoch: int) -> list[tuple[Showing, ...]]:
        seed, batch = self.plan.run.seed, self.plan.schedule.batch
        batches: list[tuple[Showing, ...]] = []
        for bucket in self.buckets:
            name = f"{bucket[0]}x{bucket[1]}"
            showings = list(self._own.get(bucket, ()))
            showings += self._turn(bucket, epoch)
            order = shuffled(len(showings), f"{seed}/epoch {epoch}/{name}")
            shown = [self._showing(showings[i], epoch) for i in order]
            batches += [tuple(shown[i : i + batch]) for i in range(0, len(shown), batch)]
        order = shuffled(len(batches), f"{seed}/epoch {epoch}/batches")
        return [batches[i] for i in order]

    def _turn(self, bucket: Size, epoch: int) -> list[tuple[int, int]]:
        """The regularisation pictures of a bucket whose turn it is."""
        pool, quota = self._other.get(bucket, []), self._quota.get(bucket, 0)
        turn: list[tuple[int, int]] = []
        for place in range(epoch * quota, (epoch + 1) * quota):
            cycle, i = divmod(place, len(pool))
            name = f"{self.plan.run.seed}/others {bucket[0]}x{bucket[1]}/{cycle}"
            turn.append(pool[_shuffled(len(pool), name)[i]])
        return turn

    def _showing(self, showing: tuple[int, int], epoch: int) -> Showing:
        index, repeat = showing
        # Odd and even showings of a picture alternate, over repeats and over epochs.
        return Showing(index, self.plan.data.flip and (epoch + repeat + index) % 2 == 1)


def _by_bucket(
    pictures: Sequence[Picture], fits: Sequence[Fit], regularisation: bool
) -> dict[Size, list[tuple[int, int]]]:
    """Bucket to (picture, number of the repeat)."""
    found: dict[Size, list[tuple[int, int]]] = {}
    for index, picture in enumerate(pictures):
        if picture.regularisation == regularisation:
            row = found.setdefault(fits[index].bucket, [])
            row += [(index, repeat) for repeat in range(picture.repeats)]
    return found


def _quotas(counts: dict[Size, int], total: int) -> dict[Size, int]:
    """`total` shared out in proportion to counts, by largest remainder."""
    whole = sum(counts.values())
    if not whole:
        return {}
    exact = {b: total * n / whole for b, n in counts.items()}
    shares = {b: int(v) for b, v in exact.items()}
    by_rest = sorted(exact, key=lambda b: (shares[b] - exact[b], b))
    for bucket in by_rest[: total - sum(shares.values())]:
        shares[bucket] += 1
    return {b: n for b, n in shares.items() if n}


def shuffled(count: int, name: str) -> list[int]:
    """0 … count - 1 in an order that depends on `name` alone: the same on every machine."""
    return list(_shuffled(count, name))


@lru_cache(maxsize=256)
def _shuffled(count: int, name: str) -> tuple[int, ...]:
    keys = [hashlib.blake2b(f"{name}/{i}".encode(), digest_size=16).digest() for i in range(count)]
    return tuple(sorted(range(count), key=keys.__getitem__))

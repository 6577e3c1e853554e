# SPDX-License-Identifier: GPL-3.0-or-later
"""Kinds of work in the queue, and what the worker and its supervisor ask of each.

Drawings and trainings have tables, leases and runners of their own. What they share is here: a
turn in one order, a sign of life, and what becomes of work whose worker is gone. A further kind is
a further member of the lists in worker.py and serve.py; only the two claims know of each other,
since each gives nothing away while the other kind is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Turn = tuple[float, float]
"""(-priority, time queued): the smallest is next, whatever its kind."""


class Holding(Protocol):
    """The leases that one worker holds on work of one kind."""

    def turn(self) -> Turn | None:
        """When the next waiting piece of work of this kind has its turn; None if none waits."""

    def renew(self) -> None:
        """The sign of life: extends all leases of this worker."""

    def recover(self, crashed: bool) -> int:
        """Queues again what this worker held when it ended; how many pieces of work that were.

        Only for when the worker is known to be gone. crashed: it died by itself.
        """

    def expire(self) -> int:
        """Queues again what other workers held over their leases; how many that were."""

    def finished_since(self, moment: float) -> bool:
        """Whether anything of this kind came to an end after this time."""


class Runner(Protocol):
    """Does the work of one kind."""

    def run_next(self) -> bool:
        """Takes what is next and does it; False where nothing could be taken."""


class Holdings:
    """All that one worker holds, of every kind, as one."""

    def __init__(self, worker: str, kinds: Sequence[Holding]) -> None:
        self.worker = worker
        self.kinds = tuple(kinds)

    def renew(self) -> None:
        """The sign of life for everything."""
        for kind in self.kinds:
            kind.renew()

    def recover(self, crashed: bool) -> int:
        """Queues again what this worker held; see `Holding.recover`."""
        return sum(kind.recover(crashed) for kind in self.kinds)

    def expire(self) -> int:
        """Queues again what others held too long."""
        return sum(kind.expire() for kind in self.kinds)

    def finished_since(self, moment: float) -> bool:
        """Whether anything came to an end after this time."""
        return any(kind.finished_since(moment) for kind in self.kinds)

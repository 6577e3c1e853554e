# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan being exported: who reads which key of it, and folders of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onmodel.train import plan_file
from onmodel.train.plan import TrainingPlan


@dataclass(frozen=True)
class Subset:
    """One folder of pictures that are shown equally often. masks: their folder, if apart."""

    name: str
    folder: Path
    count: int
    repeats: int
    regularisation: bool = False
    masks: Path | None = None


@dataclass(frozen=True)
class Built:
    """A config as text. files: name to content."""

    files: dict[str, str]
    command: str


@dataclass
class Reader:
    """A plan whose keys are read by name; what was not read is not in the config.

    Calling it gives a value. `lack` says that a value cannot be expressed, and why.
    """

    plan: TrainingPlan
    tool: str
    read: set[str] = field(default_factory=set)
    lacks: list[str] = field(default_factory=list)

    def __call__(self, key: str) -> Any:
        self.read.add(key)
        return plan_file.value_of(self.plan, key)

    def lack(self, keys: str, sentence: str) -> None:
        """keys: those whose values are lost, separated by blanks; "" where the sentence says it."""
        self.read |= set(keys.split())
        values = [f"{key} = {_shown(plan_file.value_of(self.plan, key))}" for key in keys.split()]
        self.lacks.append(f"{', '.join(values)}: {sentence}" if values else sentence)

    def missing(self) -> tuple[str, ...]:
        """Every sentence, also for keys that were never read and are not at their default."""
        default = TrainingPlan()
        unread = [
            f"{key} = {_shown(plan_file.value_of(self.plan, key))}: {self.tool} has no counterpart."
            for key in plan_file.all_keys()
            if key not in self.read
            and plan_file.value_of(self.plan, key) != plan_file.value_of(default, key)
        ]
        return (*self.lacks, *unread)


def _shown(value: Any) -> str:
    return "none" if value is None else plan_file.toml_value(value)


def reg_repeats(subsets: Sequence[Subset]) -> dict[str, float]:
    """How often an epoch shows each regularisation folder so that it comes to as many showings
    as the character's: the share of each is that of its pictures."""
    own = sum(s.count * s.repeats for s in subsets if not s.regularisation)
    whole = sum(s.count * s.repeats for s in subsets if s.regularisation)
    return {s.name: s.repeats * own / whole for s in subsets if s.regularisation}

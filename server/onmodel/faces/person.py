# SPDX-License-Identifier: GPL-3.0-or-later
"""A character whose face is repaired in a picture without a scene."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Person:
    """A character as the command line gives it. loras: (name, weight)."""

    name: str
    noun: str = "person"
    trigger: str = ""
    prompt: str = ""
    loras: list[tuple[str, float]] = field(default_factory=list)
    references: list[Path] = field(default_factory=list)

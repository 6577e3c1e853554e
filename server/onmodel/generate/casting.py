# SPDX-License-Identifier: GPL-3.0-or-later
"""Which LoRAs a request wants, and where each acts. Without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onmodel.models.registry import LoraEntry

Mention = tuple[str, float, str | None]
"""A LoRA as a request names it: name, weight, pinned hash."""

Find = Callable[[str, str | None], LoraEntry]
"""`Registry.find_lora`: by name and pinned hash. Raises ModelError."""


@dataclass(frozen=True)
class Bound:
    """A character's LoRAs.

    loras: with the weights that the request gives. regional: (adapter, weight), sorted, of what
    its region gets on top of the whole picture's LoRAs.
    """

    name: str
    loras: tuple[tuple[LoraEntry, float], ...]
    regional: tuple[tuple[str, float], ...]


def whole_mentions(request: dict[str, Any]) -> list[Mention]:
    """The LoRAs of the whole picture: a style, a set."""
    return _mentions(request.get("loras", []))


def whole(request: dict[str, Any], find: Find) -> list[tuple[LoraEntry, float]]:
    """The same, found. Raises ModelError for a LoRA that is not here, or changed."""
    return [(find(n, pin), weight) for n, weight, pin in whole_mentions(request)]


def characters(request: dict[str, Any], find: Find) -> list[Bound]:
    """Each character's LoRAs, in the request's order. Raises ModelError.

    A LoRA that the whole picture has too acts in the region at the heavier of the two weights,
    elsewhere at the whole picture's.
    """
    base = {name: weight for name, weight, _ in whole_mentions(request)}
    found = []
    for character in request.get("characters", []):
        loras, regional = [], []
        for name, weight, pin in _mentions(character.get("loras", [])):
            entry = find(name, pin)
            loras.append((entry, weight))
            under = base.get(name, 0.0)
            if weight and abs(weight) > abs(under):
                regional.append((entry.adapter, weight - under))
        found.append(Bound(character["name"], tuple(loras), tuple(sorted(regional))))
    return found


def record(
    picture: list[tuple[LoraEntry, float]], cast: list[Bound]
) -> list[dict[str, str | float | None]]:
    """All LoRAs of a drawing; character: whose region, None for the whole picture."""

    def line(entry: LoraEntry, weight: float, name: str | None) -> dict[str, str | float | None]:
        return {"name": entry.name, "hash": entry.hash, "weight": weight, "character": name}

    lines = [line(entry, weight, None) for entry, weight in picture]
    return lines + [line(e, w, bound.name) for bound in cast for e, w in bound.loras]


def _mentions(loras: list[dict[str, Any]]) -> list[Mention]:
    """Sorted by name, each name once; of two mentions the heavier counts."""
    found: dict[str, Mention] = {}
    for lora in loras:
        item = (lora["name"], float(lora.get("weight", 1.0)), lora.get("hash"))
        known = found.get(item[0])
        if known is None or abs(item[1]) > abs(known[1]):
            found[item[0]] = item
    return [found[name] for name in sorted(found)]

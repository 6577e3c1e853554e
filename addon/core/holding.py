# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds a character on-model: its LoRA, its portraits by an IP-Adapter, or words alone.

The rule is the server's (`onmodel.generate.references`), told here beforehand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .request import Lora

usual_weight = 0.7
"""By which the server holds characters that have portraits and no LoRA."""


@dataclass(frozen=True)
class IpAdapter:
    """An IP-Adapter of the server. kind: "plus", "plain", "faceid", or "" where it cannot be told.

    problem: why it cannot be used, or "". fits: names of models; chosen: of these, those whose
    characters it holds.
    """

    name: str
    hash: str = ""
    kind: str = ""
    problem: str = ""
    fits: list[str] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)


def adapters_of(info: Mapping[str, Any]) -> list[IpAdapter] | None:
    """The IP-Adapters in a server's `GET /v1/info`; None where it does not say which it has."""
    told = info.get("ip_adapters")
    if told is None:
        return None
    known = {f.name for f in dataclasses.fields(IpAdapter)}
    return [IpAdapter(**{k: v for k, v in one.items() if k in known}) for one in told]


@dataclass(frozen=True)
class Holding:
    """What holds a character.

    by: "lora", "portraits", "both" or "words". words: a sentence for the artist. refused: the
    server will not draw it like this; the sentence says what to do.
    """

    by: str
    words: str
    refused: bool = False


def held(
    loras: Sequence[Lora],
    portraits: int,
    weight: float | None,
    adapters: Sequence[IpAdapter] | None,
    model: str,
) -> Holding:
    """What holds a character in drawings of a model.

    loras: the character's own. portraits: how many it has. weight: as of `Character.
    reference_weight`. adapters: None where no server has told.
    """
    acting = [lora.name for lora in loras if lora.weight]
    by_lora = f"its LoRA{'s' if len(acting) > 1 else ''} {' and '.join(acting)}"
    asked = weight if weight is not None else (0.0 if acting else usual_weight)
    why = ""
    if portraits and asked:
        found, why = _adapter_for(adapters, model)
        if not why:
            by = f"its portraits ({found})" if found else "its portraits, if the server can"
            if acting:
                return Holding("both", f"Held by {by_lora} and {by}.")
            return Holding("portraits", f"Held by {by}.")
        if weight is not None:
            fix = "Switch its Hold off to draw (Cast > Portraits)."
            return Holding("words", f"Its portraits cannot hold it: {why}. {fix}", refused=True)
    if acting:
        return Holding("lora", f"Held by {by_lora}.")
    return Holding("words", f"Held by words alone: {why}." if why else "Held by words alone.")


def _adapter_for(adapters: Sequence[IpAdapter] | None, model: str) -> tuple[str, str]:
    """The name of the IP-Adapter that holds a model's characters, and why there is none."""
    if adapters is None:
        return "", ""
    taken = next((a for a in adapters if model in a.chosen), None)
    if taken is not None:
        return (taken.name, "") if not taken.problem else ("", _unusable(taken))
    broken = next((a for a in adapters if a.problem), None)
    if broken is not None:
        return "", _unusable(broken)
    if adapters:
        return "", f"no IP-Adapter of the server fits {model}"
    return "", "the server has no IP-Adapter"


def _unusable(adapter: IpAdapter) -> str:
    return f"the server cannot use {adapter.name}. {adapter.problem.rstrip('.')}"

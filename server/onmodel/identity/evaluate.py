# SPDX-License-Identifier: GPL-3.0-or-later
"""How well an embedder tells held-out people of the world apart: by look, head size and framing.

Protocol of use: a person's references are up to three of their clean heads in one look, the largest
that face the camera; every other head of theirs is a genuine probe, every head of another person
an impostor probe. "kin" impostors share sex, age, skin, hair and beard in words, so that only the
face is left: they are what a drawing made from the prompt alone, without LoRA, amounts to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onmodel.identity.calibrate import auc, equal_error
from onmodel.identity.pack import Head
from onmodel.identity.report import Interval, share

Array = np.ndarray
sizes = ((0, 24), (24, 40), (40, 64), (64, 10_000))
reference_count = 3


@dataclass(frozen=True)
class Trials:
    """Comparisons of a probe with a person's references, T of them.

    cosine (T,); genuine, kin (T,) bool; probe, owner (T,): indices into heads and references;
    across (T,): the references show the other look.
    """

    cosine: Array
    genuine: Array
    kin: Array
    probe: Array
    owner: Array
    across: Array


def choose_references(heads: Sequence[Head]) -> dict[tuple[int, str], list[int]]:
    """Indices of up to three reference heads for each (person, look) with heads to spare."""
    mine: dict[tuple[int, str], list[int]] = defaultdict(list)
    for index, head in enumerate(heads):
        mine[head.identity, head.look].append(index)
    out = {}
    for key, places in mine.items():
        good = [i for i in places if heads[i].pixels >= 40 and abs(heads[i].yaw or 0) <= 60]
        # The head and its pair partners must leave a probe in this look.
        count = min(reference_count, len(good), len(places) - 1)
        if count > 0:
            ranked = sorted(good, key=lambda i: (abs(heads[i].yaw or 0) // 30, -heads[i].pixels))
            out[key] = sorted(ranked[:count])
    return out


def trials(heads: Sequence[Head], clean: Array, probes: Array) -> Trials:
    """All comparisons. clean, probes (N, d): unit embeddings of the heads, for use as reference and
    as probe (which may be spoiled)."""
    chosen = choose_references(heads)
    reserved = {i for places in chosen.values() for i in places}
    free = np.array([i for i in range(len(heads)) if i not in reserved], dtype=np.int64)
    who = np.array([h.identity for h in heads])
    kin = np.array([h.kin for h in heads])
    look = np.array([h.look for h in heads])
    columns: list[tuple[Array, ...]] = []
    for number, ((identity, its_look), places) in enumerate(sorted(chosen.items())):
        mean = clean[places].mean(0)
        mean /= np.linalg.norm(mean)
        same = who[free] == identity
        related = ~same & (kin[free] == heads[places[0]].kin)
        across = look[free] != its_look
        owner = np.full(len(free), number)
        columns.append((probes[free] @ mean, same, related, free, owner, across))
    if not columns:
        raise ValueError("No person has references and a head to compare with them.")
    return Trials(*(np.concatenate(parts) for parts in zip(*columns, strict=True)))


def rank_one_of(found: Trials, strangers: int = 20, seed: int = 0) -> Interval | None:
    """Identification within a look among strangers drawn for each genuine trial; None: too few."""
    rng = np.random.default_rng(seed)
    by_probe: dict[int, list[int]] = defaultdict(list)
    for index in np.flatnonzero(~found.across):
        by_probe[int(found.probe[index])].append(int(index))
    hits = tried = 0
    for rows in by_probe.values():
        own = [i for i in rows if found.genuine[i]]
        others = [i for i in rows if not found.genuine[i]]
        if len(own) != 1 or len(others) < strangers:
            continue
        drawn = rng.choice(others, size=strangers, replace=False)
        hits += bool(found.cosine[own[0]] > found.cosine[drawn].max())
        tried += 1
    return share(hits, tried) if tried else None


def table(heads: Sequence[Head], found: Trials, least: int = 8) -> list[dict[str, object]]:
    """Rows: trials, how many, AUC, EER, AUC against kin; too small groups are left out."""
    probe_look = np.array([heads[i].look for i in found.probe])
    pixels = np.array([heads[i].pixels for i in found.probe])
    framing = np.array([heads[i].framing for i in found.probe])
    yaw = np.array([abs(heads[i].yaw or 0.0) for i in found.probe])
    within = ~found.across
    groups: list[tuple[str, Array]] = [("all, within look", within)]
    groups += [(f"{look}, within", within & (probe_look == look)) for look in np.unique(probe_look)]
    groups.append(("across looks", found.across))
    for low, high in sizes:
        name = f"head {low}-{high} px" if high < 10_000 else f"head {low} px and more"
        groups.append((name, within & (pixels >= low) & (pixels < high)))
    groups += [(f, within & (framing == f)) for f in np.unique(framing)]
    groups.append(("turned less than 45°", within & (yaw < 45)))
    groups.append(("turned 45° and more", within & (yaw >= 45)))
    rows = []
    for name, mask in groups:
        genuine, other = found.cosine[mask & found.genuine], found.cosine[mask & ~found.genuine]
        if len(genuine) < least or len(other) < least:
            continue
        kin = found.cosine[mask & found.kin]
        rows.append(
            {
                "trials": name,
                "genuine": len(genuine),
                "impostor": len(other),
                "auc": round(auc(genuine, other), 4),
                "eer": round(equal_error(genuine, other)[0], 4),
                "kin": len(kin),
                "auc_kin": round(auc(genuine, kin), 4) if len(kin) >= least else None,
            }
        )
    return rows


def as_text(rows: Sequence[dict[str, object]]) -> str:
    """The table in Markdown."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join(lines + ["| " + " | ".join(str(r[n]) for n in names) + " |" for r in rows])

# SPDX-License-Identifier: GPL-3.0-or-later
"""How well embedders tell held-out people apart, and how like a person its LoRA's drawings are.

Both parts read what `python -m bench.lora_test` left in a folder (ONMODEL_LORA_TEST, else
~/.cache/onmodel/lora-test). The first is measured on renders of strangers, people that nothing was
trained on, and makes them where they are missing: each picture against the mean of three references
of its own person and of 20 others in the same look, all in another set and light. The second is
about drawings; what is missing there is a short figure with the command that makes it.

An embedder judges LoRAs at a framing only where its AUC on renders is at least .90: elsewhere its
numbers would say nothing about who is shown. A margin's bar is that its 95 % interval lies above 0.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.harness import Figure
from bench.lora_test import default_folder, looks, sides

Array = np.ndarray

least_auc, least_trials, least_drawings = 0.90, 20, 4
strangers_wanted, characters_wanted = 20, 4
no_data = "make it by python -m bench.lora_test --identity N --look L"


def run() -> list[Figure]:
    """All figures: of the embedders, and of the LoRAs drawn so far."""
    from onmodel.identity import registry

    missing = {one.name: one.missing for one in registry.available()}
    names = [name for name, lacks in missing.items() if not lacks]
    lacking = "; ".join(f"{name}: {lacks}" for name, lacks in missing.items() if lacks)
    figures = [Figure("identity: embedders measured", float(len(names)), note=lacking)]
    folder = Path(os.environ.get("ONMODEL_LORA_TEST") or default_folder)
    make_strangers(folder)
    embedders = [registry.get(name) for name in names]
    known: dict[str, dict[str, float]] = {}
    for embedder in embedders:
        own, known[embedder.name] = of_renders(embedder, folder / "strangers")
        figures += own
    return figures + of_loras(embedders, known, folder)


def make_strangers(folder: Path) -> None:
    """Render the strangers that are missing. Raises CalledProcessError where that fails."""
    there = [len(list((folder / "strangers" / look).glob("*/character.json"))) for look in looks]
    if min(there) <= strangers_wanted:
        module = [sys.executable, "-m", "bench.lora_test", "--folder", str(folder)]
        wanted = ["--strangers", str(strangers_wanted + 1)]
        subprocess.run([*module, *wanted], check=True, stdout=subprocess.DEVNULL)


@dataclass
class Trials:
    """Cosines of renders to references, by framing. first: probes nearest their own person."""

    genuine: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    impostor: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    first: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)


def trials_of(embedder: Any, places: Sequence[Path]) -> Trials:
    """Each person's test pictures against everybody's references. places: folders of one look."""
    from onmodel.identity.interface import NoFace

    out = Trials()
    means = np.stack([reference_mean(embedder, place / "references") for place in places])
    for own, place in enumerate(places):
        for shot in sorted((place / "test").iterdir()):
            told = json.loads((shot / "shot.json").read_text())
            framing = told["parts"]["framing"]
            image = np.asarray(Image.open(shot / "picture.png").convert("RGB"))
            box = tuple(told["face"]) if told["face"] else None
            found = NoFace("no box", "") if box is None else embedder.embed(image, box, told["yaw"])
            if isinstance(found, NoFace):
                out.refused[found.kind] += 1
                continue
            cosines = means @ found
            out.genuine[framing].append(float(cosines[own]))
            out.impostor[framing] += [float(c) for c in np.delete(cosines, own)]
            out.first[framing] += int(cosines.argmax()) == own
    return out


def of_renders(embedder: Any, folder: Path) -> tuple[list[Figure], dict[str, float]]:
    """EER, AUC and identification on renders of strangers, and the AUC by framing."""
    from onmodel.identity.calibrate import equal_error
    from onmodel.identity.report import auc_interval, share

    found = [
        trials_of(embedder, sorted(p for p in (folder / look).iterdir() if p.is_dir()))
        for look in looks
    ]
    genuine = {f: np.array([v for t in found for v in t.genuine[f]]) for f in framings}
    impostor = {f: np.array([v for t in found for v in t.impostor[f]]) for f in framings}
    refused = sum((t.refused for t in found), Counter[str]())
    all_genuine, all_impostor = (np.concatenate(list(x.values())) for x in (genuine, impostor))
    words = ", ".join(f"{n} {kind}" for kind, n in sorted(refused.items())) or "none"
    note = f"{len(all_genuine)} genuine, {len(all_impostor)} impostor trials; refused: {words}"
    name = f"identity: {embedder.name}"
    figures = [
        Figure(f"{name}, EER on renders", equal_error(all_genuine, all_impostor)[0], note=note),
        Figure(f"{name}, AUC on renders", float(auc_interval(all_genuine, all_impostor).value)),
    ]
    known: dict[str, float] = {}
    for framing in framings:
        title, count = f"{name}, AUC on renders, {framing}", len(genuine[framing])
        if count < least_trials:
            figures.append(Figure(title, float(count), "faces", note="too few: judges no LoRA"))
            continue
        area = auc_interval(genuine[framing], impostor[framing])
        known[framing] = area.value
        first = share(sum(t.first[framing] for t in found), count)
        note = f"{area}, {count} faces; rank 1 {first}; {_admitted(area.value)}"
        figures.append(Figure(title, area.value, note=note))
        if framing == "portrait":
            # Beside the bar of drawings: what the true pictures of these people reach.
            title = f"{name}, rank 1 among 20 strangers, portrait renders"
            figures.append(Figure(title, first.value, note=f"{first}: what true pictures reach"))
    return figures, known


framings = ("close-up", "portrait", "medium shot", "three-quarter shot", "full body shot")


def _admitted(auc: float | None) -> str:
    good = auc is not None and auc >= least_auc
    return "judges LoRAs here" if good else f"below {least_auc:.2f}: does not judge LoRAs here"


@dataclass
class Character:
    """One character's drawings. embedded: by side and shot, unit vectors, None: no face."""

    name: str
    look: str
    identity: int
    seconds: float
    framing: dict[str, str]
    references: Array
    embedded: dict[str, dict[str, Array | None]] = field(default_factory=dict)

    def pairs(self, framing: str, other: str) -> tuple[list[float], list[float]]:
        """Cosines to the references of drawings with the LoRA and of the other side's."""
        after, before = [], []
        for shot, kind in self.framing.items():
            mine, theirs = self.embedded["with"].get(shot), self.embedded[other].get(shot)
            if kind == framing and mine is not None and theirs is not None:
                after.append(float(mine @ self.references))
                before.append(float(theirs @ self.references))
        return after, before


def of_loras(
    embedders: list[Any], known: dict[str, dict[str, float]], folder: Path
) -> list[Figure]:
    """The LoRA figures of a results folder. known: by embedder the AUC by framing on renders."""
    places = sorted(p.parent for p in folder.glob("*/shots.json"))
    told = [json.loads((p / "about.json").read_text()) for p in places]
    kinds = Counter(one["look"] for one in told)
    note = ", ".join(f"{n} {look}" for look, n in sorted(kinds.items())) or no_data
    bar = float(characters_wanted)
    figures = [Figure("LoRA: held-out characters drawn", float(len(places)), "", bar, ">=", note)]
    if not places:
        names = ("identity margin over the same prompt", "rank 1 among 20 strangers, portrait")
        return figures + [Figure(f"LoRA: {n}", None, note=f"no drawings: {no_data}") for n in names]
    slowest = max(one["cpu_seconds"] for one in told) / 60
    figures.append(Figure("LoRA: slowest training", slowest, "min of CPU", 20, "<="))
    for embedder in embedders:
        characters = [read_character(embedder, place) for place in places]
        figures += margins(embedder.name, characters, known.get(embedder.name, {}))
        auc = known.get(embedder.name, {}).get("portrait")
        if auc is not None and auc >= least_auc:
            figures.append(identification(embedder, characters, folder / "strangers"))
    return figures


def read_character(embedder: Any, place: Path) -> Character:
    """Embed all drawings of a character's folder and its references."""
    about = json.loads((place / "about.json").read_text())
    rows = json.loads((place / "shots.json").read_text())
    return Character(
        name=place.name,
        look=about["look"],
        identity=about["identity"],
        seconds=about["cpu_seconds"],
        framing={row["shot"]: row["framing"] for row in rows},
        references=reference_mean(embedder, place / "data" / "references"),
        embedded={side: _embedded(embedder, place / side, rows) for side in sides},
    )


def _embedded(embedder: Any, folder: Path, rows: list[dict[str, Any]]) -> dict[str, Array | None]:
    from onmodel.identity.interface import NoFace

    out: dict[str, Array | None] = {}
    for row in rows:
        image = np.asarray(Image.open(folder / f"{row['shot']}.png").convert("RGB"))
        found = embedder.embed(image, tuple(row["box"]), row["yaw"]) if row["box"] else None
        out[row["shot"]] = None if isinstance(found, NoFace) else found
    return out


def reference_mean(embedder: Any, folder: Path) -> Array:
    """The mean direction of a folder of references with their boxes. Raises NoReferenceError."""
    from onmodel.identity.references import Reference, look_at

    shown = []
    for path in sorted(folder.glob("*.png")):
        told = json.loads(path.with_suffix(".json").read_text())
        box = tuple(told["face"]) if told["face"] else None
        shown.append(Reference(np.asarray(Image.open(path).convert("RGB")), box, told["yaw"]))
    mean: Array = look_at(embedder, shown).mean
    return mean


def margins(embedder: str, characters: list[Character], known: dict[str, float]) -> list[Figure]:
    """By framing: how much nearer to the person drawings with the LoRA are than those without."""
    from onmodel.identity.report import grouped_difference

    figures = []
    for framing in framings:
        auc = known.get(framing)
        for other, words in (("without", "the same prompt"), ("described", "all traits in words")):
            groups = [c.pairs(framing, other) for c in characters]
            groups = [g for g in groups if g[0]]
            count = sum(len(after) for after, _ in groups)
            asked = sum(kind == framing for c in characters for kind in c.framing.values())
            name = f"LoRA: {embedder}, {framing}, margin over {words}"
            if not asked:
                continue
            if count < least_drawings:
                figures.append(
                    Figure(name, float(count), "pairs", note=f"of {asked} show a usable face")
                )
                continue
            found = grouped_difference(groups)
            seen = f"interval's low end; {found}, {count} of {asked} pairs"
            # The bar is for the same prompt, where the embedder knows people apart.
            judged = other == "without" and auc is not None and auc >= least_auc
            if judged:
                figures.append(Figure(name, found.low, "", 0, ">", f"{seen}; AUC {auc:.3f}"))
            else:
                reason = _admitted(auc) if other == "without" else "for information"
                figures.append(Figure(name, found.low, note=f"{seen}; {reason}"))
    return figures


def identification(embedder: Any, characters: list[Character], folder: Path) -> Figure:
    """Rank 1 among 20 strangers of the same look, of portraits drawn with the LoRA."""
    from onmodel.identity.report import share

    name = f"LoRA: {embedder.name}, rank 1 among 20 strangers, portrait"
    hits = tried = refused = 0
    for look in sorted({c.look for c in characters}):
        places = sorted((folder / look).glob("*/references"))
        own = {str(c.identity) for c in characters}
        strangers = [reference_mean(embedder, p) for p in places if p.parent.name not in own][
            :strangers_wanted
        ]
        if len(strangers) < strangers_wanted:
            why = f"{len(strangers)} strangers in look {look}: python -m bench.lora_test"
            return Figure(name, None, "", 0.90, ">=", f"{why} --strangers {strangers_wanted + 1}")
        for one in (c for c in characters if c.look == look):
            for shot, framing in one.framing.items():
                face = one.embedded["with"][shot]
                if framing != "portrait":
                    continue
                tried += 1
                if face is None:
                    refused += 1
                    continue
                hits += float(face @ one.references) > max(float(face @ s) for s in strangers)
    if not tried:
        return Figure(name, None, "", 0.90, ">=", "no portrait was drawn")
    found = share(hits, tried)
    return Figure(name, found.value, "", 0.90, ">=", f"{found}; {refused} without a face count")

# SPDX-License-Identifier: GPL-3.0-or-later
"""How well embedders tell held-out people apart, and how like a person its LoRA's drawings are.

The first part is measured on renders of people that nothing was trained on: those of the folder
ONMODEL_WORLD, else of a training world that is there, else made now (`python -m world.samples`).
The second part reads what `python -m bench.lora_test` left (ONMODEL_LORA_TEST, else
~/.cache/onmodel/lora-test); what is missing there is a short figure with the command that makes it.

An embedder judges LoRAs at a framing only where its AUC on renders is at least .90: elsewhere its
numbers would say nothing about who is shown. A margin's bar is that its 95 % interval lies above 0.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.harness import Figure
from bench.lora_test import default_folder, sides

Array = np.ndarray

cache = Path.home() / ".cache" / "onmodel"
first_held_out, renders_wanted = 24576, 240
least_auc, least_drawings, strangers_wanted, characters_wanted = 0.90, 4, 20, 4
no_data = "make it by python -m bench.lora_test --identity N --look L"


def run() -> list[Figure]:
    """All figures: of the embedders, and of the LoRAs drawn so far."""
    from onmodel.identity import registry

    missing = {one.name: one.missing for one in registry.available()}
    names = [name for name, lacks in missing.items() if not lacks]
    lacking = "; ".join(f"{name}: {lacks}" for name, lacks in missing.items() if lacks)
    figures = [Figure("identity: embedders measured", float(len(names)), note=lacking)]
    embedders = [registry.get(name) for name in names]
    samples = renders()
    known: dict[str, dict[str, float]] = {}
    for embedder in embedders:
        own, known[embedder.name] = of_renders(embedder, samples)
        figures += own
    folder = Path(os.environ.get("ONMODEL_LORA_TEST") or default_folder)
    return figures + of_loras(embedders, known, folder)


def renders() -> Path:
    """A folder with samples of held-out people. Raises CalledProcessError where none can be made.

    Looked for in ONMODEL_WORLD, then among the training worlds, then made.
    """
    places = [Path(os.environ["ONMODEL_WORLD"])] if "ONMODEL_WORLD" in os.environ else []
    places += sorted((cache / "world").glob("*"), reverse=True)
    for place in places:
        held = [p for p in place.glob("[0-9]*.json") if int(p.stem) >= first_held_out]
        if len(held) >= 150:
            return place
    out = cache / "bench-world"
    span = ["--start", str(first_held_out), "--count", str(renders_wanted)]
    subprocess.run([sys.executable, "-m", "world.samples", str(out), *span], check=True)
    return out


def of_renders(embedder: Any, samples: Path) -> tuple[list[Figure], dict[str, float]]:
    """EER and AUC on renders, and the AUC by framing."""
    from onmodel.identity import evaluate, pack
    from onmodel.identity.measure import embed_all

    found = pack.heads_in(samples, pack.held_out)
    heads, rows, refused = embed_all(embedder, found)
    trials = evaluate.trials(heads, rows, rows)
    table = {str(row["trials"]): row for row in evaluate.table(heads, trials)}
    whole = table["all, within look"]
    people = len({head.identity for head in heads})
    note = f"{people} held-out people, {whole['genuine']} genuine trials, {dict(refused)} refused"
    name = f"identity: {embedder.name}"
    by_framing = {f: _number(row["auc"]) for f, row in table.items() if f in framings}
    figures = [
        Figure(f"{name}, EER on renders", _number(whole["eer"]), note=note),
        Figure(f"{name}, AUC on renders", _number(whole["auc"])),
    ]
    for framing in framings:
        title = f"{name}, AUC on renders, {framing}"
        if framing in by_framing:
            value = by_framing[framing]
            trial_note = f"{table[framing]['genuine']} genuine trials; {_admitted(value)}"
            figures.append(Figure(title, value, note=trial_note))
        else:
            figures.append(Figure(title, None, note="fewer than 8 genuine trials: no number"))
    return figures, by_framing


framings = ("close-up", "portrait", "medium shot", "three-quarter shot", "full body shot")


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


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
        found = embedder.embed(image, tuple(row["box"]), row["yaw"])
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
            return Figure(name, None, "", 0.90, ">=", f"{why} --strangers {strangers_wanted}")
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

# SPDX-License-Identifier: GPL-3.0-or-later
"""From a training state to what ships: fp16 weights, calibration, table of held-out people."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from onmodel.identity import evaluate, pack, rehearsal, strangers
from onmodel.identity.calibrate import calibrate
from onmodel.identity.cuts import as_drawn, network_input, to_pictures

Array = np.ndarray
log = logging.getLogger(__name__)


def held_out_heads(folder: Path, names: list[str]) -> tuple[list[pack.Head], Array]:
    """Heads and stored cuts (N, 88, 88, 3) of people that training never saw."""
    heads: list[pack.Head] = []
    cuts: list[Array] = []
    for name in names:
        found = pack.load(folder / name)
        places = [i for i, head in enumerate(found.heads) if head.identity >= pack.held_out]
        heads += [found.heads[i] for i in places]
        cuts += [np.asarray(found.cuts[i]) for i in places]
    if not heads:
        raise FileNotFoundError(f"The packs {', '.join(names)} show no held-out people.")
    return heads, np.stack(cuts)


def export(folder: Path, names: list[str]) -> list[dict[str, object]]:
    """Write weights, calibration and results of the state in `folder`; the table's rows."""
    state = torch.load(folder / "state.pt", weights_only=True)
    half = {
        k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state["net"].items()
    }
    rehearsal.folder.mkdir(exist_ok=True)
    facts = {"format": "pt", "step": str(state["step"]), "people": str(len(state["people"]))}
    save_file(half, rehearsal.weights, metadata=facts)
    embedder = rehearsal.RehearsalFaces()
    heads, cuts = held_out_heads(folder / "packs", names)
    clean = embedder.embed_cuts(to_pictures(network_input(cuts)))
    sharp = evaluate.trials(heads, clean, clean)
    soft = evaluate.trials(heads, clean, embedder.embed_cuts(as_drawn(cuts)))
    genuine = np.concatenate([t.cosine[t.genuine & ~t.across] for t in (sharp, soft)])
    others = np.concatenate([t.cosine[~t.genuine & ~t.across] for t in (sharp, soft)])
    people = len({head.identity for head in heads})
    source = f"{people} held-out people of the rehearsal world, renders sharp and as if drawn"
    calibrate(rehearsal.name, genuine, others, source).save(
        rehearsal.folder / f"{rehearsal.name}_calibration.json"
    )
    strangers.make(folder / "packs", names)
    results: dict[str, object] = {**facts, "held_out_people": people, "held_out_heads": len(heads)}
    rows: list[dict[str, object]] = []
    for title, found in (("sharp", sharp), ("as drawn", soft)):
        results[title] = evaluate.table(heads, found)
        ranked = evaluate.rank_one_of(found)
        results[f"{title}, rank 1 among 20"] = str(ranked) if ranked else "too few people"
        rows += [{"probes": title, **row} for row in evaluate.table(heads, found)]
    path = rehearsal.folder / f"{rehearsal.name}_results.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    log.info(
        "step %s, %d heads of %d people\n%s",
        facts["step"],
        len(heads),
        people,
        evaluate.as_text(rows),
    )
    for title in ("sharp", "as drawn"):
        log.info("%s: rank 1 among 20 strangers %s", title, results[f"{title}, rank 1 among 20"])
    return rows

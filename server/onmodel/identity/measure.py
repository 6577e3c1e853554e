# SPDX-License-Identifier: GPL-3.0-or-later
"""How well any embedder tells the world's held-out people apart, on whole pictures.

    python -m onmodel.identity.measure ~/.cache/onmodel/world/b --embedder dlib [--save]

Prints the table of `evaluate`, identification among 20 strangers, and how many heads gave no number
and why. --save writes the embedder's calibration beside the weights.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from onmodel.identity import evaluate, pack, registry, rehearsal
from onmodel.identity.calibrate import calibrate
from onmodel.identity.interface import Array, Embedder, NoFace

log = logging.getLogger(__name__)


def embed_all(
    embedder: Embedder, found: Iterable[pack.Found]
) -> tuple[list[pack.Head], Array, Counter[str]]:
    """Facts and embeddings (N, d) of the heads that gave one, and how many did not, by kind."""
    heads: list[pack.Head] = []
    rows: list[Array] = []
    refused: Counter[str] = Counter()
    for one in found:
        embedding = embedder.embed(one.picture, one.box, one.head.yaw)
        if isinstance(embedding, NoFace):
            refused[embedding.kind] += 1
        else:
            heads.append(one.head)
            rows.append(embedding)
    return heads, np.array(rows), refused


def main(argv: list[str]) -> int:
    """The command line of the module's head."""
    parser = argparse.ArgumentParser(prog="python -m onmodel.identity.measure", description=__doc__)
    parser.add_argument("samples", type=Path, nargs="+")
    parser.add_argument("--embedder", default=rehearsal.name)
    parser.add_argument("--pack", type=Path, help="folder of an InsightFace pack")
    parser.add_argument("--accept-licence", action="store_true")
    parser.add_argument("--save", action="store_true", help="write the calibration")
    options = parser.parse_args(argv)
    embedder = registry.get(options.embedder, options.pack, options.accept_licence)
    found = (f for folder in options.samples for f in pack.heads_in(folder, pack.held_out))
    heads, embeddings, refused = embed_all(embedder, found)
    trials = evaluate.trials(heads, embeddings, embeddings)
    people = len({head.identity for head in heads})
    none = ", ".join(f"{n} {kind}" for kind, n in sorted(refused.items())) or "none"
    log.info("%s: %d heads of %d people; no face: %s", embedder.name, len(heads), people, none)
    log.info("\n%s", evaluate.as_text(evaluate.table(heads, trials)))
    log.info("rank 1 among 20 strangers: %s", evaluate.rank_one_of(trials) or "too few people")
    if options.save:
        within = ~trials.across
        source = f"{people} held-out people of the rehearsal world, renders"
        made = calibrate(
            embedder.name,
            trials.cosine[within & trials.genuine],
            trials.cosine[within & ~trials.genuine],
            source,
        )
        made.save(rehearsal.folder / f"{embedder.name}_calibration.json")
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    raise SystemExit(main(sys.argv[1:]))

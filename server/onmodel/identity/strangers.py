# SPDX-License-Identifier: GPL-3.0-or-later
"""Strangers of the rehearsal world that ship with its embedder: impostors for any cast.

A cast of two has hardly any impostor pairs. These are embeddings of people that the face network
was trained on, sharp and as drawings are: against held-out people's references their cosines lie
as held-out people's own do (the 99 % points: .71 and .70 sharp, .70 and .68 as drawn).

    python -m onmodel.identity.strangers --packs b bh

They belong to one state of the network and are made anew by `onmodel.identity.train export`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from onmodel.identity import rehearsal
from onmodel.identity.interface import Array

log = logging.getLogger(__name__)

path = rehearsal.folder / "rehearsal_strangers.safetensors"
count, least_pixels, widest_yaw = 200, 32.0, 60.0
_tensor = "embeddings"


class StrangersError(Exception):
    """The shipped strangers cannot be used. The message says why."""


def shipped(fingerprint: str, file: Path = path) -> Array:
    """(N, 128) unit embeddings of N strangers by the network with this fingerprint.

    Raises StrangersError where there are none, or they were made with another state of it.
    """
    if not file.is_file():
        raise StrangersError(f"{file.name} is not there. Install the whole server.")
    with safe_open(file, framework="numpy") as stored:
        made_with, half = (stored.metadata() or {}).get("fingerprint"), stored.get_tensor(_tensor)
    if made_with != fingerprint:
        raise StrangersError(
            f"{file.name} belongs to another state of the face network. Run python -m "
            "onmodel.identity.strangers."
        )
    full = half.astype(np.float32)
    return np.asarray(full / np.linalg.norm(full, axis=1, keepdims=True))


def make(folder: Path, names: list[str], file: Path = path) -> int:
    """Write the strangers' file from packs of heads; returns how many embeddings it holds."""
    from onmodel.identity import pack
    from onmodel.identity.cuts import as_drawn, network_input, to_pictures

    rng = np.random.default_rng(0)
    cuts: list[Array] = []
    known: set[tuple[int, str]] = set()
    for name in names:
        found = pack.load(folder / name)
        for place in rng.permutation(len(found.heads)):
            head = found.heads[place]
            key = (head.identity, head.look)
            small = head.pixels < least_pixels or abs(head.yaw or 0.0) > widest_yaw
            if small or head.identity >= pack.held_out or key in known:
                continue
            known.add(key)
            cuts.append(np.asarray(found.cuts[place]))
    if not cuts:
        raise FileNotFoundError(f"The packs {', '.join(names)} show no heads that fit.")
    chosen = np.stack(cuts[:count])
    embedder = rehearsal.RehearsalFaces()
    sharp = embedder.embed_cuts(to_pictures(network_input(chosen)))
    both = np.concatenate([sharp, embedder.embed_cuts(as_drawn(chosen))])
    told = {"fingerprint": embedder.fingerprint}
    save_file({_tensor: both.astype(np.float16)}, file, metadata=told)
    log.info("%d embeddings of %d strangers in %s", len(both), len(chosen), file.name)
    return len(both)


def main(argv: list[str]) -> int:
    """The command line of the module's head."""
    parser = argparse.ArgumentParser(prog="python -m onmodel.identity.strangers")
    home = Path.home() / ".cache" / "onmodel" / "identity"
    parser.add_argument("--folder", type=Path, default=home, help="where packs/ lies [%(default)s]")
    parser.add_argument("--packs", nargs="+", required=True)
    options = parser.parse_args(argv)
    make(options.folder / "packs", options.packs)
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    raise SystemExit(main(sys.argv[1:]))

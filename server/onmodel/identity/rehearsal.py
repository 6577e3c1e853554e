# SPDX-License-Identifier: GPL-3.0-or-later
"""The rehearsal world's own embedder: knows its people, drawn in either look, and nobody else."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from onmodel.identity.interface import (
    Array,
    Embedding,
    HeadBox,
    NoFace,
    check_picture,
    cut,
    square,
    unit,
    unusable,
)
from onmodel.models.errors import ModelError

name = "rehearsal"
least_pixels = 16.0
widest_yaw = 100.0
folder = Path(__file__).parent / "weights"
weights = folder / "rehearsal_faces.safetensors"


def missing() -> str:
    """What is missing, in a sentence, or ""."""
    return "" if weights.is_file() else f"{weights.name} is not there. Install the whole server."


class RehearsalFaces:
    """128 numbers a head of the rehearsal world; needs the head box, for it has no detector."""

    name = name
    size = 128
    least_pixels = least_pixels

    def __init__(self, file: Path = weights) -> None:
        """Raises ModelError where the weights are missing."""
        if not file.is_file():
            raise ModelError(f"The face network {file} is not there.", "Install the whole server.")
        self._file = file

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names this state of the network: numbers of two states are not compared."""
        return hashlib.sha256(self._file.read_bytes()).hexdigest()[:16]

    @functools.cached_property
    def _net(self) -> Any:
        from safetensors.torch import load_file

        from onmodel.identity.net import FaceNet

        net = FaceNet()
        net.load_state_dict({k: v.float() for k, v in load_file(self._file).items()})
        return net.eval().requires_grad_(False)

    def embed(
        self, image: Array, head: HeadBox | None = None, yaw: float | None = None
    ) -> Embedding | NoFace:
        """See interface.Embedder."""
        check_picture(image)
        if head is None:
            return NoFace("no box", "The rehearsal embedder has no detector: give the head's box.")
        refused = unusable(image, head, yaw, least_pixels, widest_yaw)
        if refused is not None:
            return refused
        import numpy as np

        from onmodel.identity.net import input_size
        from onmodel.identity.pack import input_margin

        patch = cut(image, square(head, input_margin), input_size)
        return self.embed_cuts(np.asarray(patch)[None])[0]

    def as_drawn(self, image: Array, head: HeadBox, times: int) -> list[Embedding]:
        """Embeddings of a head as if a small model had drawn it, in `times` ways, always the same.

        Portraits are sharp and drawings are not: thresholds have to know both.
        """
        import numpy as np

        from onmodel.identity.cuts import as_drawn
        from onmodel.identity.pack import stored_margin, stored_size

        patch = cut(image, square(head, stored_margin), stored_size)
        return list(self.embed_cuts(as_drawn(np.stack([patch] * times))))

    def embed_cuts(self, cuts: Array) -> Array:
        """(N, 128) float32 of heads already cut: (N, 64, 64, 3) uint8.

        The mean of each head and its mirror image, so that a face turned left is as near to its
        references as one turned right.
        """
        import numpy as np
        import torch

        x = torch.from_numpy(np.array(cuts)).permute(0, 3, 1, 2).float() / 127.5 - 1
        found = [self._net(part) + self._net(part.flip(3)) for part in x.split(64)]
        return np.stack([unit(row) for row in torch.cat(found).numpy()])

# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference ways of regional LoRAs: whole passes, blended by the masks.

For every set of LoRAs that a picture's regions bear, the model's output with that set on the whole
picture; for the rest, the output without. The picture's output is their sum, each multiplied by
its regions' shares of the latent cells. One step is exact: nothing of a LoRA can reach another
region within it. From step to step neighbours see each other through the latents, as in any way.

"pass" calls the model once for each set, "batch" once with all of them, each set on its own rows.
Both cost as many forwards as there are sets, and one more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from onmodel.generate.regional_loras import Cast, Plan, Rows
from onmodel.generate.regional_masks import at_level, feathered
from onmodel.generate.regional_settings import RegionalSettings

Call = Callable[[list[int], Plan], torch.Tensor]
"""The model's output (n, …) for these n rows of the batch (one may stand there twice), with the
plan's adapters."""


@dataclass(frozen=True)
class _Layer:
    """A row of the batch with one set of LoRAs. share: (2, h, w), without and with grown masks."""

    row: int
    cast: Cast
    share: torch.Tensor


class Blend:
    """A batch that is drawn by blending.

    shares: (B, R, h, w) of latent cells. casts: for each row, its regions' LoRAs; () for none.
    """

    def __init__(
        self, shares: torch.Tensor, casts: Sequence[Sequence[Cast]], settings: RegionalSettings
    ) -> None:
        self._settings = settings
        shares = feathered(shares.float(), settings.feather)
        grid = (shares.shape[-2], shares.shape[-1])
        both = torch.stack([at_level(shares, grid, settings, grown) for grown in (False, True)])
        self._layers: list[_Layer] = []
        for row, regions in enumerate(casts):
            sets: dict[Cast, torch.Tensor] = {(): torch.ones_like(both[:, row, 0])}
            for region, cast in enumerate(regions):
                if cast:
                    share = both[:, row, region]
                    sets[()] = sets[()] - share
                    sets[cast] = sets[cast] + share if cast in sets else share
            # A set without any share is not worth a pass.
            self._layers += [_Layer(row, c, s) for c, s in sets.items() if bool((s > 0).any())]
        self._layers.sort(key=lambda layer: layer.cast)
        self._count = len(casts)
        self._rows = torch.tensor([layer.row for layer in self._layers], device=shares.device)
        self._shares = torch.stack([layer.share for layer in self._layers], 1).unsqueeze(2)

    def draw(self, call: Call, progress: float) -> torch.Tensor:
        """The blended output (B, …) float32 of one step."""
        groups: dict[Cast, list[_Layer]] = {}
        for layer in self._layers:
            groups.setdefault(layer.cast, []).append(layer)
        if self._settings.way == "batch":
            runs, at = [], 0
            for cast, layers in groups.items():
                runs.append((slice(at, at + len(layers)), cast))
                at += len(layers)
            outs = call([layer.row for layer in self._layers], Rows(runs))
        else:
            outs = torch.cat(
                [
                    call([layer.row for layer in layers], Rows([(slice(None), cast)]))
                    for cast, layers in groups.items()
                ]
            )
        shares = self._shares[int(self._settings.grown_at(progress))]
        blended = outs.new_zeros(self._count, *outs.shape[1:], dtype=torch.float32)
        return blended.index_add_(0, self._rows, outs.float() * shares)


def whole_runs(casts: Sequence[Sequence[Cast]]) -> list[tuple[slice, Cast]]:
    """Neighbouring rows with the same LoRAs, where a region covers its whole picture. casts: for
    each row, its regions' LoRAs, of which at most one has any."""
    sets = [next((cast for cast in row if cast), ()) for row in casts]
    runs, at = [], 0
    for cast, group in itertools.groupby(sets):
        count = len(list(group))
        runs.append((slice(at, at + count), cast))
        at += count
    return runs

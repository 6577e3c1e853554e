# SPDX-License-Identifier: GPL-3.0-or-later
"""A batch of pictures as Flux's transformer takes it: text, regions, guidance, LoRAs' places."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from onmodel.generate.joint_regions import JointRegions
from onmodel.generate.regional_loras import Cast, Fields, RegionalLayers, Rows, weight_table
from onmodel.generate.regional_settings import RegionalSettings
from onmodel.generate.regional_ways import Blend, whole_runs
from onmodel.generate.regions import join_prompts
from onmodel.models.flux_control import Control
from onmodel.models.flux_text import Embedding
from onmodel.models.regional_batch import RegionalBatch


@dataclass(frozen=True)
class PictureText:
    """A picture's prompts and cast.

    own: keys of each region's prompt, (L, D), L = 0 for none. negative: None where the picture is
    drawn without one. casts: each region's LoRAs. whole: the region that covers all of the picture
    and alone has LoRAs, else None.
    """

    shot: Embedding
    own: list[torch.Tensor]
    negative: Embedding | None
    casts: list[Cast]
    whole: int | None


class Batch(RegionalBatch[PictureText, Control]):
    """Pictures made ready for Flux.

    The transformer's rows are the pictures that have a negative prompt, drawn with that, and then
    all pictures. size: of the latents. guidance: what the model is told, where it takes that.
    scale: of the difference that a negative prompt makes.
    """

    def __init__(
        self,
        pictures: list[PictureText],
        shares: torch.Tensor,
        controls: list[Control],
        size: tuple[int, int],
        guidance: float,
        scale: float,
        settings: RegionalSettings,
        regional: RegionalLayers,
    ) -> None:
        super().__init__(pictures, shares, controls, size, settings, regional)
        self.guidance = guidance
        self.scale = scale
        self._assemble()

    def _assemble(self) -> None:
        against = [(b, p.negative) for b, p in enumerate(self.pictures) if p.negative]
        self.against = [b for b, _ in against]
        """The pictures whose negative prompts are the first rows."""
        self.order = [*self.against, *range(len(self.pictures))]
        """The picture of every row."""
        rows = [[negative.keys] for _, negative in against]
        rows += [[p.shot.keys, *p.own] for p in self.pictures]
        self.keys, segments = join_prompts(rows)
        pooled = [negative.pooled for _, negative in against]
        self.prompts = [row[0] for row in rows]
        """The shot's or the negative prompt's keys of every row, (L, D) each."""
        self.pooled = torch.stack([*pooled, *(p.shot.pooled for p in self.pictures)])
        shares = self.shares[self.order]
        grid = (self.size[0] // 2, self.size[1] // 2)
        everyone = bool((segments == 0).all())
        self.regions = None if everyone else JointRegions(shares, grid, segments)
        self._bind(shares, segments, grid)

    def _bind(self, shares: torch.Tensor, segments: torch.Tensor, grid: tuple[int, int]) -> None:
        """Where the regional LoRAs act: by fields, on whole rows, or in passes that are blended."""
        self.blend = None
        self._plan = None
        pictures = [self.pictures[b] for b in self.order]
        casts = [p.casts for p in pictures]
        bound = [p for p in pictures if any(p.casts)]
        if not bound:
            return
        if self.settings.way != "fast":
            self.blend = Blend(shares, casts, self.settings)
        elif all(p.whole is not None for p in bound):
            self._plan = Rows(whole_runs(casts))
        else:
            weights = weight_table(casts, self.regional.names, shares.shape[1])
            # Where a region is the whole picture, the shot's prompt is the character's too.
            shot = torch.stack(
                [
                    weights[row, 0] * 0 if p.whole is None else weights[row, p.whole]
                    for row, p in enumerate(pictures)
                ]
            )
            grids = {grid[0] * grid[1]: grid}
            dtype = self.keys.dtype
            self._plan = Fields(shares, weights, segments, grids, self.settings, dtype, shot)

    def mask_of(self, rows: list[int] | None) -> torch.Tensor | None:
        """Who sees whom in these rows, or in all; None: everybody everybody."""
        if self.regions is None:
            return None
        return self.regions.mask if rows is None else self.regions.rows(rows)

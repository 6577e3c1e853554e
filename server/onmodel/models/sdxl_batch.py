# SPDX-License-Identifier: GPL-3.0-or-later
"""A batch of pictures as SDXL's modules take it: text keys, regions, maps, and LoRAs' places."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from onmodel.generate.image_tokens import Held, ImageTokens
from onmodel.generate.regional_loras import Cast, Fields, RegionalLayers, Rows, weight_table
from onmodel.generate.regional_settings import RegionalSettings
from onmodel.generate.regional_ways import Blend, whole_runs
from onmodel.generate.regions import Regions, join_prompts, token_grids
from onmodel.models.ip_adapter import IPAdapter, LookTokens
from onmodel.models.regional_batch import RegionalBatch


@dataclass(frozen=True)
class Embedding:
    """A prompt's embedding. keys: (L, D), 77 for each 75 tokens of text; pooled: (P,)."""

    keys: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True)
class Control:
    """One map of each picture. features: (B, C, h, w), what the ControlNet sees of it."""

    mode: int
    features: torch.Tensor
    weight: float
    start: float
    end: float

    def of(self, rows: torch.Tensor) -> Control:
        """The same map of these pictures alone. rows: (n,) integers."""
        return replace(self, features=self.features[rows])


@dataclass(frozen=True)
class PictureText:
    """A picture's prompts and cast.

    own: keys of each region's prompt, (L, D), L = 0 for none. casts: each region's LoRAs.
    whole: the one region that has LoRAs covers the whole picture. looks: of the regions that are
    held by portraits: number, weight, image tokens.
    """

    shot: Embedding
    own: list[torch.Tensor]
    negative: Embedding
    casts: list[Cast]
    whole: bool
    looks: list[tuple[int, float, LookTokens]]


class Batch(RegionalBatch[PictureText, Control]):
    """Pictures made ready for SDXL.

    size: height and width of the pictures. Where regional LoRAs change keys and values, a region's
    tokens see copies of the shot's and of the negative prompt's keys that are its own.
    guided_loras: as `registry.ModelEntry` has it.
    """

    def __init__(
        self,
        pictures: list[PictureText],
        shares: torch.Tensor,
        controls: list[Control],
        size: tuple[int, int],
        guidance: float,
        settings: RegionalSettings,
        regional: RegionalLayers,
        adapter: IPAdapter | None,
        guided_loras: bool = False,
    ) -> None:
        super().__init__(pictures, shares, controls, size, settings, regional)
        self.adapter = adapter
        self.guidance = guidance
        self.guided = guidance > 1.0
        self._guided_loras = guided_loras
        self._assemble()

    def _assemble(self) -> None:
        """The tensors as the modules take them: unguided rows first, then the guided ones."""
        bound = [p for p in self.pictures if any(p.casts)]
        fast = self.settings.way == "fast" and not all(p.whole for p in bound)
        copies = fast and self.settings.own_keys and "keys" in self.regional.kinds
        twice = 2 if self.guided else 1
        positive: list[list[torch.Tensor]] = []
        negative: list[list[torch.Tensor]] = []
        own = self.shares.new_zeros(self.shares.shape[:2], dtype=torch.bool)
        for b, picture in enumerate(self.pictures):
            shot, against = picture.shot.keys, picture.negative.keys
            positive.append([shot, *picture.own])
            negative.append([against])
            if not copies:
                continue
            for r, cast in enumerate(picture.casts):
                own[b, r] = bool(cast)
                bound_too = cast and not self._guided_loras
                negative[b].append(against if bound_too else against[:0])
                if cast:
                    positive[b][r + 1] = torch.cat([shot, picture.own[r]])
        rows = negative + positive if self.guided else positive
        pooled = [p.negative.pooled for p in self.pictures] if self.guided else []
        pooled += [p.shot.pooled for p in self.pictures]
        self.keys, segments = join_prompts(rows)
        self.pooled = torch.stack(pooled)
        shares = torch.cat([self.shares] * twice)
        everyone = bool((segments == 0).all())
        self.regions: Regions | None = None
        if not everyone:
            # Rows of negative prompts know only the regions that have a copy of theirs.
            copied = own & (not self._guided_loras)
            known = [self.shares * copied[..., None, None], self.shares]
            alone = [copied, own]
            self.regions = Regions(torch.cat(known[-twice:]), segments, torch.cat(alone[-twice:]))
        height, width = self.size
        ids = [height, width, 0, 0, height, width]
        self.time_ids = self.keys.new_tensor([ids]).expand(len(rows), -1)
        self.features = [torch.cat([c.features] * twice) for c in self.controls]
        self._bind(shares, segments, fast)
        self._hold(shares)

    def _hold(self, shares: torch.Tensor) -> None:
        """The image tokens of the regions that are held by portraits."""
        first = len(self.pictures) if self.guided else 0
        held = []
        for b, picture in enumerate(self.pictures):
            for region, weight, look in picture.looks:
                held.append(Held(first + b, region, weight, look.shown))
                if self.guided:
                    held.append(Held(b, region, weight, look.empty))
        self._image_tokens: ImageTokens | None = None
        self._image_parts: dict[tuple[int, ...], ImageTokens | None] = {}
        if held:
            assert self.adapter is not None
            self._image_tokens = ImageTokens(self.adapter, held, shares, self.settings)

    def _bind(self, shares: torch.Tensor, segments: torch.Tensor, fast: bool) -> None:
        """Where the regional LoRAs act: by fields, on whole rows, or in passes that are blended."""
        self.blend = None
        self._plan = None
        casts = [p.casts for p in self.pictures]
        if self.guided:
            nobody: list[list[Cast]] = [[() for _ in row] for row in casts]
            casts = [*(nobody if self._guided_loras else casts), *casts]
        if not any(any(row) for row in casts):
            return
        if fast:
            weights = weight_table(casts, self.regional.names, shares.shape[1])
            grids = token_grids(shares.shape[-2], shares.shape[-1])
            dtype = self.keys.dtype
            self._plan = Fields(shares, weights, segments, grids, self.settings, dtype)
        elif self.settings.way == "fast":
            self._plan = Rows(whole_runs(casts))
        else:
            self.blend = Blend(shares, casts, self.settings)
        self._parts: dict[tuple[int, ...], Regions | None] = {}

    def regions_of(self, rows: list[int]) -> Regions | None:
        """The regions of some rows, remembered for the next step."""
        if self.regions is not None and tuple(rows) not in self._parts:
            self._parts[tuple(rows)] = self.regions.rows(rows)
        return self._parts.get(tuple(rows))

    def image_tokens(self, progress: float, rows: list[int] | None) -> ImageTokens | None:
        """The image tokens of all rows or of these, at this part of the steps."""
        found = self._image_tokens
        if found is not None and rows is not None:
            if tuple(rows) not in self._image_parts:
                self._image_parts[tuple(rows)] = found.rows(rows)
            found = self._image_parts[tuple(rows)]
        if found is not None:
            found.grown = self.settings.grown_at(progress)
        return found

    @property
    def conditions(self) -> dict[str, torch.Tensor]:
        """SDXL's added conditions: pooled text and size."""
        return {"text_embeds": self.pooled, "time_ids": self.time_ids}

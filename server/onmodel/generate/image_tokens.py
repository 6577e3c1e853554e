# SPDX-License-Identifier: GPL-3.0-or-later
"""Image tokens that are attended in their character's region alone.

An IP-Adapter's attention stands beside the text's: softmax(Q Kᵢᵀ/√d) Vᵢ with the same queries, its
result added to the text's before the output layer (Ye et al. 2023, equation 5). Here each character
has tokens of its own, and what they give to an image token is multiplied by weight * (the part of
the token that the character covers), as its LoRAs' deltas are (`regional_masks`). Keys and values
are made of the character's portraits alone, so no other region sees anything of it in a layer.
The ControlNet sees text only, as in diffusers.

All held characters of a batch are one attention: their rows' queries are taken as often as the row
has such characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from onmodel.generate.regional_masks import at_level, feathered
from onmodel.generate.regional_settings import RegionalSettings
from onmodel.generate.regions import token_grids


class Layers(Protocol):
    """Gives each cross-attention its second pair of matrices (`models.ip_adapter.IPAdapter`)."""

    def keys_values(
        self, attention: nn.Module, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(P, n, C) keys and values of image tokens (P, n, D) in this cross-attention."""


@dataclass(frozen=True)
class Held:
    """A character that is held. row: of the batch. region: of the row. tokens: (n, D)."""

    row: int
    region: int
    weight: float
    tokens: torch.Tensor


class ImageTokens:
    """The image tokens of one batch, and where they act.

    shares: (B, R, h, w) of latent cells. held: at least one. grown: set before each step.
    """

    def __init__(
        self,
        layers: Layers,
        held: Sequence[Held],
        shares: torch.Tensor,
        settings: RegionalSettings,
    ) -> None:
        self.grown = False
        self._layers = layers
        self._held = list(held)
        self._plain = shares
        self._settings = settings
        self._shares = feathered(shares.float(), settings.feather)
        self._grids: Mapping[int, tuple[int, int]] = token_grids(shares.shape[-2], shares.shape[-1])
        device = shares.device
        self._rows = torch.tensor([h.row for h in held], device=device)
        self._regions = torch.tensor([h.region for h in held], device=device)
        self._weights = torch.tensor([h.weight for h in held], device=device).view(-1, 1, 1)
        counts = torch.tensor([h.tokens.shape[0] for h in held], device=device)
        self._tokens = nn.utils.rnn.pad_sequence([h.tokens for h in held], batch_first=True)
        places = torch.arange(self._tokens.shape[1], device=device)
        padding = places >= counts[:, None]
        self._bias: torch.Tensor | None = None
        if bool(padding.any()):
            bias = self._tokens.new_zeros(padding.shape).masked_fill(padding, float("-inf"))
            self._bias = bias[:, None, None]
        self._factors: dict[tuple[bool, int], torch.Tensor] = {}

    def rows(self, rows: Sequence[int]) -> ImageTokens | None:
        """Those of some rows of the batch (a row may stand there twice); None: there are none."""
        held = [
            Held(at, h.region, h.weight, h.tokens)
            for at, row in enumerate(rows)
            for h in self._held
            if h.row == row
        ]
        if not held:
            return None
        index = torch.tensor(list(rows), device=self._plain.device)
        return ImageTokens(self._layers, held, self._plain[index], self._settings)

    def add(
        self, attention: nn.Module, query: torch.Tensor, scale: float, out: torch.Tensor
    ) -> torch.Tensor:
        """What the text's attention gave, with the image tokens' part.

        query: (B, heads, N, d). out: (B, N, heads * d), before the output layer.
        """
        key, value = self._layers.keys_values(attention, self._tokens)
        heads, tokens = query.shape[1], query.shape[2]
        key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (key, value))
        found = F.scaled_dot_product_attention(
            query[self._rows], key, value, self._bias, scale=scale
        )
        found = found.transpose(1, 2).flatten(2) * self._factor(tokens, out.dtype)
        return out.index_add(0, self._rows, found)

    def _factor(self, tokens: int, dtype: torch.dtype) -> torch.Tensor:
        """(P, tokens, 1): weight * share of every held character."""
        key = (self.grown, tokens)
        if key not in self._factors:
            if tokens not in self._grids:
                raise ValueError(f"No level of this picture has {tokens} image tokens.")
            shares = at_level(self._shares, self._grids[tokens], self._settings, self.grown)
            chosen = shares[self._rows, self._regions].flatten(1).unsqueeze(-1)
            self._factors[key] = (chosen * self._weights).to(dtype)
        return self._factors[key]

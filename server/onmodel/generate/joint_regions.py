# SPDX-License-Identifier: GPL-3.0-or-later
"""Regional prompts where text and image are one sequence (Flux).

The text tokens of a picture are its prompts' embeddings end to end, as in `regions`: the shot's
prompt, then one prompt per character. The same rule, carried over to attention in both directions:
    an image token sees all image tokens, the shot's prompt, and the prompts of the characters that
        cover it (`regions.seen_share`)
    a text token sees, and is seen by, the same image tokens: the shot's all, a character's its own
    a character's text sees itself and the shot's prompt; the shot's prompt sees itself alone
So a character's words reach the rest of the picture only by way of image tokens, as everything
does that is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from onmodel.generate.regions import seen_share


class JointRegions:
    """Who sees what in a sequence of text and image tokens, for one batch.

    shares: (B, R, h, w) float, 0..1, as `Regions` has them. grid: (height, width) in image tokens.
    segments: (B, T) integers, as `Regions` has them: 0 = shot, r + 1 = character r, -1 = padding.
    """

    def __init__(self, shares: torch.Tensor, grid: tuple[int, int], segments: torch.Tensor) -> None:
        members = F.adaptive_avg_pool2d(shares, grid).flatten(2) >= seen_share
        batch, _, tokens = members.shape
        table = torch.cat(
            [members.new_ones(batch, 1, tokens), members, members.new_zeros(batch, 1, tokens)], 1
        )
        # -1, padding, is the table's last row.
        index = (segments % table.shape[1])[..., None].expand(-1, -1, tokens)
        between = torch.gather(table, 1, index)
        asks, asked = segments[:, :, None], segments[:, None, :]
        # Padding sees padding, since a softmax over nothing is not a number; nobody sees it.
        texts = (asks == asked) | ((asked == 0) & (asks >= 0))
        images = members.new_ones(batch, tokens, tokens)
        upper = torch.cat([texts, between], 2)
        lower = torch.cat([between.transpose(1, 2), images], 2)
        self.mask = torch.cat([upper, lower], 1).unsqueeze(1)
        """(B, 1, T + N, T + N) bool: whether a token sees another."""

    def rows(self, rows: Sequence[int]) -> torch.Tensor:
        """The mask of some rows of the batch."""
        return self.mask[list(rows)]

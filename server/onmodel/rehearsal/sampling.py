# SPDX-License-Identifier: GPL-3.0-or-later
"""One training step's batch and loss, and quick drawings for the sheets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPTokenizer

from onmodel.generate.regions import Regions
from onmodel.rehearsal import data, stem
from onmodel.rehearsal.architecture import Denoiser, make_scheduler, map_types, token_limit

map_choices: tuple[tuple[float, tuple[str, ...]], ...] = (
    (0.36, ("pose", "depth", "normal")),
    (0.36, ("pose", "depth")),
    (0.08, ("depth", "normal")),
    (0.08, ("depth",)),
    (0.07, ("pose",)),
    (0.05, ()),
)
"""Which maps a batch has, and how often."""


@functools.cache
def fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AMX)."""
    return bool(torch.cpu._is_amx_tile_supported())


@dataclass
class Batch:
    """What the denoiser gets.

    latents (B, 12, h, w). maps by kind: the stem's features (B, 56, h, w), 0..255. tokens of all
    pictures' prompts (B, P, 48). segments (B, P * 48) and shares (B, 2, h, w) as `Regions` has
    them. size: (H, W) of the full canvas.
    """

    latents: torch.Tensor
    maps: dict[str, torch.Tensor]
    tokens: torch.Tensor
    segments: torch.Tensor
    shares: torch.Tensor
    size: tuple[int, int]


class Tokens:
    """Texts to token numbers, remembered."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, torch.Tensor] = {}

    def __call__(self, text: str) -> torch.Tensor:
        """(48,) int64."""
        if text not in self._known:
            ids = self._tokenizer(
                text, padding="max_length", max_length=token_limit, truncation=True
            )["input_ids"]
            self._known[text] = torch.tensor(ids)
        return self._known[text]


def make_batch(
    shard: data.Shard,
    index: torch.Tensor,
    prompts: Sequence[data.Prompts],
    tokens: Tokens,
    source: str = "own",
) -> Batch:
    """The samples `index` (B,) of a shard with these prompts and the maps of `source`."""
    longest = max(len(p.texts) for p in prompts)
    rows, segments = [], []
    for prompt in prompts:
        texts = [*prompt.texts, *[""] * (longest - len(prompt.texts))]
        rows.append(torch.stack([tokens(t) for t in texts]))
        numbers = [i if i < len(prompt.texts) else -1 for i in range(longest)]
        segments.append(torch.tensor(numbers).repeat_interleave(token_limit))
    maps = {kind: shard.maps[f"{source} {kind}"][index].float() for kind in data.map_order}
    return Batch(
        latents=shard.latents[index].float(),
        maps=maps,
        tokens=torch.stack(rows),
        segments=torch.stack(segments),
        shares=shard.shares[source][index].float() / 255,
        size=shard.size,
    )


def predict(
    model: Denoiser,
    batch: Batch,
    noisy: torch.Tensor,
    times: torch.Tensor,
    kinds: Sequence[str],
    text: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """v (B, 12, h, w) float32 of noisy latents at times (B,), shown the maps `kinds`.

    text: what `encode_prompts` gave for this batch, to use it again.
    """
    count = len(noisy)
    embeddings, pooled = encode_prompts(model, batch) if text is None else text
    height, width = batch.size
    sizes = torch.tensor([[height, width, 0, 0, height, width]] * count).float()
    added = {"text_embeds": pooled, "time_ids": sizes}
    regions = Regions(batch.shares, batch.segments)
    shared: dict[str, Any] = {
        "added_cond_kwargs": added,
        "cross_attention_kwargs": {"regions": regions},
    }
    noisy = noisy.contiguous(memory_format=torch.channels_last)
    residuals: dict[str, Any] = {}
    if kinds:
        modes = [map_types[k] for k in kinds]
        types = torch.zeros(count, 6)
        types[:, modes] = 1
        down, middle = model.controlnet(
            noisy,
            times,
            embeddings,
            controlnet_cond=[
                batch.maps[k].contiguous(memory_format=torch.channels_last) for k in kinds
            ],
            control_type=types,
            control_type_idx=modes,
            return_dict=False,
            **shared,
        )
        residuals["down_block_additional_residuals"] = down
        residuals["mid_block_additional_residual"] = middle
    out = model.unet(noisy, times, embeddings, return_dict=False, **shared, **residuals)[0]
    return out.float()


def encode_prompts(model: Denoiser, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys (B, P * 48, D) and the pooled embedding of each picture's first prompt (B, P)."""
    count, prompts, length = batch.tokens.shape
    flat, index = torch.unique(batch.tokens.view(-1, length), dim=0, return_inverse=True)
    embeddings, pooled = model.encode(flat)
    keys = embeddings[index].view(count, prompts * length, -1)
    return keys, pooled[index].view(count, prompts, -1)[:, 0]


class Noise:
    """SDXL's noise schedule at zero terminal SNR. signal and noise: (1000,) factors, squares sum
    to 1."""

    def __init__(self) -> None:
        kept = make_scheduler().alphas_cumprod.clone()
        kept[-1] = 0
        self.signal, self.noise = kept.sqrt(), (1 - kept).sqrt()
        self._level = self.noise / (self.noise + self.signal)

    def random_times(self, count: int, rng: torch.Generator) -> torch.Tensor:
        """(count,) times; most where pictures take shape, some evenly, some at pure noise.

        The world is smooth: whole areas of latents have one colour, so noise three times the
        signal still shows it, and what is decided in a drawing's first steps lies above that.
        """
        level = torch.sigmoid(torch.randn(count, generator=rng) * 1.3 + 1.1)
        times = torch.searchsorted(self._level, level).clamp(max=999)
        even = torch.randint(0, 1000, (count,), generator=rng)
        kind = torch.rand(count, generator=rng)
        times = torch.where(kind < 0.2, even, times)
        return torch.where(kind > 0.92, torch.full_like(times, 999), times)

    def at(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """signal, noise at times (B,), shaped to multiply latents."""
        return self.signal[times].view(-1, 1, 1, 1), self.noise[times].view(-1, 1, 1, 1)


def training_loss(
    model: Denoiser,
    shards: Sequence[data.Shard],
    size: int,
    tokens: Tokens,
    noise: Noise,
    rng: torch.Generator,
) -> torch.Tensor:
    """The loss of one random batch of `size` samples."""
    weights = torch.tensor([_turns(s) for s in shards])
    shard = shards[int(torch.multinomial(weights, 1, generator=rng))]
    odds = torch.tensor([_near.get(words.shot[1], 1.0) for words in shard.words])
    index = torch.multinomial(odds, size, replacement=True, generator=rng)
    prompts = [data.choose_prompts(shard.words[int(i)], rng) for i in index]
    standin = "standin" in shard.shares and bool(torch.rand((), generator=rng) < 0.5)
    batch = make_batch(shard, index, prompts, tokens, "standin" if standin else "own")
    odds = torch.tensor([odd for odd, _ in map_choices])
    kinds = map_choices[int(torch.multinomial(odds, 1, generator=rng))][1]
    times = noise.random_times(size, rng)
    signal, amount = noise.at(times)
    dirt = torch.randn(batch.latents.shape, generator=rng)
    noisy = signal * batch.latents + amount * dirt
    # float32: on CPUs without matrix units for bfloat16 (AMX) autocast is 1.6 times slower.
    with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16()):
        v = predict(model, batch, noisy, times, kinds)
    weights = 1 + _face_weight * face_cells(batch)
    errors = (v - (signal * dirt - amount * batch.latents)).pow(2)
    return (errors * weights).mean() / weights.mean()


_near = {"close-up": 2.5, "portrait": 2.0}
"""Turns of a sample by its framing, others 1: what the face pass asks for is a close-up."""


def _turns(shard: data.Shard) -> float:
    """How often samples of a shard take their turn, in proportion.

    By the root of their number: wide and tall canvases are a fifth of the world and were drawn
    softer and darker than square ones. Those with a stand-in are what a storyboard is like.
    """
    return float(len(shard)) ** 0.5 * (1.5 if "standin" in shard.shares else 1.0)


_face_weight = 4.0
"""Faces are a twelfth of the cells and most of what people look at."""


def face_cells(batch: Batch) -> torch.Tensor:
    """(B, 1, h, w): 1 in cells at and beside the pose map's face points, which are white."""
    white = batch.maps["pose"][:, stem.white].amax(1, keepdim=True)
    return F.max_pool2d((white > stem.white_least).float(), 3, 1, 1)


@torch.no_grad()
def draw(
    model: Denoiser,
    batch: Batch,
    noise: Noise,
    empty: torch.Tensor,
    kinds: Sequence[str] = ("pose", "depth", "normal"),
    steps: int = 8,
    guidance: float = 3.0,
    seed: int = 0,
) -> torch.Tensor:
    """Latents (B, 12, h, w) drawn for a batch with new noise at every step, as LCMScheduler does.

    empty: "" in tokens.
    """
    rng = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch.latents.shape, generator=rng)
    blank = Batch(
        batch.latents,
        batch.maps,
        empty.expand(len(latents), 1, -1),
        torch.zeros(len(latents), token_limit, dtype=torch.int64),
        batch.shares,
        batch.size,
    )
    times = np.round(np.arange(1000, 0, -1000 / steps)).astype(int) - 1
    with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16()):
        text, no_text = encode_prompts(model, batch), encode_prompts(model, blank)
        for now, then in zip(times, [*times[1:], -1], strict=True):
            t = torch.full((len(latents),), int(now))
            told = predict(model, batch, latents, t, kinds, text)
            free = predict(model, blank, latents, t, kinds, no_text)
            v = free + guidance * (told - free)
            signal, amount = noise.at(t)
            clean = signal * latents - amount * v
            if then < 0:
                latents = clean
            else:
                # As LCMScheduler: new noise on what is foreseen.
                signal, amount = noise.at(torch.full_like(t, int(then)))
                new = torch.randn(latents.shape, generator=rng)
                latents = signal * clean + amount * new
    return latents


def sheet(rows: Sequence[torch.Tensor]) -> np.ndarray:
    """Rows of pictures (N, 3, H, W) in -1..1 as one (H, W, 3) uint8 image."""
    lines = [torch.cat(list(row), dim=2) for row in rows]
    whole = torch.cat(lines, dim=1).clamp(-1, 1)
    return ((whole + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


Decode = Callable[[torch.Tensor], torch.Tensor]
"""Latents (N, 12, h, w) to pictures (N, 3, H, W) in -1..1."""

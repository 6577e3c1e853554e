# SPDX-License-Identifier: GPL-3.0-or-later
"""From the world's samples to training batches: latents, maps, masks and captions in shards.

A shard holds the samples of 256 consecutive numbers and one canvas size, at full and at half
size. Packing is repeatable and skips what is there; samples may still be coming in meanwhile.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from addon.core.depth import depth_map, depth_range
from addon.core.openpose import draw_pose
from addon.core.request import Keypoint, Pose
from onmodel.rehearsal.latents import PatchBasis

Array = np.ndarray
log = logging.getLogger(__name__)

shard_size = 256
people_limit = 2
map_order = ("pose", "depth", "normal")


@dataclass(frozen=True)
class Words:
    """A sample's captions. shot: (framing, set). people: parts of each person's caption."""

    shot: tuple[str, ...]
    people: tuple[tuple[str, ...], ...]


@dataclass
class Shard:
    """Samples of one canvas size, at one of the two scales.

    latents (N, 8, h, w) float16; pose and normal (N, H, W, 3), depth (N, H, W) uint8; shares
    (N, 2, h, w) uint8, 255 = the person covers the whole latent cell; size: (H, W) of the canvas.
    """

    latents: torch.Tensor
    maps: dict[str, torch.Tensor]
    shares: torch.Tensor
    words: list[Words]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.words)


def sample_numbers(folder: Path) -> list[int]:
    """Numbers of the whole samples in a folder of `world.samples`."""
    return sorted(int(p.stem) for p in folder.glob("*.json"))


def read_sample(folder: Path, number: int) -> tuple[dict[str, Array], dict[str, Any]]:
    """Arrays and description of a sample."""
    with np.load(folder / f"{number:06d}.npz") as arrays:
        return dict(arrays), json.loads((folder / f"{number:06d}.json").read_text())


def pictures(folder: Path, numbers: Sequence[int]) -> torch.Tensor:
    """(N, 3, 256, 256) in -1..1: the square pictures among these samples."""
    out = []
    for number in numbers:
        with np.load(folder / f"{number:06d}.npz") as arrays:
            rgb = arrays["rgb"]
        if rgb.shape[:2] == (256, 256):
            out.append(torch.from_numpy(rgb))
    return torch.stack(out).permute(0, 3, 1, 2).float() / 127.5 - 1


def maps_of(arrays: dict[str, Array], description: dict[str, Any]) -> dict[str, Array]:
    """Pose (H, W, 3), depth (H, W) and normal (H, W, 3) maps, uint8, as the add-on makes them.

    The depth range is that of a shot of which this is one keyframe: a little wider than its own.
    """
    height, width = arrays["person"].shape
    disparity = arrays["disparity"].astype(np.float32)
    z = np.divide(1, disparity, out=np.full_like(disparity, np.inf), where=disparity > 0)
    rng = np.random.default_rng([description["number"], 7])
    near, far = depth_range([z])
    near, far = near * float(rng.uniform(0.8, 1.0)), far * float(rng.uniform(0.95, 1.3))
    people = sorted(description["people"], key=lambda p: -p["distance"])
    poses = [_pose(one["pose"]) for one in people]
    return {
        "pose": draw_pose(poses, width, height),
        "depth": depth_map(z, near, far),
        "normal": arrays["normal"],
    }


def _pose(parts: dict[str, list]) -> Pose:
    points: dict[str, Any] = {k: [Keypoint(*p) for p in rows] for k, rows in parts.items()}
    return Pose(**points)


def words_of(description: dict[str, Any]) -> Words:
    """The sample's captions in parts."""
    people = tuple(tuple(p["caption"].split(", ")) for p in description["people"])
    return Words((description["framing"], description["set"]), people[:people_limit])


def _half(values: torch.Tensor) -> torch.Tensor:
    """(N, H, W[, C]) uint8 at half size, each pixel the mean of four."""
    flat = values[..., None] if values.ndim == 3 else values
    small = F.avg_pool2d(flat.permute(0, 3, 1, 2).float(), 2).round().to(torch.uint8)
    return small.permute(0, 2, 3, 1).reshape(*small.shape[:1], *small.shape[2:], *values.shape[3:])


def pack(samples: Path, shards: Path, basis: PatchBasis) -> None:
    """Make the shards of all complete runs of 256 sample numbers that have none yet.

    An unfinished run is complete when its last sample is five minutes old.
    """
    shards.mkdir(parents=True, exist_ok=True)
    numbers = sample_numbers(samples)
    for first in sorted({n // shard_size * shard_size for n in numbers}):
        done = shards / f"{first:06d}.done"
        group = [n for n in numbers if first <= n < first + shard_size]
        # A run is complete when all are there, or when nobody adds to it any more.
        age = time.time() - (samples / f"{group[-1]:06d}.json").stat().st_mtime
        complete = len(group) == shard_size or age > 300
        if done.exists() or not complete:
            continue
        _pack_run(samples, shards, basis, first, group)
        done.touch()
        log.info("packed samples %d to %d", first, group[-1])


def _pack_run(samples: Path, shards: Path, basis: PatchBasis, first: int, group: list[int]) -> None:
    buckets: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for number in group:
        arrays, description = read_sample(samples, number)
        owner = arrays["person"]
        row: dict[str, Any] = {"rgb": arrays["rgb"], **maps_of(arrays, description)}
        row["owners"] = np.stack([owner == i + 1 for i in range(people_limit)])
        row["words"] = words_of(description)
        buckets.setdefault((owner.shape[0], owner.shape[1]), []).append(row)
    for size, rows in buckets.items():
        for scale in (1, 2):
            shard = _make_shard(rows, basis, size, scale)
            path = shards / f"{first:06d}_{size[1]}x{size[0]}_{scale}.pt"
            part = path.with_suffix(".part")
            words = [(w.shot, w.people) for w in shard.words]
            torch.save({**vars(shard), "words": words}, part)
            part.replace(path)


def _make_shard(
    rows: list[dict[str, Any]], basis: PatchBasis, size: tuple[int, int], scale: int
) -> Shard:
    rgb = torch.from_numpy(np.stack([r["rgb"] for r in rows])).permute(0, 3, 1, 2).float()
    rgb = rgb / 127.5 - 1
    if scale == 2:
        rgb = F.avg_pool2d(rgb, 2)
    latents = basis.encode(rgb)
    maps = {k: torch.from_numpy(np.stack([r[k] for r in rows])) for k in map_order}
    if scale == 2:
        maps = {k: _half(v) for k, v in maps.items()}
    owners = torch.from_numpy(np.stack([r["owners"] for r in rows])).float()
    cells = (latents.shape[-2], latents.shape[-1])
    shares = F.adaptive_avg_pool2d(owners, cells) * 255
    words = [r["words"] for r in rows]
    return Shard(latents.half(), maps, shares.round().to(torch.uint8), words, size)


def load_shards(folder: Path, scale: int, first: int, end: int) -> list[Shard]:
    """The shards of sample numbers first <= n < end; scale: 1 full, 2 half size."""
    out = []
    for path in sorted(folder.glob(f"*_{scale}.pt")):
        if first <= int(path.name[:6]) < end:
            data = torch.load(path, weights_only=True)
            words = [Words(tuple(s), tuple(tuple(p) for p in ps)) for s, ps in data.pop("words")]
            out.append(Shard(words=words, **data))
    return out


def merge(shards: Sequence[Shard]) -> list[Shard]:
    """One shard per canvas size, largest first."""
    by_size: dict[tuple[int, int], list[Shard]] = {}
    for shard in shards:
        by_size.setdefault((shard.size[0], shard.size[1]), []).append(shard)
    merged = [
        Shard(
            latents=torch.cat([s.latents for s in group]),
            maps={k: torch.cat([s.maps[k] for s in group]) for k in map_order},
            shares=torch.cat([s.shares for s in group]),
            words=[w for s in group for w in s.words],
            size=size,
        )
        for size, group in by_size.items()
    ]
    return sorted(merged, key=len, reverse=True)


@dataclass(frozen=True)
class Prompts:
    """What one picture is told. texts: the shot's prompt and then one per person; alone, it is
    seen by all."""

    texts: tuple[str, ...]


def choose_prompts(words: Words, rng: torch.Generator, whole: float = 0.5) -> Prompts:
    """Prompts for one training step: regional, whole, or (one in ten) empty.

    Less telling parts (eyes, expression, view, framing) are left out now and then, so that
    prompts need not be complete. whole: the chance of a one-person caption as a single prompt.
    """

    def chance(p: float) -> bool:
        return bool(torch.rand((), generator=rng) < p)

    if chance(0.1):
        return Prompts(("",))
    people = []
    for parts in words.people:
        optional = {len(parts) - 2, len(parts) - 1}
        optional |= {i for i, part in enumerate(parts) if part.endswith("eyes")}
        kept = [p for i, p in enumerate(parts) if i not in optional or not chance(0.3)]
        people.append(", ".join(kept))
    shot = ", ".join(p for i, p in enumerate(words.shot) if i == 1 or not chance(0.3))
    if len(people) == 1 and chance(whole):
        return Prompts((f"{people[0]}, {shot}",))
    if len(people) > 1 and chance(0.7):
        shot = f"two people, {shot}"
    return Prompts((shot, *people))


def all_texts(shards: Sequence[Shard]) -> set[str]:
    """Every caption part of the shards, for the training vocabulary."""
    found = {"two people", ", "}
    for shard in shards:
        for words in shard.words:
            found.update(words.shot)
            found.update(part for person in words.people for part in person)
    return found

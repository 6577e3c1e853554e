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
from onmodel.rehearsal import stem
from onmodel.rehearsal.architecture import make_controlnet, tiny
from onmodel.rehearsal.latents import PatchBasis

Array = np.ndarray
log = logging.getLogger(__name__)

shard_size = 256
people_limit = 2
map_order = ("pose", "depth", "normal")
sources = ("own", "standin")
"""Whose maps: the drawn people's own, or those of a stand-in without face, hair and clothes."""


@dataclass(frozen=True)
class Words:
    """A sample's captions. shot: (look, framing, set). people: parts of each one's caption."""

    shot: tuple[str, ...]
    people: tuple[tuple[str, ...], ...]


@dataclass
class Shard:
    """Samples of one canvas size, at one of the two scales.

    latents (N, 12, h, w) float16. maps: "own pose", "standin depth" and so on: the stem's
    features (N, 56, h, w) uint8. shares by source: (N, 2, h, w) uint8, 255 = the person covers
    the whole latent cell. size: (H, W) of the canvas. Samples without a stand-in have "own" only.
    """

    latents: torch.Tensor
    maps: dict[str, torch.Tensor]
    shares: dict[str, torch.Tensor]
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


def maps_of(
    arrays: dict[str, Array], description: dict[str, Any], source: str = "own"
) -> dict[str, Array]:
    """Pose (H, W, 3), depth (H, W) and normal (H, W, 3) maps, uint8, as the add-on makes them.

    The depth range is that of a shot of which this is one keyframe: a little wider than its own.
    """
    prefix = "" if source == "own" else "standin_"
    height, width = arrays["person"].shape
    disparity = arrays[f"{prefix}disparity"].astype(np.float32)
    z = np.divide(1, disparity, out=np.full_like(disparity, np.inf), where=disparity > 0)
    rng = np.random.default_rng([description["number"], 7])
    near, far = depth_range([z])
    near, far = near * float(rng.uniform(0.8, 1.0)), far * float(rng.uniform(0.95, 1.3))
    people = sorted(description["people"], key=lambda p: -p["distance"])
    poses = [_pose(one[f"{prefix}pose"]) for one in people]
    return {
        "pose": draw_pose(poses, width, height),
        "depth": depth_map(z, near, far),
        "normal": arrays[f"{prefix}normal"],
    }


def _pose(parts: dict[str, list]) -> Pose:
    points: dict[str, Any] = {k: [Keypoint(*p) for p in rows] for k, rows in parts.items()}
    return Pose(**points)


def words_of(description: dict[str, Any]) -> Words:
    """The sample's captions in parts."""
    people = tuple(tuple(p["caption"].split(", ")) for p in description["people"])
    look = description.get("look", "realistic")
    return Words((look, description["framing"], description["set"]), people[:people_limit])


def pack(samples: Path, shards: Path, basis: PatchBasis) -> None:
    """Make the shards of all complete runs of 256 sample numbers that have none yet.

    An unfinished run is complete when its last sample is five minutes old.
    """
    shards.mkdir(parents=True, exist_ok=True)
    numbers = sample_numbers(samples)
    for first in sorted({n // shard_size * shard_size for n in numbers}):
        done = shards / f"{samples.name}-{first:06d}.done"
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
    buckets: dict[tuple[int, int, bool], list[dict[str, Any]]] = {}
    for number in group:
        arrays, description = read_sample(samples, number)
        there = sources if "standin_person" in arrays else sources[:1]
        row: dict[str, Any] = {"rgb": arrays["rgb"], "words": words_of(description)}
        for source in there:
            for kind, picture in maps_of(arrays, description, source).items():
                row[f"{source} {kind}"] = picture
            owner = arrays["person" if source == "own" else "standin_person"]
            row[source] = np.stack([owner == i + 1 for i in range(people_limit)])
        height, width = arrays["person"].shape
        buckets.setdefault((height, width, len(there) > 1), []).append(row)
    embedding = make_controlnet(tiny).controlnet_cond_embedding
    for (height, width, standin), rows in buckets.items():
        for scale in (1, 2):
            shard = _make_shard(rows, basis, embedding, (height, width), scale)
            name = f"{samples.name}-{first:06d}_{width}x{height}{'s' if standin else ''}_{scale}.pt"
            path = shards / name
            part = path.with_suffix(".part")
            words = [(w.shot, w.people) for w in shard.words]
            torch.save({**vars(shard), "words": words}, part)
            part.replace(path)


def _make_shard(
    rows: list[dict[str, Any]],
    basis: PatchBasis,
    embedding: Any,
    size: tuple[int, int],
    scale: int,
) -> Shard:
    def stack(key: str) -> torch.Tensor:
        """(N, C, H, W) float, 0..255, at the scale."""
        picture = torch.from_numpy(np.stack([r[key] for r in rows])).float()
        if picture.ndim == 3:
            picture = picture[..., None].expand(-1, -1, -1, 3)
        picture = picture.permute(0, 3, 1, 2)
        return F.avg_pool2d(picture, scale) if scale > 1 else picture

    latents = basis.encode(stack("rgb") / 127.5 - 1)
    cells = (latents.shape[-2], latents.shape[-1])
    maps, shares = {}, {}
    for source in (s for s in sources if s in rows[0]):
        for kind in map_order:
            name = f"{source} {kind}"
            parts = (stack(name) / 255).split(32)
            maps[name] = torch.cat([stem.features(embedding, part) for part in parts])
        owners = torch.from_numpy(np.stack([r[source] for r in rows])).float()
        share = F.adaptive_avg_pool2d(owners, cells) * 255
        shares[source] = share.round().to(torch.uint8)
    return Shard(latents.half(), maps, shares, [r["words"] for r in rows], size)


def load_shards(folder: Path, scale: int, first: int, end: int) -> list[Shard]:
    """The shards of sample numbers first <= n < end; scale: 1 full, 2 half size."""
    out = []
    for path in sorted(folder.glob(f"*_{scale}.pt")):
        if first <= int(path.name.rpartition("-")[2][:6]) < end:
            data = torch.load(path, weights_only=True, mmap=True)
            words = [Words(tuple(s), tuple(tuple(p) for p in ps)) for s, ps in data.pop("words")]
            out.append(Shard(words=words, **data))
    return out


def merge(shards: Sequence[Shard]) -> list[Shard]:
    """One shard per canvas size, with and without stand-ins, largest first."""
    by_size: dict[tuple[int, int, bool], list[Shard]] = {}
    for shard in shards:
        key = (shard.size[0], shard.size[1], "standin" in shard.shares)
        by_size.setdefault(key, []).append(shard)
    merged = [
        Shard(
            latents=torch.cat([s.latents for s in group]),
            maps={k: torch.cat([s.maps[k] for s in group]) for k in group[0].maps},
            shares={k: torch.cat([s.shares[k] for s in group]) for k in group[0].shares},
            words=[w for s in group for w in s.words],
            size=key[:2],
        )
        for key, group in by_size.items()
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
    # The look (first) and the set (last) say most; the framing is in the maps as well.
    odds = (0.1, *(0.3,) * (len(words.shot) - 2), 0.05)
    shot = ", ".join(p for p, odd in zip(words.shot, odds, strict=True) if not chance(odd))
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

# SPDX-License-Identifier: GPL-3.0-or-later
"""Which colour a region has and which set a background shows, by rules learnt on renders.

A rule is a net of one hidden layer over a few numbers. For a region: quartiles of its pixels in
CIELAB (CIE 15, D65), once as seen and once with the tint of the set's light divided out, the median
of the background, and the words for set and look, which the prompt gave. A plain nearest prototype
in CIELAB is measured beside it (`prototype_accuracy`): sets tint the light and its strength varies,
which brings grey near white. For a set: a histogram of the background's colours and its mean on a
coarse grid; it is not told the set, of course.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from onmodel.rehearsal.judge.net import Array, parts, tensor
from onmodel.rehearsal.judge.pack import Pack
from onmodel.rehearsal.judge.spoil import as_if_drawn

log = logging.getLogger(__name__)

least_pixels = 40
"""Smallest region, in pixels of 128² and away from its border, that is judged."""
least_background = 800
hair_colours = ("black", "brown", "blond", "red", "grey", "white")
cloth_colours = (
    "red",
    "blue",
    "green",
    "yellow",
    "white",
    "black",
    "purple",
    "orange",
    "grey",
    "pink",
)
sets = (
    "forest",
    "city",
    "beach",
    "snow",
    "night street",
    "room",
    "desert",
    "park",
    "studio",
    "kitchen",
    "stage",
    "bridge",
)
looks = ("realistic", "animated")
tints = {
    "night street": (0.80, 0.84, 1.04),
    "stage": (1.08, 0.98, 0.94),
    "snow": (0.97, 1.0, 1.05),
    "beach": (1.06, 1.0, 0.92),
    "desert": (1.08, 0.98, 0.85),
    "room": (1.05, 0.97, 0.85),
}
"""The light's tint in each set, as `world.sets` has it."""
choices: dict[str, tuple[str, ...]] = {
    "hair": hair_colours,
    "top": cloth_colours,
    "bottom": cloth_colours,
    "set": sets,
}
folder = Path(__file__).parent
hidden = 48


def lab(rgb: Array) -> Array:
    """CIELAB of sRGB colours (..., 3) in 0..1 for white D65: IEC 61966-2-1 and CIE 15."""
    x = np.clip(rgb, 0, 1)
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        (
            (0.4124, 0.3576, 0.1805),
            (0.2126, 0.7152, 0.0722),
            (0.0193, 0.1192, 0.9505),
        )
    )
    xyz = linear @ (matrix / np.array((0.9505, 1.0, 1.089))[:, None]).T
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1
    )


def asked(caption: str) -> dict[str, str]:
    """The colours that a person's caption asks for: hair (not of bald people), top, bottom."""
    found = {}
    for words in caption.split(", "):
        named = words.split()
        if "hair" in named:
            found["hair"] = next(w for w in named if w in hair_colours)
        elif named[-1] in ("sweater", "t-shirt"):
            found["top"] = named[0]
        elif named[-1] in ("trousers", "shorts", "skirt"):
            found["bottom"] = named[0]
    return found


def inner(mask: Array) -> Array:
    """(H, W) bool: the mask without its outermost pixels."""
    out = mask.copy()
    out[1:] &= mask[:-1]
    out[:-1] &= mask[1:]
    out[:, 1:] &= mask[:, :-1]
    out[:, :-1] &= mask[:, 1:]
    return out


def _some(pixels: Array) -> Array:
    """Some 300 of the pixels (n, 3), evenly chosen: quartiles need no more."""
    return pixels[:: max(1, len(pixels) // 300)]


def region_numbers(
    small: Array, region: Array, figure: Array, set_name: str, look: str
) -> Array | None:
    """What the colour rule sees of a region; None: too few pixels.

    small (128, 128, 3) uint8; region, figure (128, 128) bool: all people of the picture.
    """
    pixels = small[inner(region)]
    if len(pixels) < least_pixels:
        return None
    pixels, behind = _some(pixels) / 255, _some(small[inner(~figure)]) / 255
    if not len(behind):
        behind = pixels[:1]
    plain = pixels / np.array(tints.get(set_name, (1.0, 1.0, 1.0)))
    quartiles = [np.percentile(lab(p), (15, 50, 85), axis=0).ravel() for p in (pixels, plain)]
    ground = np.median(lab(behind), axis=0)
    words = [float(name == set_name) for name in sets] + [float(name == look) for name in looks]
    return np.concatenate([*(q / 50 for q in quartiles), ground / 50, words]).astype(np.float32)


def set_numbers(small: Array, figure: Array) -> Array | None:
    """What the set's rule sees of a picture (128, 128, 3); None: too little background."""
    behind = inner(~figure)
    if behind.sum() < least_background:
        return None
    pixels = small[behind]
    bins = (pixels >> 6) @ np.array((16, 4, 1))
    histogram = np.sqrt(np.bincount(bins, minlength=64) / len(pixels))
    mean = lab(pixels.mean(0) / 255)
    cells = []
    for rows in np.split(np.arange(128), 4):
        for columns in np.split(np.arange(128), 4):
            there = behind[np.ix_(rows, columns)]
            cell = small[np.ix_(rows, columns)][there]
            cells.append(lab(cell.mean(0) / 255) if len(cell) >= 30 else mean)
    spread = np.percentile(lab(pixels / 255), (10, 50, 90), axis=0).ravel()
    return np.concatenate([histogram * 4, np.array(cells).ravel() / 50, spread / 50]).astype(
        np.float32
    )


class _Net(nn.Module):
    """(N, inputs) to scores (N, outputs); standardises its inputs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.spread: torch.Tensor
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("spread", torch.ones(inputs))
        self.first = nn.Linear(inputs, hidden)
        self.last = nn.Linear(hidden, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first((x - self.mean) / self.spread)))


@dataclass(frozen=True)
class Found:
    """Something to judge: the rule's kind, what it sees, the right word, the sample's place."""

    kind: str
    numbers: Array
    word: str
    place: int


def colours_in(small: Array, part: Array, person: Array, told: dict, place: int = 0) -> list[Found]:
    """The judgeable regions of one picture (128, 128, 3) with `part` and `person` (128, 128).

    told: the description, with set, look and people's captions in the order of `person`.
    """
    found = []
    figure = person > 0
    for index, one in enumerate(told["people"]):
        for kind, word in asked(one["caption"]).items():
            region = (part == parts.index(kind)) & (person == index + 1)
            numbers = region_numbers(small, region, figure, told["set"], told["look"])
            if numbers is not None:
                found.append(Found(kind, numbers, word, place))
    return found


def set_in(small: Array, person: Array, told: dict, place: int = 0) -> list[Found]:
    """The background of one picture, or [] where there is too little of it."""
    numbers = set_numbers(small, person > 0)
    return [] if numbers is None else [Found("set", numbers, told["set"], place)]


class Rules:
    """The learnt rules by kind: hair, top, bottom (one for both kinds of cloth), set."""

    def __init__(self, file: Path = folder / "attributes.safetensors") -> None:
        from safetensors.torch import load_file

        state = load_file(file)
        self._nets: dict[str, _Net] = {}
        for name in _rules:
            own = {k.partition(".")[2]: v.float() for k, v in state.items() if k.startswith(name)}
            net = _Net(own["first.weight"].shape[1], own["last.weight"].shape[0])
            net.load_state_dict(own)
            self._nets[name] = net.eval().requires_grad_(False)

    def words(self, found: Sequence[Found]) -> list[str]:
        """The colour or set that each rule reads."""
        out = []
        for one in found:
            scores = self._nets[_rule_of(one.kind)](torch.from_numpy(one.numbers)[None])
            out.append(choices[one.kind][int(scores.argmax())])
        return out


_rules = {"hair": hair_colours, "cloth": cloth_colours, "set": sets}


def _rule_of(kind: str) -> str:
    return "cloth" if kind in ("top", "bottom") else kind


def _gather(data: Pack, places: Array, seed: int | None) -> list[Found]:
    """All there is to judge in these samples; with a seed, of pictures made to look drawn."""
    found: list[Found] = []
    rng = torch.Generator().manual_seed(seed or 0)
    for group in np.array_split(places, max(1, len(places) // 16)):
        small = data.rgb[group]
        if seed is not None:
            drawn = as_if_drawn(tensor(small), rng, tint=0.02)
            small = ((drawn + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        for picture, place in zip(small, group, strict=True):
            arguments = (data.person[place], data.told[place], int(place))
            found += colours_in(picture, data.part[place], *arguments)
            found += set_in(picture, *arguments)
    return found


def _fit(found: Sequence[Found], words: tuple[str, ...], steps: int = 1500) -> _Net:
    torch.manual_seed(0)
    x = torch.from_numpy(np.stack([f.numbers for f in found]))
    y = torch.tensor([words.index(f.word) for f in found])
    net = _Net(x.shape[1], len(words))
    net.mean.copy_(x.mean(0))
    net.spread.copy_(x.std(0) + 0.05)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        index = torch.randint(len(x), (256,))
        noisy = x[index] + torch.randn(256, x.shape[1]) * 0.05 * net.spread
        loss = nn.functional.cross_entropy(net(noisy), y[index], label_smoothing=0.02)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)


def prototype_accuracy(trained: Sequence[Found], tested: Sequence[Found]) -> float:
    """Share right by the nearest mean of the region's median in CIELAB alone."""
    names = sorted({f.word for f in trained})
    middle = slice(3, 6)
    means = np.stack(
        [np.mean([f.numbers[middle] for f in trained if f.word == n], axis=0) for n in names]
    )
    right = [
        names[int(np.linalg.norm(means - f.numbers[middle], axis=1).argmin())] == f.word
        for f in tested
    ]
    return float(np.mean(right))


def train(data: Pack, file: Path = folder / "attributes.safetensors") -> dict[str, float]:
    """Learn the rules, write them, and return the share right on held-out renders by kind."""
    from safetensors.torch import save_file

    kept = data.kept
    learnt = _gather(data, np.flatnonzero(~kept), None)
    learnt += _gather(data, np.flatnonzero(~kept), 1)
    state: dict[str, torch.Tensor] = {}
    for name, words in _rules.items():
        net = _fit([f for f in learnt if _rule_of(f.kind) == name], words)
        state |= {f"{name}.{k}": v.contiguous() for k, v in net.state_dict().items()}
    save_file(state, file, metadata={"format": "pt"})
    rules = Rules(file)
    plain = _gather(data, np.flatnonzero(kept), None)
    drawn = _gather(data, np.flatnonzero(kept), 3)
    results: dict[str, float] = {}
    for kind in choices:
        for title, tested in ((kind, plain), (f"{kind}, as if drawn", drawn)):
            mine = [f for f in tested if f.kind == kind]
            said = rules.words(mine)
            results[title] = float(np.mean([a == f.word for a, f in zip(said, mine, strict=True)]))
            results[f"{title}, judged"] = len(mine)
        if kind != "set":
            theirs = [f for f in learnt if f.kind == kind]
            mine = [f for f in plain if f.kind == kind]
            results[f"{kind}, nearest prototype"] = prototype_accuracy(theirs, mine)
        wrong = [
            (f"{data.number[f.place]}", f.word, said)
            for f, said in zip(plain, rules.words(plain), strict=True)
            if f.kind == kind and said != f.word
        ]
        log.info("%s: wrong on held-out renders: %s", kind, wrong)
    log.info("rules on held-out renders: %s", json.dumps(results, indent=1))
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return results

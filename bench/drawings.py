# SPDX-License-Identifier: GPL-3.0-or-later
"""How well the shipped rehearsal model draws people and sets that it was never trained on.

Drawn with the server's own sampler and the shipped weights, of bench/data/held_out.zip; looked at
by the judge (`onmodel.rehearsal.judge`), whose worth on the very renders is printed beside. Colours
are read in the true region of the body whose maps were shown.

Pose with the depth off: drawn from the pose map and one prompt for the whole picture, so that no
mask tells where anybody is. Two measures. Joints: the share of the body's joints (those in the
picture) that lie in the figure the judge finds; a figure that ignored the pose would reach what the
joints of another sample of that framing reach, which is printed. And: is the found figure's overlap
larger with its own mask than with the mask of every other sample of that framing and canvas? The
bar of both is .90, that of the silhouette; what the judge finds in renders says what is possible.

ONMODEL_BENCH_PICTURES: how many samples are drawn, in both ways; default all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import held_out, painter
from bench.harness import Figure
from bench.held_out import Sample

Array = np.ndarray

_stock = """
import sys, torch
from diffusers import StableDiffusionXLControlNetUnionPipeline
torch.set_num_threads(1)
pipe = StableDiffusionXLControlNetUnionPipeline.from_pretrained(
    sys.argv[1], dtype=torch.float32, local_files_only=True)
pipe.set_progress_bar_config(disable=True)
from PIL import Image
out = pipe("young man, portrait", control_image=[Image.new("RGB", (128, 128))], control_mode=[0],
    height=128, width=128, num_inference_steps=2, output_type="np").images[0]
assert out.shape == (128, 128, 3) and bool((out == out).all())
ours = [name for name in sys.modules if name.split(".")[0] in ("onmodel", "addon", "world")]
print(len(ours))
"""


def run() -> list[Figure]:
    """All figures of the shipped model."""
    from onmodel.models import libraries
    from onmodel.models.registry import embedded_folder

    libraries.prepare()
    figures = [_size(embedded_folder), _loads_alone(embedded_folder)]
    wanted = os.environ.get("ONMODEL_BENCH_PICTURES")
    samples = held_out.load(int(wanted) if wanted else None)
    artist = painter.Painter()
    figures.append(_psnr(artist, samples))
    every = ("pose", "depth", "normal")
    drawn = [artist.draw(painter.of_sample(s, every, s.number)) for s in samples]
    seconds = float(np.median(artist.seconds))
    posed = [
        artist.draw(painter.without_regions(painter.of_sample(s, ("pose",), s.number)))
        for s in samples
    ]
    figures += judged(samples, drawn, posed)
    note = f"{artist.entry.steps} steps, all three maps, one thread, beside whatever else runs"
    return [*figures, Figure("rehearsal: seconds a picture of 256²", seconds, "s", note=note)]


def _size(folder: Path) -> Figure:
    total = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return Figure("rehearsal: size of the shipped model", total / 1e6, "MB", 80, "<")


def _loads_alone(folder: Path) -> Figure:
    """Loaded and drawn with by stock diffusers in a process that imports nothing of ours."""
    name = "rehearsal: modules of ours that stock diffusers needs"
    line = [sys.executable, "-P", "-c", _stock, str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        words = done.stderr.strip().splitlines()
        return Figure(name, None, "", 0, "==", words[-1] if words else str(done.returncode))
    note = "StableDiffusionXLControlNetUnionPipeline.from_pretrained draws"
    return Figure(name, float(done.stdout.split()[-1]), "", 0, "==", note)


def _psnr(artist: painter.Painter, samples: Sequence[Sample]) -> Figure:
    """There and back through the autoencoder, of the mean squared error of all pixels."""
    errors = []
    for sample in samples:
        back = artist.family.decode(artist.family.encode(sample.rgb[None]))[0]
        errors.append(float(((back.astype(float) - sample.rgb) ** 2).mean()))
    each = [10 * np.log10(255**2 / e) for e in errors]
    value = float(10 * np.log10(255**2 / np.mean(errors)))
    note = f"{len(errors)} pictures, each {min(each):.1f} to {max(each):.1f}"
    return Figure("rehearsal: VAE there and back, PSNR", value, "dB", 34, ">=", note)


def judged(
    samples: Sequence[Sample], drawn: Sequence[Array], posed: Sequence[Array]
) -> list[Figure]:
    """The figures of drawings by all maps (`drawn`) and by the pose alone (`posed`)."""
    from onmodel.rehearsal.judge.net import Judge

    judge = Judge()
    seen = {
        name: judge.parts(np.stack([_small(p) for p in pictures])) > 0
        for name, pictures in (
            ("renders", [s.rgb for s in samples]),
            ("drawn", drawn),
            ("posed", posed),
        )
    }
    return [
        *_silhouettes(samples, seen),
        *_colours(samples, drawn),
        *_pose(samples, seen),
    ]


def _small(picture: Array) -> Array:
    from onmodel.rehearsal.judge.net import shrunk

    return shrunk(picture)


def _mask(sample: Sample) -> Array:
    from onmodel.rehearsal.judge.net import nearest

    mask: Array = nearest(sample.person) > 0
    return mask


def _overlap(a: Array, b: Array) -> float:
    either = int((a | b).sum())
    return float((a & b).sum() / either) if either else 1.0


def _silhouettes(samples: Sequence[Sample], seen: dict[str, Array]) -> list[Figure]:
    from onmodel.identity.report import mean

    found = {
        name: mean([_overlap(a, _mask(s)) for a, s in zip(seen[name], samples, strict=True)])
        for name in ("drawn", "renders")
    }
    own, ceiling = found["drawn"], found["renders"]
    return [
        Figure(
            "rehearsal: silhouette IoU, the body's own maps",
            own.value,
            "",
            0.90,
            ">=",
            f"{own}, {own.n} drawings",
        ),
        Figure("rehearsal: silhouette IoU that the judge gives renders", ceiling.value),
    ]


def _colours(samples: Sequence[Sample], drawn: Sequence[Array]) -> list[Figure]:
    """Colours and sets right in drawings, and what each rule is worth on held-out renders."""
    import json

    from onmodel.identity.report import share
    from onmodel.rehearsal.judge import attributes
    from onmodel.rehearsal.judge.net import nearest

    rules = attributes.Rules()
    worth: dict[str, float] = json.loads((attributes.folder / "results.json").read_text())
    found = []
    for place, (sample, picture) in enumerate(zip(samples, drawn, strict=True)):
        small, person = _small(picture), nearest(sample.person)
        part = nearest(sample.part)
        found += attributes.colours_in(small, part, person, sample.told, place)
        found += attributes.set_in(small, person, sample.told, place)
    figures = []
    for kind in attributes.choices:
        mine = [one for one in found if one.kind == kind]
        rule = Figure(
            f"rehearsal: rule for {kind} right on held-out renders",
            worth[kind],
            "",
            0.98,
            ">=",
            f"{worth[f'{kind}, judged']:.0f} judged; {worth[f'{kind}, as if drawn']:.3f} blurred",
        )
        name = f"rehearsal: {kind} as asked"
        if not mine:
            figures += [Figure(name, None, "", 0.90, ">=", "no region is large enough"), rule]
            continue
        hits = sum(a == one.word for a, one in zip(rules.words(mine), mine, strict=True))
        right = share(hits, len(mine))
        note = f"{right}, {len(mine)} judged"
        figures += [Figure(name, right.value, "", 0.90, ">=", note), rule]
    return figures


def _peers(samples: Sequence[Sample]) -> list[list[int]]:
    """For each sample the places of the others of its framing and canvas."""
    kinds = [(s.told["framing"], s.person.shape) for s in samples]
    return [
        [j for j, other in enumerate(kinds) if other == kind and j != i]
        for i, kind in enumerate(kinds)
    ]


def _joints_inside(figure: Array, sample: Sample) -> float | None:
    """Share of a sample's joints in a figure (128, 128); None: it has no joint in the picture."""
    points = sample.joints
    if not len(points):
        return None
    height, width = sample.person.shape
    at = (points * (128 / width, 128 / height)).astype(int).clip(0, 127)
    return float(figure[at[:, 1], at[:, 0]].mean())


def _pose(samples: Sequence[Sample], seen: dict[str, Array]) -> list[Figure]:
    from onmodel.identity.report import mean, share

    peers = _peers(samples)

    def inside(name: str, others: bool) -> Any:
        pairs = [(i, j) for i in range(len(samples)) for j in (peers[i] if others else [i])]
        shares = [_joints_inside(seen[name][i], samples[j]) for i, j in pairs]
        known = [value for value in shares if value is not None]
        return mean(known) if len(known) > 1 else None

    own, wrong, possible = inside("posed", False), inside("posed", True), inside("renders", False)
    hits = tried = 0
    for i, figure in enumerate(seen["posed"]):
        if peers[i]:
            best = max(_overlap(figure, _mask(samples[j])) for j in peers[i])
            hits += _overlap(figure, _mask(samples[i])) > best
            tried += 1
    overlap = mean([_overlap(a, _mask(s)) for a, s in zip(seen["posed"], samples, strict=True)])
    note = f"{own}; in renders {possible}; of another sample {wrong}"
    nearest_note = f"{share(hits, tried)} of {tried}" if tried else "no two of one framing"
    return [
        Figure("rehearsal: pose alone, joints in the figure", own.value, "", 0.90, ">=", note),
        Figure(
            "rehearsal: pose alone, own mask the nearest of its framing",
            hits / tried if tried else None,
            "",
            0.90,
            ">=",
            nearest_note,
        ),
        Figure("rehearsal: pose alone, silhouette IoU", overlap.value, note=str(overlap)),
    ]

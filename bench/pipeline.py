# SPDX-License-Identifier: GPL-3.0-or-later
"""How much of drawing a batch is the model's own work, and how it compares with plain diffusers.

Both are measured in one run on the embedded model (on random weights of its sizes where it is
missing): `Artist.draw` from requests and PNG maps to PNG files, against diffusers' own
`StableDiffusionXLControlNetUnionPipeline` called for one keyframe after the other, from decoded
images to decoded images. Rounds alternate, the best round of each counts, so that what else runs
on the machine disturbs both alike.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Figure

keyframes = 4
steps = 10
guidance = 4.0
side = 256
rounds = 4
prompt = "a man and a woman in a park, evening"


class _Blobs:
    """Blobs in memory."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def put(self, array: np.ndarray) -> str:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        digest = hashlib.sha256(file.getvalue()).hexdigest()
        self.data[digest] = file.getvalue()
        return digest

    def read(self, sha256: str) -> bytes:
        return self.data[sha256]

    def path(self, sha256: str) -> Path:
        raise AssertionError("drawing reads blobs as bytes")


def run() -> list[Figure]:
    """The figures of this bench."""
    from onmodel.models import libraries
    from onmodel.models.registry import embedded_folder

    libraries.prepare()
    with tempfile.TemporaryDirectory() as folder:
        embedded = (embedded_folder / "model_index.json").is_file()
        weights = embedded_folder if embedded else Path(folder) / "weights"
        if not embedded:
            _random_weights(weights)
        note = "" if embedded else "random weights: the embedded model is missing"
        return _measure(weights, Path(folder), note)


def _measure(weights: Path, data: Path, note: str) -> list[Figure]:
    from onmodel.generate.artist import Artist
    from onmodel.jobs.artist import Task
    from onmodel.models.registry import Registry

    artist = Artist(Registry(data, extra=[], embedded=weights))
    blobs = _Blobs()
    maps = [_maps(seed) for seed in range(keyframes)]
    plain_tasks = [Task(str(i), _request(blobs, m, i, False)) for i, m in enumerate(maps)]
    cast_tasks = [Task(str(i), _request(blobs, m, i, True)) for i, m in enumerate(maps)]

    def ours(tasks: list[Task]) -> Callable[[], object]:
        limit = artist.max_batch(tasks[0].request)
        batches = [tasks[i : i + limit] for i in range(0, len(tasks), limit)]
        return lambda: [
            list(artist.draw(b, blobs, lambda *event: None, lambda task: False)) for b in batches
        ]

    pipeline = _pipeline(weights)
    theirs = _plain_script(pipeline, maps)
    ways = {"ours": ours(plain_tasks), "theirs": theirs, "cast": ours(cast_tasks)}
    for way in ways.values():
        way()
    family: Any = artist._loaded and artist._loaded.family
    best = dict.fromkeys(ways, float("inf"))
    share = 0.0
    for _ in range(rounds):
        for name, way in ways.items():
            with _model_time(family.parts) as spent:
                started = time.perf_counter()
                way()
                wall = time.perf_counter() - started
            best[name] = min(best[name], wall)
            if name == "cast":
                share = max(share, spent[0] / wall)
    return [
        Figure("pipeline: denoiser and VAE over wall time", share, "", 0.90, ">=", note),
        Figure(
            "pipeline: times as fast as plain diffusers",
            best["theirs"] / best["ours"],
            "x",
            1.0,
            ">=",
            note,
        ),
        Figure("pipeline: seconds a keyframe", best["cast"] / keyframes, "s"),
        Figure("pipeline: cost of two characters' regions", best["cast"] / best["ours"], "x"),
    ]


@contextmanager
def _model_time(parts: Any) -> Iterator[list[float]]:
    """Seconds inside UNet, ControlNet and VAE decoder, by hooks on the modules themselves."""
    spent, depth, started = [0.0], [0], [0.0]

    def enter(*_: object) -> None:
        if depth[0] == 0:
            started[0] = time.perf_counter()
        depth[0] += 1

    def leave(*_: object) -> None:
        depth[0] -= 1
        if depth[0] == 0:
            spent[0] += time.perf_counter() - started[0]

    net = parts.controlnet
    modules = [parts.unet, net, net.controlnet_cond_embedding, parts.vae.decoder]
    hooks = [m.register_forward_pre_hook(enter) for m in modules]
    hooks += [m.register_forward_hook(leave) for m in modules]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def _pipeline(weights: Path) -> Any:
    import torch
    from diffusers import ControlNetUnionModel, StableDiffusionXLControlNetUnionPipeline

    pipeline = StableDiffusionXLControlNetUnionPipeline.from_pretrained(
        str(weights),
        controlnet=ControlNetUnionModel.from_pretrained(
            str(weights / "controlnet"), dtype=torch.float32, local_files_only=True
        ),
        dtype=torch.float32,
        local_files_only=True,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _plain_script(pipeline: Any, maps: list[dict[str, np.ndarray]]) -> Callable[[], object]:
    import torch
    from PIL import Image

    def script() -> None:
        for seed, kinds in enumerate(maps):
            pipeline(
                prompt,
                negative_prompt="",
                control_image=[Image.fromarray(kinds["depth"]), Image.fromarray(kinds["pose"])],
                control_mode=[1, 0],
                num_inference_steps=steps,
                guidance_scale=guidance,
                width=side,
                height=side,
                generator=torch.Generator().manual_seed(seed),
            )

    return script


def _maps(seed: int) -> dict[str, np.ndarray]:
    """Smooth random maps, (256, 256, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    wide = coarse.repeat(side // 16, axis=1).repeat(side // 16, axis=2)
    return {"pose": wide[0], "depth": wide[1]}


def _request(blobs: _Blobs, maps: dict[str, np.ndarray], seed: int, cast: bool) -> dict[str, Any]:
    """A keyframe; with a cast of two where asked."""
    characters = []
    for i, noun in enumerate(["man", "woman"] if cast else []):
        mask = np.zeros((side, side), np.uint8)
        mask[40:, 16 + 120 * i : 120 + 120 * i] = 255
        characters.append(
            {"name": noun, "noun": noun, "prompt": "red coat", "mask": blobs.put(mask)}
        )
    return {
        "seed": seed,
        "canvas": {
            "width": side,
            "height": side,
            "crop": {"x": 0, "y": 0, "width": side, "height": side},
        },
        "model": "rehearsal",
        "prompt": prompt,
        "sampling": {"preset": "default", "steps": steps, "guidance": guidance},
        "maps": [{"kind": k, "blob": blobs.put(v)} for k, v in maps.items()],
        "characters": characters,
    }


def _random_weights(folder: Path) -> None:
    """A model of the embedded model's sizes, untrained."""
    import torch
    from onmodel.rehearsal import architecture

    torch.manual_seed(0)
    sizes = architecture.Sizes()
    first, second = architecture.make_text_encoders(sizes)
    parts = {
        "unet": architecture.make_unet(sizes),
        "vae": architecture.make_vae(sizes),
        "text_encoder": first,
        "text_encoder_2": second,
        "tokenizer": architecture.make_tokenizer(),
        "tokenizer_2": architecture.make_tokenizer(),
        "scheduler": architecture.make_scheduler(),
        "controlnet": architecture.make_controlnet(sizes),
    }
    for name, part in parts.items():
        part.save_pretrained(str(folder / name))
    (folder / "model_index.json").write_text(architecture.pipeline_index(), encoding="utf-8")

# SPDX-License-Identifier: GPL-3.0-or-later
"""What it costs to draw several characters with a LoRA each, in each way of binding them.

One denoising step of one keyframe with guidance, on the embedded model (on random weights of the
same architecture where it is missing), with random LoRAs of rank 16 on attention and feed-forward.
What a LoRA has learned does not matter to its cost. Rounds alternate between all ways, the best
round of each counts. On a CPU it is one thread's own time, which is the wall time of an idle core
and does not count what else runs on the machine.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Figure

side = 256
rank = 16
rounds = 4
counts = (1, 2, 3, 4, 5)
bar = 1.3
prompt = "a man and a woman in a park, evening"
trained = re.compile(r".*\.(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2)")


@dataclass(frozen=True)
class _Way:
    """What is measured. name: a way of binding; "none": no LoRA; "whole": one, everywhere."""

    name: str
    count: int
    maps: bool = True


def run() -> list[Figure]:
    """The figures of this bench."""
    from onmodel.models import libraries
    from onmodel.models.registry import embedded_folder

    libraries.prepare()
    with tempfile.TemporaryDirectory() as folder:
        weights = embedded_folder
        note = ""
        if not (weights / "model_index.json").is_file():
            from bench.random_model import build

            weights = build(Path(folder) / "weights", widths=(48, 96, 160), size=32)
            note = "random weights: the embedded model is missing"
        return _measure(weights, Path(folder), note)


def _measure(weights: Path, data: Path, note: str) -> list[Figure]:
    import torch
    from onmodel.models import families, memory
    from onmodel.models.loras import LoraShelf
    from onmodel.models.registry import Registry

    for i in range(max(counts)):
        _write_lora(data / "loras" / f"c{i}.safetensors", weights, i)
    registry = Registry(data, extra=[], embedded=weights)
    family = families.load(registry.models()[0], memory.choose_place(0))
    clock = time.perf_counter
    if family.place.device == "cpu":
        torch.set_num_threads(1)
        clock = time.thread_time
    shelf = LoraShelf(family)
    loras = [registry.find_lora(f"c{i}") for i in range(max(counts))]
    ways = [_Way("fast", n) for n in counts]
    ways += [_Way(name, n) for name in ("pass", "batch") for n in counts]
    ways += [_Way("fast", n, maps=False) for n in (1, 3)]
    ways += [_Way("none", 1), _Way("none", 3), _Way("whole", 1)]
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for way in ways:
            bound = loras[: way.count] if way.name in ("fast", "pass", "batch") else []
            shelf.use([(loras[0], 1.0)] if way.name == "whole" else [], bound)
            step = _step(family, way, [lora.adapter for lora in bound])
            step()
            started = clock()
            step()
            best[way] = min(best[way], clock() - started)
    shelf.use([], loras[:1])
    reach = [_reach(family, name, loras[0].adapter) for name in ("fast", "pass")]
    return [
        *_figures(best, note),
        Figure("regions: change outside over inside, one pass", reach[0], "", note=note),
        Figure("regions: change outside over inside, by passes", reach[1], "", 0.0, "==", note),
    ]


def _reach(family: Any, name: str, adapter: str) -> float:
    """How much a character's LoRA changes the first step's output where the character is not, as
    a part of what it changes where it is: the outer quarters of a picture whose left half it has.
    """
    way = _Way(name, 2, maps=False)
    with_lora, without = (_step(family, way, adapters)() for adapters in ([adapter, ""], []))
    change = (with_lora - without).abs().mean((0, 1, 2))
    quarter = len(change) // 4
    return float(change[-quarter:].mean() / change[:quarter].mean())


def _figures(best: dict[_Way, float], note: str) -> list[Figure]:
    fast = {n: best[_Way("fast", n)] for n in counts}
    bare = {n: best[_Way("fast", n, maps=False)] for n in (1, 3)}

    def times(name: str, seconds: float, against: float, limit: float | None = None) -> Figure:
        return Figure(f"regions: {name}", seconds / against, "x", limit, note=note)

    def way(name: str, count: int) -> float:
        return best[_Way(name, count)]

    return [
        Figure("regions: a step of one character in one pass", fast[1] * 1000, "ms", note=note),
        times("3 characters against 1, one pass", fast[3], fast[1], bar),
        *(times(f"{n} against 1, one pass", fast[n], fast[1]) for n in (2, 4, 5)),
        times("3 against 1 without maps, one pass", bare[3], bare[1]),
        *(times(f"{n} by passes against 1 in one pass", way("pass", n), fast[1]) for n in counts),
        *(times(f"{n} in a batch against 1 in one pass", way("batch", n), fast[1]) for n in counts),
        times("1 against 1 without LoRA", fast[1], best[_Way("none", 1)]),
        times("3 against 3 without LoRA", fast[3], best[_Way("none", 3)]),
        times("1 against its LoRA on the whole picture", fast[1], best[_Way("whole", 1)]),
    ]


def _step(family: Any, way: _Way, adapters: list[str]) -> Callable[[], Any]:
    """One denoising step of one keyframe, as the sampler asks for it.

    adapters: each character's, "" for one without; [] where nobody has one.
    """
    import torch
    from onmodel.generate.regional_settings import RegionalSettings, standard

    settings = RegionalSettings(way.name) if adapters else standard
    prepared = family.prepare([_picture(adapters, way)], 4.0, settings)
    latents = family.noise(torch.Generator().manual_seed(0), side, side)
    return lambda: family.denoise(prepared, latents, torch.tensor(500), 0.0)


def _picture(adapters: list[str], way: _Way) -> Any:
    from onmodel.models.family import ControlMap, Picture, RegionPrompt

    regions = []
    for i in range(way.count):
        mask = np.zeros((side, side), bool)
        left = 8 + i * (side - 16) // way.count
        mask[40:, left : left + (side - 16) // way.count] = True
        loras = ((adapters[i], 1.0),) if adapters and adapters[i] else ()
        regions.append(RegionPrompt("man, red coat", mask, loras))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
    maps = [ControlMap(kind, image) for kind in ("depth", "pose")] if way.maps else []
    return Picture(prompt, "", side, side, 0, maps, regions)


def _write_lora(path: Path, model: Path, seed: int) -> None:
    """Random numbers in diffusers' layout."""
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, weight in load_file(model / "unet/diffusion_pytorch_model.safetensors").items():
        name = key.removesuffix(".weight")
        if key.endswith(".weight") and trained.fullmatch(name):
            shape = weight.shape
            state[f"unet.{name}.lora_A.weight"] = torch.randn(rank, shape[1], generator=generator)
            state[f"unet.{name}.lora_B.weight"] = torch.randn(shape[0], rank, generator=generator)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v / 16 for k, v in state.items()}, path)

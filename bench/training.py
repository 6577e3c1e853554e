# SPDX-License-Identifier: GPL-3.0-or-later
"""Our trainer's steps per second over a plain LoRA loop on the same weights, in one run.

The plain loop does what diffusers' example script for SDXL LoRAs does with its defaults
(train_text_to_image_lora_sdxl.py): float32, the library's attention, and VAE and text encoders at
every step. Both train the same layers at the same rank on the same pictures, on one thread, taking
turns, so that what else the machine does falls on both. The clock is the process's own time on a
CPU, wall time on a GPU.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Figure

rounds, batch, side, count = 7, 4, 256, 8


def run() -> list[Figure]:
    """Both ratios, and the steps per second they are made of."""
    from onmodel.models import libraries

    libraries.prepare()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        pictures(home / "pictures")
        loops = {
            "plain": plain_loop(home),
            "uncached": our_loop(home, cached=False),
            "cached": our_loop(home, cached=True),
        }
        seconds = take_turns(loops)
    plain, uncached, cached = (seconds[k] for k in ("plain", "uncached", "cached"))
    note = f"batch {batch}, {side}², the embedded model, rank 16, medians of {rounds}"
    return [
        Figure("training, plain loop in float32", 1 / plain, "steps/s", note=note),
        Figure("training, ours uncached over the plain loop", plain / uncached, "x", 1.0, ">="),
        Figure("training, ours cached over the plain loop", plain / cached, "x", 1.5, ">="),
    ]


def take_turns(loops: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of a step of each, after two that do not count."""
    import torch

    cuda = torch.cuda.is_available()
    clock = time.perf_counter if cuda else time.process_time
    taken: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds + 2):
        for name, step in loops.items():
            start = clock()
            step()
            if cuda:
                torch.cuda.synchronize()
            if number >= 2:
                taken[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def pictures(folder: Path) -> None:
    """Colourful pictures with captions."""
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"zanna woman in a red coat, portrait, park {i}")


def training_plan(home: Path) -> Any:
    """The same for both loops."""
    from onmodel.train.plan import (
        AdapterPlan,
        BasePlan,
        DataPlan,
        RunPlan,
        SchedulePlan,
        TrainingPlan,
    )

    return TrainingPlan(
        # As the preset has it: on CPUs without matrix units bf16 is slower than float32.
        base=BasePlan("rehearsal", dtype="fp32"),
        data=DataPlan(
            images=str(home / "pictures"),
            trigger="zanna",
            noun="woman",
            resolution=side,
            bucket_step=32,
            min_bucket=128,
            max_bucket=512,
            masks=False,
        ),
        adapter=AdapterPlan(rank=16, alpha=16.0),
        loss=replace(TrainingPlan().loss, masked=False),
        schedule=SchedulePlan(steps=1000, batch=batch),
        run=RunPlan(threads=1),
    )


def our_loop(home: Path, cached: bool) -> Callable[[], None]:
    """A step of ours."""
    from onmodel.train.engine import prepared

    plan = training_plan(home)
    plan = replace(plan, run=replace(plan.run, cache_latents=cached, cache_text=cached))
    trainer = prepared(plan, home / "cache")
    return lambda: void(trainer.take())


def void(result: object) -> None:
    """For steps whose result nobody needs."""


def plain_loop(home: Path) -> Callable[[], None]:
    """A step of the plain loop."""
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler
    from onmodel.models.memory import choose_place
    from onmodel.models.registry import Registry
    from onmodel.models.sdxl_parts import load_parts
    from onmodel.train.samples import pixels
    from peft import LoraConfig
    from PIL import Image

    place = replace(choose_place(0), dtype="float32")
    parts = load_parts(Registry().find("rehearsal"), place)
    for module in (parts.unet, parts.vae, *parts.text_encoders):
        module.to(place.device)
    unet, vae = parts.unet, parts.vae
    targets = ["to_k", "to_q", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
    unet.add_adapter(
        LoraConfig(r=16, lora_alpha=16, init_lora_weights="gaussian", target_modules=targets)
    )
    weights = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4)
    scheduler = DDPMScheduler.from_config(parts.scheduler)
    files = sorted((home / "pictures").glob("*.png"))
    images = torch.stack([pixels(Image.open(f), False) * 2 - 1 for f in files])
    captions = [f.with_suffix(".txt").read_text() for f in files]
    ids = torch.tensor([[side, side, 0, 0, side, side]] * batch, device=place.device).float()
    turn = iter(range(10**6))
    unet.train()

    def prompts(rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        keys, pooled = [], torch.empty(0)
        for tokenizer, encoder in zip(parts.tokenizers, parts.text_encoders, strict=True):
            text = tokenizer(
                [captions[i] for i in rows],
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            with torch.no_grad():
                out = encoder(text.input_ids.to(place.device), output_hidden_states=True)
            keys.append(out.hidden_states[-2])
            pooled = out[0]
        return torch.cat(keys, dim=-1), pooled

    def step() -> None:
        first = next(turn) * batch
        rows = [(first + i) % count for i in range(batch)]
        with torch.no_grad():
            latents = vae.encode(images[rows].to(place.device)).latent_dist.sample()
        latents = latents * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        times = torch.randint(0, 1000, (batch,), device=place.device)
        noisy = scheduler.add_noise(latents, noise, times)
        keys, pooled = prompts(rows)
        added = {"text_embeds": pooled, "time_ids": ids}
        said = unet(noisy, times, keys, added_cond_kwargs=added, return_dict=False)[0]
        F.mse_loss(said.float(), scheduler.get_velocity(latents, noise, times)).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step

# SPDX-License-Identifier: GPL-3.0-or-later
"""Train the denoiser on the packed world, first at half size and then at full size.

Every random choice of a step comes from a generator seeded with the step's number, so a run that
was stopped at any moment goes on exactly as if it had not been. New shards are taken in whenever a
run starts or goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn.utils import clip_grad_norm_

from onmodel.generate.regions import use_regions
from onmodel.rehearsal import data
from onmodel.rehearsal.architecture import Denoiser, Sizes, make_tokenizer, make_vae
from onmodel.rehearsal.latents import PatchBasis
from onmodel.rehearsal.muon import optimizers_of
from onmodel.rehearsal.sampling import (
    Decode,
    Noise,
    Tokens,
    draw,
    fast_bf16,
    make_batch,
    sheet,
    training_loss,
)
from onmodel.rehearsal.stop import stoppable

log = logging.getLogger(__name__)


_average_every = 4
"""Steps between two updates of the running average: it reads and writes every weight."""


@dataclass(frozen=True)
class Plan:
    """How a run goes. small: the first steps, at half size; decay: the last steps, in which the
    rate falls to a fiftieth. batches: sizes at half and at full size."""

    steps: int = 4000
    small: int = 3000
    decay: int = 1200
    batches: tuple[int, int] = (32, 16)
    rate: float = 1e-3
    warm: int = 100

    def rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        left = min(1.0, max(0.02, (self.steps - step) / self.decay))
        return self.rate * min(1.0, (step + 1) / self.warm) * left

    def scale_at(self, step: int) -> int:
        """2: half size, 1: full size."""
        return 2 if step < self.small else 1


def _channels_last(model: Denoiser) -> Denoiser:
    """Convolutions are faster so on a CPU."""
    out: Denoiser = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return out


class Trainer:
    """The denoiser, its running average and its optimizer, at a step."""

    def __init__(self, sizes: Sizes, vocabulary: list[int]) -> None:
        torch.manual_seed(1)
        self.sizes = sizes
        self.model = _channels_last(Denoiser(sizes, vocabulary))
        # The fused attention is the faster one in float32, the plain one in bfloat16 on a CPU.
        use_regions(self.model.unet, self.model.controlnet, plain=fast_bf16())
        self.average = _channels_last(Denoiser(sizes, vocabulary))
        use_regions(self.average.unet, self.average.controlnet, plain=fast_bf16())
        self.average.load_state_dict(self.model.state_dict())
        self.average.requires_grad_(False).eval()
        # The last layers of both encoders are not read, as in SDXL; they stay as they are.
        self.used = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizers = optimizers_of(self.model)
        self.tokens = Tokens(make_tokenizer())
        self.noise = Noise()
        self.step = 0
        self.seen = 0

    def train_step(self, plan: Plan, shards: list[data.Shard]) -> float:
        """One step on random samples of `shards`; returns the loss."""
        rng = torch.Generator().manual_seed(self.step)
        for group in (g for o in self.optimizers for g in o.param_groups):
            group["lr"] = plan.rate_at(self.step)
        size = plan.batches[0 if plan.scale_at(self.step) == 2 else 1]
        loss = training_loss(self.model, shards, size, self.tokens, self.noise, rng)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(self.used, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self.seen += size
        if self.step % _average_every == 0:
            keep = min(0.998**_average_every, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(self.average.parameters()), list(self.model.parameters()), 1 - keep
                )
        return float(loss.detach())

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on; a reader sees the old or the new."""
        part = path.with_suffix(".part")
        state = {
            "sizes": vars(self.sizes),
            "vocabulary": self.model.tokens,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "seen": self.seen,
        }
        torch.save(state, part)
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Trainer:
        """The trainer that `save` wrote."""
        state = torch.load(path, weights_only=True)
        out = cls(Sizes(**state["sizes"]), state["vocabulary"])
        out.model.load_state_dict(state["model"])
        out.average.load_state_dict(state["average"])
        if "optimizers" in state:
            for optimizer, kept in zip(out.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
        else:
            log.warning("%s was trained by another optimizer; ours starts afresh.", path)
        out.step, out.seen = state["step"], state["seen"]
        return out

    def learn_words(self, vocabulary: list[int]) -> Trainer:
        """A trainer at the same step that also has rows for these tokens."""
        missing = set(vocabulary) - set(self.model.tokens)
        if not missing:
            return self
        out = Trainer(self.sizes, [*self.model.tokens, *vocabulary])
        place = out.model.place[self.model.tokens]
        for mine, theirs in ((self.model, out.model), (self.average, out.average)):
            state = theirs.state_dict()
            for name, value in mine.state_dict().items():
                state[name] = _rows(name, value, state[name], place)
            theirs.load_state_dict(state)
        # Tables of words are AdamW's, the second optimizer.
        names = {id(p): name for name, p in self.model.named_parameters()}
        adam = self.optimizers[1]
        owned = [names[id(p)] for p in adam.param_groups[0]["params"]]
        kept = copy.deepcopy(adam.state_dict())
        for number, values in kept["state"].items():
            rows = len(out.model.tokens)
            for key, value in values.items():
                if value.ndim == 2 and owned[number].endswith(_table):
                    empty = value.new_zeros(rows, value.shape[1])
                    values[key] = _rows(owned[number], value, empty, place)
        out.optimizers[1].load_state_dict(kept)
        out.optimizers[0].load_state_dict(copy.deepcopy(self.optimizers[0].state_dict()))
        out.step, out.seen = self.step, self.seen
        log.info("%d new words", len(missing))
        return out


_table = "token_embedding.weight"


def _rows(
    name: str, value: torch.Tensor, larger: torch.Tensor, place: torch.Tensor
) -> torch.Tensor:
    """`value`, or for a table of words: `larger` with its rows at `place`."""
    if not name.endswith(_table):
        return value
    out = larger.clone()
    out[place] = value
    return out


def vocabulary_of(shards: list[data.Shard]) -> list[int]:
    """CLIP's numbers of all tokens in these captions."""
    tokens = Tokens(make_tokenizer())
    found: set[int] = set()
    for text in data.all_texts(shards):
        found.update(tokens(text).tolist())
    return sorted(found)


def decoder(folder: Path) -> Decode:
    """The trained VAE's decoder, or the plane of the patch basis while there is none."""
    path = folder / "vae.pt"
    if not path.exists():
        return PatchBasis.load(folder / "basis.pt").decode
    state = torch.load(path, weights_only=True)
    vae = make_vae(Sizes(**state["sizes"])).eval()
    vae.load_state_dict(state["average"])

    def decode(latents: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16()):
            return torch.cat([vae.decode(z[None]).sample for z in latents]).float()

    return decode


def held_out(shards: list[data.Shard], count: int) -> tuple[data.Shard, torch.Tensor]:
    """The square shard and the samples of it to show: half of them with two people."""
    shard = shards[0]
    two = [i for i, w in enumerate(shard.words) if len(w.people) > 1]
    one = [i for i, w in enumerate(shard.words) if len(w.people) == 1]
    half = count // 2
    index = [*one[:: max(1, len(one) // (count - half))][: count - half]]
    index += two[:: max(1, len(two) // half)][:half]
    return shard, torch.tensor(index)


def full_prompts(words: data.Words) -> data.Prompts:
    """Everything that the captions say, a prompt for the shot and one per person."""
    return data.Prompts((", ".join(words.shot), *(", ".join(p) for p in words.people)))


def make_sheet(trainer: Trainer, shards: list[data.Shard], decode: Decode, path: Path) -> None:
    """Truth, drawn from all maps, drawn from a stand-in's pose and depth: of held-out people."""
    shard, index = held_out(shards, 8)
    prompts = [full_prompts(shard.words[i]) for i in index.tolist()]
    empty = trainer.tokens("")
    rows: list[torch.Tensor] = []
    for source in (s for s in data.sources if s in shard.shares):
        batch = make_batch(shard, index, prompts, trainer.tokens, source)
        kinds = ("pose", "depth", "normal") if source == "own" else ("pose", "depth")
        if not rows:
            rows.append(batch.latents)
        rows.append(draw(trainer.average, batch, trainer.noise, empty, kinds))
    pictures = [decode(row) for row in rows]
    Image.fromarray(sheet(pictures)).save(path)


def run(folder: Path, plan: Plan, sizes: Sizes, minutes: float, sheet_minutes: float) -> int:
    """Train in `folder` (with basis.pt and shards/) until the plan or the time is used up."""
    path = folder / "denoiser.pt"
    first_held_out = 24576
    training = {
        s: data.merge(data.load_shards(folder / "shards", s, 0, first_held_out)) for s in (1, 2)
    }
    if not training[1]:
        log.error("There are no shards in %s. Make samples and pack them first.", folder)
        return 2
    kept = {
        s: data.merge(data.load_shards(folder / "shards", s, first_held_out, 10**9)) for s in (1, 2)
    }
    words = vocabulary_of([*training[1], *kept[1]])
    trainer = Trainer.load(path).learn_words(words) if path.exists() else Trainer(sizes, words)
    count = sum(len(s) for s in training[1])
    log.info("%d samples, step %d of %d", count, trainer.step, plan.steps)
    begun = saved = shown = time.monotonic()
    smooth: float | None = None
    with stoppable() as asked, (folder / "metrics.jsonl").open("a") as metrics:
        while trainer.step < plan.steps and not asked:
            if time.monotonic() - begun > minutes * 60:
                break
            t = time.monotonic()
            shards = training[plan.scale_at(trainer.step)]
            loss = trainer.train_step(plan, shards)
            smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
            now = time.monotonic()
            if trainer.step % 20 == 0:
                row: dict[str, Any] = {
                    "step": trainer.step,
                    "seen": trainer.seen,
                    "loss": round(smooth, 5),
                    "seconds": round(now - t, 3),
                    "minutes": round((now - begun) / 60, 2),
                    "time": time.strftime("%H:%M:%S"),
                }
                metrics.write(json.dumps(row) + "\n")
                metrics.flush()
            if now - saved > 180:
                trainer.save(path)
                saved = now
            if kept[1] and now - shown > sheet_minutes * 60:
                path_now = folder / "sheets" / f"{trainer.step:06d}.png"
                path_now.parent.mkdir(exist_ok=True)
                scale = plan.scale_at(trainer.step)
                make_sheet(trainer, kept[scale], decoder(folder), path_now)
                shown = time.monotonic()
    trainer.save(path)
    log.info("stopped at step %d, loss %.4f", trainer.step, smooth or float("nan"))
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rehearsal train`."""
    plan = Plan()
    parser.add_argument("--steps", type=int, default=plan.steps, help="steps of the whole run")
    parser.add_argument("--small", type=int, default=plan.small, help="first steps, at half size")
    parser.add_argument("--decay", type=int, default=plan.decay, help="last steps, falling rate")
    parser.add_argument("--rate", type=float, default=plan.rate)
    parser.add_argument("--batches", type=int, nargs=2, default=plan.batches)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many")
    parser.add_argument("--sheet-minutes", type=float, default=10.0)


def from_options(options: argparse.Namespace) -> int:
    """Run `rehearsal train` as the options ask."""
    plan = Plan(options.steps, options.small, options.decay, tuple(options.batches), options.rate)
    return run(options.folder, plan, Sizes(), options.minutes, options.sheet_minutes)

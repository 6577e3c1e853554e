# SPDX-License-Identifier: GPL-3.0-or-later
"""Train the rehearsal world's face network.

    python -m onmodel.identity.train pack SAMPLES NAME       heads of a folder of samples
    python -m onmodel.identity.train run --packs a b --steps 2000
    python -m onmodel.identity.train export                  weights, calibration, table

CosFace's loss: the angle between an embedding and its person's direction, with a margin taken from
its cosine (Wang et al. 2018, arXiv:1801.09414, equation 4). People from `held_out` on are never
trained on. Every random choice of a step comes from its number, and the state is saved every
hundred steps: a run that was stopped goes on as if it had not been. A run may go on with more
packs: people already known keep their directions.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from onmodel.identity import augment, pack
from onmodel.identity.cuts import to_tensor
from onmodel.identity.net import FaceNet, embedding_size, input_size
from onmodel.rehearsal.muon import Muon
from onmodel.rehearsal.stop import stoppable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How a run goes. decay: the last steps, in which the rate falls to a fiftieth. scale, margin:
    CosFace's s and m."""

    steps: int = 2000
    decay: int = 900
    batch: int = 64
    rate: float = 2e-3
    warm: int = 60
    scale: float = 24.0
    margin: float = 0.25

    def rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        left = min(1.0, max(0.02, (self.steps - step) / self.decay))
        return self.rate * min(1.0, (step + 1) / self.warm) * left

    def margin_at(self, step: int) -> float:
        """The margin grows from nothing over the first 400 steps, or training does not start."""
        return self.margin * min(1.0, step / 400)


@dataclass
class Faces:
    """Heads for training. cuts: one memory-mapped array a pack; rows (N, 2): pack and place in it;
    person (N,): index into people; people: identities in order."""

    cuts: list[np.ndarray]
    rows: np.ndarray
    person: np.ndarray
    people: list[int]

    def batch(self, size: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Cuts (size, 3, S, S) in -1..1 and people (size,); all people equally often."""
        who = torch.randint(len(self.people), (size,), generator=rng)
        turn = torch.rand(size, generator=rng).numpy()
        order, first, count = self._by_person
        picks = [
            order[first[w] + int(t * count[w])] for w, t in zip(who.numpy(), turn, strict=True)
        ]
        cuts = np.stack([self.cuts[p][i] for p, i in self.rows[picks]])
        return to_tensor(cuts), who

    def __post_init__(self) -> None:
        order = np.argsort(self.person, kind="stable")
        count = np.bincount(self.person, minlength=len(self.people))
        self._by_person = (order, np.concatenate([[0], np.cumsum(count)[:-1]]), count)


def training_faces(folder: Path, names: list[str], least: int = 3) -> Faces:
    """Heads of the packs; only people with at least `least` heads."""
    cuts: list[np.ndarray] = []
    rows: list[tuple[int, int]] = []
    who: list[int] = []
    for index, name in enumerate(names):
        found = pack.load(folder / name)
        cuts.append(found.cuts)
        for place, head in enumerate(found.heads):
            if head.identity < pack.held_out:
                rows.append((index, place))
                who.append(head.identity)
    people, person, count = np.unique(who, return_inverse=True, return_counts=True)
    enough = count >= least
    keep = enough[person]
    number = np.cumsum(enough) - 1
    return Faces(cuts, np.array(rows)[keep], number[person[keep]], [int(p) for p in people[enough]])


def optimizers(net: nn.Module, directions: nn.Parameter) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the convolutions inside, AdamW for the first and the last layer, what is looked
    through channel by channel, norms, and the people's directions, which come last."""
    outer = ("stem.", "out.", "where.")
    inside = [p for n, p in net.named_parameters() if p.ndim >= 2 and not n.startswith(outer)]
    edges = [p for n, p in net.named_parameters() if p.ndim >= 2 and n.startswith(outer)]
    plain = [p for p in net.parameters() if p.ndim < 2]
    groups = [{"params": edges, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    groups.append({"params": [directions], "weight_decay": 0.01})
    return Muon(inside, weight_decay=0.05), torch.optim.AdamW(groups, betas=(0.9, 0.98))


class Trainer:
    """The network, a direction (128,) for each person, and the optimizers, at a step."""

    def __init__(self, people: list[int], plan: Plan) -> None:
        torch.manual_seed(1)
        self.plan, self.people, self.step = plan, people, 0
        self.net: nn.Module = FaceNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.directions = nn.Parameter(torch.randn(len(people), embedding_size) * 0.1)
        self.muon, self.adam = optimizers(self.net, self.directions)

    def save(self, path: Path) -> None:
        """The whole state, written beside and moved."""
        state = {
            "step": self.step,
            "people": self.people,
            "net": self.net.state_dict(),
            "directions": self.directions.detach(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a saved state; its people's directions are taken over by identity."""
        state = torch.load(path, weights_only=True)
        self.step = int(state["step"])
        self.net.load_state_dict(state["net"])
        place = {who: i for i, who in enumerate(state["people"])}
        known = [(i, place[who]) for i, who in enumerate(self.people) if who in place]
        if not known:
            log.info("nobody in these packs was known before: only the network goes on")
            return
        here, there = (torch.tensor(part, dtype=torch.long) for part in zip(*known, strict=True))
        self.directions.data[here] = state["directions"][there]
        # The directions are AdamW's last parameter; its means for them move along.
        kept = state["adam"]["state"]
        for name in ("exp_avg", "exp_avg_sq"):
            moved = torch.zeros_like(self.directions.data)
            moved[here] = kept[max(kept)][name][there]
            kept[max(kept)][name] = moved
        self.adam.load_state_dict(state["adam"])
        self.muon.load_state_dict(state["muon"])
        if len(known) < len(self.people):
            log.info("%d people are new", len(self.people) - len(known))

    def train_step(self, faces: Faces) -> tuple[float, float]:
        """One step; loss and the share of heads given to the right person without margin."""
        plan = self.plan
        rng = torch.Generator().manual_seed(90_001 + self.step)
        cuts, who = faces.batch(plan.batch, rng)
        zoom = pack.input_margin / pack.stored_margin
        x = augment.spoil(augment.place(cuts, input_size, zoom, rng), rng)
        for group in self.muon.param_groups + self.adam.param_groups:
            group["lr"] = plan.rate_at(self.step)
        self.net.train()
        embeddings = self.net(x.to(memory_format=torch.channels_last))
        cosines = embeddings @ F.normalize(self.directions, dim=1).T
        right = float((cosines.argmax(1) == who).float().mean())
        margin = F.one_hot(who, len(self.people)) * plan.margin_at(self.step)
        loss = F.cross_entropy(plan.scale * (cosines - margin), who)
        self.net.zero_grad(set_to_none=True)
        self.directions.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.muon.step()
        self.adam.step()
        self.step += 1
        return float(loss.detach()), right


def run(folder: Path, names: list[str], plan: Plan) -> int:
    """Train until plan.steps or until asked to stop; the step reached."""
    faces = training_faces(folder / "packs", names)
    trainer = Trainer(faces.people, plan)
    state = folder / "state.pt"
    if state.exists():
        trainer.load(state)
    log.info("%d heads of %d people, step %d", len(faces.rows), len(faces.people), trainer.step)
    sums, begun, cpu = [0.0, 0.0, 0], time.monotonic(), time.process_time()
    with stoppable() as asked:
        while trainer.step < plan.steps and not asked:
            loss, right = trainer.train_step(faces)
            if not math.isfinite(loss):
                raise FloatingPointError(f"The loss of step {trainer.step} is {loss}.")
            sums = [sums[0] + loss, sums[1] + right, sums[2] + 1]
            if trainer.step % 50 == 0:
                row = {
                    "step": trainer.step,
                    "loss": round(sums[0] / sums[2], 4),
                    "right": round(sums[1] / sums[2], 4),
                    "seconds": round(time.monotonic() - begun, 1),
                    "cpu": round(time.process_time() - cpu, 1),
                }
                with (folder / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")
                log.info("%s", row)
                sums = [0.0, 0.0, 0]
            if trainer.step % 100 == 0:
                trainer.save(state)
    trainer.save(state)
    return trainer.step


def main(argv: list[str]) -> int:
    """The command line of the module's head."""
    parser = argparse.ArgumentParser(prog="python -m onmodel.identity.train", description=__doc__)
    home = Path.home() / ".cache" / "onmodel" / "identity"
    parser.add_argument("--folder", type=Path, default=home, help="packs and state [%(default)s]")
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("samples", type=Path)
    packing.add_argument("name")
    packing.add_argument("--strangers", action="store_true", help="an older world's people")
    running = commands.add_parser("run")
    running.add_argument("--packs", nargs="+", required=True)
    running.add_argument("--steps", type=int, default=Plan.steps)
    running.add_argument("--decay", type=int, default=Plan.decay)
    exporting = commands.add_parser("export")
    exporting.add_argument("--packs", nargs="+", required=True)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.command == "pack":
        out = options.folder / "packs" / options.name
        pack.pack_samples(options.samples, out, options.strangers)
    elif options.command == "run":
        run(options.folder, options.packs, Plan(steps=options.steps, decay=options.decay))
    else:
        from onmodel.identity.export import export

        export(options.folder, options.packs)
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    raise SystemExit(main(sys.argv[1:]))

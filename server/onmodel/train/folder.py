# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run keeps in its folder, and how it is found again after any stop.

plan.toml                  the plan, complete
state.pt                   weights, optimizer and average after the last save; whole or old
metrics.jsonl              a line for each step
NAME-000250.safetensors    checkpoints;  NAME.safetensors  the finished LoRA
drawings/000250/…png       validation drawings; 000000 are the base model's own
drawings.1/                those of an earlier start that drew something else
choice.json, identity.png  what was found about the checkpoints, and its curve
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch

from onmodel.lora.save import write_atomically
from onmodel.train import plan_file
from onmodel.train.dataset import DataSet, content_digest
from onmodel.train.plan import PlanError, RunPlan, TrainingPlan, ValidationPlan


class RunFolder:
    """One run's folder. digest: of all that decides its losses."""

    def __init__(self, path: Path, plan: TrainingPlan, data: DataSet, model_hash: str) -> None:
        self.path, self.plan = path, plan
        # What does not change the losses may change between two starts: pictures and model may
        # have moved, which their digests see through.
        numbers = replace(
            plan,
            name="",
            base=replace(plan.base, model=""),
            data=replace(plan.data, images="", regularisation=None),
            run=RunPlan(seed=plan.run.seed, gradient_checkpointing=plan.run.gradient_checkpointing),
            validation=ValidationPlan(),
        )
        whole = f"{numbers!r}\x1f{content_digest(data)}\x1f{model_hash}"
        self.digest = hashlib.sha256(whole.encode()).hexdigest()

    @property
    def _state(self) -> Path:
        return self.path / "state.pt"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: step, loss, rate, grad_norm, seconds."""
        return self.path / "metrics.jsonl"

    def open(self, resume: bool) -> dict[str, Any] | None:
        """Make the folder ready; the saved state where a run goes on.

        Raises PlanError where there is a run already and resume is false, where there is none
        that could go on, or where it was another run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        state = None
        if self._state.is_file():
            if not resume:
                raise PlanError(
                    f"In {self.path} there is a run already.",
                    "Resume it, or choose another folder.",
                )
            state = self._read()
        elif self.metrics.is_file() and not resume:
            raise PlanError(
                f"In {self.path} there is a run that stopped before its first save.",
                "Resume it, which starts it anew, or choose another folder.",
            )
        self._put_drawings_aside()
        self._cut_metrics(0 if state is None else int(state["step"]))
        write_atomically(self.path / "plan.toml", plan_file.to_toml(self.plan).encode())
        return state

    def _read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(self._state, weights_only=True)
        except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise PlanError(
                f"The saved state {self._state} cannot be read: {str(error).splitlines()[0]}",
                "Start anew in another folder.",
            ) from error
        if state.get("digest") != self.digest:
            raise PlanError(
                f"The run in {self.path} was started with another plan, other pictures or "
                "another model.",
                "Put them back as they were, or start anew in another folder.",
            )
        return state

    def _put_drawings_aside(self) -> None:
        """Drawings of other prompts, maps or seeds cannot be compared with those that come."""
        plan, old = self.path / "plan.toml", self.path / "drawings"
        if not plan.is_file() or not old.is_dir():
            return
        before = plan_file.read(plan).validation
        if _drawn(before) != _drawn(self.plan.validation):
            number = next(n for n in count(1) if not old.with_name(f"drawings.{n}").exists())
            old.rename(old.with_name(f"drawings.{number}"))

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the saved state."""
        file = io.BytesIO()
        torch.save({**state, "digest": self.digest}, file)
        write_atomically(self._state, file.getvalue())

    def _cut_metrics(self, step: int) -> None:
        """Drop lines of steps after the saved state: they come again."""
        if not self.metrics.is_file():
            return
        kept = [row for row in read_metrics(self.metrics) if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        write_atomically(self.metrics, text.encode())

    def note(self, row: dict[str, float]) -> None:
        """Add a step's line."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def checkpoint(self, step: int) -> Path:
        """The file of a checkpoint."""
        return self.path / f"{self.plan.name}-{step:06d}.safetensors"

    def checkpoints(self) -> tuple[Path, ...]:
        """The checkpoints that are there, the earliest first."""
        form = re.compile(re.escape(self.plan.name) + r"-\d{6,}\.safetensors")
        found = [p for p in self.path.glob("*.safetensors") if form.fullmatch(p.name)]
        return tuple(sorted(found, key=self.step_of))

    @staticmethod
    def step_of(checkpoint: Path) -> int:
        """The step of a checkpoint's file."""
        return int(checkpoint.stem.rsplit("-", 1)[1])

    def prune(self) -> None:
        """Delete the oldest checkpoints beyond `run.keep`."""
        if self.plan.run.keep:
            for path in self.checkpoints()[: -self.plan.run.keep]:
                path.unlink()

    @property
    def finished(self) -> Path:
        """The finished LoRA."""
        return self.path / f"{self.plan.name}.safetensors"

    def drawings(self, step: int) -> Path:
        """The folder of a step's validation drawings."""
        return self.path / "drawings" / f"{step:06d}"

    def has_drawings(self, step: int, number: int) -> bool:
        """Whether all drawings of a step are there."""
        return len(list(self.drawings(step).glob("*.png"))) == number


def _drawn(plan: ValidationPlan) -> ValidationPlan:
    """What of the plan decides what is drawn."""
    return replace(plan, every=0, references=None)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The whole lines of a metrics file; a last line that a stop cut off is left out."""
    rows: list[dict[str, float]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows

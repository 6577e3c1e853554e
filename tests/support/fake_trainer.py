# SPDX-License-Identifier: GPL-3.0-or-later
"""A trainer without a model: counts steps, saves, goes on after any stop.

    onmodel serve --trainer tests.support.fake_trainer:FakeTrainer

Its "LoRA" is a text that names every step that was made, so that a step lost or made twice after a
resume shows. The noun of a plan makes it misbehave: "failure" a TrainError at the second step,
"bug" an exception, "crash" the process dies at the second step of every start.
Environment: FAKE_TRAIN_GATE and FAKE_TRAIN_STEP (before that step it waits for that file,
and says so by GATE.waits).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from onmodel.jobs.trainer import Trained, TrainError, TrainingTask, TrainReport

from tests.support import keyframes


class FakeTrainer:
    """Adds its steps to a list."""

    def __init__(self, roots: Iterable[Path]) -> None:
        self.roots = list(roots)

    def train(
        self, task: TrainingTask, report: TrainReport, cancelled: Callable[[], bool]
    ) -> Trained | None:
        plan, state = task.plan, task.folder / "state.json"
        of, every = plan["schedule"]["steps"], plan["run"]["save_every"]
        report("preparing", {"message": "counting", "masks": keyframes.png(900).data})
        steps: list[int] = json.loads(state.read_text()) if state.exists() else []
        with (task.folder / "starts.txt").open("a") as file:
            file.write(f"{len(steps)}\n")
        report("caching", {"done": 1, "of": 1})
        made = 0
        while len(steps) < of:
            if self._gate(len(steps) + 1, cancelled) or cancelled():
                state.write_text(json.dumps(steps))
                report("saved", {"step": len(steps)})
                return None
            if made == 1:
                misbehave(plan["data"]["noun"])
            steps.append(len(steps) + 1)
            made += 1
            report("step", {"step": len(steps), "of": of, "loss": 1 / len(steps), "seconds": 0.5})
            if len(steps) % every == 0 or len(steps) == of:
                state.write_text(json.dumps(steps))
                report("saved", {"step": len(steps)})
                picture = task.folder / f"{len(steps)}.png"
                picture.write_bytes(keyframes.png(900 + len(steps)).data)
                report("validation", {"step": len(steps), "files": [str(picture)]})
        lora = task.folder / f"{plan['name']}.safetensors"
        lora.write_text(f"{steps} in {task.model_hash[:8]}")
        return Trained(lora, {"steps": of})

    def _gate(self, step: int, cancelled: Callable[[], bool]) -> bool:
        """Waits where it is told to; whether it was cancelled meanwhile."""
        gate = os.environ.get("FAKE_TRAIN_GATE")
        if not gate or step != int(os.environ["FAKE_TRAIN_STEP"]):
            return False
        Path(f"{gate}.waits").touch()
        while not Path(gate).exists():
            if cancelled():
                return True
            time.sleep(0.02)
        return False


def misbehave(noun: str) -> None:
    """Does what the noun asks for."""
    if noun == "failure":
        raise TrainError("The fake trainer was asked to fail.", "Ask for less.")
    if noun == "bug":
        raise ZeroDivisionError("asked for")
    if noun == "crash":
        os._exit(9)

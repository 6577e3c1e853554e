# SPDX-License-Identifier: GPL-3.0-or-later
"""A person of the world as a LoRA: pictures laid out for `onmodel train`, and the training itself.

In a folder of the person's own:

data/    pictures and maps, by `python -m world.characters`
images/  training pictures with captions "trigger noun, words", a stand-in's maps, and masks in
         which a head weighs as much as all the rest of its person (`by_head`)
checks/  maps of other shots of a stand-in, for the drawings by which the trainer chooses the
         checkpoint; their captions are the words alone
cpu.json seconds of CPU that trainings took, of starts that were not killed

What is there already is kept, and a run goes on where it was stopped.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Array = np.ndarray

Words = Callable[[dict[str, str], int], str]
"""words(parts, number): a caption after the subject, of picture `number` from 1; parts as
`world.characters.parts_of` gives them."""


def call(module: str, *arguments: str) -> None:
    """A module's command line in a process of its own. Raises CalledProcessError."""
    # Blender writes a line for every render.
    quiet = subprocess.DEVNULL if module.startswith("world") else None
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, stdout=quiet)


def changing(parts: dict[str, str]) -> str:
    """What is no part of the person: expression, view, look, framing, set."""
    return ", ".join(parts[k] for k in ("expression", "view", "look", "framing", "set"))


def lay_out(out: Path, trigger: str, words: Words, check_words: Words | None = None) -> None:
    """images and checks of out/data. check_words: of the checks' captions, None: as the others."""
    for purpose, name in (("train", "images"), ("checks", "checks")):
        target = out / name
        target.mkdir(parents=True, exist_ok=True)
        told = words if purpose == "train" else check_words or words
        for path in sorted((out / "data" / purpose).iterdir()):
            if path.name.endswith(".mask.png"):
                about = json.loads(path.with_name(f"{path.name[:-9]}.json").read_text())
                head = head_of(about["head"], about["face"])
                weighed = by_head(np.asarray(Image.open(path)), head)
                Image.fromarray(weighed).save(target / path.name)
            elif path.suffix == ".png" or path.name.endswith(".head.json"):
                shutil.copyfile(path, target / path.name)
            elif path.suffix == ".json":
                parts = json.loads(path.read_text())["parts"]
                subject = f"{trigger} {parts['noun']}, " if purpose == "train" else ""
                caption = f"{subject}{told(parts, int(path.stem))}\n"
                (target / path.name).with_suffix(".txt").write_text(caption)


def head_of(
    head: Sequence[float] | None, face: Sequence[float] | None
) -> tuple[float, float, float, float] | None:
    """Box of a head and its hair down to a head's height under the chin: hair that hangs to the
    hips covers a whole person. head, face: boxes with and without what hangs, or None."""
    if head is None or face is None:
        return None
    left, top, right, bottom = head
    return left, top, right, min(bottom, face[3] + (face[3] - face[1]))


def by_head(mask: Array, head: Sequence[float] | None) -> Array:
    """A person's mask (H, W) uint8 as weights of the loss: the head counts as much as all the rest.

    head: its box with hair, or None. Clothes are most of a picture and a head is most of who
    somebody is: LoRAs trained with even masks had the sweater right and the hair of nobody.
    """
    if head is None:
        return mask
    left, top, right, bottom = (max(0, round(edge)) for edge in head)
    inside = np.zeros(mask.shape, bool)
    inside[top:bottom, left:right] = True
    near, far = float(mask[inside].sum()), float(mask[~inside].sum())
    share = min(1.0, max(_least_weight, near / far)) if near and far else 1.0
    return np.where(inside, mask, np.round(mask * share)).astype(np.uint8)


_least_weight = 0.1


def train(
    out: Path, run: Path, name: str, trigger: str, noun: str, settings: Sequence[str] = ()
) -> Path:
    """Train on what `lay_out` made, by the preset rehearsal, in the folder `run`; the LoRA's file.

    settings: KEY=VALUE of the training's plan. Raises CalledProcessError.
    """
    finished = run / f"{name}.safetensors"
    if finished.is_file():
        return finished
    if (run / "plan.toml").is_file():
        arguments = ["--resume", "--out", str(run)]
    else:
        arguments = ["--preset", "rehearsal", "--images", str(out / "images")]
        arguments += ["--trigger", trigger, "--noun", noun, "--name", name, "--out", str(run)]
        checks = {"maps": str(out / "checks"), "prompts": ["{trigger} {noun}, {caption}"]}
        own = [f"validation.{key}={json.dumps(value)}" for key, value in checks.items()]
        arguments += [part for setting in (*own, *settings) for part in ("--set", setting)]
    before = _children()
    try:
        call("onmodel.cli", "train", *arguments)
    finally:
        spent = cpu_seconds(out) + _children() - before
        (out / "cpu.json").write_text(json.dumps({"seconds": round(spent, 1)}))
    return finished


def cpu_seconds(out: Path) -> float:
    """Seconds of CPU that the person's trainings took in all."""
    path = out / "cpu.json"
    return float(json.loads(path.read_text())["seconds"]) if path.is_file() else 0.0


def choice_of(run: Path) -> dict[str, object] | None:
    """What the trainer says of its choice ("best", "sentence"), None where it drew nothing."""
    path = run / "choice.json"
    return dict(json.loads(path.read_text())) if path.is_file() else None


def _children() -> float:
    """Seconds of CPU of all finished children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

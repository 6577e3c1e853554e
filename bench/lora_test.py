# SPDX-License-Identifier: GPL-3.0-or-later
"""What a LoRA does for one held-out character: data, training and drawings for `bench.identity`.

    python -m bench.lora_test --identity 4100 --look realistic [--steps 400]
    python -m bench.lora_test --strangers 21

The first makes, under ~/.cache/onmodel/lora-test (--folder) in a folder of the character's own:

data/          pictures, references and test shots (`python -m world.characters`)
images/        training pictures with captions of trigger, noun and what changes: traits that
               belong to the person are left out, the trigger stands for them; beside them masks
               and the maps of a stand-in
checks/        maps of other shots of a stand-in, for the drawings by which the trainer chooses
               the checkpoint (against the training pictures; references stay unseen)
run/           the run of `onmodel train --preset rehearsal`
with/          each test shot on the maps of a stand-in, by "trigger noun, expression, view", the
               LoRA bound to the figure's region
without/       the same prompts and seeds, no LoRA
described/     no LoRA either, all traits in words: what a prompt alone can do
shots.json     framing, set, and the stand-in's head box and turn for each drawing
about.json     who it is, the training's seconds of CPU (of starts that were not killed), and which
               checkpoint was chosen

What is there already is kept: a run that was stopped goes on. The second renders, under strangers,
that many other held-out people in each look: references in the same set, pose and light as the
character's own, for identification, and `stranger_mix` pictures by which embedders are measured.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bench import painter
from world import lora_training

Array = np.ndarray
log = logging.getLogger(__name__)

default_folder = Path.home() / ".cache" / "onmodel" / "lora-test"
trigger = "zanna"
sides = ("with", "without", "described")
looks = ("realistic", "animated")
first_stranger = 4500
stranger_mix = {
    "close-up": 2,
    "portrait": 3,
    "medium shot": 2,
    "three-quarter shot": 2,
    "full body shot": 2,
}
"""Framings of the pictures of each stranger."""
map_kinds = ("pose", "depth", "normal")


def make_data(out: Path, identity: int, look: str, count: int) -> None:
    """The character's pictures under data, and images with the training's captions."""
    data = out / "data"
    if not ((data / "character.json").is_file() and (data / "checks").is_dir()):
        arguments = ["--identity", str(identity), "--look", look, "--count", str(count)]
        lora_training.call("world.characters", str(data), *arguments)
    lora_training.lay_out(out, trigger, lambda parts, _: lora_training.changing(parts))


def train(out: Path, name: str, noun: str, settings: Sequence[str]) -> None:
    """Train the LoRA into loras/NAME.safetensors."""
    finished = lora_training.train(out, out / "run", name, trigger, noun, settings)
    (out / "loras").mkdir(exist_ok=True)
    shutil.copyfile(finished, out / "loras" / finished.name)


def prompts(parts: dict[str, str]) -> dict[str, str]:
    """The figure's prompt for each of `sides`."""
    changing = [parts["expression"], parts["view"]]
    short = ", ".join([f"{trigger} {parts['noun']}", *changing])
    long = ", ".join([parts["noun"], parts["traits"], *changing])
    return {"with": short, "without": short, "described": long}


def read_maps(shot: Path) -> dict[str, Array]:
    """The maps of a test shot by kind."""
    return {kind: np.asarray(Image.open(shot / f"{kind}.png")) for kind in map_kinds}


def draw(out: Path, name: str, pictures: int | None, steps: int | None) -> None:
    """Draw the test shots in each way, and write shots.json. steps: None, the model's own."""
    artist = painter.Painter(out)
    shots = sorted((out / "data" / "test").iterdir())[:pictures]
    rows = []
    for shot in shots:
        told = json.loads((shot / "shot.json").read_text())
        parts = told["parts"]
        kept = {k: parts[k] for k in ("framing", "set")}
        rows.append({"shot": shot.name, "box": told["standin_face"], "yaw": told["yaw"], **kept})
    for side in sides:
        (out / side).mkdir(exist_ok=True)
        adapters = artist.use([name] if side == "with" else [])
        for shot in shots:
            file = out / side / f"{shot.name}.png"
            if file.is_file():
                continue
            parts = json.loads((shot / "shot.json").read_text())["parts"]
            mask = np.asarray(Image.open(shot / "mask.png")) >= 128
            whole = ", ".join(parts[k] for k in ("look", "framing", "set"))
            person = (prompts(parts)[side], mask, adapters)
            wanted = painter.picture(whole, [person], read_maps(shot), int(shot.name))
            Image.fromarray(artist.draw(wanted, steps)).save(file)
    (out / "shots.json").write_text(json.dumps(rows, indent=1))


def make_strangers(folder: Path, count: int) -> None:
    """References and test pictures of `count` strangers in each look, as `world.characters` makes
    them: folder/strangers/LOOK/IDENTITY."""
    from world import characters, people
    from world.studio import Studio

    studio = Studio()
    for look in looks:
        for identity in range(first_stranger, first_stranger + count):
            out = folder / "strangers" / look / str(identity)
            if not (out / "character.json").is_file():
                who = people.resident(identity)
                characters.make(out, studio, who, look, 0, stranger_mix)


def main(argv: list[str]) -> int:
    """The command line of the module's head."""
    parser = argparse.ArgumentParser(prog="python -m bench.lora_test", description=main.__doc__)
    parser.add_argument("--identity", type=int, help="a person that nothing was trained on")
    parser.add_argument("--look", choices=looks)
    parser.add_argument("--strangers", type=int, metavar="COUNT")
    parser.add_argument("--folder", type=Path, default=default_folder)
    parser.add_argument("--count", type=int, default=24, help="training pictures")
    parser.add_argument("--pictures", type=int, help="test shots to draw [all]")
    parser.add_argument("--draw-steps", type=int, help="steps of a drawing [the model's own]")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the training's plan"
    )
    options = parser.parse_args(argv)
    if options.strangers:
        make_strangers(options.folder, options.strangers)
        return 0
    if options.identity is None or options.look is None:
        parser.error("name a character by --identity and --look, or ask for --strangers")
    name = f"{options.look}-{options.identity}"
    out = options.folder / name
    try:
        make_data(out, options.identity, options.look, options.count)
        about = json.loads((out / "data" / "character.json").read_text())
        train(out, name, about["noun"], options.set)
    except subprocess.CalledProcessError as error:
        log.error("%s: %s ended with %d, see above.", name, error.cmd[2], error.returncode)
        return 1
    draw(out, name, options.pictures, options.draw_steps)
    seconds = lora_training.cpu_seconds(out)
    told = {"identity": options.identity, "look": options.look, "cpu_seconds": round(seconds, 1)}
    choice = lora_training.choice_of(out / "run")
    if choice is not None:
        told |= {"step": choice["best"], "choice": choice["sentence"]}
    (out / "about.json").write_text(json.dumps(told))
    log.info("%s: trained in %.1f min of CPU. %s", out, seconds / 60, told.get("choice", ""))
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # bpy as a module can crash while Python tears it down; all files are closed by now.
    os._exit(code)

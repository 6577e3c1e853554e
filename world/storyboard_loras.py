# SPDX-License-Identifier: GPL-3.0-or-later
"""The LoRAs of the sample storyboard's people, for the embedded model as it is now.

    python -m world.storyboard_loras [--only Mara]

writes NAME.safetensors of each into server/onmodel/rehearsal/sample_loras, where every server finds
them beside the embedded model's weights (`onmodel.models.registry`). Run it after each export of
those weights: what was made for others is not used again. Two runs, each with --only, may go at
once. `world.storyboard` then binds them.

A training caption has all words of the storyboard's prompt, or, in every second picture, only
those of the clothes: the trigger has to stand for face, hair and skin there, and clothes may
change. Pictures and runs are kept under ~/.cache/onmodel/storyboard-loras: a run that was stopped
goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

from onmodel.lora.save import save_public
from onmodel.models.registry import Registry, embedded_name

from world import lora_training, people, storyboard_cast

log = logging.getLogger(__name__)

work_folder = Path.home() / ".cache" / "onmodel" / "storyboard-loras"
look = "realistic"
picture_count, behind_count = 24, 4
"""Without pictures from behind a LoRA puts a beard on the back of a head."""


def words_of(who: people.Identity, parts: dict[str, str], number: int) -> str:
    """The caption of a training picture after its subject, see the module's head."""
    person = people.clothes(who) if number % 2 == 0 else people.description(who)
    return f"{person}, {lora_training.changing(parts)}"


def make_data(name: str, out: Path) -> None:
    """A character's pictures, captions and checks under `out`; pictures of it are kept."""
    who = storyboard_cast.identities()[name]
    about = out / "data" / "character.json"
    told = json.loads(about.read_text()) if about.is_file() else {}
    whole = told.get("train") == picture_count + behind_count
    if not whole or people.to_data(who) != _plain(told.get("identity")):
        log.info("%s: rendering %d pictures", name, picture_count + behind_count)
        shutil.rmtree(out / "data", ignore_errors=True)
        arguments = ["--storyboard", name, "--look", look, "--count", str(picture_count)]
        arguments += ["--behind", str(behind_count)]
        lora_training.call(
            "world.characters", str(out / "data"), *arguments, "--test", "portrait=0"
        )
    lora_training.lay_out(
        out,
        storyboard_cast.triggers[name],
        lambda parts, number: words_of(who, parts, number),
        lambda parts, _: words_of(who, parts, 1),
    )


def _plain(identity: object) -> object:
    return people.to_data(people.from_data(identity)) if isinstance(identity, dict) else None


def make(name: str) -> Path:
    """The LoRA of a character for the embedded model's present weights; the file that ships."""
    out = work_folder / name
    make_data(name, out)
    weights = Registry().find(embedded_name).hash[:12]
    run = out / f"run-{weights}"
    trigger = storyboard_cast.triggers[name]
    log.info("%s: training for weights %s", name, weights)
    noun = people.noun(storyboard_cast.identities()[name])
    trained = lora_training.train(out, run, name, trigger, noun)
    choice = lora_training.choice_of(run)
    target = storyboard_cast.lora_file(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_public(trained, target)
    log.info("%s: %s", name, choice["sentence"] if choice else "no drawings to choose by")
    spent = lora_training.cpu_seconds(out) / 60
    log.info("%s, %.1f MB (%.1f min of CPU so far)", target, target.stat().st_size / 1e6, spent)
    return target


def main(argv: list[str]) -> int:
    """Make the LoRAs of the sample storyboard's people."""
    cast = list(storyboard_cast.identities())
    parser = argparse.ArgumentParser(
        prog="python -m world.storyboard_loras", description=main.__doc__
    )
    parser.add_argument("--only", choices=cast, help="one of them")
    options = parser.parse_args(argv)
    for name in [options.only] if options.only else cast:
        try:
            make(name)
        except subprocess.CalledProcessError as error:
            log.error("%s: %s ended with %d, see above.", name, error.cmd[2], error.returncode)
            return 1
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # bpy as a module can crash while Python tears it down; all files are closed by now.
    os._exit(code)

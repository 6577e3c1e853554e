# SPDX-License-Identifier: GPL-3.0-or-later
"""Portraits of the sample storyboard's people: what drawn heads are compared with.

    python -m world.storyboard_portraits

writes three renders of each, in a set and light of their own, to samples/portraits; the storyboard
names them as its cast's references, relative to the file. Run it before `world.storyboard`.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

folder = Path(__file__).resolve().parents[1] / "samples" / "portraits"
turns = (0.0, -18.0, 18.0)
"""Degrees that the portraits are turned by, as those of `world.characters`."""
_attempts = 24


def files(name: str) -> list[Path]:
    """The portraits of a character of the storyboard; none before they are made."""
    return sorted(folder.glob(f"{name}_*.png"))


def main() -> None:
    from onmodel.identity import portrait

    from world import characters, poses, samples, storyboard_cast
    from world.cast import frame, head_boxes, placed
    from world.frame_plans import heads_fit
    from world.identities import Identity
    from world.studio import Studio

    studio = Studio()
    arms = {"LeftArm": poses.turn("y", 40), "RightArm": poses.turn("y", -40)}
    words = samples.Words(0, "portrait", characters.reference_set, "realistic")
    light, side = (characters.reference_light,), (256, 256)

    def shown(who: Identity, number: int) -> bytes:
        for attempt in range(_attempts):
            rng = np.random.default_rng([who.seed, 311, number, attempt])
            actor = placed(who, "neutral", words.look, arms, turns[number], np.zeros(3))
            lens = frame(rng, [actor], words.framing, side)
            box = head_boxes(actor, lens)[1]
            if box is None or not heads_fit([box], side):
                continue
            made = samples.shoot(rng, studio, [actor], lens, words, light)
            if made is not None:
                left, top, right, bottom = (float(edge) for edge in box)
                return portrait.write(made[0]["rgb"], (left, top, right, bottom))
        raise RuntimeError(f"No portrait of {who} shows its head in {_attempts} attempts.")

    folder.mkdir(parents=True, exist_ok=True)
    for name, who in storyboard_cast.identities().items():
        for number in range(len(turns)):
            (folder / f"{name}_{number + 1}.png").write_bytes(shown(who, number))
    log.info("%s", folder)
    sys.stdout.flush()
    # bpy as a module can crash while Python tears it down; all files are closed by now.
    os._exit(0)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()

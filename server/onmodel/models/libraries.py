# SPDX-License-Identifier: GPL-3.0-or-later
"""How torch and the Hugging Face libraries are to behave in our process."""

from __future__ import annotations

import os
import sys


def prepare() -> None:
    """Called before they are first imported; what the person set in the environment stands.

    No hub: models come from this machine only, and a forgotten request to a hub must fail at once
    instead of after a timeout. No progress bars: the log is not a terminal.

    Threads that sleep: torch's threads on the CPU spin while they wait for each other. Where
    Blender, or anything else, wants the same cores, that costs ten to forty times the time
    (measured on two loaded cores).
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def warm() -> None:
    """Import what the first picture needs, which takes seconds, before somebody waits for it."""
    prepare()
    import diffusers
    import transformers

    # Both libraries import a class's module when the class is first asked for.
    for name in ("AutoencoderKL", "ControlNetUnionModel", "UNet2DConditionModel"):
        getattr(diffusers, name)
    for name in ("CLIPTextModelWithProjection", "CLIPTokenizer"):
        getattr(transformers, name)


def quiet() -> None:
    """No progress bars from transformers and diffusers, which have switches of their own."""
    import diffusers
    import transformers

    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()

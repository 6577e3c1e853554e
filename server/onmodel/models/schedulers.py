# SPDX-License-Identifier: GPL-3.0-or-later
"""Scheduler presets: data on diffusers' stock schedulers.

A preset names a scheduler class, what it overrides in the model's own scheduler configuration, and
its usual steps and guidance. What the model was trained with (betas, prediction type, zero
terminal SNR, spacing) always comes from the model. This module imports torch only in `make`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onmodel.models.errors import ModelError


@dataclass(frozen=True)
class Preset:
    """How to denoise. scheduler: a diffusers class name, None for the model's own.

    steps, guidance: None takes the model's. zero_snr: whether the class is right for models
    trained with zero terminal SNR.
    """

    scheduler: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    guidance: float | None = None
    zero_snr: bool = True


_karras = {"use_karras_sigmas": True}
_pp = {"algorithm_type": "dpmsolver++", "solver_order": 2}

presets: dict[str, Preset] = {
    "default": Preset(),
    "euler": Preset("EulerDiscreteScheduler"),
    "euler-ancestral": Preset("EulerAncestralDiscreteScheduler"),
    "ddim": Preset("DDIMScheduler"),
    "unipc": Preset("UniPCMultistepScheduler", {}, steps=20, zero_snr=False),
    "dpmpp-2m": Preset("DPMSolverMultistepScheduler", _pp, steps=25),
    # Karras spacing starts at sigma_max, which is unbounded where the terminal SNR is zero.
    "dpmpp-2m-karras": Preset(
        "DPMSolverMultistepScheduler", {**_pp, **_karras}, steps=25, zero_snr=False
    ),
    "dpmpp-2m-sde-karras": Preset(
        "DPMSolverMultistepScheduler",
        {**_karras, "algorithm_type": "sde-dpmsolver++", "solver_order": 2},
        steps=30,
        zero_snr=False,
    ),
    # For turbo checkpoints (DreamShaper XL Turbo and its like): few steps, little guidance.
    "dpmpp-sde": Preset(
        "DPMSolverSinglestepScheduler",
        {
            **_karras,
            "algorithm_type": "sde-dpmsolver++",
            "solver_order": 2,
            "lower_order_final": True,
            "final_sigmas_type": "zero",
        },
        steps=8,
        guidance=2.0,
        zero_snr=False,
    ),
    "lcm": Preset("LCMScheduler", {}, steps=6, guidance=1.0),
}


def fitting(config: Mapping[str, Any]) -> list[str]:
    """The presets that are right for a model with this scheduler configuration."""
    if "FlowMatch" in str(config.get("_class_name", "")):
        return ["default"]
    zero_snr = bool(config.get("rescale_betas_zero_snr"))
    return [name for name, p in presets.items() if p.zero_snr or not zero_snr]


def get(name: str, config: Mapping[str, Any]) -> Preset:
    """The preset of that name, if it fits the model. Raises ModelError."""
    names = fitting(config)
    if name in names:
        return presets[name]
    if name in presets:
        raise ModelError(
            f"The scheduler preset “{name}” does not fit how this model was trained.",
            f"Choose one of: {', '.join(names)}.",
        )
    raise ModelError(
        f"There is no scheduler preset “{name}”.", f"Choose one of: {', '.join(names)}."
    )


def make(name: str, config: Mapping[str, Any]) -> Any:
    """A fresh scheduler of the preset for a model whose scheduler configuration is given.

    Schedulers keep state while they sample: every picture must have its own.
    """
    import diffusers

    preset = get(name, config)
    cls = getattr(diffusers, preset.scheduler or str(config["_class_name"]), None)
    if cls is None:
        raise ModelError(
            f"The model asks for the scheduler “{config['_class_name']}”, which diffusers "
            f"{diffusers.__version__} does not have.",
            "Choose a scheduler preset by name instead of “default”.",
        )
    known = inspect.signature(cls.__init__).parameters
    plain = {k: v for k, v in config.items() if k in known and not k.startswith("_")}
    return cls(**{**plain, **preset.overrides})

# SPDX-License-Identifier: GPL-3.0-or-later
"""ControlNets for Flux, which follow the pose and depth maps.

Union nets (InstantX, Shakker Labs) know the kind of a map by a number; others know one kind, or
guess it, and `onmodel.json` in their folder says which (`map_kinds`). A map goes through the VAE
once a picture, as in diffusers' pipeline, but without the VAE's noise, so that it is the same each
time. The net hears the shot's prompt alone: its blocks take no mask, and a character's words would
reach the whole picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from onmodel.models import safe
from onmodel.models.errors import ModelError
from onmodel.models.sdxl_parts import variant_of

union_modes = {"depth": 2, "pose": 4}
"""Numbers of the union nets' control types (InstantX' and Shakker Labs' model cards)."""


@dataclass(frozen=True)
class Control:
    """One map of each picture. tokens: (B, N, 4C), its latents, packed."""

    kind: str
    tokens: torch.Tensor
    weight: float
    start: float
    end: float

    def of(self, rows: torch.Tensor) -> Control:
        """The same map of these pictures alone. rows: (n,) integers."""
        return replace(self, tokens=self.tokens[rows])


def load_net(path: Path, dtype: Any) -> Any:
    """A FluxControlNetModel from its folder. Raises ModelError for one that takes pixels."""
    from diffusers import FluxControlNetModel

    for file in path.glob("*.safetensors"):
        safe.read_header(file)
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    if variant := variant_of(path):
        options["variant"] = variant
    net = FluxControlNetModel.from_pretrained(str(path), dtype=dtype, **options)
    if net.input_hint_block is not None:
        raise ModelError(
            f"The ControlNet “{path.name}” takes its maps as pixels, which Onmodel does not do.",
            "Use one that takes latents: InstantX' or Shakker Labs'.",
        )
    return net


def residuals(
    net: Any, controls: Sequence[Control], x: torch.Tensor, rows: list[int], inputs: dict[str, Any]
) -> dict[str, list[torch.Tensor]]:
    """What the maps add in the transformer's blocks; nothing where there is none.

    controls: those that act at this step. x: (n, N, 4C) of the rows, rows: the picture of each.
    inputs: what the net is told as the transformer is: time step, guidance, text, places.
    """
    sums: dict[str, list[torch.Tensor]] = {}
    told = dict(inputs)
    if not net.config.guidance_embeds:
        told["guidance"] = None
    elif told["guidance"] is None:
        raise ModelError(
            "The ControlNet wants to be told the guidance, which the model is not: it was made for "
            "FLUX.1 dev.",
            "Turn the maps off, or choose a model of FLUX.1 dev.",
        )
    for control in controls:
        mode = None
        if net.union:
            mode = torch.full((len(x), 1), union_modes[control.kind], device=x.device)
        found = net(
            hidden_states=x,
            controlnet_cond=control.tokens[rows],
            controlnet_mode=mode,
            conditioning_scale=control.weight,
            return_dict=False,
            **told,
        )
        names = ("controlnet_block_samples", "controlnet_single_block_samples")
        for name, values in zip(names, found, strict=True):
            if values is not None:
                before = sums.get(name)
                sums[name] = (
                    list(values)
                    if before is None
                    else [a + b for a, b in zip(before, values, strict=True)]
                )
    return sums

# SPDX-License-Identifier: GPL-3.0-or-later
"""accelerate's Accelerator, made for one run: precision, gradient scale, accumulation, clipping.

What it cannot do here, and why, is in docs/train.md (Accelerate).
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from onmodel.models.memory import Place
from onmodel.train.plan import Dtype, PlanError

precisions: dict[Dtype, str] = {"bf16": "bf16", "fp16": "fp16", "fp32": "no"}
"""A plan's formats in accelerate's words."""


def make(place: Place, dtype: Dtype) -> Accelerator:
    """The accelerator of a run on a device. Only the newest one of a process may be used: its
    precision is the process's.

    Raises PlanError where several processes were launched.
    """
    # accelerate keeps device and precision of the first Accelerator for the whole process; a
    # server trains one plan after another. transformers' Trainer clears it in the same way.
    AcceleratorState._reset_state(reset_partial_state=not PartialState().use_distributed)
    found = Accelerator(
        mixed_precision=precisions[dtype], cpu=torch.device(place.device).type == "cpu"
    )
    if found.num_processes > 1:
        raise PlanError(
            f"The training was launched in {found.num_processes} processes, but one trains.",
            "Start it without accelerate launch.",
        )
    return found

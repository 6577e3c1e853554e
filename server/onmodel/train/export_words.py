# SPDX-License-Identifier: GPL-3.0-or-later
"""What the exports to other trainers share."""

from __future__ import annotations

import json
from typing import Any

from onmodel.train import targets
from onmodel.train.buckets import Order
from onmodel.train.estimates import model_path
from onmodel.train.export_plan import Reader
from onmodel.train.plan_file import toml_value

half = {"bf16": "bf16", "fp16": "fp16", "fp32": "no"}
"""Mixed precision in accelerate's words."""


def model(plan: Reader) -> str:
    """The base model's path; a name of our registry stays, with a sentence that says so."""
    path = model_path(plan.plan.base)
    if path is None:
        name = plan("base.model")
        plan.lack("", f"“{name}” is no file or folder here: put the base model's path there.")
    plan.read.add("base.model")
    return str(path.absolute()) if path else str(plan("base.model"))


def steps(plan: Reader, order: Order) -> int:
    """The run's steps: epochs are counted in our batches."""
    plan.read |= {"schedule.steps", "schedule.epochs"}
    return order.steps


def contains(plan: Reader) -> list[str]:
    """Pieces of the names of the layers that are adapted."""
    kind = "transformer" if plan("base.family") == "flux" else "unet"
    plan.read |= {"adapter.targets", "adapter.convolutions"}
    return list(dict.fromkeys(targets.endings(kind, plan.plan.adapter)))


def one_rank(plan: Reader) -> None:
    """Say that the text encoders cannot have a rank of their own."""
    if plan("adapter.text_encoder_rank") != plan("adapter.rank"):
        plan.lack(
            "",
            f"{plan.tool} has one rank for all: the text encoders get {plan('adapter.rank')}, not "
            f"{plan('adapter.text_encoder_rank')}.",
        )


def data_keys(plan: Reader) -> None:
    """What is in the folders that `write_data` wrote, or cannot be anywhere."""
    plan.read |= {
        *("data.images", "data.regularisation", "data.trigger", "data.noun"),
        *("data.repeats", "data.masks", "loss.masked", "loss.background"),
    }
    if plan("data.conditioning"):
        plan.lack("", f"{plan.tool} does not train a LoRA through a ControlNet: maps are left out.")
    if plan.plan.data.regularisation is None:
        plan.read.add("loss.prior_weight")
    if not plan.plan.adapter.text_encoders:
        plan.read |= {"optimizer.text_encoder_rate", "adapter.text_encoder_rank"}
    if not plan.plan.data.shuffle_caption:
        plan.read.add("data.keep_tokens")


def no_validation(plan: Reader) -> None:
    """The keys of drawings that are not asked for."""
    plan.read |= {f"validation.{key}" for key in ("prompts", "count", "steps", "guidance", "seed")}


def toml(table: dict[str, Any]) -> str:
    """Lines of a TOML table."""
    return "".join(f"{key} = {toml_value(value)}\n" for key, value in table.items())


def json_text(data: Any) -> str:
    """A JSON file."""
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

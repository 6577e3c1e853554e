# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan for ai-toolkit.

Keys as of November 2026: toolkit/config_modules.py, toolkit/scheduler.py, toolkit/optimizer.py,
config/examples/train_lora_flux_24gb.yaml.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from onmodel.train.buckets import Order
from onmodel.train.export_plan import Built, Reader, Subset
from onmodel.train.export_words import contains, data_keys, model, no_validation, one_rank, steps


def ai_toolkit(plan: Reader, subsets: Sequence[Subset], order: Order, folder: Path) -> Built:
    """ai-toolkit: config.yaml."""
    flux = plan("base.family") == "flux"
    network: dict[str, Any] = {
        "type": "lora",
        "linear": plan("adapter.rank"),
        "linear_alpha": plan("adapter.alpha"),
        "network_kwargs": {"only_if_contains": contains(plan)},
    }
    if plan("adapter.convolutions"):
        network |= {"conv": plan("adapter.rank"), "conv_alpha": plan("adapter.alpha")}
    if plan("adapter.dropout"):
        network["dropout"] = plan("adapter.dropout")
    optimizer: dict[str, Any] = {"weight_decay": plan("optimizer.weight_decay")}
    if plan("optimizer.name") != "adafactor":
        optimizer["betas"] = list(plan("optimizer.betas"))
    train: dict[str, Any] = {
        "batch_size": plan("schedule.batch"),
        "steps": steps(plan, order),
        "gradient_accumulation": plan("schedule.accumulate"),
        "train_unet": plan("adapter.unet"),
        "train_text_encoder": plan("adapter.text_encoders"),
        "gradient_checkpointing": plan("run.gradient_checkpointing"),
        "noise_scheduler": "flowmatch" if flux else "ddpm",
        "optimizer": plan("optimizer.name"),
        "optimizer_params": optimizer,
        "lr": plan("optimizer.rate"),
        "unet_lr": plan("optimizer.rate"),
        "max_grad_norm": plan("optimizer.max_grad_norm"),
        "noise_offset": plan("loss.noise_offset"),
        "reg_weight": plan("loss.prior_weight"),
        "dtype": plan("base.dtype"),
        "cache_text_embeddings": plan("run.cache_text"),
        "disable_sampling": not plan("validation.every"),
    }
    if plan("adapter.text_encoders"):
        train["text_encoder_lr"] = plan("optimizer.text_encoder_rate")
        one_rank(plan)
    if plan("loss.min_snr_gamma") is not None:
        train["min_snr_gamma"] = plan("loss.min_snr_gamma")
    if plan("schedule.ema") is not None:
        train["ema_config"] = {"use_ema": True, "ema_decay": plan("schedule.ema")}
    _ai_toolkit_rate(plan, train)
    process = {
        "type": "sd_trainer",
        "training_folder": str(folder / "out"),
        "device": "cuda:0",
        "network": network,
        "save": {
            "dtype": "float16",
            "save_every": plan("run.save_every"),
            "max_step_saves_to_keep": plan("run.keep") or 10_000,
        },
        "datasets": [_ai_toolkit_dataset(plan, subset) for subset in subsets],
        "train": train,
        "model": {"name_or_path": model(plan), "is_flux" if flux else "is_xl": True},
    }
    if plan("validation.every"):
        plan.read.add("validation.prompts")
        process["sample"] = {
            "sampler": "flowmatch" if flux else "ddpm",
            "sample_every": plan("validation.every"),
            "width": plan("data.resolution"),
            "height": plan("data.resolution"),
            "prompts": [
                p for p in plan.plan.validation_prompts() for _ in range(plan("validation.count"))
            ],
            "neg": "",
            "seed": plan("validation.seed"),
            "walk_seed": True,
            "guidance_scale": plan("validation.guidance"),
            "sample_steps": plan("validation.steps"),
        }
    else:
        no_validation(plan)
    if flux and "schnell" in str(plan("base.model")).lower():
        plan.lack(
            "",
            "ai-toolkit trains Flux Schnell through an adapter that undoes its distillation: set "
            "model.assistant_lora_path.",
        )
    if plan("run.seed"):
        plan.lack("run.seed", "ai-toolkit has no seed for training.")
    plan.lack(
        "data.bucket_step data.min_bucket data.max_bucket data.upscale",
        "ai-toolkit makes its own buckets (steps of 64, never enlarging).",
    )
    if plan("data.keep_tokens") and plan("data.shuffle_caption"):
        plan.lack("data.keep_tokens", "ai-toolkit shuffles whole captions.")
    data_keys(plan)
    job = {"job": "extension", "config": {"name": plan("name"), "process": [process]}}
    # As JSON first: YAML would otherwise write anchors for shared lists.
    text = yaml.safe_dump(json.loads(json.dumps(job)), sort_keys=False, allow_unicode=True)
    return Built({"config.yaml": text}, f"python run.py {folder / 'config.yaml'}")


def _ai_toolkit_rate(plan: Reader, train: dict[str, Any]) -> None:
    """Its schedulers get `total_iters` whatever they are, which diffusers' own do not take: only
    those of toolkit/scheduler.py work."""
    scheduler, warm_up = plan("schedule.scheduler"), plan("schedule.warm_up")
    straight = scheduler == "polynomial" and plan("schedule.power") == 1.0
    plan.read.add("schedule.power")
    if scheduler == "constant" and warm_up:
        train["lr_scheduler"] = "constant_with_warmup"
        train["lr_scheduler_params"] = {"num_warmup_steps": warm_up}
        return
    if scheduler == "linear" or straight:
        train["lr_scheduler"] = "linear"
        train["lr_scheduler_params"] = {"start_factor": 1.0, "end_factor": 0.0}
    else:
        train["lr_scheduler"] = "cosine" if scheduler == "cosine" else "constant"
    if scheduler == "polynomial" and not straight:
        plan.lack("schedule.power", "ai-toolkit has no polynomial schedule: the rate is constant.")
    if warm_up:
        plan.lack("", f"ai-toolkit warms up a constant rate only: warm_up = {warm_up} is left out.")


def _ai_toolkit_dataset(plan: Reader, subset: Subset) -> dict[str, Any]:
    row = {
        "folder_path": str(subset.folder),
        "caption_ext": "txt",
        "caption_dropout_rate": plan("data.caption_dropout"),
        "shuffle_tokens": plan("data.shuffle_caption"),
        "flip_x": plan("data.flip"),
        "num_repeats": subset.repeats,
        "cache_latents_to_disk": plan("run.cache_latents"),
        "resolution": [plan("data.resolution")],
        "is_reg": subset.regularisation,
    }
    if subset.masks:
        # Its masks are divided by their mean, which is the loss over the mask.
        row |= {"mask_path": str(subset.masks), "mask_min_value": plan("loss.background")}
    return row

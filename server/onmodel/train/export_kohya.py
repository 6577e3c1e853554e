# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan for kohya's sd-scripts.

Keys as of November 2026: docs/config_README-en.md, train_network.md, train_network_advanced.md,
sdxl_train_network.md, flux_train_network.md; library/config_util.py for what a subset may hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onmodel.train.buckets import Order
from onmodel.train.export_plan import Built, Reader, Subset
from onmodel.train.export_words import data_keys, half, model, no_validation, one_rank, steps, toml


def kohya(plan: Reader, subsets: Sequence[Subset], order: Order, folder: Path) -> Built:
    """sd-scripts: config.toml (arguments), dataset.toml, prompts.txt."""
    flux = plan("base.family") == "flux"
    text = plan("adapter.text_encoders")
    args: dict[str, Any] = {
        "pretrained_model_name_or_path": model(plan),
        "dataset_config": str(folder / "dataset.toml"),
        "output_dir": str(folder / "out"),
        "output_name": plan("name"),
        "save_model_as": "safetensors",
        "save_precision": "fp16",
        "network_module": "networks.lora_flux" if flux else "networks.lora",
        "network_dim": plan("adapter.rank"),
        "network_alpha": plan("adapter.alpha"),
        "network_dropout": plan("adapter.dropout"),
        "network_train_unet_only": not text,
        "network_train_text_encoder_only": not plan("adapter.unet"),
        "learning_rate": plan("optimizer.rate"),
        "unet_lr": plan("optimizer.rate"),
        "max_train_steps": steps(plan, order),
        "gradient_accumulation_steps": plan("schedule.accumulate"),
        "max_grad_norm": plan("optimizer.max_grad_norm"),
        "mixed_precision": half[plan("base.dtype")],
        "no_half_vae": plan("base.dtype") == "fp16" and not flux,
        "sdpa": True,
        "gradient_checkpointing": plan("run.gradient_checkpointing"),
        "cache_latents": plan("run.cache_latents"),
        "prior_loss_weight": plan("loss.prior_weight"),
        "noise_offset": plan("loss.noise_offset"),
        "seed": plan("run.seed") % 2**32,
        "save_every_n_steps": plan("run.save_every"),
        "save_state": True,
    }
    if text:
        # Its documents write text_encoder_lr1 and lr2; its parser knows one list.
        args["text_encoder_lr"] = [plan("optimizer.text_encoder_rate")] * (1 if flux else 2)
        one_rank(plan)
    _kohya_optimizer(plan, args)
    _kohya_layers(plan, args)
    if plan("loss.min_snr_gamma") is not None:
        args["min_snr_gamma"] = plan("loss.min_snr_gamma")
    if plan("run.keep"):
        args["save_last_n_steps"] = plan("run.keep") * plan("run.save_every")
    # Its cache holds one text per picture, so it asserts that captions do not change.
    args["cache_text_encoder_outputs"] = plan("run.cache_text") and not plan("data.caption_dropout")
    if plan("run.cache_text") and plan("data.caption_dropout"):
        plan.lack("run.cache_text", "kohya cannot cache text with caption dropout: it is off.")
    if flux:
        args |= {
            "clip_l": "PATH/clip_l.safetensors",
            "t5xxl": "PATH/t5xxl_fp16.safetensors",
            "ae": "PATH/ae.safetensors",
            "timestep_sampling": "flux_shift",
            "model_prediction_type": "raw",
            "guidance_scale": 1.0,
        }
        plan.lack(
            "",
            "kohya reads Flux from single files: set clip_l, t5xxl and ae in config.toml, and "
            "pretrained_model_name_or_path to the original .safetensors.",
        )
    if plan("loss.masked"):
        plan.lack(
            "",
            "kohya averages the masked loss over the whole picture instead of over the mask, so "
            "small masks learn slower (the masks are in the alpha channels).",
        )
    prompts = _kohya_prompts(plan, args, folder)
    script = "flux_train_network.py" if flux else "sdxl_train_network.py"
    return Built(
        {
            "config.toml": toml(args),
            "dataset.toml": _kohya_dataset(plan, subsets),
            "prompts.txt": prompts,
        },
        f"accelerate launch {script} --config_file {folder / 'config.toml'}",
    )


def _kohya_optimizer(plan: Reader, args: dict[str, Any]) -> None:
    name = plan("optimizer.name")
    beta1, beta2 = plan("optimizer.betas")
    extra = [f"weight_decay={plan('optimizer.weight_decay')}"]
    if name == "adafactor":
        extra += ["relative_step=False", "scale_parameter=False", "warmup_init=False"]
        if (beta1, beta2) != (0.9, 0.999):
            plan.lack("", "Adafactor has no betas.")
    else:
        extra.append(f"betas={beta1},{beta2}")
    if name == "prodigy":
        extra += ["decouple=True", "use_bias_correction=True", "safeguard_warmup=True"]
    args["optimizer_type"] = {
        "adamw": "AdamW",
        "adamw8bit": "AdamW8bit",
        "prodigy": "Prodigy",
        "adafactor": "Adafactor",
    }[name]
    args["optimizer_args"] = extra
    scheduler, warm_up = plan("schedule.scheduler"), plan("schedule.warm_up")
    if scheduler == "constant" and warm_up:
        scheduler = "constant_with_warmup"
    args["lr_scheduler"], args["lr_warmup_steps"] = scheduler, warm_up
    if scheduler == "polynomial":
        args["lr_scheduler_power"] = plan("schedule.power")
    plan.read.add("schedule.power")


def _kohya_layers(plan: Reader, args: dict[str, Any]) -> None:
    if plan("adapter.convolutions"):
        args["network_args"] = [
            f"conv_dim={plan('adapter.rank')}",
            f"conv_alpha={plan('adapter.alpha')}",
        ]
    plan.lack(
        "adapter.targets",
        "kohya adapts every linear layer of the transformer blocks, their entry and exit included.",
    )


def _kohya_dataset(plan: Reader, subsets: Sequence[Subset]) -> str:
    general = {
        "caption_extension": ".txt",
        "shuffle_caption": plan("data.shuffle_caption"),
        "keep_tokens": plan("data.keep_tokens"),
        "flip_aug": plan("data.flip"),
        "caption_dropout_rate": plan("data.caption_dropout"),
    }
    dataset = {
        "resolution": plan("data.resolution"),
        "batch_size": plan("schedule.batch"),
        "enable_bucket": True,
        "bucket_reso_steps": plan("data.bucket_step"),
        "min_bucket_reso": plan("data.min_bucket"),
        "max_bucket_reso": plan("data.max_bucket"),
        "bucket_no_upscale": not plan("data.upscale"),
    }
    parts = ["[general]", toml(general), "[[datasets]]", toml(dataset)]
    for subset in subsets:
        row: dict[str, Any] = {
            "image_dir": str(subset.folder),
            "num_repeats": subset.repeats,
            "class_tokens": plan("data.noun"),
        }
        if subset.regularisation:
            row["is_reg"] = True
        else:
            row["class_tokens"] = f"{plan('data.trigger')} {plan('data.noun')}"
            row["alpha_mask"] = bool(plan("loss.masked") and plan("data.masks"))
        parts += ["[[datasets.subsets]]", toml(row)]
    data_keys(plan)
    return "\n".join(parts)


def _kohya_prompts(plan: Reader, args: dict[str, Any], folder: Path) -> str:
    if not plan("validation.every"):
        no_validation(plan)
        return ""
    args["sample_every_n_steps"] = plan("validation.every")
    args["sample_at_first"] = True
    args["sample_prompts"] = str(folder / "prompts.txt")
    guidance = "--g" if plan("base.family") == "flux" else "--l"
    side = plan("data.resolution")
    plan.read.add("validation.prompts")
    return "".join(
        f"{prompt} --w {side} --h {side} --d {plan('validation.seed') + number} "
        f"{guidance} {plan('validation.guidance')} --s {plan('validation.steps')}\n"
        for prompt in plan.plan.validation_prompts()
        for number in range(plan("validation.count"))
    )

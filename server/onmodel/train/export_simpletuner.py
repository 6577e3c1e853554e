# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan for SimpleTuner.

Keys as of November 2026: documentation/OPTIONS.md, DATALOADER.md and DREAMBOOTH.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onmodel.train.buckets import Order
from onmodel.train.export_plan import Built, Reader, Subset, reg_repeats
from onmodel.train.export_words import (
    data_keys,
    half,
    json_text,
    model,
    no_validation,
    one_rank,
    steps,
)


def simpletuner(plan: Reader, subsets: Sequence[Subset], order: Order, folder: Path) -> Built:
    """SimpleTuner: config.json, multidatabackend.json, prompts.json."""
    flux = plan("base.family") == "flux"
    args: dict[str, Any] = {
        "model_family": plan("base.family"),
        "model_type": "lora",
        "lora_type": "standard",
        "pretrained_model_name_or_path": model(plan),
        "output_dir": str(folder / "out" / plan("name")),
        "data_backend_config": str(folder / "multidatabackend.json"),
        "lora_rank": plan("adapter.rank"),
        "lora_alpha": plan("adapter.alpha"),
        "lora_dropout": plan("adapter.dropout"),
        "mixed_precision": half[plan("base.dtype")],
        "resolution": plan("data.resolution"),
        "resolution_type": "pixel_area",
        "aspect_bucket_alignment": plan("data.bucket_step"),
        "disable_bucket_pruning": True,
        "train_batch_size": plan("schedule.batch"),
        "gradient_accumulation_steps": plan("schedule.accumulate"),
        "gradient_checkpointing": plan("run.gradient_checkpointing"),
        "learning_rate": plan("optimizer.rate"),
        "max_grad_norm": plan("optimizer.max_grad_norm"),
        "optimizer_beta1": plan("optimizer.betas")[0],
        "optimizer_beta2": plan("optimizer.betas")[1],
        "optimizer_config": f"weight_decay={plan('optimizer.weight_decay')}",
        "num_train_epochs": 0,
        "max_train_steps": steps(plan, order),
        "lr_warmup_steps": plan("schedule.warm_up"),
        "lr_power": plan("schedule.power"),
        "lr_end": 0.0,
        "caption_dropout_probability": plan("data.caption_dropout"),
        "snr_gamma": plan("loss.min_snr_gamma") or 0,
        "vae_cache_disable": not plan("run.cache_latents"),
        "seed": plan("run.seed") % 2**32,
        "checkpoint_step_interval": plan("run.save_every"),
        "report_to": "none",
    }
    scheduler = plan("schedule.scheduler")
    warm = scheduler == "constant" and plan("schedule.warm_up")
    args["lr_scheduler"] = "constant_with_warmup" if warm else scheduler
    _simpletuner_optimizer(plan, args)
    if plan("adapter.text_encoders"):
        args |= {"train_text_encoder": True, "text_encoder_lr": plan("optimizer.text_encoder_rate")}
        one_rank(plan)
    if plan("schedule.ema") is not None:
        args |= {"use_ema": True, "ema_decay": plan("schedule.ema")}
    if plan("loss.noise_offset"):
        args |= {
            "offset_noise": True,
            "noise_offset": plan("loss.noise_offset"),
            "noise_offset_probability": 1.0,
        }
    if plan("run.keep"):
        args["checkpoints_total_limit"] = plan("run.keep")
    if plan("run.threads"):
        args["torch_num_threads"] = plan("run.threads")
    attention = plan("adapter.targets") == "attention"
    if flux:
        args["flux_lora_target"] = "all" if attention else "all+ffs"
    if isinstance(plan("adapter.targets"), tuple) or not (flux or attention):
        plan.lack(
            "adapter.targets", "SimpleTuner's LoRA of SDXL adapts attention layers, and no others."
        )
    if plan("loss.masked") and any(s.masks for s in subsets):
        args["masked_loss_probability"] = 1.0
        plan.lack(
            "",
            "SimpleTuner averages the masked loss over the whole picture instead of over the mask, "
            "so small masks learn slower.",
        )
    files = {"prompts.json": _simpletuner_validation(plan, args, folder)}
    files["multidatabackend.json"] = json_text(_simpletuner_data(plan, subsets, folder))
    files["config.json"] = json_text({f"--{key}": value for key, value in args.items()})
    return Built(files, f"simpletuner train --config {folder / 'config.json'}")


def _simpletuner_optimizer(plan: Reader, args: dict[str, Any]) -> None:
    name = plan("optimizer.name")
    args["optimizer"] = {
        "adamw": "optimi-adamw",
        "adamw8bit": "bnb-adamw8bit",
        "prodigy": "prodigy",
        "adafactor": "optimi-adamw",
    }[name]
    if name == "adafactor":
        plan.lack("", "SimpleTuner has no Adafactor: AdamW is written instead.")


def _simpletuner_data(plan: Reader, subsets: Sequence[Subset], folder: Path) -> list[Any]:
    shown = reg_repeats(subsets)
    rows: list[dict[str, Any]] = []
    common = {
        "type": "local",
        "crop": True,
        "crop_style": "center",
        "crop_aspect": "preserve",
        "resolution": plan("data.resolution"),
        "resolution_type": "pixel_area",
        "minimum_image_size": plan("data.min_bucket") if not plan("data.upscale") else 0,
        "maximum_image_size": plan("data.max_bucket"),
        "target_downsample_size": plan("data.resolution"),
    }
    for subset in subsets:
        # Its repeats count from 0, which is one showing.
        repeats = max(1, round(shown.get(subset.name, subset.repeats)))
        row = {
            "id": subset.name,
            "dataset_type": "image",
            "instance_data_dir": str(subset.folder),
            "caption_strategy": "textfile",
            "cache_dir_vae": str(folder / "cache" / "vae" / subset.name),
            "repeats": repeats - 1,
            **common,
        }
        if plan("data.shuffle_caption"):
            row["caption_shuffle"] = {
                "enable": True,
                "count": 8,
                "split_on": "comma",
                "position_start": plan("data.keep_tokens"),
                "include_original": True,
            }
        if subset.masks:
            row["conditioning_data"] = f"{subset.name}-masks"
            rows.append(
                {
                    "id": f"{subset.name}-masks",
                    "dataset_type": "conditioning",
                    "conditioning_type": "mask",
                    "instance_data_dir": str(subset.masks),
                    "source_dataset_id": subset.name,
                    **common,
                }
            )
        rows.append(row)
    if shown:
        plan.lack(
            "loss.prior_weight data.regularisation",
            "SimpleTuner weighs regularisation pictures only for LyCORIS: here they are trained "
            f"like the others, at weight 1 instead of {plan('loss.prior_weight'):g}.",
        )
    texts = {"id": "text", "type": "local", "dataset_type": "text_embeds", "default": True}
    texts["cache_dir"] = str(folder / "cache" / "text")
    texts["text_cache_disable"] = not plan("run.cache_text")
    data_keys(plan)
    return [*rows, texts]


def _simpletuner_validation(plan: Reader, args: dict[str, Any], folder: Path) -> str:
    if not plan("validation.every"):
        no_validation(plan)
        args["validation_disable"] = True
        return "{}\n"
    plan.read.add("validation.prompts")
    prompts = plan.plan.validation_prompts()
    args |= {
        "validation_step_interval": plan("validation.every"),
        "validation_prompt": prompts[0],
        "user_prompt_library": str(folder / "prompts.json"),
        "num_validation_images": plan("validation.count"),
        "validation_guidance": plan("validation.guidance"),
        "validation_num_inference_steps": plan("validation.steps"),
        "validation_seed": plan("validation.seed"),
        "validation_resolution": f"{plan('data.resolution')}x{plan('data.resolution')}",
    }
    return json_text({f"prompt-{number}": prompt for number, prompt in enumerate(prompts[1:], 1)})

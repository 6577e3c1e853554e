# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan for OneTrainer.

Keys as of November 2026: modules/util/config/TrainConfig.py, ConceptConfig.py, SampleConfig.py.
Written as its config version 10, which later versions migrate by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onmodel.train.buckets import Order
from onmodel.train.export_plan import Built, Reader, Subset, reg_repeats
from onmodel.train.export_words import (
    contains,
    data_keys,
    json_text,
    model,
    no_validation,
    one_rank,
    steps,
)


def onetrainer(plan: Reader, subsets: Sequence[Subset], order: Order, folder: Path) -> Built:
    """OneTrainer: config.json, concepts.json, samples.json."""
    flux = plan("base.family") == "flux"
    dtype = {"bf16": "BFLOAT_16", "fp16": "FLOAT_16", "fp32": "FLOAT_32"}[plan("base.dtype")]
    text = plan("adapter.text_encoders")
    epochs = math.ceil(order.epochs)
    encoder = {
        "train": text,
        "learning_rate": plan("optimizer.text_encoder_rate"),
        "weight_dtype": dtype,
        "dropout_probability": plan("data.caption_dropout"),
        "stop_training_after_unit": "NEVER",
    }
    denoiser = {
        "train": plan("adapter.unet"),
        "learning_rate": plan("optimizer.rate"),
        "weight_dtype": dtype,
        "stop_training_after_unit": "NEVER",
    }
    # Its step and epoch are the same as ours: an epoch shows each concept `balancing` times.
    args: dict[str, Any] = {
        "__version": 10,
        "training_method": "LORA",
        "peft_type": "LORA",
        "model_type": "FLUX_DEV_1" if flux else "STABLE_DIFFUSION_XL_10_BASE",
        "base_model_name": model(plan),
        "workspace_dir": str(folder / "out"),
        "cache_dir": str(folder / "cache"),
        "output_model_destination": str(folder / "out" / f"{plan('name')}.safetensors"),
        "output_model_format": "SAFETENSORS",
        "output_dtype": "FLOAT_16",
        "concept_file_name": str(folder / "concepts.json"),
        "sample_definition_file_name": str(folder / "samples.json"),
        "aspect_ratio_bucketing": True,
        "latent_caching": plan("run.cache_latents"),
        "resolution": str(plan("data.resolution")),
        "epochs": epochs,
        "batch_size": plan("schedule.batch"),
        "gradient_accumulation_steps": plan("schedule.accumulate"),
        "learning_rate": plan("optimizer.rate"),
        "learning_rate_warmup_steps": plan("schedule.warm_up"),
        "learning_rate_min_factor": 0.0,
        "clip_grad_norm": plan("optimizer.max_grad_norm"),
        "train_dtype": dtype,
        "gradient_checkpointing": "ON" if plan("run.gradient_checkpointing") else "OFF",
        "dropout_probability": plan("adapter.dropout"),
        "lora_rank": plan("adapter.rank"),
        "lora_alpha": plan("adapter.alpha"),
        "layer_filter_preset": "custom",
        "layer_filter": ",".join(contains(plan)),
        "layer_filter_regex": False,
        "offset_noise_weight": plan("loss.noise_offset"),
        "transformer" if flux else "unet": denoiser,
        "text_encoder": encoder,
        "text_encoder_2": {**encoder, "train": text and not flux},
        "vae": {"weight_dtype": "FLOAT_32"},
        "save_every": plan("run.save_every"),
        "save_every_unit": "STEP",
        "optimizer": _onetrainer_optimizer(plan),
    }
    if plan("schedule.ema") is not None:
        args |= {"ema": "GPU", "ema_decay": plan("schedule.ema"), "ema_update_step_interval": 1}
    if plan("loss.min_snr_gamma") is not None:
        args |= {
            "loss_weight_fn": "MIN_SNR_GAMMA",
            "loss_weight_strength": plan("loss.min_snr_gamma"),
        }
    if plan("loss.masked"):
        args |= {
            "masked_training": True,
            "unmasked_probability": 0.0,
            "unmasked_weight": plan("loss.background"),
            "normalize_masked_area_loss": True,
        }
    if flux:
        args |= {"timestep_distribution": "LOGIT_NORMAL", "dynamic_timestep_shifting": True}
    _onetrainer_rate(plan, args)
    _onetrainer_lacks(plan, order, epochs)
    if text:
        one_rank(plan)
    samples = _onetrainer_samples(plan, args)
    return Built(
        {
            "config.json": json_text(args),
            "concepts.json": json_text(_onetrainer_concepts(plan, subsets)),
            "samples.json": json_text(samples),
        },
        f"python scripts/train.py --config-path {folder / 'config.json'}",
    )


def _onetrainer_optimizer(plan: Reader) -> dict[str, Any]:
    name = plan("optimizer.name")
    beta1, beta2 = plan("optimizer.betas")
    row: dict[str, Any] = {
        "optimizer": {"adamw8bit": "ADAMW_8BIT"}.get(name, name.upper()),
        "weight_decay": plan("optimizer.weight_decay"),
        "eps": 1e-8,
    }
    if name == "adafactor":
        row |= {
            "relative_step": False,
            "scale_parameter": False,
            "warmup_init": False,
            "eps2": 1e-3,
        }
        row["eps"] = 1e-30
    else:
        row |= {"beta1": beta1, "beta2": beta2}
    if name == "prodigy":
        row |= {"decouple": True, "use_bias_correction": True, "safeguard_warmup": True}
    return row


def _onetrainer_rate(plan: Reader, args: dict[str, Any]) -> None:
    scheduler, power = plan("schedule.scheduler"), plan("schedule.power")
    if scheduler == "polynomial":
        args["learning_rate_scheduler"] = "LINEAR"
        if power != 1.0:
            plan.lack("schedule.power", "OneTrainer's rate falls linearly.")
    else:
        args["learning_rate_scheduler"] = scheduler.upper()


def _onetrainer_lacks(plan: Reader, order: Order, epochs: int) -> None:
    wanted = steps(plan, order)
    made = math.ceil(epochs * order.batches_per_epoch / plan("schedule.accumulate"))
    if made != wanted:
        plan.lack(
            "", f"OneTrainer counts epochs: {epochs} of them are about {made} steps, not {wanted}."
        )
    if plan("data.bucket_step") != 64:
        plan.lack("data.bucket_step", "OneTrainer's buckets have steps of 64.")
    plan.lack(
        "data.min_bucket data.max_bucket data.upscale",
        "OneTrainer makes its own buckets and enlarges small pictures.",
    )
    if not plan("run.cache_text"):
        plan.lack("", "OneTrainer caches text wherever it caches latents.")
    if plan("run.keep"):
        plan.lack("run.keep", "OneTrainer keeps every saved LoRA.")
    if plan("run.seed"):
        plan.lack("", "OneTrainer has no seed for the run; its concepts get the plan's.")
    data_keys(plan)


def _onetrainer_concepts(plan: Reader, subsets: Sequence[Subset]) -> list[dict[str, Any]]:
    shown = reg_repeats(subsets)
    return [
        {
            "name": subset.name,
            "path": str(subset.folder),
            "seed": plan("run.seed") % 2**30,
            "balancing": round(shown.get(subset.name, subset.repeats), 4),
            "balancing_strategy": "REPEATS",
            "loss_weight": plan("loss.prior_weight") if subset.regularisation else 1.0,
            "image": {"enable_crop_jitter": False, "enable_random_flip": plan("data.flip")},
            "text": {
                "prompt_source": "sample",
                "enable_tag_shuffling": plan("data.shuffle_caption"),
                "tag_delimiter": ",",
                "keep_tags_count": plan("data.keep_tokens"),
            },
        }
        for subset in subsets
    ]


def _onetrainer_samples(plan: Reader, args: dict[str, Any]) -> list[dict[str, Any]]:
    if not plan("validation.every"):
        no_validation(plan)
        args["sample_after_unit"] = "NEVER"
        return []
    args |= {"sample_after": plan("validation.every"), "sample_after_unit": "STEP"}
    plan.read.add("validation.prompts")
    return [
        {
            "enabled": True,
            "prompt": prompt,
            "width": plan("data.resolution"),
            "height": plan("data.resolution"),
            "seed": plan("validation.seed") + number,
            "diffusion_steps": plan("validation.steps"),
            "cfg_scale": plan("validation.guidance"),
        }
        for prompt in plan.plan.validation_prompts()
        for number in range(plan("validation.count"))
    ]

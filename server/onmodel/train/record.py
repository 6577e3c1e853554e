# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run writes into its LoRA files' metadata."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from onmodel.lora.metadata import Folder, Record
from onmodel.models.registry import ModelEntry
from onmodel.train.buckets import Order
from onmodel.train.dataset import Picture
from onmodel.train.family import TrainedFamily
from onmodel.train.plan import TrainingPlan

_optimizers = {
    "adamw": "torch.optim.adamw.AdamW",
    "adamw8bit": "bitsandbytes.optim.adamw.AdamW8bit",
    "prodigy": "prodigyopt.prodigy.Prodigy",
    "adafactor": "transformers.optimization.Adafactor",
}


def make(
    plan: TrainingPlan,
    entry: ModelEntry,
    family: TrainedFamily,
    pictures: Sequence[Picture],
    order: Order,
    step: int,
    started: float,
    loss: float | None,
) -> Record:
    """The record of a run at a step."""
    own = [p for p in pictures if not p.regularisation]
    others = [p for p in pictures if p.regularisation]
    optimizer, schedule, data = plan.optimizer, plan.schedule, plan.data
    return Record(
        name=plan.name,
        family=plan.base.family,
        trigger=plan.subject,
        title=plan.name,
        model_name=entry.found.path.name,
        model_hash=entry.hash,
        rank=plan.adapter.rank,
        alpha=plan.adapter.alpha,
        resolution=(data.resolution, data.resolution),
        prediction=family.prediction,
        steps=step,
        max_steps=order.steps,
        epochs=round(order.epochs),
        batch=schedule.batch,
        accumulate=schedule.accumulate,
        seed=plan.run.seed,
        precision=plan.base.dtype,
        optimizer=f"{_optimizers[optimizer.name]}(weight_decay={optimizer.weight_decay})",
        rate=optimizer.rate,
        text_rate=optimizer.text_encoder_rate if plan.adapter.text_encoders else None,
        scheduler=schedule.scheduler,
        warm_up=schedule.warm_up,
        started=started,
        finished=time.time(),
        loss=loss,
        max_grad_norm=optimizer.max_grad_norm,
        noise_offset=plan.loss.noise_offset,
        min_snr_gamma=plan.loss.min_snr_gamma,
        prior_weight=plan.loss.prior_weight,
        caption_dropout=data.caption_dropout,
        shuffle_caption=data.shuffle_caption,
        keep_tokens=data.keep_tokens,
        flip=data.flip,
        cache_latents=plan.run.cache_latents,
        gradient_checkpointing=plan.run.gradient_checkpointing,
        masked=plan.loss.masked,
        zero_terminal_snr=family.zero_terminal_snr,
        folders=_folders(own),
        regularisation=_folders(others),
        buckets={b: order.in_bucket(b) for b in order.buckets},
        tags=_tags(own),
    )


def _folders(pictures: Sequence[Picture]) -> tuple[Folder, ...]:
    counts = Counter((p.path.parent.name, p.repeats) for p in pictures)
    return tuple(Folder(name, repeats, n) for (name, repeats), n in sorted(counts.items()))


def _tags(pictures: Sequence[Picture]) -> dict[str, dict[str, int]]:
    """How often each comma-separated part of the captions stands in each folder."""
    found: dict[str, Counter[str]] = {}
    for picture in pictures:
        row = found.setdefault(picture.path.parent.name, Counter())
        row.update(part.strip() for part in picture.caption.split(",") if part.strip())
    return {folder: dict(counts) for folder, counts in found.items()}

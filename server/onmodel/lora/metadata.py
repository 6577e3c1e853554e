# SPDX-License-Identifier: GPL-3.0-or-later
"""What a LoRA file says of itself, in the two vocabularies that readers know.

    ss_…         what kohya's scripts write (names and forms as in sd-scripts' train_network.py);
                 every value is text, "None" where there is none
    modelspec.…  Stability AI's model metadata standard, version 1.0.1

`public` leaves out what tells of the person's disk and pictures: folder names, captions and file
names. modelspec.hash_sha256 and the sshs_ hashes are taken of the tensors alone (all bytes after
the header), so they stay the same in the public file.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

architectures = {
    "sdxl": "stable-diffusion-xl-v1-base/lora",
    "flux": "flux-1-dev/lora",
}
implementations = {
    "sdxl": "https://github.com/Stability-AI/generative-models",
    "flux": "https://github.com/black-forest-labs/flux",
}
_base_versions = {"sdxl": "sdxl_base_v1-0", "flux": "flux1"}
_network_modules = {"sdxl": "networks.lora", "flux": "networks.lora_flux"}
_public_names = """
training_started_at training_finished_at output_name base_model_version v2
new_sd_model_hash network_module network_dim network_alpha network_dropout
learning_rate unet_lr text_encoder_lr optimizer lr_scheduler lr_warmup_steps
num_train_images num_reg_images num_batches_per_epoch num_epochs epoch steps
max_train_steps total_batch_size batch_size_per_device gradient_accumulation_steps
gradient_checkpointing seed mixed_precision full_fp16 resolution enable_bucket
bucket_info cache_latents clip_skip flip_aug color_aug random_crop shuffle_caption
keep_tokens caption_dropout_rate max_grad_norm noise_offset min_snr_gamma
prior_loss_weight masked_loss zero_terminal_snr loss_type
"""
public_keys = frozenset(f"ss_{name}" for name in _public_names.split())
"""The keys under ss_ that hold numbers and words of the vocabulary, nothing a person wrote."""


@dataclass(frozen=True)
class Folder:
    """One folder of training pictures."""

    name: str
    repeats: int
    pictures: int


@dataclass(frozen=True)
class Record:
    """What a training run knows of itself. Times are seconds since 1970; resolution is (width,
    height) in pixels; buckets: picture count by (width, height); tags: by folder, how often each
    comma-separated part of the captions occurs. prediction: "epsilon", "v" or "flow"."""

    name: str
    family: str
    trigger: str
    title: str
    model_name: str
    model_hash: str
    rank: int
    alpha: float
    resolution: tuple[int, int]
    prediction: str
    steps: int
    max_steps: int
    epochs: int
    batch: int
    accumulate: int
    seed: int
    precision: str
    optimizer: str
    rate: float
    text_rate: float | None
    scheduler: str
    warm_up: int
    started: float
    finished: float
    loss: float | None = None
    max_grad_norm: float = 0.0
    noise_offset: float = 0.0
    min_snr_gamma: float | None = None
    prior_weight: float = 1.0
    caption_dropout: float = 0.0
    shuffle_caption: bool = False
    keep_tokens: int = 0
    flip: bool = False
    cache_latents: bool = True
    gradient_checkpointing: bool = False
    masked: bool = False
    zero_terminal_snr: bool = False
    folders: tuple[Folder, ...] = ()
    regularisation: tuple[Folder, ...] = ()
    buckets: Mapping[tuple[int, int], int] = field(default_factory=dict)
    tags: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    identity: float | None = None


def describe(record: Record) -> dict[str, str]:
    """All metadata but the hashes, which need the tensors (see `hashes`)."""
    return {**_kohya(record), **_modelspec(record)}


def _kohya(r: Record) -> dict[str, str]:
    pictures = sum(f.pictures * f.repeats for f in r.folders)
    values: dict[str, Any] = {
        "ss_session_id": int(r.started * 1000) % 2**32,
        "ss_training_started_at": r.started,
        "ss_training_finished_at": r.finished,
        "ss_output_name": r.name,
        "ss_base_model_version": _base_versions[r.family],
        "ss_v2": False,
        "ss_sd_model_name": r.model_name,
        "ss_new_sd_model_hash": r.model_hash,
        "ss_network_module": _network_modules[r.family],
        "ss_network_dim": r.rank,
        "ss_network_alpha": r.alpha,
        "ss_network_dropout": None,
        "ss_learning_rate": r.rate,
        "ss_unet_lr": r.rate,
        "ss_text_encoder_lr": r.text_rate,
        "ss_optimizer": r.optimizer,
        "ss_lr_scheduler": r.scheduler,
        "ss_lr_warmup_steps": r.warm_up,
        "ss_num_train_images": pictures,
        "ss_num_reg_images": sum(f.pictures * f.repeats for f in r.regularisation),
        "ss_num_batches_per_epoch": -(-pictures // max(1, r.batch)),
        "ss_num_epochs": r.epochs,
        "ss_epoch": r.epochs * r.steps // max(1, r.max_steps),
        "ss_steps": r.steps,
        "ss_max_train_steps": r.max_steps,
        "ss_total_batch_size": r.batch * r.accumulate,
        "ss_batch_size_per_device": r.batch,
        "ss_gradient_accumulation_steps": r.accumulate,
        "ss_gradient_checkpointing": r.gradient_checkpointing,
        "ss_seed": r.seed,
        "ss_mixed_precision": {"fp32": "no"}.get(r.precision, r.precision),
        "ss_full_fp16": False,
        "ss_resolution": f"({r.resolution[0]}, {r.resolution[1]})",
        "ss_enable_bucket": True,
        "ss_bucket_info": _bucket_info(r.buckets),
        "ss_cache_latents": r.cache_latents,
        "ss_clip_skip": None,
        "ss_flip_aug": r.flip,
        "ss_color_aug": False,
        "ss_random_crop": False,
        "ss_shuffle_caption": r.shuffle_caption,
        "ss_keep_tokens": r.keep_tokens,
        "ss_caption_dropout_rate": r.caption_dropout,
        "ss_max_grad_norm": r.max_grad_norm,
        "ss_noise_offset": r.noise_offset or None,
        "ss_min_snr_gamma": r.min_snr_gamma,
        "ss_prior_loss_weight": r.prior_weight,
        "ss_masked_loss": r.masked,
        "ss_zero_terminal_snr": r.zero_terminal_snr,
        "ss_loss_type": "l2",
        "ss_dataset_dirs": _dirs(r.folders),
        "ss_reg_dataset_dirs": _dirs(r.regularisation),
        "ss_tag_frequency": json.dumps(r.tags, ensure_ascii=False),
        "ss_training_comment": None,
    }
    return {key: str(value) for key, value in values.items()}


def _dirs(folders: tuple[Folder, ...]) -> str:
    found = {f.name: {"n_repeats": f.repeats, "img_count": f.pictures} for f in folders}
    return json.dumps(found, ensure_ascii=False)


def _bucket_info(buckets: Mapping[tuple[int, int], int]) -> str:
    rows = [
        {"resolution": [w, h], "count": count} for (w, h), count in sorted(buckets.items()) if count
    ]
    return json.dumps({"buckets": {str(i): row for i, row in enumerate(rows)}})


def _modelspec(r: Record) -> dict[str, str]:
    date = datetime.fromtimestamp(r.finished, UTC).isoformat(timespec="seconds")
    values = {
        "sai_model_spec": "1.0.1",
        "architecture": architectures[r.family],
        "implementation": implementations[r.family],
        "title": r.title,
        "date": date,
        "resolution": f"{r.resolution[0]}x{r.resolution[1]}",
        "trigger_phrase": r.trigger,
        "tags": "character, LoRA",
        "usage_hint": f"Write “{r.trigger}” into the prompt." if r.trigger else "",
    }
    if r.prediction in ("epsilon", "v"):
        values["prediction_type"] = r.prediction
    found = {f"modelspec.{key}": value for key, value in values.items() if value}
    found["onmodel.step"] = str(r.steps)
    if r.loss is not None:
        found["onmodel.loss"] = f"{r.loss:.6g}"
    if r.identity is not None:
        found["onmodel.identity"] = f"{r.identity:.4f}"
    return found


def public(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata without folder names, captions and file names, whichever tool wrote it.

    Kept are the adapter's own configuration, modelspec, hashes and `public_keys`.
    """
    own = ("format", "lora_adapter_metadata")
    prefixes = ("modelspec.", "sshs_", "onmodel.")
    return {
        key: value
        for key, value in metadata.items()
        if key in own or key in public_keys or key.startswith(prefixes)
    }


def hashes(serialized: bytes) -> dict[str, str]:
    """The hash of a serialized safetensors file's tensors, as the two vocabularies name it."""
    (length,) = struct.unpack("<Q", serialized[:8])
    digest = hashlib.sha256(memoryview(serialized)[8 + length :]).hexdigest()
    return {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}

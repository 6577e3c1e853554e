# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the trained parts as a diffusers folder in fp16, loadable with nothing of ours."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch

from onmodel.rehearsal import data
from onmodel.rehearsal.architecture import (
    Sizes,
    make_scheduler,
    make_tokenizer,
    make_vae,
    pipeline_index,
)
from onmodel.rehearsal.measure import measure
from onmodel.rehearsal.train import Trainer, decoder, make_sheet

log = logging.getLogger(__name__)

weights_folder = Path(__file__).parent / "weights"


def export(trainer: Trainer, vae: Any, out: Path) -> int:
    """Write the running averages to the folder `out`; returns its size in bytes."""
    out.mkdir(parents=True, exist_ok=True)
    average = trainer.average
    first, second = average.full_encoders()
    for config in (first.config, second.config):
        config._attn_implementation = None
    parts: dict[str, Any] = {
        "unet": average.unet,
        "controlnet": average.full_controlnet(),
        "vae": vae,
        "text_encoder": first,
        "text_encoder_2": second,
    }
    for name, part in parts.items():
        copy = {k: v.to(torch.float16).contiguous() for k, v in part.state_dict().items()}
        _save(part, copy, out / name)
    make_scheduler().save_pretrained(out / "scheduler")
    for name in ("tokenizer", "tokenizer_2"):
        make_tokenizer().save_pretrained(out / name)
    settings = {
        "title": "Rehearsal (embedded)",
        "map_kinds": list(data.map_order),
        "native_pixels": 256 * 256,
        "multiple": 32,
        "steps": 8,
        "guidance": 3.0,
        "guided_loras": True,
    }
    (out / "onmodel.json").write_text(json.dumps(settings, indent=2) + "\n")
    (out / "model_index.json").write_text(pipeline_index())
    return sum(p.stat().st_size for p in out.rglob("*") if p.is_file())


def _save(part: Any, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Save a model's config and these tensors; the model itself keeps its precision."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    is_text = hasattr(part, "get_input_embeddings")
    if is_text:
        part.config.architectures = [type(part).__name__]
        part.config.dtype = "float16"
        part.config.save_pretrained(folder)
        name = "model.safetensors"
    else:
        part.save_config(folder)
        name = "diffusion_pytorch_model.safetensors"
    save_file(state, folder / name, metadata={"format": "pt"})


def load_vae(folder: Path) -> Any:
    """The trained autoencoder of a training folder."""
    state = torch.load(folder / "vae.pt", weights_only=True)
    vae = make_vae(Sizes(**state["sizes"])).eval()
    vae.load_state_dict(state["average"])
    return vae


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rehearsal export`."""
    parser.add_argument("--out", type=Path, default=weights_folder)


def from_options(options: argparse.Namespace) -> int:
    """Run `rehearsal export` as the options ask."""
    trainer = Trainer.load(options.folder / "denoiser.pt")
    size = export(trainer, load_vae(options.folder), options.out)
    log.info("step %d: %.1f MB in %s", trainer.step, size / 1e6, options.out)
    return 0


def measure_from_options(options: argparse.Namespace) -> int:
    """Run `rehearsal measure` as the options ask: JSON on standard output."""
    trainer = Trainer.load(options.folder / "denoiser.pt")
    kept = data.merge(data.load_shards(options.folder / "shards", 1, 24576, 10**9))
    figures = measure(trainer, kept, decoder(options.folder), options.count)
    sys.stdout.write(json.dumps({"step": trainer.step, **figures}) + "\n")
    return 0


def sheet_from_options(options: argparse.Namespace) -> int:
    """Run `rehearsal sheet` as the options ask."""
    trainer = Trainer.load(options.folder / "denoiser.pt")
    kept = data.merge(data.load_shards(options.folder / "shards", 1, 24576, 10**9))
    make_sheet(trainer, kept, decoder(options.folder), options.out)
    return 0

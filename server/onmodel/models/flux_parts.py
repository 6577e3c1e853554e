# SPDX-License-Identifier: GPL-3.0-or-later
"""Loading Flux's modules from disk, never from a hub: a folder in the hub's layout, or the
transformer in one file and the other parts in such a folder of the file's name beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onmodel.models import flux_control, flux_original, libraries, safe
from onmodel.models.errors import ModelError
from onmodel.models.memory import Place
from onmodel.models.registry import ModelEntry
from onmodel.models.sdxl_parts import readable_errors, vae_dtype, variant_of


@dataclass
class Parts:
    """Flux's modules, in evaluation mode. tokenizers: CLIP's and T5's. controlnet: or None."""

    transformer: Any
    vae: Any
    clip: Any
    t5: Any
    tokenizers: tuple[Any, Any]
    controlnet: Any


_needed = {
    "vae": "its VAE (vae)",
    "text_encoder": "CLIP (text_encoder)",
    "text_encoder_2": "T5 (text_encoder_2)",
    "tokenizer": "CLIP's tokenizer (tokenizer)",
    "tokenizer_2": "T5's tokenizer (tokenizer_2)",
}


def load_parts(entry: ModelEntry, place: Place) -> Parts:
    """Read all modules. Raises ModelError where a part is missing, damaged or of other sizes."""
    libraries.quiet()
    path, folder = entry.found.path, entry.found.config
    missing = [words for part, words in _needed.items() if not (folder / part).is_dir()]
    if missing and path.is_dir():
        raise ModelError(
            f"The model “{entry.name}” cannot be loaded: {', '.join(missing)} is missing.",
            "Copy the whole folder again. Nothing is fetched from a hub.",
        )
    if missing:
        raise ModelError(
            f"“{entry.name}” is Flux's transformer in one file; to draw it needs "
            f"{', '.join(missing)} as well.",
            f"Put these folders, as FLUX.1 has them in diffusers' layout, into a folder "
            f"“{path.stem}” beside the file. Nothing is fetched from a hub.",
        )
    for file in [*entry.found.weights, *folder.glob("*/*.safetensors")]:
        safe.read_header(file)
    with readable_errors(entry.name):
        parts = _read(entry, folder, place)
        for module in (parts.transformer, parts.vae, parts.clip, parts.t5, parts.controlnet):
            if module is not None:
                module.eval().requires_grad_(False)
        return parts


def _read(entry: ModelEntry, folder: Path, place: Place) -> Parts:
    import torch
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

    dtype = getattr(torch, place.dtype)

    def read(cls: Any, name: str, wanted: Any = dtype) -> Any:
        options = {"dtype": wanted, "use_safetensors": True, "local_files_only": True}
        if variant := variant_of(folder / name):
            options["variant"] = variant
        return cls.from_pretrained(str(folder / name), **options)

    def tokenizer(cls: Any, name: str, *files: str) -> Any:
        # Without its files transformers makes an empty one.
        if not any((folder / name / file).is_file() for file in ("tokenizer.json", *files)):
            raise OSError(f"{folder / name} has no tokenizer.json, nor {' or '.join(files)}.")
        return cls.from_pretrained(str(folder / name), local_files_only=True)

    return Parts(
        transformer=(
            read(FluxTransformer2DModel, "transformer")
            if entry.found.path.is_dir()
            else flux_original.load_transformer(entry.found.path, folder, dtype)
        ),
        vae=read(AutoencoderKL, "vae", vae_dtype(folder, place)),
        clip=read(CLIPTextModel, "text_encoder"),
        t5=read(T5EncoderModel, "text_encoder_2"),
        tokenizers=(
            tokenizer(CLIPTokenizer, "tokenizer", "vocab.json"),
            tokenizer(T5Tokenizer, "tokenizer_2", "spiece.model"),
        ),
        controlnet=flux_control.load_net(entry.controlnet, dtype) if entry.controlnet else None,
    )

# SPDX-License-Identifier: GPL-3.0-or-later
"""Loading SDXL's modules from disk: hub-layout folders and single files, never from a hub."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onmodel.models import clip_tokenizer, libraries, safe
from onmodel.models.errors import ModelError
from onmodel.models.memory import Place
from onmodel.models.probe import configs_folder, probe_controlnet, read_json
from onmodel.models.registry import ModelEntry

log = logging.getLogger(__name__)


@dataclass
class Parts:
    """SDXL's modules, in evaluation mode. zero_empty: an empty negative prompt means zeros."""

    unet: Any
    vae: Any
    text_encoders: list[Any]
    tokenizers: list[Any]
    controlnet: Any | None
    scheduler: dict[str, Any]
    zero_empty: bool


def load_parts(entry: ModelEntry, place: Place, whole: Sequence[str] = ()) -> Parts:
    """Read all modules. Raises ModelError where a file is missing, damaged or of other sizes.

    whole: parts to read in float32 whatever the place's format: "vae", "text".
    """
    libraries.quiet()
    for path in entry.found.weights:
        safe.read_header(path)
    with readable_errors(entry.name):
        parts = (
            _from_folder(entry, place, whole)
            if entry.found.path.is_dir()
            else _from_file(entry, place, whole)
        )
        for module in (parts.unet, parts.vae, parts.controlnet, *parts.text_encoders):
            if module is not None:
                module.eval().requires_grad_(False)
        return parts


def _dtype(place: Place) -> Any:
    import torch

    return getattr(torch, place.dtype)


def vae_dtype(config: Path, place: Place) -> Any:
    """A VAE that overflows in float16, as SDXL's own does, says so by force_upcast."""
    import torch

    upcast = read_json(config / "vae" / "config.json").get("force_upcast", True)
    return torch.float32 if upcast and place.dtype == "float16" else _dtype(place)


def variant_of(folder: Path) -> str | None:
    """ "fp16" where a folder holds only files of that variant."""
    names = [p.name for p in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16." in n for n in names) else None


def _from_folder(entry: ModelEntry, place: Place, whole: Sequence[str]) -> Parts:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    folder = entry.found.path

    def read(cls: Any, name: str, dtype: Any) -> Any:
        options = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
        if variant := variant_of(folder / name):
            options["variant"] = variant
        return cls.from_pretrained(str(folder / name), **options)

    dtype = _dtype(place)
    wanted = torch.float32 if "vae" in whole else vae_dtype(folder, place)
    text_dtype = torch.float32 if "text" in whole else dtype
    index = read_json(folder / "model_index.json")
    return Parts(
        unet=read(UNet2DConditionModel, "unet", dtype),
        vae=read(AutoencoderKL, "vae", wanted),
        text_encoders=[
            read(CLIPTextModel, "text_encoder", text_dtype),
            read(CLIPTextModelWithProjection, "text_encoder_2", text_dtype),
        ],
        tokenizers=[
            CLIPTokenizer.from_pretrained(str(_tokenizer(folder / name)), local_files_only=True)
            for name in ("tokenizer", "tokenizer_2")
        ],
        controlnet=_controlnet(entry, dtype),
        scheduler=entry.found.scheduler,
        zero_empty=bool(index.get("force_zeros_for_empty_prompt", True)),
    )


def _tokenizer(folder: Path) -> Path:
    """The folder, if it holds a tokenizer: without its files transformers makes an empty one."""
    if (folder / "tokenizer.json").is_file():
        return folder
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return folder
    raise OSError(f"{folder} has no tokenizer.json, nor vocab.json and merges.txt.")


def _from_file(entry: ModelEntry, place: Place, whole: Sequence[str]) -> Parts:
    """One checkpoint in the original layout, its configuration from a shipped folder.

    The file is read in the place's format; parts wanted in float32 are widened from it.
    """
    import torch
    from diffusers import StableDiffusionXLPipeline

    config = entry.found.config
    dtype = _dtype(place)
    pipeline = StableDiffusionXLPipeline.from_single_file(
        str(entry.found.path),
        config=str(config),
        local_files_only=True,
        dtype=dtype,
        add_watermarker=False,
        **_file_tokenizers(config),
    )
    wanted = torch.float32 if "vae" in whole else vae_dtype(config, place)
    text_dtype = torch.float32 if "text" in whole else dtype
    return Parts(
        unet=pipeline.unet,
        vae=pipeline.vae.to(wanted),
        text_encoders=[
            pipeline.text_encoder.to(text_dtype),
            pipeline.text_encoder_2.to(text_dtype),
        ],
        tokenizers=[pipeline.tokenizer, pipeline.tokenizer_2],
        controlnet=_controlnet(entry, dtype),
        scheduler=entry.found.scheduler,
        zero_empty=bool(pipeline.config.get("force_zeros_for_empty_prompt", True)),
    )


def _file_tokenizers(config: Path) -> dict[str, Any]:
    """CLIP's tokenizers, unless the configuration brings its own."""
    if (config / "tokenizer").is_dir():
        return {}
    return {
        "tokenizer": clip_tokenizer.make("<|endoftext|>"),
        "tokenizer_2": clip_tokenizer.make("!"),
    }


def _controlnet(entry: ModelEntry, dtype: Any) -> Any | None:
    from diffusers import ControlNetUnionModel

    path = entry.controlnet
    if path is None:
        return None
    if path.is_dir():
        for file in path.glob("*.safetensors"):
            safe.read_header(file)
        options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
        if variant := variant_of(path):
            options["variant"] = variant
        return ControlNetUnionModel.from_pretrained(str(path), dtype=dtype, **options)
    from safetensors.torch import load_file

    found = probe_controlnet(path)
    config = read_json(configs_folder / "sdxl-controlnet-union" / "config.json")
    if found is None or config["cross_attention_dim"] != found.width:
        raise ModelError(f"“{path.name}” is not a union ControlNet for SDXL.")
    model = ControlNetUnionModel.from_config(config | {"num_control_type": found.types})
    model.load_state_dict(load_file(str(path)))
    return model.to(dtype)


@contextmanager
def readable_errors(name: str) -> Iterator[None]:
    """The libraries' errors on unsound model folders as one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.exception("Loading %s failed", name)
        raise ModelError(
            f"The model “{name}” cannot be loaded: {str(error).splitlines()[0][:300]}",
            "Check that all its files are there and whole. Nothing is fetched from a hub.",
        ) from error
    except RuntimeError as error:
        from onmodel.models.memory import out_of_memory

        if out_of_memory(error):
            raise
        log.exception("Loading %s failed", name)
        raise ModelError(
            f"The model “{name}” cannot be loaded: its weights do not fit its configuration.",
            "Download or export it again.",
        ) from error

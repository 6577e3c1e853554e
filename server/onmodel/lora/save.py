# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing LoRA files: whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from onmodel.lora import layouts, metadata
from onmodel.lora.layouts import Deltas, Layout, UnetNames
from onmodel.models import safe


def write_atomically(path: Path, data: bytes, sync: bool = True) -> None:
    """The file has either its old content or this one; with sync also after a power cut.

    Raises OSError where the disk is full or the folder cannot be written to; the old file stays.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if sync and os.name == "posix":
        # The folder's entry must reach the disk as well.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_lora(
    path: Path,
    deltas: Deltas,
    about: Mapping[str, str],
    layout: Layout = "diffusers",
    dtype: torch.dtype = torch.float16,
    unet_names: UnetNames = "diffusers",
    unet_config: Any = None,
) -> None:
    """Write a LoRA file.

    about: metadata, as `metadata.describe` gives it; the layout's own and the hashes are added.
    unet_names, unet_config: see `layouts.to_kohya`. Raises ModelError for numbers that are not
    finite in dtype, OSError where the file cannot be written.
    """
    ready = layouts.cast(deltas, dtype)
    if layout == "diffusers":
        tensors, own = layouts.to_diffusers(ready)
        told = {**about, **own, "modelspec.implementation": "diffusers"}
    else:
        tensors = layouts.to_kohya(ready, unet_names, unet_config)
        told = {**about, "format": "pt"}
    hashes = metadata.hashes(save(tensors))
    write_atomically(path, save(tensors, {**told, **hashes}))


def save_public(source: Path, target: Path) -> dict[str, str]:
    """Copy a LoRA file with the same tensors and only public metadata, which is returned.

    Raises ModelError for an unsound file.
    """
    from safetensors import safe_open

    header = safe.read_header(source)
    kept = metadata.public(header.metadata)
    with safe_open(str(source), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in header.tensors}
    write_atomically(target, save(tensors, kept))
    return kept

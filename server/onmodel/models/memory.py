# SPDX-License-Identifier: GPL-3.0-or-later
"""Where to compute, in which precision, and how much fits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from onmodel.models import libraries

if TYPE_CHECKING:
    from onmodel.models.registry import ModelEntry

log = logging.getLogger(__name__)

gib = 1 << 30


@dataclass(frozen=True)
class Place:
    """A device and how to use it.

    device: a torch device string. dtype: torch dtype's name for UNet, ControlNet, text encoders.
    title: for people. total: bytes of memory that models may use. offload: keep parts in main
    memory and bring each to the device when it runs. tile_vae: decode in tiles.
    """

    device: str
    dtype: str
    title: str
    total: int
    offload: bool = False
    tile_vae: bool = False


def choose_place(weights_bytes: int) -> Place:
    """The best device of this machine for a model whose weights take so many bytes in fp16."""
    libraries.prepare()
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        bf16 = torch.cuda.is_bf16_supported()
        return _fit("cuda", "bfloat16" if bf16 else "float16", _cuda_title(), free, weights_bytes)
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        total = torch.xpu.get_device_properties(0).total_memory
        return _fit("xpu", "bfloat16", torch.xpu.get_device_name(0), total, weights_bytes)
    memory = psutil.virtual_memory()
    if torch.backends.mps.is_available():
        # Apple's memory is shared with everything else; half precision is bf16-free before M2.
        return _fit("mps", "float16", "Apple GPU", memory.available * 2 // 3, weights_bytes)
    return Place("cpu", "float32", "cpu", memory.available)


def _cuda_title() -> str:
    import torch

    return str(torch.cuda.get_device_name(0))


def _fit(device: str, dtype: str, title: str, free: int, weights: int) -> Place:
    """Offload where the weights leave less than 2 GiB to work in; tile the VAE below 10 GiB."""
    place = Place(
        device, dtype, title, free, offload=weights + 2 * gib > free, tile_vae=free < 10 * gib
    )
    log.info(
        "Drawing on %s (%s): %.1f GiB free, weights %.1f GiB, offload %s, tiled VAE %s",
        title,
        dtype,
        free / gib,
        weights / gib,
        place.offload,
        place.tile_vae,
    )
    return place


def weight_bytes(entry: ModelEntry) -> int:
    """Bytes of a model's files, its ControlNet's too."""
    paths = list(entry.found.weights)
    if entry.controlnet and entry.controlnet.is_dir():
        paths += [p for p in entry.controlnet.glob("*.safetensors") if p not in paths]
    elif entry.controlnet:
        paths.append(entry.controlnet)
    return sum(p.stat().st_size for p in paths)


def batch_limit(place: Place, pixels: int, weights_bytes: int) -> int:
    """How many pictures of that area to denoise at once.

    On a GPU: what memory is left over the weights, at about 1.6 GiB for a 1024x1024 picture with
    guidance and ControlNet, at most 8. On a CPU small pictures share the cost of each operator's
    start; beyond 256x256 a batch gains nothing and only delays the first result.
    """
    if place.device == "cpu":
        return 4 if pixels <= 320 * 320 else 1
    left = place.total - (0 if place.offload else weights_bytes)
    each = 1.6 * gib * pixels / (1024 * 1024)
    return int(min(8, max(1, left // each)))


def out_of_memory(error: BaseException) -> bool:
    """Whether this is a device's or an allocator's way to say that memory ran out."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "out_of_memory" in text
    )


def free_cache(place: Place) -> None:
    """Give unused device memory back."""
    import torch

    clear: Callable[[], Any] | None = {
        "cuda": torch.cuda.empty_cache,
        "mps": torch.mps.empty_cache,
    }.get(place.device)
    if clear:
        clear()


def synchronize(place: Place) -> None:
    """Wait for the device, so that a clock read now tells what the work took."""
    import torch

    if place.device == "cuda":
        torch.cuda.synchronize()
    elif place.device == "mps":
        torch.mps.synchronize()

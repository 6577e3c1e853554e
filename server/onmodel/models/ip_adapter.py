# SPDX-License-Identifier: GPL-3.0-or-later
"""A loaded IP-Adapter: portraits to image tokens, and the matrices that attention reads them with.

The projections are diffusers' own modules, filled by its own conversion of published names, without
a pipeline; the encoder is transformers'. Nothing of the UNet is changed: `generate.image_tokens`
asks for the matrices of the attention it is called from.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from onmodel.models import safe
from onmodel.models.errors import ModelError
from onmodel.models.ip_adapter_file import AdapterEntry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LookTokens:
    """A character's image tokens, (n, D) each. empty: of no picture, for the unguided rows."""

    shown: torch.Tensor
    empty: torch.Tensor


class IPAdapter:
    """An IP-Adapter for one UNet.

    encoder: CLIP with its projection, None for FaceID. body: the projection and the layers'
    matrices. Both are in evaluation mode, in the given format, and lie in main memory at first.
    """

    def __init__(
        self,
        entry: AdapterEntry,
        encoder: Any | None,
        projection: nn.Module,
        pairs: dict[nn.Module, nn.Module],
    ) -> None:
        self.entry = entry
        self.encoder = encoder
        self._projection = projection
        self._pairs = pairs
        self.body = nn.ModuleList([projection, *pairs.values()])
        for module in self.modules:
            module.eval().requires_grad_(False)

    @classmethod
    def load(cls, entry: AdapterEntry, unet: Any, dtype: torch.dtype, model: str) -> IPAdapter:
        """Read an adapter and its encoder. model: the UNet's model, for errors.

        Raises ModelError where files are missing, damaged, or of other sizes than the UNet.
        """
        if entry.problem:
            raise ModelError(f"The IP-Adapter “{entry.name}” cannot be used.", entry.problem)
        from safetensors.torch import load_file

        safe.read_header(entry.path)
        state = load_file(str(entry.path))
        pairs = _pairs(entry, state, unet, model)
        prefix = "image_proj."
        inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        try:
            made = unet._convert_ip_adapter_image_proj_to_diffusers(inner, low_cpu_mem_usage=False)
        except (KeyError, RuntimeError) as error:
            log.exception("Loading %s failed", entry.path)
            raise ModelError(
                f"The IP-Adapter “{entry.name}” cannot be loaded: its projection lacks parts or "
                "has parts of other sizes.",
                "Download the file again.",
            ) from error
        if entry.lora:
            log.warning("The LoRA inside of %s is not used.", entry.path.name)
        projection = made.to(dtype)
        for pair in pairs.values():
            pair.to(dtype)
        return cls(entry, _encoder(entry, dtype), projection, pairs)

    @property
    def modules(self) -> list[Any]:
        """What lies on a device."""
        return [self.body] if self.encoder is None else [self.body, self.encoder]

    @property
    def tokens(self) -> int:
        """Image tokens of one portrait."""
        made: Any = self._projection
        if self.entry.kind == "plain":
            return int(made.num_image_text_embeds)
        return int(made.num_tokens if self.entry.kind == "faceid" else made.latents.shape[1])

    def keys_values(
        self, attention: nn.Module, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(P, n, C) keys and values of image tokens (P, n, D) in this cross-attention."""
        pair: Any = self._pairs[attention]
        return pair["k"](tokens), pair["v"](tokens)

    def look(self, portraits: Sequence[np.ndarray]) -> LookTokens:
        """The tokens of portraits, end to end.

        portraits: (H, W, 3) uint8 RGB each, any size: the middle square is seen; for FaceID
        (d,) float32 embeddings of length 1.
        """
        weight = next(self._projection.parameters())
        if self.entry.kind == "faceid":
            faces = torch.from_numpy(np.stack(portraits)).to(weight)
            shown, empty = faces, torch.zeros_like(faces[:1])
        else:
            shown, empty = self._encode(portraits, weight)
        tokens = self._projection(torch.cat([shown, empty]).to(weight))
        # The unguided rows see as many tokens: equal ones attend like one of them.
        return LookTokens(
            tokens[:-1].flatten(0, 1), tokens[-1].repeat(len(portraits), 1).contiguous()
        )

    def _encode(
        self, portraits: Sequence[np.ndarray], weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """CLIP's description of the portraits, and of nothing, as diffusers' SDXL pipeline has it
        (`encode_image`): the embedding and zeros, or hidden states and those of a black picture."""
        from transformers import CLIPImageProcessorPil

        encoder: Any = self.encoder
        side = encoder.config.image_size
        processor = CLIPImageProcessorPil(size=side, crop_size=side)
        pixels = processor(list(portraits), return_tensors="pt").pixel_values.to(weight)
        if self.entry.kind == "plain":
            shown = encoder(pixels).image_embeds
            return shown, torch.zeros_like(shown[:1])
        pixels = torch.cat([pixels, torch.zeros_like(pixels[:1])])
        hidden = encoder(pixels, output_hidden_states=True).hidden_states[-2]
        return hidden[:-1], hidden[-1:]


def _pairs(
    entry: AdapterEntry, state: dict[str, torch.Tensor], unet: Any, model: str
) -> dict[nn.Module, nn.Module]:
    """For each cross-attention of the UNet, its linear layers "k" and "v"."""
    paths = [name.removesuffix(".processor") for name in unet.attn_processors]
    paths = [path for path in paths if path.endswith("attn2")]
    misfit = ModelError(
        f"The IP-Adapter “{entry.name}” does not fit “{model}”.",
        "Use an IP-Adapter that was made for this kind of model.",
    )
    if len(paths) != entry.layers:
        raise misfit
    pairs: dict[nn.Module, nn.Module] = {}
    for number, path in enumerate(paths):
        attention = unet.get_submodule(path)
        base = getattr(attention.to_k, "base_layer", attention.to_k)
        layers = {}
        for side in ("k", "v"):
            weight = state.get(f"ip_adapter.{2 * number + 1}.to_{side}_ip.weight")
            if weight is None or weight.shape != base.weight.shape:
                raise misfit
            layers[side] = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            layers[side].weight = nn.Parameter(weight, requires_grad=False)
        pairs[attention] = nn.ModuleDict(layers)
    return pairs


def _encoder(entry: AdapterEntry, dtype: torch.dtype) -> Any | None:
    from transformers import CLIPVisionModelWithProjection

    if entry.encoder is None:
        return None
    path = entry.encoder.path
    for file in path.glob("*.safetensors"):
        safe.read_header(file)
    try:
        return CLIPVisionModelWithProjection.from_pretrained(
            str(path), dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        log.exception("Loading %s failed", path)
        raise ModelError(
            f"The picture encoder of the IP-Adapter “{entry.name}” cannot be loaded: "
            f"{str(error).splitlines()[0][:300]}",
            f"Check that the files in “{path.name}” are whole. Nothing is fetched from a hub.",
        ) from error

# SPDX-License-Identifier: GPL-3.0-or-later
"""A LoRA's matrices, and the names under which files keep them.

In memory a LoRA is `Deltas`: for each module of the model the pair of matrices and alpha, with
ΔW = alpha / rank · up · down. Files keep the same numbers in one of two layouts:
    diffusers  component.module.lora_A.weight / .lora_B.weight; alpha in the file's metadata,
               as JSON under `lora_adapter_metadata` (without it a reader takes alpha = rank)
    kohya      lora_unet_… / lora_te1_text_model_… / lora_te2_text_model_… with underscores and
               .lora_down.weight / .lora_up.weight / .alpha. Flux' transformer goes by the names
               of its original code (lora_unet_double_blocks_0_img_attn_qkv), in which query, key
               and value are one module.
The library's own converter to kohya's layout is not used: with transformers 5.6 and newer it loses
the text encoders' level `text_model` and writes the rank for alpha.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from onmodel.lora import flux_names
from onmodel.models import lora_file
from onmodel.models.errors import ModelError
from onmodel.models.family import Site
from onmodel.models.lora_names import original_unet_name

Layout = Literal["diffusers", "kohya"]
UnetNames = Literal["diffusers", "original"]
adapter_key = "lora_adapter_metadata"
text_components = ("text_encoder", "text_encoder_2")
_kohya_prefix = {
    "unet": "lora_unet",
    "transformer": "lora_unet",
    "text_encoder": "lora_te1",
    "text_encoder_2": "lora_te2",
}


@dataclass(frozen=True)
class Delta:
    """One module's change. down: (r, in) or (r, in, k, k); up: (out, r) or (out, r, 1, 1)."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """r."""
        return int(self.down.shape[0])

    def matrix(self) -> torch.Tensor:
        """ΔW as float32, (out, in) or (out, in · k · k)."""
        down, up = self.down.float().flatten(1), self.up.float().flatten(1)
        return up @ down * (self.alpha / self.rank)


Deltas = dict[tuple[str, str], Delta]
"""(component, module) to its change. component: "unet", "transformer", "text_encoder",
"text_encoder_2"; module: diffusers' path, for text encoders without a leading `text_model.`"""


def collect(components: Mapping[str, Any], adapter: str = "default") -> Deltas:
    """What a peft adapter holds on these models, as copies on the CPU."""
    found: Deltas = {}
    for component, model in components.items():
        for path, layer in model.named_modules():
            if adapter not in getattr(layer, "lora_A", {}):
                continue
            down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            found[component, path.removeprefix("text_model.")] = Delta(
                down.detach().cpu().clone(), up.detach().cpu().clone(), layer.lora_alpha[adapter]
            )
    return found


def cast(deltas: Deltas, dtype: torch.dtype) -> Deltas:
    """The same in another number format. Raises ModelError where a number leaves its range."""
    changed: Deltas = {}
    for key, delta in deltas.items():
        down, up = delta.down.to(dtype), delta.up.to(dtype)
        if not (bool(torch.isfinite(down).all()) and bool(torch.isfinite(up).all())):
            raise ModelError(
                f"The LoRA's numbers at “{key[1]}” are not finite in {str(dtype)[6:]}.",
                "The training has diverged: use a smaller learning rate or an earlier checkpoint.",
            )
        changed[key] = Delta(down, up, delta.alpha)
    return changed


def small_dtype(deltas: Deltas) -> torch.dtype:
    """float16, unless that would lose numbers: the matrices of a LoRA that learned slowly can be
    below its smallest ones, and the file would have no effect."""
    for delta in deltas.values():
        for matrix in (delta.down.float(), delta.up.float()):
            lost = (matrix - matrix.half().float()).norm()
            # Rounding alone stays below 2^-11; overflow gives infinity.
            if not bool(lost <= 1e-3 * matrix.norm()):
                return torch.float32
    return torch.float16


def to_diffusers(deltas: Deltas) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors by name, and the metadata without which alpha would be lost."""
    tensors: dict[str, torch.Tensor] = {}
    adapters: dict[str, Any] = {}
    for component in dict.fromkeys(c for c, _ in deltas):
        mine = {m: d for (c, m), d in deltas.items() if c == component}
        for module, delta in mine.items():
            name = f"{component}.{_level(component)}{module}"
            tensors[f"{name}.lora_A.weight"] = delta.down.contiguous()
            tensors[f"{name}.lora_B.weight"] = delta.up.contiguous()
        # The text encoders' modules have no level `text_model` since transformers 5.6, and
        # diffusers matches these names with its own.
        config = _adapter_config(mine)
        adapters |= {f"{component}.{key}": value for key, value in config.items()}
    return tensors, {adapter_key: json.dumps(adapters, sort_keys=True), "format": "pt"}


def _adapter_config(mine: dict[str, Delta]) -> dict[str, Any]:
    """The fields of peft's LoraConfig that rebuild the adapter of one component."""
    rank = _most_common(d.rank for d in mine.values())
    alpha = _most_common(d.alpha for d in mine.values())
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {m: d.rank for m, d in mine.items() if d.rank != rank},
        "alpha_pattern": {m: d.alpha for m, d in mine.items() if d.alpha != alpha},
        "target_modules": sorted(mine),
        "bias": "none",
        "use_dora": False,
    }


def to_kohya(
    deltas: Deltas, unet_names: UnetNames = "diffusers", unet_config: Any = None
) -> dict[str, torch.Tensor]:
    """Tensors by name.

    unet_names: "original" gives the U-Net the names of SDXL's own code (input_blocks_4_1_…), as
    kohya's scripts do; "diffusers" keeps the library's, which every reader knows as well and which
    also fit U-Nets of other sizes. unet_config: the U-Net's configuration, for "original".
    Raises ModelError for a module that has no name there.
    """
    flux = {m: d for (c, m), d in deltas.items() if c == "transformer"}
    tensors: dict[str, torch.Tensor] = {}
    for module, delta in to_flux_original(flux).items():
        _put(tensors, f"lora_unet_{module}", delta)
    for (component, module), delta in deltas.items():
        if component == "transformer":
            continue
        name = _level(component) + module
        if component == "unet" and unet_names == "original":
            name = _original(module, unet_config)
        _put(tensors, f"{_kohya_prefix[component]}_{name.replace('.', '_')}", delta)
    return tensors


def _put(tensors: dict[str, torch.Tensor], name: str, delta: Delta) -> None:
    tensors[f"{name}.lora_down.weight"] = delta.down.contiguous()
    tensors[f"{name}.lora_up.weight"] = delta.up.contiguous()
    tensors[f"{name}.alpha"] = torch.tensor(float(delta.alpha), dtype=delta.down.dtype)


def _original(module: str, config: Any) -> str:
    attended = ["CrossAttn" in kind for kind in config["up_block_types"]]
    name = original_unet_name(module, int(config["layers_per_block"]), attended)
    if name is None:
        raise ModelError(f"“{module}” has no name in SDXL's original code.")
    return name


def to_flux_original(modules: Mapping[str, Delta]) -> dict[str, Delta]:
    """Flux' modules under the names of its original code (with underscores), fused where it
    fuses: the ranks add up and the upper matrix is block-diagonal, so ΔW stays the same.

    Raises ModelError where parts of one fused module differ in rank or scale.
    """
    named: dict[str, Delta] = {}
    fused: dict[str, dict[str, Delta]] = {}
    for module, delta in modules.items():
        name, parts = flux_names.original(module)
        if len(parts) == 1:
            named[name] = delta
        else:
            fused.setdefault(name, {})[module] = delta
    for name, found in fused.items():
        named[name] = _fuse(name, found)
    return named


def _fuse(name: str, found: dict[str, Delta]) -> Delta:
    parts = flux_names.original(next(iter(found)))[1]
    scales = {(d.rank, d.alpha) for d in found.values()}
    if set(parts) != set(found) or len(scales) != 1:
        raise ModelError(
            f"kohya's layout keeps {', '.join(p.rsplit('.', 1)[1] for p in parts)} of "
            f"“{name}” as one module; this LoRA has them not all, or of different ranks.",
            "Save it in diffusers' layout.",
        )
    deltas = [found[p] for p in parts]
    up = torch.block_diag(*(d.up for d in deltas))
    return Delta(torch.cat([d.down for d in deltas]), up, deltas[0].alpha * len(deltas))


def read(path: Path, sites: Mapping[str, Site]) -> Deltas:
    """A LoRA file in either layout. sites: the model's names, as `Family.lora_sites` gives them.

    Raises ModelError for an unsound file and for a module that the model does not have.
    """
    from safetensors import safe_open

    checked = lora_file.check(path)
    found: Deltas = {}
    with safe_open(str(path), framework="pt") as file:
        for pair in checked.pairs:
            site = sites.get(f"{pair.component}.{pair.module}")
            if site is None:
                raise ModelError(
                    f"The LoRA “{path.name}” does not fit this model, which has no part "
                    f"“{pair.module[:80]}”."
                )
            alpha = lora_file.alpha(checked, pair, file)
            key = (site.component, site.module.removeprefix("text_model."))
            found[key] = Delta(file.get_tensor(pair.down), file.get_tensor(pair.up), alpha)
    return found


def _level(component: str) -> str:
    return "text_model." if component in text_components else ""


def _most_common(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]

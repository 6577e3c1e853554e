# SPDX-License-Identifier: GPL-3.0-or-later
"""LoRAs on a loaded model: peft layers under a name each, kept warm, weighted per batch.

Files are read by our own mapping (`lora_names`) instead of diffusers' converters, which lose the
text encoders' keys and alphas with current transformers. A LoRA of this shelf acts on the whole
picture, through peft, or in regions, through `generate.regional_loras`; the adapters are the same.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from onmodel.models import lora_file
from onmodel.models.errors import ModelError
from onmodel.models.family import Family, Site, denoisers
from onmodel.models.registry import LoraEntry

log = logging.getLogger(__name__)

warm_limit = 8


@dataclass(frozen=True)
class _Target:
    """What one module gets of a file. rows: of the upper matrix, whose other rows are those of
    other modules, where the file knows several as one."""

    pair: lora_file.Pair
    rows: slice


@dataclass
class _Adapter:
    """A LoRA on the model. layers: peft layers that hold it, by component and path."""

    name: str
    layers: dict[tuple[str, str], Any]

    @property
    def text(self) -> bool:
        """Whether it touches a text encoder."""
        return any(component not in denoisers for component, _ in self.layers)


class LoraShelf:
    """The LoRAs that are loaded onto a family."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._warm: OrderedDict[str, _Adapter] = OrderedDict()
        # (hash, weight) of those that act on the whole picture, and hashes of those that are bound
        # to regions; None while the layers are in between.
        self._active: tuple[list[tuple[str, float]], list[str]] | None = ([], [])

    def holds(self, entry: LoraEntry) -> bool:
        """Whether this file is loaded already."""
        return entry.hash in self._warm

    def load(self, entry: LoraEntry) -> None:
        """Put a LoRA on the model, where it is not there yet; it does not act before `use`.

        Raises ModelError for one that does not fit the model.
        """
        if not self.holds(entry):
            self._active = None  # peft makes a layer's first adapter act at once
            self._warm[entry.hash] = self._load(entry)
        self._warm.move_to_end(entry.hash)

    def use(
        self, wanted: Sequence[tuple[LoraEntry, float]], regional: Sequence[LoraEntry] = ()
    ) -> None:
        """Make exactly these LoRAs act, at their weights; weight 0 means not at all.

        regional: LoRAs to be bound to regions, by the plans of each batch.
        Raises ModelError for one that does not fit the model; the next call starts anew.
        """
        acting = [(entry, weight) for entry, weight in wanted if weight != 0]
        bound = {entry.adapter: entry for entry in sorted(regional, key=lambda e: e.adapter)}
        active = [(entry.hash, weight) for entry, weight in acting]
        state = (active, [entry.hash for entry in bound.values()])
        if state == self._active:
            return
        before, self._active = self._active, None
        for entry in [*(entry for entry, _ in acting), *bound.values()]:
            self.load(entry)
        self._activate(active)
        self._family.regional.attach(
            {name: list(self._warm[entry.hash].layers) for name, entry in bound.items()}
        )
        if before is None or before[0] != active:
            touched = {key for key, _ in [*active, *(before[0] if before else [])]}
            if before is None or any(self._warm[key].text for key in touched):
                self._family.forget_text()
        self._evict(keep={key for key, _ in active} | set(state[1]))
        self._active = state

    def _activate(self, active: list[tuple[str, float]]) -> None:
        layers: dict[int, tuple[Any, list[str]]] = {}
        for adapter in self._warm.values():
            for layer in adapter.layers.values():
                layers.setdefault(id(layer), (layer, []))
        for key, weight in active:
            adapter = self._warm[key]
            for layer in adapter.layers.values():
                layer.set_scale(adapter.name, weight)
                layers[id(layer)][1].append(adapter.name)
        for layer, names in layers.values():
            # What set_adapter does, without its walk over parameters to switch gradients.
            layer._active_adapter = names

    def _evict(self, keep: set[str]) -> None:
        """Let the longest unused go, beyond `warm_limit`; those that act stay."""
        for key in [k for k in self._warm if k not in keep]:
            if len(self._warm) <= warm_limit:
                return
            adapter = self._warm.pop(key)
            for layer in adapter.layers.values():
                layer.delete_adapter(adapter.name)

    def _load(self, entry: LoraEntry) -> _Adapter:
        checked = lora_file.check(entry.path)
        if checked.family not in ("", self._family.entry.family):
            raise ModelError(
                f"The LoRA “{entry.name}” was made for {_family_names[checked.family]}, not for "
                f"“{self._family.entry.name}”.",
                "Use a LoRA that was trained for this kind of model.",
            )
        targets = self._targets(entry, checked)
        adapter = _Adapter(entry.adapter, {})
        try:
            self._inject(adapter, checked, targets)
        except BaseException:
            # Half a LoRA must not stay on the model, whatever went wrong (memory, a signal).
            for model in self._family.components.values():
                for layer in model.modules():
                    if adapter.name in getattr(layer, "lora_A", {}):
                        layer.delete_adapter(adapter.name)
            raise
        log.info("LoRA %s: %d modules", entry.name, len(adapter.layers))
        return adapter

    def _inject(
        self,
        adapter: _Adapter,
        checked: lora_file.LoraFile,
        targets: dict[str, dict[str, _Target]],
    ) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from safetensors import safe_open

        with safe_open(str(checked.path), framework="pt") as file:
            for component, parts in targets.items():
                model = self._family.components[component]
                ranks = {path: target.pair.rank for path, target in parts.items()}
                common = max(set(ranks.values()), key=list(ranks.values()).count)
                config = LoraConfig(
                    r=common,
                    lora_alpha=common,
                    target_modules=_exactly(ranks),
                    rank_pattern={p: r for p, r in ranks.items() if r != common},
                    init_lora_weights=False,
                )
                with warnings.catch_warnings():
                    # peft warns of a second adapter, which is what a shelf is for.
                    warnings.filterwarnings("ignore", "Already found a `peft_config`")
                    inject_adapter_in_model(config, model, adapter.name, low_cpu_mem_usage=True)
                for path, target in parts.items():
                    layer = model.get_submodule(path)
                    _fill(layer, adapter.name, file, target, checked)
                    adapter.layers[component, path] = layer

    def _targets(
        self, entry: LoraEntry, checked: lora_file.LoraFile
    ) -> dict[str, dict[str, _Target]]:
        """For each component, module path to what it gets. Raises ModelError where one does not
        fit."""
        sites = self._family.lora_sites()
        targets: dict[str, dict[str, _Target]] = {}
        for pair in checked.pairs:
            site = sites.get(f"{pair.component}.{pair.module}")
            if site is None:
                raise ModelError(
                    f"The LoRA “{entry.name}” does not fit “{self._family.entry.name}”: the model "
                    f"has no part “{pair.module[:80]}”.",
                    "Use a LoRA that was trained for this kind of model.",
                )
            self._check_sizes(entry, pair, site)
            at = 0
            for module in site.fused or (site.module,):
                outputs = self._weight(site.component, module).shape[0]
                target = _Target(pair, slice(at, at + outputs))
                targets.setdefault(site.component, {})[module] = target
                at += outputs
        return targets

    def _check_sizes(self, entry: LoraEntry, pair: lora_file.Pair, site: Site) -> None:
        weights = [self._weight(site.component, m) for m in site.fused or (site.module,)]
        outputs, inputs = sum(w.shape[0] for w in weights), weights[0].shape[1]
        kernel = tuple(weights[0].shape[2:])
        # A 1x1 convolution and a linear layer are the same, and files have either.
        fits = pair.kernel == kernel or {pair.kernel, kernel} <= {(), (1, 1)}
        if (inputs, outputs) != (pair.inputs, pair.outputs) or not fits:
            raise ModelError(
                f"The LoRA “{entry.name}” does not fit “{self._family.entry.name}”: "
                f"“{pair.module[:80]}” is {outputs}x{inputs} there, the LoRA is for "
                f"{pair.outputs}x{pair.inputs}.",
                "Use a LoRA that was trained for this kind of model.",
            )

    def _weight(self, component: str, path: str) -> torch.Tensor:
        """The weight of a module, under its adapters."""
        module = self._family.components[component].get_submodule(path)
        weight: torch.Tensor = getattr(module, "base_layer", module).weight
        return weight


_family_names = {"sdxl": "SDXL", "flux": "Flux", "sd1": "Stable Diffusion 1"}


def _exactly(paths: Iterable[str]) -> list[str] | str:
    """Modules as peft takes them: names, which it also finds at the end of longer ones, or, where
    that would be wrong (Flux's own `proj_out` and its blocks'), an expression."""
    names = list(paths)
    if "proj_out" not in names:
        return names
    return "|".join(re.escape(name) for name in names)


def _fill(layer: Any, name: str, file: Any, target: _Target, checked: lora_file.LoraFile) -> None:
    """Put the file's matrices into a fresh peft layer, on its base layer's device."""
    base, pair = layer.get_base_layer().weight, target.pair
    for side, key in ((layer.lora_A, pair.down), (layer.lora_B, pair.up)):
        value = file.get_tensor(key).to(base.device, base.dtype)
        module = side[name]
        if key == pair.up and len(base) != pair.outputs:
            value = value[target.rows].clone()
        value = value.reshape(module.weight.shape)
        module.weight = torch.nn.Parameter(value, requires_grad=False)
    alpha = lora_file.alpha(checked, pair, file)
    layer.lora_alpha[name] = alpha
    layer.set_scale(name, 1.0)

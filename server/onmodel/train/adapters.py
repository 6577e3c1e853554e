# SPDX-License-Identifier: GPL-3.0-or-later
"""Putting a LoRA onto a model's parts, as the plan asks: which layers, which rank, which alpha."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from onmodel.train import targets
from onmodel.train.plan import AdapterPlan, PlanError

adapter_name = "default"


def target_layers(model: Any, kind: str, plan: AdapterPlan) -> list[str]:
    """Full paths of the layers that get a LoRA, in the model's order.

    kind: "unet", "text", "transformer". Raises PlanError where the plan names none of them.
    """
    ends = targets.endings(kind, plan)
    found = [
        path
        for path, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
        and path.startswith(targets.blocks[kind])
        and targets.ends_with(path, ends)
    ]
    if not found:
        raise PlanError(
            f"No layer of the model's {kind} is called {', '.join(ends)}.",
            "Set adapter.targets to “attention” or “attention+feed-forward”.",
        )
    return found


def add_adapters(components: Mapping[str, Any], plan: AdapterPlan, seed: int) -> None:
    """Put fresh LoRAs onto the parts that the plan trains; their weights are float32.

    components: "unet" or "transformer", "text_encoder", "text_encoder_2". All other weights stop
    learning. The text encoders' alpha keeps the same scale, alpha / rank, as the U-Net's.
    """
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(seed)
    for component, model in components.items():
        model.requires_grad_(False)
        text = component.startswith("text_encoder")
        if not (plan.text_encoders if text else plan.unet):
            continue
        rank = plan.text_encoder_rank if text else plan.rank
        paths = target_layers(model, "text" if text else component, plan)
        config = LoraConfig(
            r=rank,
            lora_alpha=plan.alpha * rank / plan.rank,  # type: ignore[arg-type]
            lora_dropout=plan.dropout,
            target_modules=paths,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            inject_adapter_in_model(config, model, adapter_name)
        for layer in _layers(model):
            # Under autocast the layer's products are cast anyway; casting its input up first
            # would only cost time.
            layer.cast_input_dtype_enabled = False
            for side in (layer.lora_A, layer.lora_B):
                side[adapter_name].weight.data = side[adapter_name].weight.data.float()


def _layers(model: Any) -> list[Any]:
    return [m for m in model.modules() if adapter_name in getattr(m, "lora_A", {})]


def parameters(components: Mapping[str, Any]) -> dict[str, torch.nn.Parameter]:
    """The weights that learn, by "component.path", in a fixed order."""
    return {
        f"{component}.{path}": weight
        for component, model in components.items()
        for path, weight in model.named_parameters()
        if weight.requires_grad
    }

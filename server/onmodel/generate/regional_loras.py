# SPDX-License-Identifier: GPL-3.0-or-later
"""LoRAs that act in their character's region, in one pass of the denoiser.

A LoRA adds up(down(x)) * alpha/rank to a layer's output. Here that delta is multiplied, for every
place of the picture, by weight * (the part of the place that the character covers). A place is
    an image token, in attention, feed-forward and projections          (B, N, C)
    a pixel of the output, in convolutions                              (B, C, h, w)
    a text key, in cross-attention's to_k and to_v: 1 on the keys that only the character's own
    tokens see (`Regions.own`), 0 on all others                         (B, L, D)
    a text token of Flux, in its layers for text: 1 in the character's own prompt, 0 in all others
    any token, in Flux's layers over text and image: as above           (B, L + N, C)
A resnet's time_emb_proj gives one vector for the whole picture, which is then added everywhere;
its delta is added where the sum is complete, before norm2, and so has places too. Embeddings of
the time step and of added conditions have none: the fast way cannot bind a LoRA of theirs.

The factor is a number per token and adapter, so it may stand between down and up. All adapters of
a layer are therefore one pair of matrices, and the factors are multiplied in between: two products
a layer, whatever the number of characters.

Mechanism: forward hooks on peft's layers, whose adapters are loaded but not active in peft. peft
0.21 has two of its own: `adapter_names`, a public argument that knows one adapter per sample and
no masks; and `layer.lora_variant`, which its documentation keeps for its own variants (DoRA…)
and which is called adapter by adapter. Hooks are torch's public interface; of peft they read
`lora_A`, `lora_B`, `lora_alpha` and `r`, the names under which it saves files.
tests/server/test_regional_loras.py holds both against peft's own results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from onmodel.generate.regional_masks import at_level, feathered
from onmodel.generate.regional_settings import RegionalSettings
from onmodel.models.family import denoisers

Cast = tuple[tuple[str, float], ...]
"""The LoRAs of a region: (adapter, weight), sorted by adapter."""

Place = tuple[str, str]
"""A module that holds an adapter: component ("unet", "text_encoder"…) and path in it."""

_flux_text = (".add_q_proj", ".add_k_proj", ".add_v_proj", ".to_add_out")


class Plan(Protocol):
    """Which adapter acts where, for one call of a model."""

    def add(self, part: Part, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The layer's output with its deltas. out may be changed."""


@dataclass
class Part:
    """The regional adapters of one layer.

    kind: "tokens", "keys", "joint" (keys, then tokens), "space", "time", or "rows" where only
    whole rows of a batch can be told apart. signature: for each adapter here, its place in the
    cast and alpha/rank.
    """

    layer: Any
    kind: str
    names: tuple[str, ...]
    signature: tuple[tuple[int, float], ...]
    _gathered: tuple[torch.Tensor, torch.Tensor] | None = None

    def matrices(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(A * rank, inputs, …) and (outputs, A * rank, …) of the A adapters, on the device.

        Smaller ranks are filled with zeros. One adapter: views of its own weights; more: copies,
        which are made when the layer is first used.
        """
        if self._gathered is None or self._gathered[0].device != device:
            downs = [self.layer.lora_A[n].weight for n in self.names]
            ups = [self.layer.lora_B[n].weight for n in self.names]
            rank = max(d.shape[0] for d in downs)
            if len(self.names) > 1:
                downs = [_filled(d, 0, rank) for d in downs]
                ups = [_filled(u, 1, rank) for u in ups]
                self._gathered = torch.cat(downs), torch.cat(ups, 1)
            else:
                self._gathered = downs[0].detach(), ups[0].detach()
        return self._gathered


def _filled(weight: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """The weight with zeros up to `size` along an axis."""
    missing = size - weight.shape[axis]
    if not missing:
        return weight.detach()
    shape = list(weight.shape)
    shape[axis] = missing
    return torch.cat([weight.detach(), weight.new_zeros(shape)], axis)


class RegionalLayers:
    """The layers of a family that hold regional adapters. Does nothing but within `acting`."""

    def __init__(self, components: Mapping[str, nn.Module]) -> None:
        self._components = components
        self._handles: list[Any] = []
        self._plan: Plan | None = None
        self.names: tuple[str, ...] = ()
        self.text: frozenset[str] = frozenset()
        """The adapters that touch a text encoder."""
        self.kinds: frozenset[str] = frozenset()
        """The kinds of the denoiser's parts that hold an adapter."""

    def attach(self, adapters: Mapping[str, Sequence[Place]]) -> None:
        """Make exactly these adapters regional. They are on the model, and not active in peft."""
        if tuple(adapters) == self.names:
            return
        self.detach()
        held: dict[Place, list[str]] = {}
        for name, places in adapters.items():
            for place in places:
                held.setdefault(place, []).append(name)
        order = {name: i for i, name in enumerate(adapters)}
        kinds = set()
        for (component, path), names in held.items():
            model = self._components[component]
            layer: Any = model.get_submodule(path)
            kind = _kind(component, path, model, layer)
            scales = [layer.lora_alpha[n] / layer.r[n] for n in names]
            signature = tuple(zip([order[n] for n in names], scales, strict=True))
            self._hook(model, path, Part(layer, kind, tuple(names), signature))
            if component in denoisers:
                kinds.add(kind)
        self.names = tuple(adapters)
        self.kinds = frozenset(kinds)
        self.text = frozenset(
            n for n, places in adapters.items() if any(c not in denoisers for c, _ in places)
        )

    def detach(self) -> None:
        """No adapter is regional any more."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.names = [], ()
        self.text = self.kinds = frozenset()

    @contextmanager
    def acting(self, plan: Plan | None) -> Iterator[None]:
        """While this lasts, the adapters act by the plan."""
        before, self._plan = self._plan, plan
        try:
            yield
        finally:
            self._plan = before

    def _hook(self, model: nn.Module, path: str, part: Part) -> None:
        carried: list[torch.Tensor] = []

        def after(module: nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> Any:
            plan = self._plan
            if plan is None:
                return None
            if part.kind == "time" and isinstance(plan, Fields):
                carried[:] = [args[0]]
                return None
            return plan.add(part, args[0], out)

        def before_norm(module: nn.Module, args: tuple[Any, ...]) -> Any:
            plan = self._plan
            if not carried or not isinstance(plan, Fields):
                return None
            return (plan.add(part, carried.pop(), args[0]),)

        self._handles.append(part.layer.register_forward_hook(after))
        if part.kind == "time":
            resnet: Any = model.get_submodule(path.rpartition(".")[0])
            self._handles.append(resnet.norm2.register_forward_pre_hook(before_norm))


def _kind(component: str, path: str, model: nn.Module, layer: Any) -> str:
    """What the places of a layer's output are. The paths are those of diffusers' models."""
    if component == "transformer":
        return _flux_kind(path)
    if component != "unet":
        return "rows"
    if isinstance(layer.get_base_layer(), nn.Conv2d):
        return "space"
    if ".attn2." in path and path.endswith((".to_k", ".to_v")):
        return "keys"
    if path.endswith(".time_emb_proj"):
        resnet: Any = model.get_submodule(path.rpartition(".")[0])
        return "time" if resnet.time_embedding_norm == "default" else "rows"
    return "tokens" if ".attentions." in path else "rows"


def _flux_kind(path: str) -> str:
    """Flux's layers: of the image, of the text, of both in one sequence, or of the time step."""
    if path in ("x_embedder", "proj_out"):
        return "tokens"
    if path == "context_embedder":
        return "keys"
    if ".norm" in path or "transformer_blocks." not in path:
        return "rows"
    if path.startswith("single_"):
        return "joint"
    return "keys" if ".ff_context." in path or path.endswith(_flux_text) else "tokens"


def weight_table(
    casts: Sequence[Sequence[Cast]], names: Sequence[str], regions: int
) -> torch.Tensor:
    """(B, R, A): the weight of each adapter in each region. casts: for each row, its regions'."""
    weights = torch.zeros(len(casts), regions, len(names))
    for b, row in enumerate(casts):
        for r, cast in enumerate(row):
            for name, weight in cast:
                weights[b, r, names.index(name)] = weight
    return weights


@dataclass(frozen=True)
class Rows:
    """Adapters that act on whole rows of a batch, all places alike.

    runs: (rows, LoRAs). With all rows and one LoRA it computes what peft computes, bit for bit.
    """

    runs: Sequence[tuple[slice, Cast]]

    def add(self, part: Part, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        layer = part.layer
        for rows, cast in self.runs:
            for name, weight in cast:
                if name in part.names:
                    scale = weight * layer.lora_alpha[name] / layer.r[name]
                    out[rows] += layer.lora_B[name](layer.lora_A[name](x[rows])) * scale
        return out


class Fields:
    """The fast way: each adapter's factor at every place of one batch.

    shares: (B, R, h, w), the part of each latent cell that region r covers. weights: (B, R, A), of
    adapter a in region r. segments: (B, L), as `Regions` has them. shot: (B, A), of adapter a on
    the shot's prompt; None: none acts there. grown: set before each step.
    """

    def __init__(
        self,
        shares: torch.Tensor,
        weights: torch.Tensor,
        segments: torch.Tensor,
        grids: Mapping[int, tuple[int, int]],
        settings: RegionalSettings,
        dtype: torch.dtype,
        shot: torch.Tensor | None = None,
    ) -> None:
        self.grown = False
        self._settings = settings
        self._shares = feathered(shares.float(), settings.feather)
        self._weights = weights.to(shares.device, torch.float32)
        self._grids = grids
        self._dtype = dtype
        # Row 0, the shot's prompt, and the last, padding (-1), belong to no character.
        nobody = self._weights.new_zeros(weights.shape[0], 1, weights.shape[2])
        first = nobody if shot is None else shot.to(nobody)[:, None]
        table = torch.cat([first, self._weights, nobody], 1)
        index = (segments % table.shape[1])[..., None].expand(-1, -1, table.shape[2])
        self._keys = torch.gather(table, 1, index)
        self._levels: dict[tuple[bool, int], torch.Tensor] = {}
        self._factors: dict[tuple[Any, ...], torch.Tensor] = {}

    def add(self, part: Part, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        down, up = part.matrices(x.device)
        if part.kind in ("tokens", "keys", "joint"):
            tokens = x.shape[1]
            inner = F.linear(x, down).view(x.shape[0], tokens, len(part.names), -1)
            inner = inner * self._factor(part, tokens)
            # In place: the output is the base layer's own, and nobody else has seen it.
            out.flatten(0, 1).addmm_(inner.view(x.shape[0] * tokens, -1), up.t())
            return out
        if part.kind == "space":
            base = part.layer.get_base_layer()
            inner = F.conv2d(x, down, None, base.stride, base.padding, base.dilation)
            inner = inner.unflatten(1, (len(part.names), -1))
            inner = (inner * self._factor(part, inner.shape[-2] * inner.shape[-1])).flatten(1, 2)
            return out + F.conv2d(inner, up.view(*up.shape[:2], 1, 1))
        if part.kind == "time":
            height, width = out.shape[-2:]
            inner = F.linear(x, down).view(x.shape[0], len(part.names), -1, 1, 1)
            inner = (inner * self._factor(part, height * width)).flatten(1, 2)
            return out + F.conv2d(inner, up.view(*up.shape, 1, 1))
        raise ValueError("The fast way cannot bind a LoRA of the time step's embedding.")

    def _factor(self, part: Part, places: int) -> torch.Tensor:
        """weight * share * alpha/rank of a part's adapters, to multiply its inner values by.

        (B, places, A, 1) for tokens and keys, (B, A, 1, h, w) for pictures.
        """
        spatial = part.kind in ("space", "time")
        kind = "space" if spatial else part.kind
        key = (kind, self.grown, places, part.signature)
        if key not in self._factors:
            if kind == "keys":
                field = self._keys
            elif kind == "joint":
                image = self._level(places - self._keys.shape[1])
                field = torch.cat([self._keys, image], 1)
            else:
                field = self._level(places)
            chosen = field[..., [i for i, _ in part.signature]]
            chosen = chosen * chosen.new_tensor([scale for _, scale in part.signature])
            if spatial:
                chosen = chosen.transpose(1, 2).unflatten(-1, self._grids[places]).unsqueeze(2)
            else:
                chosen = chosen.unsqueeze(-1)
            self._factors[key] = chosen.to(self._dtype).contiguous()
        return self._factors[key]

    def _level(self, tokens: int) -> torch.Tensor:
        """(B, tokens, A): weight * share at the level of that many tokens."""
        key = (self.grown, tokens)
        if key not in self._levels:
            if tokens not in self._grids:
                raise ValueError(f"No level of this picture has {tokens} image tokens.")
            shares = at_level(self._shares, self._grids[tokens], self._settings, self.grown)
            self._levels[key] = torch.einsum("brn,bra->bna", shares.flatten(2), self._weights)
        return self._levels[key]

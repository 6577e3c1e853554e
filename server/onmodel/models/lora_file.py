# SPDX-License-Identifier: GPL-3.0-or-later
"""What a LoRA file may hold, judged from its header: names, pairs, ranks, shapes, finite numbers.

Two families of names are understood, and nothing else is let in:
    kohya      lora_unet_…, lora_te_…, lora_te1_…, lora_te2_… + .lora_down.weight, .lora_up.weight,
               .alpha; the UNet in diffusers' or in the original (input_blocks) naming
    diffusers  unet.…, text_encoder.…, text_encoder_2.…, transformer.…, base_model.model.…
               + .lora_A.weight / .lora_B.weight, .lora.down.weight / .lora.up.weight,
               .lora_linear_layer.down.weight / .up.weight, .alpha
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onmodel.models import safe
from onmodel.models.errors import ModelError

rank_limit = 512
size_limit = 4 << 30
sample_count = 64

_kohya = re.compile(
    r"lora_(unet|te1|te2|te)_([A-Za-z0-9_]+)\.(lora_down\.weight|lora_up\.weight|alpha)"
)
_diffusers = re.compile(
    r"(?:base_model\.model\.)?(unet|text_encoder_2|text_encoder|transformer)\.([A-Za-z0-9_.]+?)\."
    r"(?:(lora_A|lora_B|lora\.down|lora\.up|lora_linear_layer\.down|lora_linear_layer\.up)"
    r"(?:\.default)?\.weight|(alpha))"
)
_component = {"te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}
_other_kinds = {
    "hada_w": "a LoHa",
    "lokr_w": "a LoKr",
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    "oft_": "an OFT",
    "lora_mid": "a Tucker-decomposed LoCon",
}


@dataclass(frozen=True)
class Pair:
    """The two matrices of one module. down, up, alpha: tensor names in the file.

    kernel: of the lower matrix where it is a convolution, else ().
    """

    component: str
    module: str
    rank: int
    inputs: int
    outputs: int
    down: str
    up: str
    alpha: str | None
    kernel: tuple[int, ...] = ()


@dataclass(frozen=True)
class LoraFile:
    """A checked LoRA file. kohya: whether modules are named with underscores.

    family: "sdxl", "flux", "sd1" or "" where neither metadata nor shapes tell.
    """

    path: Path
    kohya: bool
    pairs: list[Pair]
    metadata: dict[str, str]
    family: str

    @property
    def alphas(self) -> dict[str, float]:
        """Alphas that stand in diffusers' adapter metadata, by "component.module"; see `alpha`."""
        return _adapter_alphas(self.metadata)

    @property
    def title(self) -> str:
        """What to call it: its own metadata's title, else its file name."""
        for key in ("modelspec.title", "ss_output_name"):
            if self.metadata.get(key, "").strip():
                return self.metadata[key].strip()[:120]
        return self.path.stem

    @property
    def trigger(self) -> str:
        """The trigger phrase that its metadata gives, or ""."""
        return self.metadata.get("modelspec.trigger_phrase", "").strip()[:200]


def check(path: Path) -> LoraFile:
    """Judge a LoRA file. Raises ModelError with the reason for the first thing that is wrong."""
    header = safe.read_header(path)
    if header.size > size_limit:
        raise ModelError(
            f"The LoRA “{path.name}” has {header.size / (1 << 30):.1f} GiB; the limit is 4.",
            "Check that it is a LoRA and not a whole model.",
        )
    found: dict[tuple[str, str], dict[str, str]] = {}
    kohya_count = 0
    for name, info in header.tensors.items():
        component, module, part, kohya = _split(path, name)
        kohya_count += kohya
        if info.dtype not in safe.float_dtypes:
            raise _refuse(path, f"“{name[:80]}” is of type {info.dtype}, not floating point")
        parts = found.setdefault((component, module), {})
        if part in parts:
            raise _refuse(path, f"“{module[:80]}” stands in it twice")
        parts[part] = name
    if kohya_count not in (0, len(header.tensors)):
        raise _refuse(path, "it mixes two ways of naming")
    pairs = [_pair(path, header, key, parts) for key, parts in sorted(found.items())]
    _check_finite(header)
    return LoraFile(path, kohya_count > 0, pairs, header.metadata, _family(header, pairs))


def alpha(checked: LoraFile, pair: Pair, file: Any) -> float:
    """A pair's alpha: its own number, else the adapter metadata's, else the rank (a scale of 1),
    as kohya's and diffusers' loaders take it. file: the open safetensors file."""
    if pair.alpha is not None:
        return float(file.get_tensor(pair.alpha).float().reshape(()))
    by_name = checked.alphas
    default = by_name.get(pair.component, float(pair.rank))
    names = (pair.module, pair.module.removeprefix("text_model."))
    found = (by_name.get(f"{pair.component}.{name}") for name in names)
    return next((a for a in found if a is not None), default)


def _refuse(path: Path, why: str) -> ModelError:
    return ModelError(
        f"The LoRA “{path.name}” is refused: {why}.",
        "Use a LoRA trained for this model by kohya's scripts, diffusers or OneTrainer.",
    )


def _split(path: Path, name: str) -> tuple[str, str, str, bool]:
    """Tensor name to component, module, "down" | "up" | "alpha", and whether it is kohya's."""
    if match := _kohya.fullmatch(name):
        component, module, part = match.groups()
        part = {"lora_down.weight": "down", "lora_up.weight": "up"}.get(part, "alpha")
        return _component.get(component, component), module, part, True
    if match := _diffusers.fullmatch(name):
        component, module, matrix, _ = match.groups()
        part = "alpha" if matrix is None else "down" if matrix.endswith(("A", "down")) else "up"
        return component, module, part, False
    for mark, kind in _other_kinds.items():
        if mark in name:
            raise _refuse(path, f"it is {kind}, which is not supported")
    raise _refuse(path, f"“{name[:80]}” is not the name of a LoRA's weight")


def _pair(path: Path, header: safe.Header, key: tuple[str, str], parts: dict[str, str]) -> Pair:
    component, module = key
    if "down" not in parts or "up" not in parts:
        raise _refuse(path, f"“{module[:80]}” has only one of its two matrices")
    down = header.tensors[parts["down"]].shape
    up = header.tensors[parts["up"]].shape
    if len(down) not in (2, 4) or len(up) != len(down) or up[2:] not in ((), (1, 1)):
        raise _refuse(path, f"“{module[:80]}” has matrices of an unknown shape")
    if down[0] != up[1]:
        raise _refuse(path, f"the two matrices of “{module[:80]}” do not fit each other")
    if not 1 <= down[0] <= rank_limit:
        raise _refuse(path, f"“{module[:80]}” has rank {down[0]}; 1 to {rank_limit} are allowed")
    if "alpha" in parts and header.tensors[parts["alpha"]].shape not in ((), (1,)):
        raise _refuse(path, f"the alpha of “{module[:80]}” is not one number")
    names = (parts["down"], parts["up"], parts.get("alpha"))
    return Pair(component, module, down[0], down[1], up[0], *names, kernel=down[2:])


def _check_finite(header: safe.Header) -> None:
    """The alphas, and a sample of every matrix, must be finite numbers."""
    with header.path.open("rb") as file:
        for name, info in header.tensors.items():
            width = safe.dtype_bytes[info.dtype]
            count = (info.end - info.start) // width
            step = max(1, count // sample_count)
            # Both ends and points between: damage mostly comes in runs.
            for i in {*range(0, count, step), count - 1} if count > sample_count else range(count):
                file.seek(info.start + i * width)
                if not _finite(file.read(width), info.dtype):
                    raise _refuse(header.path, f"“{name[:80]}” holds numbers that are not finite")


def _finite(raw: bytes, dtype: str) -> bool:
    """Whether a little-endian float is finite: its exponent bits are not all ones."""
    bits, mask = {
        "F64": ("<Q", 0x7FF << 52),
        "F32": ("<I", 0xFF << 23),
        "F16": ("<H", 0x1F << 10),
        "BF16": ("<H", 0xFF << 7),
    }[dtype]
    return bool(struct.unpack(bits, raw)[0] & mask != mask)


def _adapter_alphas(metadata: dict[str, str]) -> dict[str, float]:
    """Alphas from `lora_adapter_metadata`, which diffusers writes beside lora_A/lora_B.

    Keys "component" (the default of a component) and "component.module".
    """
    try:
        data = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return {}
    if not isinstance(data, dict):
        return {}
    found: dict[str, float] = {}
    for component in ("unet", "text_encoder", "text_encoder_2", "transformer"):
        default = data.get(f"{component}.lora_alpha")
        if isinstance(default, (int, float)):
            found[component] = float(default)
        patterns = data.get(f"{component}.alpha_pattern")
        if isinstance(patterns, dict):
            for module, alpha in patterns.items():
                if isinstance(alpha, (int, float)):
                    found[f"{component}.{module}"] = float(alpha)
    return found


def _family(header: safe.Header, pairs: list[Pair]) -> str:
    """The family it was trained for, by metadata, else by the width of its text inputs."""
    spec = header.metadata.get("modelspec.architecture", "")
    base = header.metadata.get("ss_base_model_version", "")
    if "flux" in spec or "flux" in base or any(p.component == "transformer" for p in pairs):
        return "flux"
    if "stable-diffusion-xl" in spec or base.startswith("sdxl"):
        return "sdxl"
    if "stable-diffusion-v1" in spec or base.startswith("sd_v1"):
        return "sd1"
    if any(p.module.startswith(("double_blocks_", "single_blocks_")) for p in pairs):
        return "flux"
    widths = {
        p.inputs for p in pairs if "attn2" in p.module and p.module.endswith(("to_k", "to_v"))
    }
    known = {2048: "sdxl", 768: "sd1"}
    return known.get(min(widths), "") if len(widths) == 1 else ""

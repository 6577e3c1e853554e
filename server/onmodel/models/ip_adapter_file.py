# SPDX-License-Identifier: GPL-3.0-or-later
"""IP-Adapter files and their image encoders on disk: what they are, and whom they fit. No torch.

An IP-Adapter (Ye et al. 2023, arXiv 2308.06721) gives every cross-attention of a UNet a second pair
of key and value matrices, for tokens made of a picture. Published files have two groups of names:
    image_proj.*                    from a picture's description to tokens; tells the kind
    ip_adapter.N.to_k_ip.weight     and to_v_ip: (channels, text features), N = 1, 3, 5 …, one for
                                    each cross-attention in the order of diffusers' attn_processors
The kinds: "plain" (four tokens of CLIP's picture embedding), "plus" (a resampler over the last but
one layer of CLIP), "faceid" (tokens of an ArcFace embedding; no picture encoder).

Encoders are folders with config.json and safetensors, anywhere under the ip-adapter folder; an
adapter takes the nearest one of its width.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onmodel.models import safe
from onmodel.models.errors import ModelError
from onmodel.models.probe import read_json

log = logging.getLogger(__name__)

folder_name = "ip-adapter"
environment = "ONMODEL_IP_ADAPTER"
kinds = ("plus", "plain", "faceid")
"""In the order in which they are chosen where several fit."""
only_family = "sdxl"

_layer_key = re.compile(r"ip_adapter\.(\d+)\.to_([kv])_ip\.weight")
_lora_key = re.compile(r"ip_adapter\.\d+\.to_(q|k|v|out)_lora\.(down|up)\.weight")
_pickles = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class EncoderEntry:
    """A CLIP picture encoder. embedding: numbers of its projection; hidden: of its layers."""

    path: Path
    embedding: int
    hidden: int

    @property
    def bytes(self) -> int:
        """Of its weights."""
        return sum(p.stat().st_size for p in self.path.glob("*.safetensors"))


@dataclass(frozen=True)
class AdapterEntry:
    """One IP-Adapter file.

    kind: one of `kinds`. width: text features of the models it is for. layers: their
    cross-attentions. features: numbers that its projection takes. encoder: None for "faceid".
    problem: why it cannot be used, with what to do, else "". lora: it has a LoRA inside, which
    Onmodel leaves out.
    """

    name: str
    path: Path
    hash: str
    kind: str = ""
    width: int = 0
    layers: int = 0
    features: int = 0
    encoder: EncoderEntry | None = None
    problem: str = ""
    lora: bool = False

    @property
    def bytes(self) -> int:
        """Of its file and its encoder's."""
        return self.path.stat().st_size + (self.encoder.bytes if self.encoder else 0)

    def fits(self, family: str, width: int) -> bool:
        """Whether models of that family with so many text features can be drawn with it."""
        return family == only_family and not self.problem and self.width == width


def find(folder: Path, digest: Callable[[Path], str]) -> list[AdapterEntry]:
    """All IP-Adapter files under a folder, also those with a problem. digest: SHA-256 of a file."""
    if not folder.is_dir():
        return []
    encoders = _encoders(folder)
    inside = [e.path for e in encoders]
    found: dict[str, AdapterEntry] = {}
    for path in sorted(folder.rglob("*")):
        if path.parent in inside or not path.is_file():
            continue
        name = path.stem if path.stem not in found else _relative(path, folder)
        if path.suffix.lower() == ".safetensors":
            found[name] = _look(name, path, encoders, digest)
        elif path.suffix.lower() in _pickles and not (path.parent / "config.json").is_file():
            found[name] = AdapterEntry(name, path, "", problem=_pickle_problem(path))
    return list(found.values())


def choose(entries: Sequence[AdapterEntry], model: str, family: str, width: int) -> AdapterEntry:
    """The IP-Adapter for a model: the one that ONMODEL_IP_ADAPTER names, else of those that fit the
    first by kind and name. width: the model's text features. Raises ModelError."""
    if family != only_family:
        raise ModelError(f"IP-Adapters hold characters with SDXL models only, not with “{model}”.")
    named = os.environ.get(environment, "").strip()
    if named:
        entries = [e for e in entries if e.name == named]
        if not entries:
            raise ModelError(
                f"There is no IP-Adapter “{named}”, which {environment} names.",
                f"Put it into the {folder_name} folder of Onmodel's data, or name another.",
            )
    usable = [e for e in entries if e.fits(family, width)]
    if usable:
        return min(usable, key=lambda e: (kinds.index(e.kind), e.name))
    for entry in entries:
        if entry.problem and entry.width in (0, width):
            raise ModelError(f"The IP-Adapter “{entry.name}” cannot be used.", entry.problem)
    if entries:
        others = ", ".join(f"“{e.name}” ({e.width})" for e in entries)
        raise ModelError(
            f"No IP-Adapter here fits “{model}”, which has {width} text features: {others}.",
            "Use an IP-Adapter that was made for this kind of model.",
        )
    raise ModelError(
        "There is no IP-Adapter here.",
        f"Put one for SDXL into the {folder_name} folder of Onmodel's data (docs/models.md).",
    )


def _look(
    name: str, path: Path, encoders: Sequence[EncoderEntry], digest: Callable[[Path], str]
) -> AdapterEntry:
    try:
        return _probe(name, path, encoders, digest(path))
    except ModelError as error:
        return AdapterEntry(name, path, "", problem=f"{error.message} {error.fix}".rstrip())
    except OSError as error:
        return AdapterEntry(name, path, "", problem=f"It cannot be read: {error.strerror}.")


def _probe(name: str, path: Path, encoders: Sequence[EncoderEntry], digest: str) -> AdapterEntry:
    header = safe.read_header(path)
    shapes = {key: info.shape for key, info in header.tensors.items()}
    strange = [
        key
        for key, info in header.tensors.items()
        if info.dtype not in safe.float_dtypes
        or not (key.startswith("image_proj.") or _layer_key.fullmatch(key) or _lora_key.match(key))
    ]
    first = shapes.get("ip_adapter.1.to_k_ip.weight", ())
    if strange or len(first) != 2:
        raise ModelError(f"“{path.name}” is not an IP-Adapter of the published layout.", _again)
    width, layers = first[1], sum(1 for key in shapes if key.endswith(".to_k_ip.weight"))
    kind, features = _kind(path, shapes)
    encoder, problem = None, ""
    if kind != "faceid":
        fitting = [
            e for e in encoders if (e.embedding if kind == "plain" else e.hidden) == features
        ]
        encoder = min(fitting, key=lambda e: _distance(e.path, path), default=None)
        if encoder is None:
            which = "embedding" if kind == "plain" else "layers"
            problem = (
                f"It needs a CLIP picture encoder whose {which} have {features} numbers. Put the "
                "encoder's folder (config.json and model.safetensors) beside "
                f"“{path.name}”; it is published with the adapter as “image_encoder”."
            )
    lora = any(_lora_key.match(key) for key in shapes)
    return AdapterEntry(name, path, digest, kind, width, layers, features, encoder, problem, lora)


_again = "Download the file again, or take it out of the folder."


def _kind(path: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[str, int]:
    """The kind, and how many numbers its projection takes. The names are diffusers' landmarks
    (loaders/unet.py, `_convert_ip_adapter_image_proj_to_diffusers`)."""
    inner = {k.removeprefix("image_proj."): s for k, s in shapes.items() if len(s) > 1}
    if "perceiver_resampler.proj_in.weight" in inner:
        raise ModelError(
            f"“{path.name}” is a FaceID Plus adapter, which Onmodel does not draw with.",
            "Use a plain, a plus or a FaceID one.",
        )
    if "image_proj.proj.3.weight" in shapes:
        raise ModelError(
            f"“{path.name}” is a full-face adapter, which Onmodel does not draw with.",
            "Use a plain, a plus or a FaceID one.",
        )
    if "proj.weight" in inner:
        return "plain", inner["proj.weight"][1]
    if "image_proj.norm.weight" in shapes and "proj.0.weight" in inner:
        return "faceid", inner["proj.0.weight"][1]
    if "latents" in inner and "proj_in.weight" in inner:
        return "plus", inner["proj_in.weight"][1]
    raise ModelError(f"“{path.name}” is not an IP-Adapter of a kind that Onmodel knows.", _again)


def _encoders(folder: Path) -> list[EncoderEntry]:
    found = []
    for config in sorted(folder.rglob("config.json")):
        try:
            data = read_json(config)
        except ModelError as error:
            log.warning("%s is left out: %s", config.parent, error)
            continue
        if "CLIPVisionModelWithProjection" not in (data.get("architectures") or ()):
            continue
        if not any(config.parent.glob("*.safetensors")):
            log.warning("The picture encoder %s has no .safetensors weights.", config.parent)
            continue
        # What transformers leaves out of a file are its CLIPVisionConfig's defaults.
        embedding = int(data.get("projection_dim", 512))
        found.append(EncoderEntry(config.parent, embedding, int(data.get("hidden_size", 768))))
    return found


def _distance(encoder: Path, adapter: Path) -> tuple[int, str]:
    """Fewest folders between the two; then by name."""
    common = os.path.commonpath([encoder, adapter.parent])
    steps = len(encoder.parts) + len(adapter.parent.parts) - 2 * len(Path(common).parts)
    return steps, str(encoder)


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _pickle_problem(path: Path) -> str:
    return (
        f"“{path.name}” is a {path.suffix} file, which can run code when it is opened. Convert it "
        "to .safetensors as docs/models.md shows, or download a .safetensors of it."
    )

# SPDX-License-Identifier: GPL-3.0-or-later
"""Which models and LoRAs this machine has: found by looking, without loading and without torch.

Folders, under the data folder (environment ONMODEL_HOME, else the platform's place for user data):
    models/      hub-layout folders (model_index.json), single .safetensors checkpoints
    controlnet/  union ControlNets: folders with config.json, or single .safetensors files
    loras/       LoRA files, also in folders of their own
    ip-adapter/  IP-Adapters and their picture encoders, see ip_adapter_file.py
Further model folders: environment ONMODEL_MODELS, separated as in PATH. A hub cache
(models--org--name) is understood in any of them. The embedded model "rehearsal" comes with the
package, and so do the LoRAs of the sample storyboard's cast, which fit it; a LoRA of the same name
in the data folder comes before them. A model folder may hold `onmodel.json` with any of: title,
native_pixels, multiple, map_kinds, default_preset, steps, guidance, true_guidance, guided_loras.

Nothing is ever fetched: models come to this machine by hand or by the hub's own tools.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onmodel.jobs.folders import default_data_folder
from onmodel.models import ip_adapter_file, lora_file, sampling, schedulers
from onmodel.models.errors import ModelError
from onmodel.models.hashes import HashCache
from onmodel.models.ip_adapter_file import AdapterEntry
from onmodel.models.probe import Found, probe_controlnet, probe_file, probe_folder

log = logging.getLogger(__name__)

embedded_name = "rehearsal"
embedded_folder = Path(__file__).resolve().parent.parent / "rehearsal" / "weights"
sample_lora_folder = embedded_folder.with_name("sample_loras")


@dataclass(frozen=True)
class ModelEntry:
    """One model on disk. steps, guidance: of its default preset.

    true_guidance: for a model that is told its guidance, how far it is also drawn away from a
    negative prompt; 1: not at all. guided_loras: a character's LoRAs act on the answer to the
    prompt and not on the one that guidance leads away from, so that it strengthens them as it
    strengthens words. SDXL only.
    """

    name: str
    found: Found
    controlnet: Path | None
    map_kinds: tuple[str, ...]
    native_pixels: int
    multiple: int
    presets: tuple[str, ...]
    default_preset: str
    steps: int
    guidance: float
    title: str
    hash: str
    embedded: bool = False
    true_guidance: float = 1.0
    guided_loras: bool = False

    @property
    def family(self) -> str:
        """ "sdxl", "flux"."""
        return self.found.family

    def info(self) -> dict[str, Any]:
        """The ModelInfo of the API."""
        return {
            "name": self.name,
            "family": self.family,
            "title": self.title,
            "native_pixels": self.native_pixels,
            "multiple": self.multiple,
            "map_kinds": list(self.map_kinds),
            "presets": list(self.presets),
            "default_preset": self.default_preset,
            "sampling": {name: asdict(sampling.usual(self, name)) for name in self.presets},
            "hash": self.hash,
            "embedded": self.embedded,
        }


@dataclass(frozen=True)
class LoraEntry:
    """One LoRA file. problem: why it cannot be used, else ""."""

    name: str
    path: Path
    hash: str
    title: str = ""
    family: str = ""
    trigger: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    problem: str = ""

    @property
    def adapter(self) -> str:
        """What its adapter is called on a loaded model."""
        return f"l{self.hash[:16]}"

    def info(self) -> dict[str, Any]:
        """Plain data, without the path and without metadata, which tells of people's folders."""
        return {k: v for k, v in asdict(self).items() if k not in ("path", "metadata")}


class Registry:
    """Looks at the folders anew on every call; hashes are remembered by size and time.

    data: the data folder. extra: further model folders. embedded: the embedded model's folder; the
    LoRAs that come with it lie beside it.
    """

    def __init__(
        self,
        data: Path | None = None,
        extra: Sequence[Path] | None = None,
        embedded: Path = embedded_folder,
    ) -> None:
        self.data = data or default_data_folder()
        if extra is None:
            listed = os.environ.get("ONMODEL_MODELS", "")
            extra = [Path(p).expanduser() for p in listed.split(os.pathsep) if p]
        self.model_folders = [self.data / "models", *extra]
        self.lora_folder = self.data / "loras"
        self.controlnet_folder = self.data / "controlnet"
        self.adapter_folder = self.data / ip_adapter_file.folder_name
        self.embedded = embedded
        self.sample_lora_folder = embedded.with_name(sample_lora_folder.name)
        self.problems: dict[str, str] = {}
        self._hashes = HashCache(self.data / "cache" / "hashes.json")
        self._loras: dict[tuple[str, int, int], LoraEntry] = {}

    def models(self) -> list[ModelEntry]:
        """All models that can be used, the embedded one last. Others are in `problems`."""
        self.problems = {}
        found: dict[str, ModelEntry] = {}
        for name, path in self._candidates():
            if name in found:
                name = _free_name(name, path, found)
            try:
                found[name] = self._entry(name, path)
            except (ModelError, OSError, ValueError) as error:
                self.problems[name] = str(error)
                log.warning("Model %s is left out: %s", path, error)
        self._hashes.save()
        return sorted(found.values(), key=lambda m: (m.embedded, m.name.lower()))

    def find(self, name: str, pinned: str | None = None) -> ModelEntry:
        """The model of that name. pinned: the hash it must have. Raises ModelError."""
        entries = self.models()
        for entry in entries:
            if entry.name == name:
                if pinned and pinned != entry.hash:
                    raise ModelError(
                        f"The model “{name}” is no longer the one this keyframe was made for: "
                        f"its weights have changed.",
                        "Put the old file back, or send the keyframe again to use the new one.",
                    )
                return entry
        if name in self.problems:
            raise ModelError(f"The model “{name}” cannot be used. {self.problems[name]}")
        names = ", ".join(f"“{e.name}”" for e in entries) or "none"
        raise ModelError(
            f"There is no model “{name}” here. Models found: {names}.",
            f"Choose one of them, or put the model into {self.model_folders[0]}. "
            "Onmodel never downloads models by itself.",
        )

    def loras(self) -> list[LoraEntry]:
        """All LoRA files, also those with a problem; the sample's last."""
        found: dict[str, LoraEntry] = {}
        for name, path in self._lora_files():
            try:
                found[name] = self._lora(name, path)
            except OSError as error:
                log.warning("LoRA %s is left out: %s", path, error)
        self._hashes.save()
        return list(found.values())

    def find_lora(self, name: str, pinned: str | None = None) -> LoraEntry:
        """The LoRA of that name, fit to be loaded. pinned: the hash it must have."""
        entries = self.loras()
        for entry in entries:
            if entry.name != name:
                continue
            if pinned and pinned != entry.hash:
                raise ModelError(
                    f"The LoRA “{name}” is no longer the one this keyframe was made for: "
                    "its file has changed.",
                    "Put the old file back, or send the keyframe again to use the new one.",
                )
            if entry.problem:
                raise ModelError(entry.problem, "Replace the file, or take the LoRA out.")
            return entry
        names = ", ".join(f"“{e.name}”" for e in entries) or "none"
        raise ModelError(
            f"There is no LoRA “{name}” here. LoRAs found: {names}.",
            f"Put {name}.safetensors into {self.lora_folder}, or take the LoRA out of the shot.",
        )

    def adapters(self) -> list[AdapterEntry]:
        """All IP-Adapters, also those with a problem."""
        found = ip_adapter_file.find(self.adapter_folder, self._hashes.of)
        self._hashes.save()
        return found

    def find_adapter(self, model: ModelEntry) -> AdapterEntry:
        """The IP-Adapter that holds characters of this model's drawings. Raises ModelError."""
        width = model.found.context_width
        return ip_adapter_file.choose(self.adapters(), model.name, model.family, width)

    def _lora_files(self) -> Iterable[tuple[str, Path]]:
        """Names and files; a name once, a second file of it by the folder that it lies in."""
        taken: set[str] = set()
        for folder in (self.lora_folder, self.sample_lora_folder):
            for path in sorted(folder.rglob("*.safetensors")) if folder.is_dir() else []:
                place = folder.name if folder == self.sample_lora_folder else ""
                relative = path.relative_to(folder).with_suffix("").as_posix()
                name = path.stem if path.stem not in taken else f"{place}/{relative}".lstrip("/")
                taken.add(name)
                yield name, path

    def _candidates(self) -> Iterable[tuple[str, Path]]:
        for folder in self.model_folders:
            if not folder.is_dir():
                continue
            for path in sorted(folder.iterdir()):
                if path.name.startswith("models--"):
                    yield from _hub_cache(path)
                elif path.with_name(f"{path.name}.safetensors").is_file():
                    continue  # the configuration of a single file of that name
                elif path.is_dir() and (path / "model_index.json").is_file():
                    yield path.name, path
                elif path.is_file() and path.suffix.lower() == ".safetensors":
                    yield path.stem, path
        if (self.embedded / "model_index.json").is_file():
            yield embedded_name, self.embedded

    def _entry(self, name: str, path: Path) -> ModelEntry:
        found = probe_folder(path) if path.is_dir() else probe_file(path)
        own = _own_settings(path)
        controlnet, kinds = self._controlnet(found)
        weights = list(found.weights)
        if controlnet and path not in controlnet.parents:
            # A ControlNet kept beside the models is part of what draws.
            weights += _files_of(controlnet)
        digest = self._hashes.of_many(weights, path if path.is_dir() else path.parent)
        config = found.scheduler
        small = found.native_pixels < 512 * 512
        presets = schedulers.fitting(config)
        preset = own.get("default_preset", "default")
        schedulers.get(preset, config)
        return ModelEntry(
            name=name,
            found=found,
            controlnet=controlnet,
            map_kinds=tuple(k for k in own.get("map_kinds", kinds) if k in kinds),
            native_pixels=int(own.get("native_pixels", found.native_pixels)),
            multiple=int(own.get("multiple", found.multiple)),
            presets=tuple(presets),
            default_preset=preset,
            steps=int(own.get("steps", found.steps or (20 if small else 30))),
            guidance=float(own.get("guidance", found.guidance or (4.0 if small else 5.0))),
            title=str(own.get("title", found.title or name)),
            hash=digest,
            embedded=path == self.embedded,
            true_guidance=float(own.get("true_guidance", 1.0)),
            guided_loras=bool(own.get("guided_loras", False)),
        )

    def _controlnet(self, found: Found) -> tuple[Path | None, tuple[str, ...]]:
        """The model's own ControlNet, else the first fitting one of the controlnet folder."""
        places = [found.path / "controlnet"] if found.path.is_dir() else []
        if self.controlnet_folder.is_dir():
            places += sorted(self.controlnet_folder.iterdir())
        for place in places:
            control = probe_controlnet(place)
            if control and control.family == found.family and control.width == found.context_width:
                return place, control.map_kinds
        return None, ()

    def _lora(self, name: str, path: Path) -> LoraEntry:
        stat = path.stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns)
        if key not in self._loras or self._loras[key].name != name:
            digest = self._hashes.of(path)
            try:
                checked = lora_file.check(path)
                entry = LoraEntry(
                    name,
                    path,
                    digest,
                    checked.title,
                    checked.family,
                    checked.trigger,
                    {k: v for k, v in checked.metadata.items() if len(v) <= 2000},
                )
            except ModelError as error:
                entry = LoraEntry(name, path, digest, title=path.stem, problem=error.message)
            self._loras[key] = entry
        return self._loras[key]


def _free_name(name: str, path: Path, taken: dict[str, ModelEntry]) -> str:
    """A name nobody has: with the folder's, then with a number."""
    options = [f"{name} ({path.parent.name})", *(f"{name} ({i})" for i in range(2, 1000))]
    return next(o for o in options if o not in taken)


def _hub_cache(path: Path) -> Iterable[tuple[str, Path]]:
    """models--org--name/snapshots/REVISION, the newest revision."""
    snapshots = [p for p in (path / "snapshots").glob("*") if (p / "model_index.json").is_file()]
    if snapshots:
        newest = max(snapshots, key=lambda p: p.stat().st_mtime)
        yield path.name.removeprefix("models--").replace("--", "/"), newest


def _own_settings(path: Path) -> dict[str, Any]:
    file = path / "onmodel.json" if path.is_dir() else path.with_suffix(".onmodel.json")
    if not file.is_file():
        return {}
    data = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ModelError(f"{file} must hold a JSON object.")
    if not isinstance(data.get("guided_loras", False), bool):
        raise ModelError(f"guided_loras in {file} must be true or false.")
    return data


def _files_of(controlnet: Path) -> list[Path]:
    return sorted(controlnet.glob("*.safetensors")) if controlnet.is_dir() else [controlnet]

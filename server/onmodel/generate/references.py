# SPDX-License-Identifier: GPL-3.0-or-later
"""Which characters are held by their reference portraits, and what becomes of each portrait.

The rule: a character's `reference_weight` is the weight of the IP-Adapter that fits the model; None
leaves it to the server, which holds characters that have portraits and no LoRA, at
`standard_weight`; 0 is off. Where the server's own rule finds no adapter, or no portrait of use,
the character is drawn without and the record says why; a weight that was asked for is an error
then.

Without torch. The face embedder of a FaceID adapter is asked for when a portrait needs it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from onmodel.identity import insightface_faces, portrait
from onmodel.identity.interface import Embedder, NoFace
from onmodel.jobs.artist import BlobReader
from onmodel.jobs.blobs import BlobError
from onmodel.models import ip_adapter_file
from onmodel.models.errors import ModelError
from onmodel.models.family import Look
from onmodel.models.ip_adapter_file import AdapterEntry
from onmodel.models.registry import ModelEntry, Registry

log = logging.getLogger(__name__)

standard_weight = 0.7
cache_size = 32


@dataclass(frozen=True)
class Sight:
    """A keyframe's characters, in its order. record: the "references" of its record."""

    adapter: AdapterEntry | None
    looks: tuple[Look | None, ...]
    record: list[dict[str, Any]]


def weight_of(character: dict[str, Any]) -> float:
    """The weight by which a request's character is to be held; 0: not at all."""
    asked = character.get("reference_weight")
    if asked is None:
        acting = any(lora.get("weight", 1.0) for lora in character.get("loras", []))
        asked = 0.0 if acting else standard_weight
    return float(asked) if character.get("references") else 0.0


def wanted(request: dict[str, Any]) -> bool:
    """Whether a character is to be held by its portraits."""
    return any(weight_of(c) for c in request.get("characters", []))


def adapter_of(registry: Registry, model: ModelEntry) -> AdapterEntry | ModelError:
    """The IP-Adapter for a model, or why there is none."""
    try:
        return registry.find_adapter(model)
    except ModelError as error:
        return error


def adapters_info(registry: Registry) -> list[dict[str, Any]]:
    """The IpAdapters of the API: what is in the folder, whom it fits, and for whom it is taken."""
    entries = registry.adapters()
    models = registry.models() if entries else []
    chosen: dict[str, list[str]] = {entry.name: [] for entry in entries}
    for model in models:
        try:
            width = model.found.context_width
            taken = ip_adapter_file.choose(entries, model.name, model.family, width)
        except ModelError:
            continue  # nobody holds its characters, which an empty list says
        chosen[taken.name].append(model.name)
    return [
        {
            "name": entry.name,
            "hash": entry.hash,
            "kind": entry.kind,
            "problem": entry.problem or _faces_missing(entry),
            "fits": [m.name for m in models if entry.fits(m.family, m.found.context_width)],
            "chosen": chosen[entry.name],
        }
        for entry in entries
    ]


def _faces_missing(entry: AdapterEntry) -> str:
    """Why a FaceID adapter cannot be used here, as far as the set-up tells, or ""."""
    from onmodel.faces import scores

    if entry.kind != "faceid" or scores.pack_is_named():
        return ""
    return (
        "It is a FaceID one, which needs InsightFace on the server: name a pack in "
        f"{scores.pack_variable} and agree to its licence ({scores.licence_variable}=accepted)."
    )


class Portraits:
    """Reads portraits, keeping the last ones. faces: for FaceID; None: InsightFace, as it is set up
    for scores (`onmodel.faces.scores`)."""

    def __init__(self, faces: Embedder | None = None) -> None:
        self._faces = faces
        self._known: OrderedDict[tuple[str, ...], tuple[list[np.ndarray], list[list[Any]]]] = (
            OrderedDict()
        )

    def sight(
        self, request: dict[str, Any], blobs: BlobReader, adapter: AdapterEntry | ModelError | None
    ) -> Sight:
        """How a request's characters are held. adapter: None where no character is to be.

        Raises ModelError where a character cannot be held by the weight that it asks for.
        """
        looks: list[Look | None] = []
        record = []
        for character in request.get("characters", []):
            look, entry = self._hold(character, blobs, adapter)
            looks.append(look)
            record.append(entry)
        used = adapter if any(looks) and isinstance(adapter, AdapterEntry) else None
        return Sight(used, tuple(looks), record)

    def _hold(
        self,
        character: dict[str, Any],
        blobs: BlobReader,
        adapter: AdapterEntry | ModelError | None,
    ) -> tuple[Look | None, dict[str, Any]]:
        weight = weight_of(character)
        entry: dict[str, Any] = {
            "character": character["name"],
            "adapter": None,
            "weight": 0.0,
            "used": 0,
            "refused": [],
            "reason": None,
        }
        if not weight or adapter is None:
            return None, entry | {"reason": _why_off(character)}
        hashes = tuple(character["references"])
        try:
            if isinstance(adapter, ModelError):
                raise adapter
            shown, refused = self._read(hashes, blobs, adapter)
            entry["refused"] = refused
            if not shown:
                told = " ".join(reason for _, reason in refused)
                raise ModelError(
                    f"No portrait of “{character['name']}” can hold it. {told}",
                    "Give it others, or set its reference weight to 0.",
                )
        except ModelError as error:
            if character.get("reference_weight") is not None:
                raise
            return None, entry | {"reason": f"{error.message} {error.fix}".rstrip()}
        entry |= {
            "adapter": {"name": adapter.name, "kind": adapter.kind, "hash": adapter.hash},
            "weight": weight,
            "used": len(shown),
        }
        if adapter.lora:
            entry["reason"] = (
                "The LoRA inside the adapter's file is not used; give the character the published "
                "LoRA of its own."
            )
        return Look((adapter.hash, *hashes), tuple(shown), weight), entry

    def _read(
        self, hashes: tuple[str, ...], blobs: BlobReader, adapter: AdapterEntry
    ) -> tuple[list[np.ndarray], list[list[Any]]]:
        """What the adapter sees of portraits, and [number from 1, why] of those refused."""
        key = (adapter.hash, *hashes)
        if key not in self._known:
            faces = self._embedder(adapter) if adapter.kind == "faceid" else None
            shown: list[np.ndarray] = []
            refused: list[list[Any]] = []
            for number, digest in enumerate(hashes, 1):
                try:
                    read = portrait.read(blobs.read(digest))
                except (BlobError, portrait.PortraitError) as error:
                    refused.append([number, str(error)])
                    continue
                seen: np.ndarray | NoFace = read.image
                if faces is not None:
                    seen = faces.embed(read.image, read.head, read.yaw)
                if isinstance(seen, NoFace):
                    refused.append([number, seen.reason])
                else:
                    shown.append(seen)
            self._known[key] = (shown, refused)
            if len(self._known) > cache_size:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def _embedder(self, adapter: AdapterEntry) -> Embedder:
        """Who gives the embeddings that a FaceID adapter was trained on. Raises ModelError."""
        from onmodel.faces import scores

        if self._faces is None:
            chosen = scores.choose(embedded=False)
            if chosen.embedder is None or chosen.embedder.name != insightface_faces.name:
                raise ModelError(
                    f"The IP-Adapter “{adapter.name}” is a FaceID one, which needs InsightFace. "
                    f"{'' if chosen.embedder else chosen.why_not}".rstrip(),
                    f"Name an InsightFace pack in {scores.pack_variable} and agree to its licence "
                    f"({scores.licence_variable}=accepted), or use a plain or plus adapter.",
                )
            self._faces = chosen.embedder
        if self._faces.size != adapter.features:
            raise ModelError(
                f"The IP-Adapter “{adapter.name}” takes faces of {adapter.features} numbers, "
                f"{self._faces.name} gives {self._faces.size}.",
                "Use the pack that the adapter was made with (buffalo_l).",
            )
        return self._faces


def _why_off(character: dict[str, Any]) -> str | None:
    """Why the rule holds nobody, for the record."""
    if not character.get("references"):
        return "It has no reference portraits."
    if character.get("reference_weight") is None:
        return "Its LoRA holds it."
    return "Its reference weight is 0."

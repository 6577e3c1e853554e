# SPDX-License-Identifier: GPL-3.0-or-later
"""`onmodel faces fix`: the face pass for pictures that no 3D scene comes with.

A detector finds the heads, their scores say whose they are, and then everything goes as for a
keyframe: each picture becomes a request whose canvas it fills. There are no conditioning maps.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from onmodel.faces import detect, face_pass
from onmodel.faces.detect import Finder, FoundHead, Parser
from onmodel.faces.keyframe import plan_keyframe
from onmodel.faces.person import Person
from onmodel.faces.record import HeadScorer, HeadScores, heads_record
from onmodel.faces.scores import Scorer
from onmodel.faces.settings import settings_of
from onmodel.generate import casting, sampler
from onmodel.generate.errors import RequestProblem
from onmodel.generate.pictures import encode_png
from onmodel.identity import registry as embedders
from onmodel.models.errors import ModelError
from onmodel.models.registry import ModelEntry, Registry

log = logging.getLogger(__name__)

at_once = 8
"""Pictures that are held in memory together."""


class FixError(Exception):
    """The command cannot be carried out; the message says why."""


@dataclass
class Files:
    """A blob store in memory (`jobs.artist.BlobReader`)."""

    data: dict[str, bytes] = field(default_factory=dict)

    def put(self, data: bytes) -> str:
        """Its SHA-256."""
        digest = hashlib.sha256(data).hexdigest()
        self.data[digest] = data
        return digest

    def read(self, sha256: str) -> bytes:
        """The bytes that were put."""
        return self.data[sha256]

    def path(self, sha256: str) -> Path:
        """Nothing here lies in a file."""
        raise KeyError(sha256)


@dataclass(frozen=True)
class Fixed:
    """A picture (H, W, 3) uint8 after the pass, and its record of heads; see docs/faces.md."""

    pixels: np.ndarray
    heads: list[dict[str, Any]]


def run(options: argparse.Namespace) -> int:
    """Carry the command out; 0, or 1 where nothing could be done."""
    try:
        return _run(options)
    except (ModelError, RequestProblem) as error:
        sys.stderr.write(f"onmodel: {error.message} {error.fix}".rstrip() + "\n")
    except FixError as error:
        sys.stderr.write(f"onmodel: {error}\n")
    return 1


def _run(options: argparse.Namespace) -> int:
    names = [path.name for path in options.images]
    if options.out is not None and len(set(names)) < len(names):
        raise FixError("Two of the pictures have one name; write them into different folders.")
    registry = Registry(options.data)
    entry = _model(registry, options.model)
    embedder = None
    if options.pack is not None:
        embedder = embedders.get("insightface", options.pack, options.accept_licence)
    scorer = Scorer(embedder, embedded=entry.embedded)
    finder = detect.finder_for(scorer.embedder)
    parser: Parser | None = None
    if options.parser is not None:
        parser = detect.FolderParser(options.parser)
    elif entry.embedded:
        parser = detect.RehearsalParser()
    fixer = Fixer(registry, entry, options.characters, options, scorer, finder, parser)
    for at in range(0, len(options.images), at_once):
        paths = options.images[at : at + at_once]
        pictures = [read_picture(path) for path in paths]
        for path, fixed in zip(paths, fixer.fix(pictures), strict=True):
            target = _target(path, options.out)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(encode_png(fixed.pixels, {"heads": fixed.heads}))
            _tell(target, fixed, options.json)
    return 0


def _model(registry: Registry, name: str) -> ModelEntry:
    if name:
        return registry.find(name)
    entries = registry.models()
    if not entries:
        raise FixError("There is no model to draw with. Put one into the data folder's models.")
    return entries[0]


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a file, turned as its EXIF says. Raises FixError."""
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise FixError(f"{path} cannot be read as a picture: {error}.") from error


def _target(path: Path, out: Path | None) -> Path:
    """Never the picture itself."""
    if out is not None and out.resolve() != path.parent.resolve():
        return out / f"{path.stem}.png"
    return path.with_name(f"{path.stem}_faces.png")


def _tell(target: Path, fixed: Fixed, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"file": str(target), "heads": fixed.heads}) + "\n")
        return
    sys.stdout.write(f"{target}\n")
    for head in fixed.heads:
        face = head["face"]
        before, after = face["before"], face["after"]
        change = "" if before is None or after is None else f" ({before:.3f} to {after:.3f})"
        reason = f" {face['reason']}" if face["reason"] else ""
        sys.stdout.write(f"  {head['character']}: {face['state']}{change}.{reason}\n")


class Fixer:
    """The pass for pictures, with one model, warm.

    options: style, negative, seed, steps, first, second, size, min_height, feather, keep_worse, as
    `onmodel faces fix` names them.
    """

    def __init__(
        self,
        registry: Registry,
        entry: ModelEntry,
        people: Sequence[Person],
        options: argparse.Namespace,
        scorer: HeadScorer,
        finder: Finder,
        parser: Parser | None,
    ) -> None:
        from onmodel.models import families, memory
        from onmodel.models.loras import LoraShelf

        self._entry, self._options = entry, options
        self._scorer, self._finder, self._parser = scorer, finder, parser
        self._files = Files()
        self._characters = [self._character(person) for person in people]
        self._cast = casting.characters({"characters": self._characters}, registry.find_lora)
        sampling = {"sampling": {"preset": "default", "steps": options.steps}}
        self._settings = sampler.settings_of(sampling, entry)
        place = memory.choose_place(memory.weight_bytes(entry))
        self._family = families.load(entry, place)
        found = {e.adapter: e for bound in self._cast for e, weight in bound.loras if weight}
        LoraShelf(self._family).use([], list(found.values()))

    def _character(self, person: Person) -> dict[str, Any]:
        """As a request has it, without a head."""
        try:
            references = [self._files.put(path.read_bytes()) for path in person.references]
        except OSError as error:
            raise FixError(f"A portrait of {person.name} cannot be read: {error}.") from error
        return {
            "name": person.name,
            "noun": person.noun,
            "trigger": person.trigger,
            "prompt": person.prompt,
            "loras": [{"name": name, "weight": weight} for name, weight in person.loras],
            "references": references,
            "head": None,
        }

    def fix(self, pictures: Sequence[np.ndarray]) -> list[Fixed]:
        """The pictures (H, W, 3) uint8 after the pass, heads of all of them in batches."""
        from onmodel.models import memory
        from onmodel.models.family import Picture

        canvases, scores, absent = [], [], []
        for number, pixels in enumerate(pictures):
            request, why = self._request(pixels, number)
            own = HeadScores(request, self._files, self._scorer, settings_of(request))
            plan = plan_keyframe(request, self._files, self._entry, self._cast, unfit=own.unfit)
            height, width = pixels.shape[:2]
            whole = Picture("", self._options.negative, width, height, request["seed"])
            canvases.append(face_pass.Canvas(str(number), whole, plan, pixels, own.judge))
            scores.append(own)
            absent.append(why)
        side = canvases[0].plan.side
        family = self._family
        limit = memory.batch_limit(family.place, side * side, memory.weight_bytes(self._entry))
        for _ in face_pass.run(family, canvases, self._settings, limit, _Nobody()):
            pass
        fixed = []
        for canvas, own, why in zip(canvases, scores, absent, strict=True):
            heads = heads_record(own, canvas.plan, canvas.outcomes, canvas.pixels)
            for head in heads:
                head["yaw"] = None
                if head["character"] in why:
                    head["no_score"] = head["face"]["reason"] = why[head["character"]]
            fixed.append(Fixed(canvas.pixels, heads))
        return fixed

    def _request(self, pixels: np.ndarray, number: int) -> tuple[dict[str, Any], dict[str, str]]:
        """The picture as a request, and why characters have no head in it, by name."""
        heads = self._finder(pixels)
        owners, why = self._match(pixels, heads)
        characters = []
        for index, character in enumerate(self._characters):
            head = None
            if index in owners:
                found = heads[owners[index]]
                mask = detect.head_mask(pixels, found, self._parser)
                x, y, wide, tall = found.box
                head = {
                    "box": {"x": x, "y": y, "width": wide, "height": tall},
                    # A detector only finds faces that can be seen.
                    "yaw": 0.0,
                    "visible": 1.0,
                    "mask": self._files.put(_png(mask)),
                }
            characters.append(character | {"head": head})
        height, width = pixels.shape[:2]
        o = self._options
        request = {
            "canvas": {
                "width": width,
                "height": height,
                "crop": {"x": 0.0, "y": 0.0, "width": width, "height": height},
            },
            "prompt": o.style,
            "seed": o.seed + number,
            "characters": characters,
            "face_pass": {
                "first": o.first,
                "second": o.second,
                "size": o.size,
                "min_height": o.min_height,
                "feather": o.feather,
                "keep_if_better": not o.keep_worse,
            },
        }
        return request, why

    def _match(
        self, pixels: np.ndarray, heads: Sequence[FoundHead]
    ) -> tuple[dict[int, int], dict[str, str]]:
        """Each character's head, by their places, and why others have none, by name.

        The pair with the highest score first, then the highest of those left. A head whose score
        says that it is another person is nobody's. One character alone needs no portraits where
        there is one head.
        """
        if not heads:
            none = "No face was found in the picture."
            return {}, {c["name"]: none for c in self._characters}
        pairs, why = [], {}
        calibration = self._scorer.calibration_of(self._characters, self._files)
        for index, character in enumerate(self._characters):
            references = self._scorer.references_of(character, self._files)
            if isinstance(references, str):
                why[character["name"]] = references
                continue
            why[character["name"]] = "No face in the picture is like it."
            for place, head in enumerate(heads):
                found = self._scorer.score(pixels, head.box, None, references, calibration)
                if found.value is not None and found.verdict != "other":
                    pairs.append((found.value, index, place))
        owners: dict[int, int] = {}
        for _, index, place in sorted(pairs, key=lambda pair: (-pair[0], pair[1:])):
            if index not in owners and place not in owners.values():
                owners[index] = place
        alone = len(self._characters) == 1 and len(heads) == 1
        if alone and not self._characters[0]["references"]:
            owners[0] = 0
        taken = {self._characters[index]["name"] for index in owners}
        return owners, {name: reason for name, reason in why.items() if name not in taken}


class _Nobody:
    """A watcher that does not look and never cancels."""

    def step(self, id: str, done: int) -> None:
        """Not wanted."""

    def cancelled(self, id: str) -> bool:
        """Never."""
        return False


def _png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, "PNG", compress_level=1)
    return file.getvalue()

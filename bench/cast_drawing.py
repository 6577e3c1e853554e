# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames of the cast's benches, drawn as the product draws them, and kept for the next bench.

Requests are built by the add-on's own `render.requests` and drawn by the server's own artist, in
one process. Frames and drawings are kept under ~/.cache/onmodel/cast (ONMODEL_CAST), named by all
that decides what they look like: request, weights, LoRAs and the sources of the code that draws.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from addon.core.blob import Blob
from addon.core.request import Box as RequestBox
from addon.core.request import (
    Camera,
    Canvas,
    FacePass,
    KeyframeRequest,
    Lora,
    Pose,
    Sampling,
    Size,
    to_data,
)
from addon.render import requests
from bench import lora_test
from bench.cast_people import Cell, Member
from world.frame_plans import Frame, Plan, load, there

if TYPE_CHECKING:
    from onmodel.generate.regional_settings import RegionalSettings

Array = np.ndarray
Box = tuple[float, float, float, float]

map_kinds = ("depth", "normal", "pose")
_drawn_by = ("generate", "models", "faces", "lora", "identity", "rehearsal/judge")


def cache_folder() -> Path:
    """Where frames and drawings are kept."""
    return Path(os.environ.get("ONMODEL_CAST") or Path.home() / ".cache" / "onmodel" / "cast")


@dataclass(frozen=True)
class How:
    """How a frame is drawn. loras: "own": each in its character's region; "whole": all of them on
    the whole picture. without: index of a person whose LoRA is left out. faces: the face pass.
    """

    loras: str = "own"
    without: int | None = None
    faces: bool = True


@dataclass(frozen=True)
class Drawing:
    """pixels, base: (H, W, 3) uint8 RGB, after and before the face pass. heads: the record's."""

    pixels: Array
    base: Array
    heads: list[dict[str, Any]]


# --- frames --------------------------------------------------------------------------------------


def frames(plans: Sequence[Plan]) -> list[Frame]:
    """These frames; those that are missing are rendered, in a process of Blender's own.

    Raises CalledProcessError where that fails.
    """
    folder = cache_folder() / "frames"
    missing = [plan for plan in plans if not there(plan, folder)]
    if missing:
        with tempfile.TemporaryDirectory() as temporary:
            listed = Path(temporary) / "plans.json"
            listed.write_text(json.dumps([asdict(plan) for plan in missing]))
            command = [sys.executable, "-m", "world.frames", str(folder), str(listed)]
            # Blender writes a line for every render.
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [load(plan, folder) for plan in plans]


# --- requests ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Head:
    """`requests.CapturedHead`."""

    box: RequestBox
    yaw: float
    pitch: float
    visible: float
    mask: Array


@dataclass(frozen=True)
class _Captured:
    """A frame as the add-on's capture hands one over."""

    frame: int
    frame_size: Size
    canvas: Canvas
    camera: Camera
    maps: dict[str, Array]
    masks: dict[str, Array]
    heads: dict[str, _Head]
    poses: dict[str, Pose]


def names_in(cell: Cell) -> list[str]:
    """Each person's name in requests: the same frame's drawings share a word of their own."""
    return [f"{cell.plan.key[:12]} {member.name}" for member in cell.members]


def captured(frame: Frame, names: Sequence[str]) -> _Captured:
    """What the add-on would have captured of the stand-ins. names: the people's, in order."""
    width, height = frame.plan.size
    kind = "orthographic" if frame.view.orthographic else "perspective"
    camera = Camera("camera", kind, frame.view.matrix_world, frame.view.frustum, 0.02, 300.0)
    heads, masks, poses = {}, {}, {}
    for index, (name, person) in enumerate(zip(names, frame.people, strict=True)):
        masks[name], poses[name] = frame.owner == index + 1, person.pose
        if person.head is not None:
            head, mask = person.head, frame.heads == index + 1
            heads[name] = _Head(head.box, head.yaw, head.pitch, head.visible, mask)
    return _Captured(
        frame.plan.number,
        Size(width, height),
        Canvas(width, height, RequestBox(0, 0, width, height)),
        camera,
        {"pose": frame.pose, "depth": frame.depth, "normal": frame.normal},
        masks,
        heads,
        poses,
    )


class Blobs:
    """A blob store in memory."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def read(self, sha256: str) -> bytes:
        """The bytes of that hash."""
        return self.data[sha256]

    def path(self, sha256: str) -> Path:
        """Nobody asks for files here."""
        raise AssertionError("drawing reads blobs as bytes")


# --- drawing -------------------------------------------------------------------------------------


class _Witness:
    """The server's scorer, which keeps the first picture of each frame that it is shown: the one
    before the face pass. Frames are told apart by the first word of their people's names."""

    def __init__(self, scorer: Any) -> None:
        self._scorer = scorer
        self.first: dict[str, Array] = {}

    def references_of(self, character: dict[str, Any], blobs: Any) -> Any:
        """The scorer's, with whose frame it is."""
        found = self._scorer.references_of(character, blobs)
        return found if isinstance(found, str) else (character["name"].split()[0], found)

    def calibration_of(self, characters: Sequence[dict[str, Any]], blobs: Any) -> Any:
        """The scorer's."""
        return self._scorer.calibration_of(characters, blobs)

    def score(
        self, image: Array, box: Box, yaw: float | None, references: Any, calibration: Any = None
    ) -> Any:
        """The scorer's."""
        frame, found = references
        self.first.setdefault(frame, np.array(image))
        return self._scorer.score(image, box, yaw, found, calibration)

    def unfit(self, width: int, height: int, box: Box) -> Any:
        """The scorer's."""
        return self._scorer.unfit(width, height, box)


class Draughtsman:
    """The embedded model with the LoRAs of some people, as the server's artist draws with it."""

    def __init__(
        self, data: Path, members: Sequence[Member], regional: RegionalSettings | None = None
    ) -> None:
        """data: an empty folder that becomes a server's data folder. regional: how LoRAs are bound
        to regions; None: as the server does."""
        import torch
        from onmodel.faces.scores import Scorer
        from onmodel.generate.artist import Artist
        from onmodel.generate.regional_settings import standard
        from onmodel.models import libraries
        from onmodel.models.registry import Registry

        libraries.prepare()
        torch.set_num_threads(1)
        (data / "loras").mkdir(parents=True)
        for lora in {member.lora for member in members if member.lora is not None}:
            shutil.copyfile(lora, data / "loras" / lora.name)
        self.registry = Registry(data, extra=[])
        self.entry = self.registry.find("rehearsal")
        self._witness = _Witness(Scorer(embedded=True))
        self._artist = Artist(self.registry, regional=regional, scorer=self._witness)
        self._regional = "" if regional is None or regional == standard else f" {regional}"
        self.blobs = Blobs()

    def request(self, cell: Cell, frame: Frame, how: How) -> KeyframeRequest:
        """A frame's request, as the add-on builds it; its images are in `blobs`.

        Raises ModelError for a LoRA that cannot be used.
        """
        names = names_in(cell)
        actors: list[requests.Actor] = []
        whole: list[Lora] = []
        portraits: dict[str, tuple[Blob, ...]] = {}
        for index, (name, member) in enumerate(zip(names, cell.members, strict=True)):
            person = frame.people[index]
            trigger, traits, loras = "", member.traits, list[Lora]()
            if member.lora is not None:
                entry = self.registry.find_lora(member.lora.stem)
                trigger, traits = entry.trigger or lora_test.trigger, ""
                if index != how.without:
                    loras.append(Lora(entry.name, 1.0, entry.hash))
            words = [w for w in (traits, person.expression, person.view) if w]
            own = tuple(loras) if how.loras == "own" else ()
            whole += [] if how.loras == "own" else loras
            actors.append(requests.Actor(name, member.noun, trigger, ", ".join(words), own))
            portraits[name] = tuple(Blob(path.read_bytes()) for path in member.portraits)
        settings = requests.ShotSettings(
            film="bench",
            shot=cell.plan.key[:12],
            seed=1000 * len(names) + cell.plan.number,
            model=self.entry.name,
            prompt=frame.shot,
            model_hash=self.entry.hash,
            sampling=requests.effective_sampling(Sampling(), self.entry.info()),
            loras=tuple(whole),
            maps=tuple(requests.MapSetting(kind) for kind in map_kinds),
            face_pass=FacePass(enabled=how.faces),
        )
        found = requests.encode(captured(frame, names), map_kinds, portraits)
        built, images = requests.build(found, settings, actors, 1)
        self.blobs.data |= {blob.hash: blob.data for blob in images}
        return built

    def draw(self, wanted: Sequence[KeyframeRequest]) -> list[Drawing]:
        """These drawings, those that are not kept already in batches of what the artist allows."""
        folder = cache_folder() / "drawings"
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{self._key(one)}.npz" for one in wanted]
        left: dict[str, list[tuple[KeyframeRequest, Path]]] = {}
        for one, path in zip(wanted, paths, strict=True):
            if not path.is_file():
                left.setdefault(self._artist.batch_key(to_data(one)), []).append((one, path))
        for group in left.values():
            limit = self._artist.max_batch(to_data(group[0][0]))
            for at in range(0, len(group), limit):
                self._draw(group[at : at + limit])
        return [_read(path) for path in paths]

    def _draw(self, group: Sequence[tuple[KeyframeRequest, Path]]) -> None:
        from onmodel.jobs.artist import Task

        self._witness.first.clear()
        tasks = [Task(str(n), to_data(one)) for n, (one, _) in enumerate(group)]
        found = self._artist.draw(tasks, self.blobs, lambda *event: None, lambda task: False)
        for task, drawn in found:
            request, path = group[int(task)]
            pixels = _pixels(drawn.png)
            frame = request.characters[0].name.split()[0] if request.characters else ""
            base = self._witness.first.get(frame, pixels)
            heads = json.dumps(drawn.record["heads"])
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                np.savez_compressed(file, pixels=pixels, base=base, heads=np.array(heads))
            part.replace(path)

    def _key(self, request: KeyframeRequest) -> str:
        told = f"{request.key()} {_code()}{self._regional}"
        return hashlib.sha256(told.encode()).hexdigest()[:32]


@functools.cache
def _code() -> str:
    """A digest of the server's sources and weights that decide what a drawing looks like, the
    model's aside, which requests pin."""
    import onmodel

    root, found = Path(onmodel.__file__).parent, hashlib.sha256()
    for folder in _drawn_by:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".safetensors", ".json", ".npz"):
                found.update(path.read_bytes())
    return found.hexdigest()


def _pixels(png: bytes) -> Array:
    import io

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _read(path: Path) -> Drawing:
    with np.load(path) as arrays:
        heads = json.loads(str(arrays["heads"]))
        return Drawing(arrays["pixels"], arrays["base"], heads)


@contextlib.contextmanager
def draughtsman(
    members: Sequence[Member], regional: RegionalSettings | None = None
) -> Iterator[Draughtsman]:
    """A `Draughtsman` with a data folder for as long as it is used."""
    with tempfile.TemporaryDirectory() as temporary:
        yield Draughtsman(Path(temporary) / "data", members, regional)


# --- looking at heads ----------------------------------------------------------------------------


class Eye:
    """An embedder with what it knows of people."""

    def __init__(self, embedder: Any) -> None:
        self.embedder = embedder
        self._means: dict[Path, Array] = {}

    def knows(self, member: Member) -> Array:
        """The mean direction of a member's references. Raises NoReferenceError without a face."""
        from bench.identity import reference_mean

        if member.references not in self._means:
            self._means[member.references] = reference_mean(self.embedder, member.references)
        return self._means[member.references]

    def can_know(self, member: Member) -> bool:
        """Whether any of a member's references shows it a face."""
        from onmodel.identity.references import NoReferenceError

        try:
            self.knows(member)
        except NoReferenceError:
            return False
        return True

    def drawn(self, picture: Array, frame: Frame, index: int) -> Array | None:
        """The embedding of a person's head in a drawing on the stand-ins' maps, None: no face."""
        head = frame.people[index].head
        return None if head is None else self._look(picture, head.box, head.yaw)

    def true(self, frame: Frame, index: int) -> Array | None:
        """The embedding of a person's own head in the render, None: no face."""
        person = frame.people[index]
        return None if person.face is None else self._look(frame.rgb, person.face, person.yaw)

    def _look(self, picture: Array, box: RequestBox, yaw: float) -> Array | None:
        from onmodel.identity.interface import NoFace

        bounds = (box.x, box.y, box.x + box.width, box.y + box.height)
        found = self.embedder.embed(np.ascontiguousarray(picture), bounds, yaw)
        return None if isinstance(found, NoFace) else found


def likeness(eye: Eye, heads: Sequence[Array | None], members: Sequence[Member]) -> Array | None:
    """(n, n) cosines of heads to members' references; None: a head has no face."""
    if any(head is None for head in heads):
        return None
    means = np.stack([eye.knows(member) for member in members])
    return np.stack([head for head in heads if head is not None]) @ means.T

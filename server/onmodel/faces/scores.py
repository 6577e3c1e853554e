# SPDX-License-Identifier: GPL-3.0-or-later
"""How like its character each drawn head is, and with which embedder that can be asked.

The embedded model's people are known to the rehearsal face network only; any other model's to
InsightFace where the person has a pack and its licence, else to dlib. Numbers of two embedders are
never mixed. torch, dlib and insightface are imported when the first head is looked at.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onmodel.faces.calibrations import Calibrations
from onmodel.identity import (
    dlib_faces,
    find,
    insightface_faces,
    interface,
    portrait,
    registry,
    rehearsal,
    strangers,
)
from onmodel.identity.calibrate import Calibration, Member
from onmodel.identity.interface import Array, Embedder, Embedding, HeadBox, NoFace
from onmodel.identity.references import (
    NoReferenceError,
    Reference,
    References,
    look_at,
    score,
)
from onmodel.jobs.artist import BlobReader
from onmodel.jobs.blobs import BlobError
from onmodel.models.errors import ModelError

log = logging.getLogger(__name__)

pack_variable, licence_variable = "ONMODEL_FACE_PACK", "ONMODEL_FACE_PACK_LICENCE"
"""Of the server's environment: an InsightFace pack's folder, and "accepted" for its licence."""
dlib_note = (
    "Scored by dlib, which is weak on drawn faces (AUC .72 on the rehearsal world) and refuses "
    "heads turned more than 75°. Name an InsightFace pack where its licence allows."
)

_no_area = "Its head box has no area."

drawn_variants = 3
"""How often each portrait is made to look drawn when a cast is calibrated."""


@dataclass(frozen=True)
class Choice:
    """The embedder for a model's people, or None and why not. note: what it is weak at, or ""."""

    embedder: Embedder | None
    why_not: str = ""
    note: str = ""


def choose(embedded: bool) -> Choice:
    """Who can tell the people of a model's drawings apart. embedded: it is the rehearsal model."""
    try:
        if embedded:
            return Choice(registry.get(rehearsal.name))
        named = os.environ.get(pack_variable, "").strip()
        if named:
            return Choice(registry.get(insightface_faces.name, Path(named), _licence_accepted()))
        if not dlib_faces.missing():
            return Choice(registry.get(dlib_faces.name), note=dlib_note)
    except ModelError as error:
        return Choice(None, f"{error.message} {error.fix}".rstrip())
    return Choice(
        None,
        "There is no face embedder for this model's people. Install dlib's "
        "(pip install --no-deps -r requirements/faces.txt), or name the folder of an InsightFace "
        f"pack in {pack_variable}.",
    )


def pack_is_named() -> bool:
    """Whether the server was given an InsightFace pack, with its licence agreed to."""
    return bool(os.environ.get(pack_variable, "").strip()) and _licence_accepted()


def _licence_accepted() -> bool:
    return os.environ.get(licence_variable, "").strip().lower() == "accepted"


@dataclass(frozen=True)
class HeadScore:
    """How like its character a head is.

    value: cosine, -1..1, or None, then reason says why. probability: 0..1 that it is the same
    person; verdict: "same", "unsure", "other"; both None without a calibration, whose source
    `calibration` names ("": there is none).
    """

    value: float | None
    probability: float | None
    verdict: str | None
    embedder: str
    reason: str | None = None
    calibration: str = ""

    def as_record(self) -> dict[str, Any] | None:
        """The `score` of a head in a keyframe's record; None where there is no value."""
        if self.value is None:
            return None
        return {
            "value": round(self.value, 4),
            "probability": None if self.probability is None else round(self.probability, 4),
            "verdict": self.verdict,
            "embedder": self.embedder,
            "calibration": self.calibration,
        }


class Scorer:
    """Scores heads with one embedder; keeps the references that it has seen.

    embedder: None takes what `choose(embedded)` says; where that is nobody, every answer says why.
    calibrations: thresholds measured on casts; None: the embedder's own, where it has one.
    """

    def __init__(
        self,
        embedder: Embedder | None = None,
        calibrations: Calibrations | None = None,
        *,
        embedded: bool = True,
    ) -> None:
        chosen = Choice(embedder) if embedder is not None else choose(embedded)
        self.embedder, self.why_not, self.note = chosen.embedder, chosen.why_not, chosen.note
        self._calibrations = calibrations or Calibrations(None)
        self._seen: dict[tuple[str, ...], References | str] = {}
        self._portraits: dict[tuple[str, ...], list[Reference]] = {}
        if self.embedder is None:
            log.warning("Heads will not be scored: %s", self.why_not)
        elif self.note:
            log.info(self.note)

    @property
    def name(self) -> str:
        """The embedder's name, "" where there is none."""
        return self.embedder.name if self.embedder is not None else ""

    def references_of(self, character: dict[str, Any], blobs: BlobReader) -> References | str:
        """What a request's character looks like, from its portraits, or a sentence why not."""
        if self.embedder is None:
            return self.why_not
        hashes = tuple(character.get("references") or ())
        if not hashes:
            return (
                f"{character['name']} has no reference portraits: give it one or more, three are "
                "usual."
            )
        if hashes not in self._seen:
            self._seen[hashes] = self._look(character["name"], hashes, blobs)
        return self._seen[hashes]

    def calibration_of(
        self, characters: Sequence[dict[str, Any]], blobs: BlobReader
    ) -> Calibration | None:
        """The thresholds for a keyframe with these characters: the cast's own where it is large
        enough, else the embedder's, else None."""
        if self.embedder is None:
            return None
        looks: dict[str, References] = {}
        for character in characters:
            found = self.references_of(character, blobs)
            if isinstance(found, References):
                looks[character["name"]] = found
        cast = {c["name"]: tuple(c["references"]) for c in characters if c["name"] in looks}
        if not cast:
            return None
        made = self._calibrations.of(
            self.name,
            registry.fingerprint(self.embedder),
            cast,
            lambda: {name: self._member(cast[name], looks[name]) for name in cast},
            lambda: shipped_strangers(self.embedder),
        )
        if isinstance(made, Calibration):
            return made
        general = registry.calibration(self.name)
        if general is None:
            return None
        size = f"the cast of {len(cast)} is too small for thresholds of its own"
        return dataclasses.replace(general, source=f"{general.source}; {size}")

    def member(
        self, character: dict[str, Any], blobs: BlobReader, good: Sequence[Embedding] = ()
    ) -> Member | str:
        """A character for a calibration, or why it cannot be one. good: embeddings of its heads in
        drawings that a person found right."""
        found = self.references_of(character, blobs)
        if isinstance(found, str):
            return found
        return self._member(tuple(character["references"]), found, good)

    def score(
        self,
        image: Array,
        box: tuple[float, float, float, float],
        yaw: float | None,
        references: References,
        calibration: Calibration | None = None,
    ) -> HeadScore:
        """The score of one head.

        image: (H, W, 3) uint8 RGB. box: left, top, width, height of the head in its pixels. yaw:
        degrees from facing the camera, None unknown. calibration: as `calibration_of` gives; None:
        the embedder's own.
        """
        if self.embedder is None:
            return HeadScore(None, None, None, "", self.why_not)
        left, top, width, height = box
        if width <= 0 or height <= 0:
            return HeadScore(None, None, None, self.name, _no_area)
        head = (left, top, left + width, top + height)
        used = calibration or registry.calibration(self.name)
        found = score(self.embedder, references, image, head, yaw, used)
        if isinstance(found, NoFace):
            return HeadScore(None, None, None, self.name, found.reason)
        source = used.source if used is not None else ""
        return HeadScore(
            found.value, found.probability, found.verdict, self.name, calibration=source
        )

    def unfit(self, width: int, height: int, box: tuple[float, float, float, float]) -> str | None:
        """Why a head in this box of a picture of width x height pixels could not be scored whatever
        it shows; None: it could, or there is nobody to score it. box: as for `score`."""
        if self.embedder is None:
            return None
        left, top, wide, tall = box
        if wide <= 0 or tall <= 0:
            return _no_area
        head = (left, top, left + wide, top + tall)
        found = interface.unfit(width, height, head, self.embedder.least_pixels)
        return None if found is None else found.reason

    def _member(
        self, hashes: tuple[str, ...], found: References, good: Sequence[Embedding] = ()
    ) -> Member:
        """The references with what drawings of them would look like, where the embedder knows."""
        variants: list[list[Embedding]] = []
        if isinstance(self.embedder, rehearsal.RehearsalFaces):
            for shown in self._portraits[hashes]:
                assert shown.head is not None
                variants.append(self.embedder.as_drawn(shown.image, shown.head, drawn_variants))
        return Member(found.parts, variants, good)

    def _look(self, name: str, hashes: tuple[str, ...], blobs: BlobReader) -> References | str:
        assert self.embedder is not None
        shown: list[Reference] = []
        refused: list[str] = []
        for number, digest in enumerate(hashes, 1):
            try:
                shown.append(with_head(self.embedder, portrait.read(blobs.read(digest))))
            except (BlobError, portrait.PortraitError) as error:
                refused.append(f"Portrait {number}: {error}")
        try:
            found = look_at(self.embedder, shown)
        except NoReferenceError as error:
            told = " ".join(refused)
            return f"{name} cannot be scored. {error} {told}".rstrip()
        unseen = {place for place, _ in found.refused}
        self._portraits[hashes] = [r for place, r in enumerate(shown) if place not in unseen]
        for reason in [*refused, *(no.reason for _, no in found.refused)]:
            log.warning("A portrait of %s is not used: %s", name, reason)
        return found


def shipped_strangers(embedder: Embedder | None) -> Array | None:
    """(N, d) impostors that ship with the embedder, or None."""
    if not isinstance(embedder, rehearsal.RehearsalFaces):
        return None
    try:
        return strangers.shipped(embedder.fingerprint)
    except strangers.StrangersError as error:
        log.warning("The cast is calibrated without strangers: %s", error)
        return None


def with_head(embedder: Embedder, reference: Reference) -> Reference:
    """The portrait with its head box where the embedder cannot look for itself."""
    if reference.head is not None or embedder.name != rehearsal.name:
        return reference
    found: HeadBox | NoFace = find.find_head(reference.image)
    if isinstance(found, NoFace):
        raise portrait.PortraitError(found.reason)
    return Reference(reference.image, found, reference.yaw)

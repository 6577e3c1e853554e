# SPDX-License-Identifier: GPL-3.0-or-later
"""A film's heads out of its sidecars, and how well each character is itself. No torch, no pictures.

The record of heads is described in docs/faces.md. Numbers of two embedders are never put together:
a character that was scored by two has two rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onmodel.identity.report import Interval, clustered_mean

verdict_words = {"same": "on model", "unsure": "in doubt", "other": "off model"}
"""What a verdict is called, here and in the add-on."""


@dataclass(frozen=True)
class FacePass:
    """What the face pass did to a head. state: "repaired", "kept" or "skipped"."""

    state: str
    reason: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Head:
    """One character's head in a drawing, as its record says.

    value: cosine, None without a score, then no_score says why. verdict: "same", "unsure", "other"
    or "". box: left, top, width, height in pixels of the drawing. loras: names and weights of the
    LoRAs that acted in the character's region.
    """

    character: str
    value: float | None = None
    probability: float | None = None
    verdict: str = ""
    embedder: str = ""
    no_score: str = ""
    box: tuple[float, float, float, float] | None = None
    face: FacePass | None = None
    loras: tuple[tuple[str, float], ...] = ()

    @property
    def words(self) -> str:
        """The verdict for people: "on model", "not calibrated", or why there is no score."""
        if self.value is None:
            short = short_reason(self.no_score)
            what = "no score" if short in _not_the_head else "no face"
            return f"{what}: {short}"
        return verdict_words.get(self.verdict, "not calibrated")


@dataclass(frozen=True)
class Keyframe:
    """A drawn take. png: its file."""

    png: Path
    film: str
    shot: str
    frame: int
    take: int
    seed: int
    heads: tuple[Head, ...]

    @property
    def title(self) -> str:
        """Shot, frame and take in words."""
        return f"{self.shot}, frame {self.frame}, take {self.take}"

    @property
    def lowest(self) -> float | None:
        """The score of the head that is least itself."""
        return min((h.value for h in self.heads if h.value is not None), default=None)


@dataclass(frozen=True)
class CharacterRow:
    """A character over the film, as one embedder sees it ("": it has no score at all).

    mean: of its scores with a 95 % interval, None with fewer than two. worst, best: the takes with
    its lowest and its highest score, and those scores. verdicts: how many of each. no_face: how
    many heads have no score, by short reason. faces: heads by what the face pass did to them.
    gain: repaired heads' mean change, None with fewer than two. loras: all that it was drawn with.
    """

    character: str
    embedder: str
    scores: tuple[float, ...]
    mean: Interval | None
    worst: tuple[Keyframe, float] | None
    best: tuple[Keyframe, float] | None
    verdicts: Mapping[str, int]
    no_face: Mapping[str, int]
    faces: Mapping[str, int] = field(default_factory=dict)
    gain: Interval | None = None
    loras: tuple[tuple[str, float], ...] = ()


def keyframe_of(png: Path, sidecar: Mapping[str, Any]) -> Keyframe:
    """A drawn take out of its sidecar; heads are () where the record has none."""
    request, record = sidecar["request"], _record(sidecar)
    return Keyframe(
        png=png,
        film=str(request["film"]),
        shot=str(request["shot"]),
        frame=int(request["frame"]),
        take=int(request["take"]),
        seed=int(request.get("seed", 0)),
        heads=tuple(_head(data, record) for data in _rows(record, "heads")),
    )


def used_takes(keyframes: Iterable[Keyframe], which: str = "best") -> list[Keyframe]:
    """One take of each frame, or all, in the order given.

    which: "best" (the highest lowest score as the add-on's retakes choose, of equal ones the
    earliest; the first where none has a score), "last" or "all". Raises ValueError for others.
    """
    if which not in ("best", "last", "all"):
        raise ValueError(f"Takes are chosen by best, last or all, not by {which}.")
    frames: dict[tuple[str, str, int], list[Keyframe]] = {}
    for keyframe in keyframes:
        frames.setdefault((keyframe.film, keyframe.shot, keyframe.frame), []).append(keyframe)
    if which == "all":
        return [k for takes in frames.values() for k in takes]
    if which == "last":
        return [max(takes, key=lambda k: k.take) for takes in frames.values()]
    return [max(takes, key=_rank) for takes in frames.values()]


def film_table(keyframes: Iterable[Keyframe]) -> list[CharacterRow]:
    """A row for each character and embedder, characters in the order in which they appear."""
    seen: dict[str, list[tuple[Keyframe, Head]]] = {}
    for keyframe in keyframes:
        for head in keyframe.heads:
            seen.setdefault(head.character, []).append((keyframe, head))
    rows = []
    for name, own in seen.items():
        embedders = Counter(head.embedder for _, head in own if head.value is not None)
        ranked = [embedder for embedder, _ in embedders.most_common()] or [""]
        for place, embedder in enumerate(ranked):
            # Heads without a score are counted once, with the embedder that scored most.
            fits = [
                (k, h)
                for k, h in own
                if (h.embedder == embedder if h.value is not None else place == 0)
            ]
            rows.append(_row(name, embedder, fits))
    return rows


def short_reason(sentence: str) -> str:
    """Why a head has no score, in a word or two, out of the record's sentence."""
    for words, short in _short:
        if any(word in sentence for word in words):
            return short
    plain = sentence.strip().rstrip(".")
    return f"{plain[:33].rstrip()}…" if len(plain) > 34 else plain or "no reason given"


_short = (
    (("no reference portraits",), "no portraits"),
    (("cannot be scored", "No reference shows"), "no usable portrait"),
    (("no face embedder", "embedder cannot be used"), "no embedder"),
    (("px high", "too small"), "too small"),
    (("turned", "looks away"), "turned away"),
    (("head is not in the picture",), "out of frame"),
    (("of the head lies in the picture",), "cut off"),
    (("Nothing of its head", "hidden"), "hidden"),
    (("No face was found", "found no face", "No head was found"), "not found"),
)

_not_the_head = ("no portraits", "no usable portrait", "no embedder")
"""Reasons that say nothing of the drawn head."""


def _row(name: str, embedder: str, own: Sequence[tuple[Keyframe, Head]]) -> CharacterRow:
    scored = [(k, h, h.value) for k, h in own if h.value is not None]
    shots: dict[str, list[float]] = {}
    for keyframe, _, value in scored:
        shots.setdefault(keyframe.shot, []).append(value)
    worst = min(scored, key=lambda item: item[2], default=None)
    best = max(scored, key=lambda item: item[2], default=None)
    passes = [h.face for _, h in own if h.face is not None]
    changes: dict[str, list[float]] = {}
    for keyframe, head in own:
        face = head.face
        if face and face.state == "repaired" and None not in (face.before, face.after):
            assert face.before is not None and face.after is not None
            changes.setdefault(keyframe.shot, []).append(face.after - face.before)
    return CharacterRow(
        character=name,
        embedder=embedder,
        scores=tuple(value for _, _, value in scored),
        mean=_mean(shots),
        worst=(worst[0], worst[2]) if worst else None,
        best=(best[0], best[2]) if best else None,
        verdicts=Counter(h.verdict for _, h, _ in scored),
        no_face=Counter(short_reason(h.no_score) for _, h in own if h.value is None),
        faces=Counter(face.state for face in passes),
        gain=_mean(changes),
        loras=tuple(dict.fromkeys(lora for _, h in own for lora in h.loras)),
    )


def _mean(shots: Mapping[str, Sequence[float]]) -> Interval | None:
    if sum(map(len, shots.values())) < 2:
        return None
    return clustered_mean(list(shots.values()))


def _rank(keyframe: Keyframe) -> tuple[float, int]:
    lowest = keyframe.lowest
    return (-math.inf if lowest is None else lowest, -keyframe.take)


# --- reading -------------------------------------------------------------------------------------


def _record(sidecar: Mapping[str, Any]) -> Mapping[str, Any]:
    data: Any = sidecar
    for name in ("record", "keyframe", "record"):
        data = data.get(name) if isinstance(data, Mapping) else None
    return data if isinstance(data, Mapping) else {}


def _rows(record: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The objects of a list in the record that are a character's."""
    data = record.get(name)
    found = data if isinstance(data, list) else []
    return [h for h in found if isinstance(h, Mapping) and isinstance(h.get("character"), str)]


def _loras(record: Mapping[str, Any], character: str) -> tuple[tuple[str, float], ...]:
    own = [row for row in _rows(record, "loras") if row["character"] == character]
    return tuple((_text(row.get("name")), _number(row.get("weight")) or 0.0) for row in own)


def _head(data: Mapping[str, Any], record: Mapping[str, Any]) -> Head:
    score = data.get("score")
    score = score if isinstance(score, Mapping) else {}
    box = data.get("box")
    sides = [_number(v) for v in box] if isinstance(box, (list, tuple)) else []
    return Head(
        character=data["character"],
        value=_number(score.get("value")),
        probability=_number(score.get("probability")),
        verdict=_text(score.get("verdict")),
        embedder=_text(score.get("embedder")),
        no_score=_text(data.get("no_score")),
        box=_box(sides),
        face=_face(data.get("face")),
        loras=_loras(record, data["character"]),
    )


def _box(sides: Sequence[float | None]) -> tuple[float, float, float, float] | None:
    known = [v for v in sides if v is not None]
    if len(known) != 4 or len(sides) != 4 or known[2] <= 0 or known[3] <= 0:
        return None
    return (known[0], known[1], known[2], known[3])


def _face(data: object) -> FacePass | None:
    if not isinstance(data, Mapping):
        return None
    before, after = _number(data.get("before")), _number(data.get("after"))
    return FacePass(_text(data.get("state")), _text(data.get("reason")), before, after)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)

# SPDX-License-Identifier: GPL-3.0-or-later
"""How well drawn heads match their characters: reading the server's record, and a film's table.

The record of a drawn keyframe has "heads", one entry per character of its request, in order:
character, box ([left, top, width, height] in pixels of the delivered picture, or null), yaw
(degrees), score ({value, probability, verdict, embedder} or null), no_score (why there is none)
and face (what the face pass did, null where it was off). A score's value is a cosine, -1..1, 1 for
the very same face; how high is high depends on the embedder, and its verdict says so.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

verdict_words = {"same": "on model", "unsure": "in doubt", "other": "off model"}
"""What a verdict says to an artist."""


@dataclass(frozen=True)
class FacePassResult:
    """What the face pass did to a head. state: "repaired", "kept" (the old head was better, so it
    stays) or "skipped"; reason: why. before, after: cosines, where there are scores."""

    state: str
    reason: str = ""
    before: float | None = None
    after: float | None = None


@dataclass(frozen=True)
class HeadScore:
    """One character's head in a drawing.

    value: cosine, None where there is no score; then `no_score` says why. probability: that it is
    the same face, 0..1. verdict: "same", "unsure", "other" or "" where nothing is calibrated.
    box: left, top, width, height in pixels of the picture. yaw: degrees from facing the camera,
    None where it is not known. face: None where the pass was off.
    """

    character: str
    value: float | None
    probability: float | None = None
    verdict: str = ""
    embedder: str = ""
    no_score: str = ""
    box: tuple[float, float, float, float] | None = None
    face: FacePassResult | None = None
    yaw: float | None = None


def heads_of_sidecar(sidecar: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The record of heads in a keyframe's sidecar, as plain data; empty where it has none."""
    record = _object(_object(_object(sidecar).get("record")).get("keyframe")).get("record")
    return heads_of_record(record)


def heads_of_record(record: object) -> list[dict[str, Any]]:
    """The heads of the record that the server gave with a drawing, as plain data."""
    heads = _object(record).get("heads")
    return [h for h in heads if isinstance(h, dict)] if isinstance(heads, list) else []


def read_heads(heads: Iterable[Mapping[str, Any]]) -> list[HeadScore]:
    """The entries of a record's "heads". One that names no character is left out, and logged.

    Tolerant of what is missing: the record may be of an older or newer server.
    """
    found = []
    for head in heads:
        name = head.get("character")
        if not isinstance(name, str) or not name:
            log.warning("a head of the record names no character: %s", head)
            continue
        score = _object(head.get("score"))
        found.append(
            HeadScore(
                character=name,
                value=_number(score.get("value")),
                probability=_number(score.get("probability")),
                verdict=_text(score.get("verdict")),
                embedder=_text(score.get("embedder")),
                no_score=_text(head.get("no_score")),
                box=_box(head.get("box")),
                face=_face(head.get("face")),
                yaw=_number(head.get("yaw")),
            )
        )
    return found


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> tuple[HeadScore, ...]:
    """`read_heads` of JSON, remembered: panels ask at every redraw. Nothing for what is none."""
    try:
        return tuple(read_heads(heads_of_record({"heads": json.loads(text)})))
    except ValueError:
        log.warning("a record of heads is no JSON: %.80s", text)
        return ()


def least(heads: Iterable[HeadScore]) -> tuple[float, HeadScore] | None:
    """The lowest score of the heads that have one, with its head; None where none has."""
    scored = [(h.value, h) for h in heads if h.value is not None]
    return min(scored, key=lambda pair: pair[0], default=None)


def lowest(heads: Iterable[HeadScore]) -> float | None:
    """The lowest score of the heads that have one; None where none has."""
    found = least(heads)
    return found[0] if found else None


def in_words(head: HeadScore) -> str:
    """The score in a few words: "0.62, on model", or why there is none."""
    if head.value is None:
        return f"no score: {head.no_score or 'the server gave none.'}"
    verdict = verdict_words.get(head.verdict)
    return f"{head.value:.2f}, {verdict}" if verdict else f"{head.value:.2f}"


def face_in_words(face: FacePassResult) -> str:
    """What the face pass did, in a sentence."""
    if face.state == "repaired":
        words = "Face repaired."
        if face.before is not None and face.after is not None:
            words = f"Face repaired: {face.before:.2f} before, {face.after:.2f} after."
        return f"{words} {face.reason}".rstrip()
    words = "Face kept as drawn" if face.state == "kept" else "Face not repaired"
    return f"{words}: {face.reason}" if face.reason else f"{words}."


# --- the film ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """A drawing that the film shows. shot: its uid."""

    shot: str
    frame: int
    take: int
    heads: Sequence[HeadScore]


@dataclass(frozen=True)
class CharacterRow:
    """A character over the film, by one embedder, for numbers of two are not to be compared.

    mean: of its scores, None where it has none. worst: the frame with its lowest score (of equal
    ones the first) and that score. scored, unscored: in how many frames it has one, and none (of
    any embedder; counted in its first row).
    off: in how many its verdict is "other".
    """

    character: str
    mean: float | None
    worst: Frame | None
    lowest: float | None
    scored: int
    unscored: int
    off: int
    embedder: str = ""


def table(frames: Iterable[Frame]) -> list[CharacterRow]:
    """The rows of the characters of these frames, in the order in which they first appear.

    A character has one row, or one for each embedder that scored it.
    """
    seen: dict[str, list[tuple[Frame, HeadScore]]] = {}
    for frame in frames:
        for head in frame.heads:
            seen.setdefault(head.character, []).append((frame, head))
    return [row for name, own in seen.items() for row in _rows(name, own)]


def _rows(name: str, own: list[tuple[Frame, HeadScore]]) -> list[CharacterRow]:
    scored = [(head.value, frame, head) for frame, head in own if head.value is not None]
    unscored = len(own) - len(scored)
    rows: list[CharacterRow] = []
    for embedder in dict.fromkeys(head.embedder for _, _, head in scored):
        its = [entry for entry in scored if entry[2].embedder == embedder]
        value, worst, _ = min(its, key=lambda entry: entry[0])
        rows.append(
            CharacterRow(
                character=name,
                mean=math.fsum(v for v, _, _ in its) / len(its),
                worst=worst,
                lowest=value,
                scored=len(its),
                unscored=unscored if not rows else 0,
                off=sum(head.verdict == "other" for _, _, head in its),
                embedder=embedder,
            )
        )
    return rows or [CharacterRow(name, None, None, None, 0, unscored, 0)]


# --- reading -------------------------------------------------------------------------------------


def _face(data: object) -> FacePassResult | None:
    face = _object(data)
    if not face:
        return None
    return FacePassResult(
        _text(face.get("state")),
        _text(face.get("reason")),
        _number(face.get("before")),
        _number(face.get("after")),
    )


def _box(data: object) -> tuple[float, float, float, float] | None:
    if not isinstance(data, (list, tuple)) or len(data) != 4:
        return None
    left, top, width, height = (_number(v) for v in data)
    if left is None or top is None or width is None or height is None:
        return None
    return left, top, width, height


def _object(data: object) -> Mapping[str, Any]:
    return data if isinstance(data, Mapping) else {}


def _text(data: object) -> str:
    return data if isinstance(data, str) else ""


def _number(data: object) -> float | None:
    if isinstance(data, bool) or not isinstance(data, (int, float)) or not math.isfinite(data):
        return None
    return float(data)

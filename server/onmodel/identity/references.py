# SPDX-License-Identifier: GPL-3.0-or-later
"""A character's references and the score of a drawn head against them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onmodel.identity.calibrate import Calibration
from onmodel.identity.interface import (
    Array,
    Embedder,
    Embedding,
    HeadBox,
    NoFace,
    cosine,
    unit,
)


class NoReferenceError(Exception):
    """No reference of a character shows a face. The message says why, picture by picture."""


@dataclass(frozen=True)
class Reference:
    """A picture (H, W, 3) uint8 RGB of a character; head: its box, None = the embedder looks."""

    image: Array
    head: HeadBox | None = None
    yaw: float | None = None


@dataclass(frozen=True)
class References:
    """What a character looks like to one embedder.

    mean: the direction of the mean of the references' embeddings. parts: those embeddings.
    refused: (index, why) of references without a usable face.
    """

    embedder: str
    mean: Embedding
    parts: tuple[Embedding, ...]
    refused: tuple[tuple[int, NoFace], ...] = ()


@dataclass(frozen=True)
class Score:
    """How like a character a head is.

    value: cosine to the mean reference, -1 to 1. probability: that it is the same person, by the
    embedder's calibration; verdict: "same", "unsure", "other"; both None without a calibration.
    """

    value: float
    probability: float | None
    verdict: str | None
    embedder: str


def look_at(embedder: Embedder, references: Sequence[Reference]) -> References:
    """The references of one character, at least one of them with a face; three are usual.

    Raises NoReferenceError where none has one.
    """
    parts: list[Embedding] = []
    refused: list[tuple[int, NoFace]] = []
    for index, reference in enumerate(references):
        found = embedder.embed(reference.image, reference.head, reference.yaw)
        if isinstance(found, NoFace):
            refused.append((index, found))
        else:
            parts.append(found)
    if not parts:
        why = " ".join(f"{i + 1}: {no.reason}" for i, no in refused) or "There are none."
        raise NoReferenceError(f"No reference shows a face that {embedder.name} can use. {why}")
    return References(embedder.name, unit(np.mean(parts, axis=0)), tuple(parts), tuple(refused))


def score(
    embedder: Embedder,
    references: References,
    image: Array,
    head: HeadBox | None = None,
    yaw: float | None = None,
    calibration: Calibration | None = None,
) -> Score | NoFace:
    """The score of a head in a picture, or why there is none.

    Raises ValueError where references or calibration were made with another embedder: their
    numbers mean something else.
    """
    if references.embedder != embedder.name:
        raise ValueError(f"References of {references.embedder} cannot serve {embedder.name}.")
    if calibration is not None and calibration.embedder != embedder.name:
        raise ValueError(f"The calibration of {calibration.embedder} is not {embedder.name}'s.")
    found = embedder.embed(image, head, yaw)
    if isinstance(found, NoFace):
        return found
    value = cosine(found, references.mean)
    if calibration is None:
        return Score(value, None, None, embedder.name)
    probability, verdict = calibration.probability(value), calibration.verdict(value)
    return Score(value, probability, verdict, embedder.name)

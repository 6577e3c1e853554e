# SPDX-License-Identifier: GPL-3.0-or-later
"""Which checkpoint? The identity of its validation drawings, measured, and what speaks against it.

For each checkpoint: the mean cosine of its drawings' heads to the references' mean, with a
bootstrap interval; drawings without a usable face, with the reasons; drawings that copy a training
picture; and whether the LoRA does anything at all. Nothing here draws random numbers of torch.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from onmodel.faces import scores
from onmodel.identity import rehearsal, report
from onmodel.identity.find import find_head
from onmodel.identity.interface import Array, Embedder, HeadBox, NoFace, cosine
from onmodel.identity.references import NoReferenceError, Reference, References, look_at
from onmodel.lora.save import write_atomically
from onmodel.train import curve, dataset
from onmodel.train.pictures import open_picture
from onmodel.train.plan import PlanError

log = logging.getLogger(__name__)

copies_allowed = 0.1
"""Share of a checkpoint's drawings that may be copies before it is passed over."""
faces_needed = 0.5
"""Share of drawings with a usable face below which a mean says little."""
visible_effect = 1.0
"""Mean difference from the base model's drawings, in 8-bit levels, below which nothing is seen:
rounding alone makes differences of this size between two machines."""
_thumbnail = 32
idle = "This LoRA has no effect: all its weights are zero. Train longer or at a higher rate."


@dataclass(frozen=True)
class CheckpointScore:
    """One checkpoint. identity: mean and 95 % interval, None with fewer than two faces.

    scores: cosine to the references by number of the drawing, faces only. without_face: number of
    the drawing and the reason. copies: numbers of drawings that copy a training picture. effect:
    mean difference from the base model's drawings, 8-bit levels.
    """

    step: int
    identity: report.Interval | None
    scores: dict[int, float]
    without_face: dict[int, str]
    copies: tuple[int, ...]
    effect: float
    drawings: int

    @property
    def fit(self) -> bool:
        """Whether it may be chosen."""
        return (
            self.identity is not None
            and len(self.scores) >= faces_needed * self.drawings
            and len(self.copies) <= copies_allowed * self.drawings
            and self.effect >= visible_effect
        )


@dataclass(frozen=True)
class Choice:
    """best: step of the chosen checkpoint, None where none is fit. base: the base model's own
    drawings. sentence: what was found, for people."""

    best: int | None
    base: CheckpointScore | None
    checkpoints: tuple[CheckpointScore, ...]
    sentence: str
    embedder: str = ""

    @property
    def zero_effect(self) -> bool:
        """Whether no checkpoint changes the drawings visibly."""
        return all(c.effect < visible_effect for c in self.checkpoints)

    def json(self) -> str:
        """All of it, for people and programs."""
        told = {**asdict(self), "zero_effect": self.zero_effect}
        return json.dumps(told, indent=1, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Judge:
    """Who tells faces. find: the head box in a picture whose head is not known, for an embedder
    that cannot find faces itself. note: what it is weak at, or ""."""

    embedder: Embedder
    find: Callable[[Array], HeadBox | NoFace] | None = None
    note: str = ""

    def embed(self, image: Array, head: HeadBox | None) -> Array | NoFace:
        """The embedding of the head in a picture, or why there is none."""
        found = self.find(image) if head is None and self.find is not None else head
        return found if isinstance(found, NoFace) else self.embedder.embed(image, found)

    def look_at(self, shown: Sequence[Reference]) -> References:
        """See `references.look_at`. Raises NoReferenceError."""
        return look_at(self.embedder, [self._placed(r) for r in shown])

    def _placed(self, shown: Reference) -> Reference:
        if shown.head is not None or self.find is None:
            return shown
        found = self.find(shown.image)
        return shown if isinstance(found, NoFace) else replace(shown, head=found)


def judge_for(embedded: bool) -> Judge | str:
    """Who can tell the faces that a model draws, or a sentence why nobody can. embedded: it is the
    rehearsal model. The same one as scores drawings, see `onmodel.faces.scores`."""
    found = scores.choose(embedded)
    if found.embedder is None:
        return found.why_not
    own = found.embedder.name == rehearsal.name
    return Judge(found.embedder, find_head if own else None, found.note)


def choose(
    drawings: Mapping[int, Sequence[Array]],
    training: Sequence[Reference],
    judge: Judge | str,
    heads: Sequence[HeadBox | None] | None = None,
    references: Sequence[Reference] | None = None,
) -> Choice:
    """Judge every checkpoint and choose.

    drawings: by step the same drawings in the same order, (H, W, 3) uint8; step 0 are the base
    model's. training: the training pictures. judge: a sentence where there is nobody: then only
    effects are told, and nothing is chosen, as where no reference shows a face. heads: each
    drawing's head box, where it is known. references: what likeness is measured against; None:
    the training pictures. Raises PlanError where there is nothing to judge.
    """
    counts = {len(pictures) for pictures in drawings.values()}
    steps = sorted(step for step in drawings if step > 0)
    if not steps or len(counts) != 1 or 0 not in drawings:
        raise PlanError(
            "There are no validation drawings to choose by.",
            "Set validation.every and validation.prompts, and train again.",
        )
    if isinstance(judge, str):
        return _unjudged(drawings, steps, judge)
    try:
        likeness = judge.look_at(references or training)
        originals = likeness if references is None else judge.look_at(training)
    except NoReferenceError as error:
        return _unjudged(drawings, steps, str(error))
    guard = _CopyGuard(training, originals)
    boxes = list(heads) if heads is not None else [None] * counts.pop()

    def judged(step: int) -> CheckpointScore:
        return _judge(step, drawings[step], drawings[0], boxes, judge, likeness, guard)

    base = judged(0)
    found = tuple(judged(step) for step in steps)
    fit = [c for c in found if c.fit]
    best = max(fit, key=lambda c: (c.identity.value if c.identity else -2.0, -c.step), default=None)
    sentence = f"{_sentence(best, base, found)} {judge.note}".strip()
    return Choice(None if best is None else best.step, base, found, sentence, judge.embedder.name)


def _unjudged(drawings: Mapping[int, Sequence[Array]], steps: Sequence[int], why: str) -> Choice:
    """Effects alone."""
    found = tuple(
        CheckpointScore(step, None, {}, {}, (), _effect(drawings, step), len(drawings[step]))
        for step in steps
    )
    without = all(c.effect < visible_effect for c in found)
    return Choice(None, None, found, _no_effect(found) if without else why)


def _judge(
    step: int,
    pictures: Sequence[Array],
    base: Sequence[Array],
    boxes: Sequence[HeadBox | None],
    judge: Judge,
    likeness: References,
    guard: _CopyGuard,
) -> CheckpointScore:
    likeness_of: dict[int, float] = {}
    without: dict[int, str] = {}
    copies: list[int] = []
    for number, (picture, box) in enumerate(zip(pictures, boxes, strict=True)):
        found = judge.embed(picture, box)
        if isinstance(found, NoFace):
            without[number] = found.reason
            continue
        likeness_of[number] = cosine(found, likeness.mean)
        if guard.copied(picture, found):
            copies.append(number)
    values = list(likeness_of.values())
    interval = report.mean(values) if len(values) > 1 else None
    effect = _effect({0: base, step: pictures}, step)
    copied = tuple(copies)
    return CheckpointScore(step, interval, likeness_of, without, copied, effect, len(pictures))


def _effect(drawings: Mapping[int, Sequence[Array]], step: int) -> float:
    """Mean difference of a step's drawings from the base model's, in 8-bit levels."""
    pairs = zip(drawings[step], drawings[0], strict=True)
    return float(np.mean([_difference(a, b) for a, b in pairs]))


class _CopyGuard:
    """Tells copies of training pictures.

    A drawing is a copy where one training picture is nearer to it than any two training pictures
    are to each other, both as a face (cosine of embeddings) and as a picture (root mean square of
    small grey thumbnails): a good likeness alone, or a pose that maps asked for alone, is none.
    """

    def __init__(self, training: Sequence[Reference], originals: References) -> None:
        refused = {index for index, _ in originals.refused}
        kept = [r for i, r in enumerate(training) if i not in refused]
        self.faces = originals.parts
        self.pictures = [_small(r.image) for r in kept]
        pairs = [(i, j) for i in range(len(kept)) for j in range(i)]
        # With a single picture there is no yardstick; identical is then the only sure copy.
        self.face_bar = max((cosine(self.faces[i], self.faces[j]) for i, j in pairs), default=0.999)
        self.picture_bar = min(
            (_rms(self.pictures[i], self.pictures[j]) for i, j in pairs), default=1.0
        )

    def copied(self, picture: Array, face: Array) -> bool:
        """Whether this drawing copies a training picture."""
        small = _small(picture)
        return any(
            cosine(face, f) > self.face_bar and _rms(small, p) < self.picture_bar
            for f, p in zip(self.faces, self.pictures, strict=True)
        )


def _small(picture: Array) -> Array:
    """(32, 32) float64 grey, 0..255."""
    size = (_thumbnail, _thumbnail)
    grey = Image.fromarray(picture).convert("L").resize(size, Image.Resampling.BOX)
    return np.asarray(grey, dtype=np.float64)


def _rms(a: Array, b: Array) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2)))


def _difference(a: Array, b: Array) -> float:
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).mean())


def _sentence(
    best: CheckpointScore | None,
    base: CheckpointScore,
    found: Sequence[CheckpointScore],
) -> str:
    if all(c.effect < visible_effect for c in found):
        return _no_effect(found)
    if best is None:
        copying = sum(len(c.copies) > copies_allowed * c.drawings for c in found)
        if copying:
            return (
                f"{copying} of {len(found)} checkpoints copy training pictures, and no other one "
                "is fit. Train shorter, or with more and more varied pictures."
            )
        reasons = Counter(reason for c in found for reason in c.without_face.values())
        most = "".join(f" {reason}" for reason, _ in reasons.most_common(1))
        return f"No checkpoint drew enough usable faces to be judged.{most}"
    said = f"Step {best.step} is best: identity {best.identity}"
    if base.identity is not None:
        said += f", the base model's own drawings {base.identity}"
    passed = [c.step for c in found if len(c.copies) > copies_allowed * c.drawings]
    if passed:
        said += f"; passed over for copying: {', '.join(map(str, passed))}"
    return said + "."


def _no_effect(found: Sequence[CheckpointScore]) -> str:
    return (
        "This LoRA has no effect: its drawings equal the base model's within "
        f"{max(c.effect for c in found):.2f} of 255 levels. Train longer or at a higher rate."
    )


def choose_in(
    folder: Path,
    steps: Collection[int],
    training: Sequence[Path],
    judge: Judge | str,
    heads: Sequence[HeadBox | None],
    references: Sequence[Path] | None = None,
) -> Choice:
    """Judge the validation drawings in a run's folder; writes choice.json and identity.png.

    steps: of the checkpoints to choose from. training, references: picture files. heads: where
    each drawing's head is, if that is known. Drawings of another number belong to an earlier plan
    and are left out. Raises PlanError, PictureError, OSError.
    """
    drawings = {}
    for place in sorted((folder / "drawings").glob("[0-9]*")):
        pictures = [_read(p) for p in sorted(place.glob("*.png"))]
        if len(pictures) == len(heads) and int(place.name) in {0, *steps}:
            drawings[int(place.name)] = pictures
    shown = [Reference(_read(p)) for p in training]
    measured = None if references is None else [Reference(_read(p)) for p in references]
    choice = choose(drawings, shown, judge, heads, measured)
    write_atomically(folder / "choice.json", choice.json().encode())
    picture = curve.draw(
        [(c.step, c.identity) for c in choice.checkpoints],
        None if choice.base is None else choice.base.identity,
        choice.best,
        f"Identity of validation drawings ({choice.embedder or 'nobody judged them'})",
    )
    write_atomically(folder / "identity.png", picture)
    return choice


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder of references, masks and maps left out. Raises PlanError."""
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in dataset.suffixes and not dataset.companion(path)
    ]
    if not found:
        raise PlanError(f"There are no pictures in {folder}.", "Set validation.references.")
    return found


def _read(path: Path) -> Array:
    return np.asarray(open_picture(path)[0])

# SPDX-License-Identifier: GPL-3.0-or-later
"""Shots: a camera bound to a timeline marker, until the frame before the next such marker.

All ranges are inclusive. Frames before the first camera marker belong to no shot. Shots are
numbered 010, 020, 030, so that 015 fits between them. Files lie at
<root>/<film>/<shot>/take_<NN>/<film>_<shot>_<frame>.png.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .request import Size

name_step = 10
_default_name = re.compile(r"(F_-?\d+|Marker)?(\.\d+)?")
_reserved_names = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
_longest_name = 60


class ShotError(ValueError):
    """A film without the shots that were asked for; the message says what to do."""


class Marker(NamedTuple):
    """A timeline marker. camera: the name of its camera, None for an ordinary marker.

    uid: what never changes about the shot, for its overrides; the name where there is none.
    """

    frame: int
    name: str
    camera: str | None
    uid: str = ""


@dataclass(frozen=True)
class Overrides:
    """What the artist set for one shot; None and empty take the film's.

    frame_size: delivery size in pixels. marked: keyframes besides the first and the last frame.
    handles: frames kept beyond the cut on both sides. takes: how many of each keyframe.
    """

    name: str = ""
    enabled: bool = True
    prompt: str = ""
    negative_prompt: str = ""
    seed: int | None = None
    frame_size: Size | None = None
    handles: int = 0
    first: bool = True
    last: bool = True
    marked: frozenset[int] = frozenset()
    takes: int | None = None


@dataclass(frozen=True)
class Shot:
    """One shot of the film.

    camera: its object's name. start, end: inclusive frames. keyframes: the frames to draw, sorted,
    within start and end. prompt and negative_prompt: the shot's own words, without the film's.
    seed, frame_size, takes: None takes the film's. handles: frames beyond the cut, both sides.
    """

    name: str
    camera: str
    start: int
    end: int
    uid: str = ""
    keyframes: list[int] = field(default_factory=list)
    enabled: bool = True
    prompt: str = ""
    negative_prompt: str = ""
    seed: int | None = None
    frame_size: Size | None = None
    handles: int = 0
    takes: int | None = None

    @property
    def length(self) -> int:
        """In frames; a shot of one frame is a still."""
        return self.end - self.start + 1

    @property
    def with_handles(self) -> tuple[int, int]:
        """First and last frame, handles included."""
        return self.start - self.handles, self.end + self.handles


def shots_from_markers(
    markers: Iterable[tuple[int, str, str | None] | Marker],
    frame_start: int,
    frame_end: int,
    overrides: Mapping[str, Overrides] | None = None,
) -> list[Shot]:
    """The film's shots in order of time, disabled ones included.

    markers: in any order. Where two cameras are bound at one frame the first of them counts, as in
    Blender. A shot that begins before frame_start begins there; one that lies outside of
    frame_start to frame_end altogether is left out.
    overrides: by the markers' uid (by name for markers without one).
    """
    overrides = overrides or {}
    bound: dict[int, Marker] = {}
    for marker in (Marker(*m) for m in markers):
        if marker.camera:
            bound.setdefault(marker.frame, marker)
    ordered = [bound[frame] for frame in sorted(bound)]
    chosen = [overrides.get(m.uid or m.name, Overrides()) for m in ordered]
    names = unique_names([o.name or m.name for o, m in zip(chosen, ordered, strict=True)])
    shots = []
    for k, (marker, own, name) in enumerate(zip(ordered, chosen, names, strict=True)):
        start = max(marker.frame, frame_start)
        end = ordered[k + 1].frame - 1 if k + 1 < len(ordered) else frame_end
        end = min(end, frame_end)
        if start > end:
            continue
        shots.append(
            Shot(
                name=name,
                camera=marker.camera or "",
                start=start,
                end=end,
                uid=marker.uid or marker.name,
                keyframes=keyframes_of(start, end, own.first, own.last, own.marked),
                enabled=own.enabled,
                prompt=own.prompt,
                negative_prompt=own.negative_prompt,
                seed=own.seed,
                frame_size=own.frame_size,
                handles=own.handles,
                takes=own.takes,
            )
        )
    return shots


def keyframes_of(
    start: int, end: int, first: bool, last: bool, marked: Iterable[int] = ()
) -> list[int]:
    """The frames of a shot that are drawn: sorted, each once, none outside of start to end."""
    frames = {f for f in marked if start <= f <= end}
    if first:
        frames.add(start)
    if last:
        frames.add(end)
    return sorted(frames)


def pick_shots(shots: Sequence[Shot], names: str = "all") -> list[Shot]:
    """The shots of these names, in film order: "all" (the enabled ones) or "010,030".

    A name that is a number may be written without zeros. A disabled shot is taken when it is named.
    Raises ShotError for a film without shots, a name that none has, and where nothing is left.
    """
    if not shots:
        raise ShotError(
            "The timeline has no shots. Bind a camera to a timeline marker: select the camera, go "
            "to the shot's first frame and use Marker > Bind Camera to Markers."
        )
    if names.strip().casefold() == "all":
        enabled = [shot for shot in shots if shot.enabled]
        if not enabled:
            raise ShotError("All shots are disabled. Enable one, or name the shots to draw.")
        return enabled
    wanted = [part.strip() for part in names.split(",") if part.strip()]
    if not wanted:
        raise ShotError('No shot was named. Give names such as "010,030", or "all".')
    have = ", ".join(shot.name for shot in shots)
    picked = []
    for name in wanted:
        found = [shot for shot in shots if _key(shot.name) == _key(name)]
        if not found:
            raise ShotError(f"There is no shot named {name}. The shots are: {have}.")
        picked += found
    return [shot for shot in shots if shot in picked]


def is_default_name(name: str) -> bool:
    """Whether Blender, not the artist, gave a marker this name ("F_24", "Marker", "")."""
    return _default_name.fullmatch(name) is not None


def unique_names(names: Sequence[str]) -> list[str]:
    """A name for each shot, in order of time: numbers for those without one, none twice.

    Numbers go up by ten, or lie between their neighbours' where the film is numbered already.
    """
    found = ["" if is_default_name(name.strip()) else name.strip() for name in names]
    taken: set[str] = set()
    for k, name in enumerate(found):
        if name and _key(name) in taken:
            found[k] = ""
        taken.add(_key(name))
    for k, name in enumerate(found):
        if not name:
            before = next((n for n in reversed(found[:k]) if n), "")
            after = next((n for n in found[k + 1 :] if n), "")
            found[k] = next_name(before, after, (n for n in found if n))
    return found


def next_name(before: str, after: str, taken: Iterable[str]) -> str:
    """A free number for a shot between two others ("" for none): "015" between "010" and "020"."""
    used = {_key(name) for name in taken}
    low = int(before) if before.isdecimal() else 0
    if after.isdecimal() and int(after) > low + 1:
        free = [n for n in range(low + 1, int(after)) if str(n) not in used]
        if free:
            middle = (low + int(after)) / 2
            # The roundest of the free numbers, then the one nearest to the middle.
            best = min(free, key=lambda n: (n % name_step != 0, n % 5 != 0, abs(n - middle)))
            return f"{best:03d}"
    number = low // name_step * name_step + name_step
    while str(number) in used:
        number += name_step
    return f"{number:03d}"


def _key(name: str) -> str:
    """What two names must differ in: not in case, a number not in leading zeros."""
    name = name.strip().casefold()
    return str(int(name)) if name.isdecimal() else name


def seed_for(shot_seed: int, frame: int, take: int) -> int:
    """A seed of its own for each keyframe and take, the same on every machine; 0..2**63-1.

    Take 1 of a shot's frames shares the shot's seed as typed: keyframes of one shot that start
    from one noise look alike. Every other take is drawn from all three numbers.
    """
    if take == 1:
        return shot_seed % 2**63
    digest = hashlib.sha256(f"{shot_seed}/{frame}/{take}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def file_name(text: str) -> str:
    """A name as part of a path that every system takes and that leads nowhere else.

    White space becomes "_". Where anything else had to be replaced, four digits of its hash are
    added, so that no two names become one file.
    """
    text = unicodedata.normalize("NFC", text).strip()
    spaced = re.sub(r"\s+", "_", text)
    clean = re.sub(r"[^\w.\-]", "_", spaced).strip(".")[:_longest_name].strip(".")
    reserved = _reserved_names.fullmatch(clean) is not None
    if clean == spaced and clean and not reserved:
        return clean
    mark = hashlib.sha256(text.encode()).hexdigest()[:4]
    return f"{'_' if reserved else ''}{clean or 'unnamed'}-{mark}"


def take_folder(root: Path, film: str, shot: str, take: int) -> Path:
    """<root>/<film>/<shot>/take_<NN>."""
    return root / file_name(film) / file_name(shot) / f"take_{take:02d}"


def output_path(root: Path, film: str, shot: str, take: int, frame: int) -> Path:
    """<root>/<film>/<shot>/take_<NN>/<film>_<shot>_<frame, four digits>.png."""
    name = f"{file_name(film)}_{file_name(shot)}_{frame:04d}.png"
    return take_folder(root, film, shot, take) / name


def takes_on_disk(root: Path, film: str, shot: str) -> list[int]:
    """The numbers of the takes that have a folder, sorted."""
    folder = take_folder(root, film, shot, 1).parent
    if not folder.is_dir():
        return []
    found = (re.fullmatch(r"take_(\d{2,})", p.name) for p in folder.iterdir() if p.is_dir())
    return sorted(int(m[1]) for m in found if m)

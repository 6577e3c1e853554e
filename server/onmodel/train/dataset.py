# SPDX-License-Identifier: GPL-3.0-or-later
"""A folder of training pictures: each one is kept, with its notes, or refused, with the reason.

NAME.png (.jpg, .jpeg, .webp)   the picture
NAME.txt                        its caption, UTF-8
NAME.mask.png or masks/NAME.png its mask, of the picture's size: white is the character
NAME.pose.png, NAME.depth.png   its maps, read where the plan trains with conditioning
12_mira woman/                  kohya's way: the pictures in it, each shown 12 times an epoch;
                                the name after the number serves where a caption is missing
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from onmodel.train.pictures import PictureError, open_map, open_mask, open_picture, pixel_digest
from onmodel.train.plan import DataPlan, PlanError

suffixes = (".png", ".jpg", ".jpeg", ".webp")
other_pictures = (".avif", ".bmp", ".gif", ".heic", ".jxl", ".tif", ".tiff", ".tga", ".psd", ".exr")
map_kinds = ("pose", "depth", "normal", "lineart")
largest_enlargement = 2.0
_repeats = re.compile(r"(\d+)_(.+)")


@dataclass(frozen=True)
class MapFile:
    """A picture's map. kind: "pose", "depth", … digest: of its pixels."""

    kind: str
    path: Path
    digest: str


@dataclass(frozen=True)
class Picture:
    """A picture that is trained on.

    name: relative to the folder. width, height: pixels, upright (EXIF applied). caption: as the
    model gets it. mask: file, None where the whole picture counts; mask_share: mean of the mask,
    0..1. repeats: showings in an epoch. digest, mask_digest: sha256 of the decoded upright RGB
    pixels and of the mask's, so that caches follow content and not names or dates. notes: what
    was done to it or is odd about it.
    """

    path: Path
    name: str
    width: int
    height: int
    caption: str
    digest: str
    repeats: int = 1
    regularisation: bool = False
    mask: Path | None = None
    mask_share: float = 1.0
    mask_digest: str = ""
    maps: tuple[MapFile, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refused:
    """A file that is not trained on. reason: a sentence."""

    name: str
    reason: str
    regularisation: bool = False


@dataclass(frozen=True)
class DataSet:
    """What a scan found, in the order of names; regularisation pictures come last."""

    pictures: tuple[Picture, ...] = ()
    refused: tuple[Refused, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def own(self) -> tuple[Picture, ...]:
        """The pictures of the character."""
        return tuple(p for p in self.pictures if not p.regularisation)

    @property
    def others(self) -> tuple[Picture, ...]:
        """The regularisation pictures."""
        return tuple(p for p in self.pictures if p.regularisation)


@dataclass
class _Scan:
    """One folder being read. seen: pixel digest to name, over both folders."""

    plan: DataPlan
    root: Path
    regularisation: bool
    seen: dict[str, str]
    pictures: list[Picture] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _Refusal(Exception):
    """A picture's reason."""


def scan(plan: DataPlan) -> DataSet:
    """Reads every file of the plan's folders. Raises PlanError where a folder is not there."""
    seen: dict[str, str] = {}
    own = _folder(_Scan(plan, _existing(plan.images, "images"), False, seen))
    if plan.regularisation is None:
        return DataSet(tuple(own.pictures), tuple(own.refused), tuple(own.notes))
    other = _folder(_Scan(plan, _existing(plan.regularisation, "regularisation"), True, seen))
    return DataSet(
        tuple(own.pictures + other.pictures),
        tuple(own.refused + other.refused),
        tuple(own.notes + other.notes),
    )


def _existing(folder: str, key: str) -> Path:
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise PlanError(f"There is no folder {path}.", f"Set data.{key} to the folder of pictures.")
    return path


def _folder(scan: _Scan) -> _Scan:
    _files(scan, scan.root, scan.plan.repeats, "")
    for folder in sorted(p for p in scan.root.iterdir() if p.is_dir()):
        match = _repeats.fullmatch(folder.name)
        if match and int(match[1]) > 0:
            _files(scan, folder, scan.plan.repeats * int(match[1]), match[2].strip())
        elif folder.name != "masks" and not folder.name.startswith("."):
            scan.notes.append(
                f"The folder {folder.name} is not read: only folders named like "
                f"“10_{scan.plan.trigger or 'name'}” are."
            )
    return scan


def _files(scan: _Scan, folder: Path, repeats: int, fallback: str) -> None:
    """The pictures of one folder. fallback: the caption where there is none."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    pictures = [p for p in files if p.suffix.lower() in suffixes and not companion(p)]
    stems = {p.stem for p in pictures}
    strangers: list[str] = []
    for path in files:
        name = path.relative_to(scan.root).as_posix()
        if path in pictures:
            _picture(scan, path, name, repeats, fallback)
        elif path.suffix.lower() in other_pictures:
            reason = f"{path.suffix} files are not read: save it as PNG, JPEG or WebP."
            scan.refused.append(Refused(name, reason, scan.regularisation))
        elif (companion(path) or path.stem) not in stems:
            strangers.append(name)
    for mask in sorted((folder / "masks").glob("*.png")):
        if mask.stem not in stems:
            strangers.append(mask.relative_to(scan.root).as_posix())
    if strangers:
        more = f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
        scan.notes.append(f"No picture belongs to {', '.join(strangers[:5])}{more}.")


def companion(path: Path) -> str:
    """The stem of the picture that this mask or map belongs to, "" for pictures."""
    stem, _, kind = path.stem.rpartition(".")
    if path.suffix.lower() == ".png" and stem and kind in ("mask", *map_kinds):
        return stem
    return ""


def _picture(scan: _Scan, path: Path, name: str, repeats: int, fallback: str) -> None:
    try:
        picture = _read(scan, path, name, repeats, fallback)
    except (PictureError, _Refusal) as error:
        scan.refused.append(Refused(name, str(error), scan.regularisation))
        return
    scan.seen[picture.digest] = name
    scan.pictures.append(picture)


def _read(scan: _Scan, path: Path, name: str, repeats: int, fallback: str) -> Picture:
    """The picture with all that belongs to it. Raises PictureError or _Refusal."""
    plan = scan.plan
    image, notes = open_picture(path)
    _large_enough(image, plan)
    digest = pixel_digest(image)
    if digest in scan.seen:
        raise _Refusal(f"It has the same pixels as {scan.seen[digest]}.")
    caption, said = _caption(scan, path, fallback)
    picture = Picture(
        path=path,
        name=name,
        width=image.width,
        height=image.height,
        caption=caption,
        digest=digest,
        repeats=repeats,
        regularisation=scan.regularisation,
        notes=(*notes, *said),
    )
    # A regularisation picture shows somebody else: all of it counts.
    if plan.masks and not scan.regularisation:
        picture = _with_mask(picture, image)
    return _with_maps(picture, image) if plan.conditioning else picture


def _large_enough(image: Image.Image, plan: DataPlan) -> None:
    short, long = sorted(image.size)
    needed = max(plan.min_bucket, plan.bucket_step)
    if plan.upscale:
        needed = round(needed / largest_enlargement)
        pixels = image.width * image.height * largest_enlargement**2
        if pixels < 0.9 * plan.resolution**2:
            raise _Refusal(
                f"{image.width} x {image.height} is too small: it would be enlarged more than "
                f"{largest_enlargement:g} times for {plan.resolution} x {plan.resolution}."
            )
    if short < needed:
        raise _Refusal(
            f"{image.width} x {image.height} is too small: the short side needs {needed} pixels."
        )
    if long / short > plan.max_bucket / plan.min_bucket:
        raise _Refusal(
            f"{image.width} x {image.height} is too long for buckets between {plan.min_bucket} "
            f"and {plan.max_bucket}: crop it."
        )


def _caption(scan: _Scan, path: Path, fallback: str) -> tuple[str, list[str]]:
    file = path.with_suffix(".txt")
    try:
        text = " ".join(file.read_text("utf-8").split()) if file.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise _Refusal(f"Its caption {file.name} cannot be read: {error}.") from error
    notes: list[str] = []
    if text is None:
        fallback = fallback or (scan.plan.noun if scan.regularisation else "")
        if not fallback:
            raise _Refusal(f"It has no caption: write one into {file.name}.")
        text = fallback
        notes.append(f"no caption file: “{fallback}”")
    elif not text:
        raise _Refusal(f"Its caption {file.name} is empty.")
    if not scan.regularisation:
        full = complete_caption(text, scan.plan.trigger, scan.plan.noun)
    elif _word(scan.plan.trigger).search(text):
        raise _Refusal(
            f"It is a regularisation picture, but its caption has the trigger "
            f"“{scan.plan.trigger}”: that would teach the name another face."
        )
    else:
        full = complete_caption(text, "", scan.plan.noun)
    if full != text:
        notes.append(f"caption completed: “{full}”")
    return full, notes


def complete_caption(caption: str, trigger: str, noun: str) -> str:
    """The caption with trigger and noun in it, side by side, as prompts will have them.

    "a woman smiling" becomes "a mira woman smiling"; "mira, smiling" becomes "mira woman,
    smiling"; a caption with neither gets "mira woman, " in front.
    """
    subject = f"{trigger} {noun}".strip()
    has_trigger = not trigger or _word(trigger).search(caption)
    has_noun = not noun or _word(noun).search(caption)
    if has_trigger and has_noun:
        return caption
    if trigger and has_trigger:
        return _word(trigger).sub(lambda _: subject, caption, count=1)
    if noun and has_noun:
        return _word(noun).sub(lambda _: subject, caption, count=1)
    return f"{subject}, {caption}"


def _word(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)" if text else r"(?!)", re.IGNORECASE)


def _with_mask(picture: Picture, image: Image.Image) -> Picture:
    path = next((p for p in _mask_places(picture.path) if p.is_file()), None)
    if path is None:
        return picture
    mask = open_mask(path)
    if mask.size != image.size:
        raise _Refusal(
            f"Its mask {path.name} has {mask.width} x {mask.height} pixels, "
            f"the picture {image.width} x {image.height}."
        )
    share = sum(v * n for v, n in enumerate(mask.histogram())) / (255 * mask.width * mask.height)
    if mask.histogram()[0] == mask.width * mask.height:
        raise _Refusal(f"Its mask {path.name} is empty: no pixel is the character.")
    notes = picture.notes
    if share < 0.005:
        notes += (f"the mask covers only {share:.2%}",)
    elif share > 0.995:
        notes += ("the mask covers the whole picture",)
    return replace(
        picture, mask=path, mask_share=share, mask_digest=pixel_digest(mask), notes=notes
    )


def _mask_places(path: Path) -> Iterator[Path]:
    yield path.with_name(f"{path.stem}.mask.png")
    yield path.parent / "masks" / f"{path.stem}.png"
    yield path.parent.parent / "masks" / path.parent.name / f"{path.stem}.png"


def _with_maps(picture: Picture, image: Image.Image) -> Picture:
    maps: list[MapFile] = []
    for kind in map_kinds:
        path = picture.path.with_name(f"{picture.path.stem}.{kind}.png")
        if not path.is_file():
            continue
        drawn = open_map(path)
        if drawn.size != image.size:
            raise _Refusal(
                f"Its {kind} map has {drawn.width} x {drawn.height} pixels, "
                f"the picture {image.width} x {image.height}."
            )
        maps.append(MapFile(kind, path, pixel_digest(drawn)))
    return replace(picture, maps=tuple(maps))


def content_digest(data: DataSet) -> str:
    """sha256 over all kept pixels, masks, captions and repeats: the identity of a data set."""
    whole = hashlib.sha256()
    for p in data.pictures:
        parts = (p.digest, p.mask_digest, *(m.digest for m in p.maps), p.caption, str(p.repeats))
        whole.update("\x1f".join((*parts, str(p.regularisation))).encode() + b"\x1e")
    return whole.hexdigest()

# SPDX-License-Identifier: GPL-3.0-or-later
"""Drawn keyframes on disk, with their sidecars and maps, as the rows of a contact sheet."""

from __future__ import annotations

import io
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from onmodel.report.contact_sheet import Cell, Row, contact_sheet
from onmodel.report.film import (
    CharacterRow,
    Keyframe,
    film_table,
    keyframe_of,
    used_takes,
    verdict_words,
)
from onmodel.report.marks import HeadLine
from onmodel.report.output import lora_words

log = logging.getLogger(__name__)

shown_maps = ("pose", "depth", "normal", "lineart")
most_maps = 3


class ReportError(RuntimeError):
    """There is nothing to report on; the message says what to do."""


def find_results(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """PNG and sidecar of every drawn keyframe below `folder`, in film order.

    Raises ReportError where there is none.
    """
    found = []
    for path in folder.rglob("*.json"):
        png = path.with_suffix(".png")
        if path.parent.name == "replaced" or not png.is_file():
            continue
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            log.warning("%s is left out of the sheet: %s", path, error)
            continue
        if isinstance(data, dict) and isinstance(data.get("request"), dict):
            found.append((png, data))
    if not found:
        raise ReportError(f"There is no drawn keyframe in {folder}: render the film there first.")
    return sorted(found, key=lambda item: _order(item[1]["request"]))


def _order(request: dict[str, Any]) -> tuple[str, int, int]:
    return request["shot"], request["frame"], request["take"]


def keyframes_of(folder: Path) -> list[Keyframe]:
    """All drawn takes below `folder`, in film order. Raises ReportError where there is none."""
    return [keyframe_of(png, sidecar) for png, sidecar in find_results(folder)]


def sheet_of(
    folder: Path,
    read_blob: Callable[[str], bytes | None],
    shots_wanted: Sequence[str] = (),
    before: Path | None = None,
) -> Image.Image:
    """The contact sheet of the keyframes below `folder`.

    read_blob: a map's PNG by its hash; None where it is no longer kept, then it is left out.
    shots_wanted: only these shots; none: all. before: the same film drawn without the face pass,
    each of its drawings to stand beside the one of the same take and seed. Raises ReportError
    where nothing is left to show.
    """
    results = _only(find_results(folder), shots_wanted, folder)
    former = _former(before)
    table = film_table(used_takes(keyframe_of(png, sidecar) for png, sidecar in results))
    shots: dict[str, list[Cell]] = defaultdict(list)
    prompts: dict[str, str] = {}
    film = ""
    for png, sidecar in results:
        request = sidecar["request"]
        film = request["film"]
        prompts.setdefault(request["shot"], request["prompt"])
        maps = [_map(request, kind, read_blob) for kind in _kinds(request)]
        caption = f"frame {request['frame']}, take {request['take']}"
        with Image.open(png) as image:
            drawing = image.convert("RGB")
        heads = head_lines(keyframe_of(png, sidecar), table)
        shown = [m for m in maps if m is not None]
        old = former.get((*_order(request), request["seed"]))
        if before is not None and old is None:
            log.warning("%s, %s: %s has no drawing of it.", request["shot"], caption, before)
        cell = Cell(caption, drawing, shown, heads=heads, before=old)
        shots[request["shot"]].append(cell)
    rows = [Row(name, prompts[name], cells) for name, cells in shots.items()]
    return contact_sheet(film, rows, summary=summary_lines(table))


def _only(
    results: list[tuple[Path, dict[str, Any]]], wanted: Sequence[str], folder: Path
) -> list[tuple[Path, dict[str, Any]]]:
    there = {sidecar["request"]["shot"] for _, sidecar in results}
    unknown = [name for name in wanted if name not in there]
    if unknown:
        raise ReportError(
            f"{folder} holds no drawing of shot {', '.join(unknown)}; it has "
            f"{', '.join(sorted(there))}."
        )
    return [one for one in results if not wanted or one[1]["request"]["shot"] in wanted]


def _former(before: Path | None) -> dict[tuple[str, int, int, int], Image.Image]:
    """Drawings by shot, frame, take and seed."""
    found = {}
    for png, sidecar in find_results(before) if before is not None else ():
        request = sidecar["request"]
        with Image.open(png) as image:
            found[*_order(request), int(request["seed"])] = image.convert("RGB")
    return found


def head_lines(keyframe: Keyframe, table: Sequence[CharacterRow]) -> list[HeadLine]:
    """A line for each head of a take; the best and the worst of a film's character are marked."""
    lines = []
    for head in keyframe.heads:
        if head.value is None:
            lines.append(HeadLine("", head.character, [(head.words, "")]))
            continue
        parts = [(f"{head.value:.2f}", "ink"), (head.words, head.verdict)]
        key = (head.character, head.embedder)
        row = next((r for r in table if (r.character, r.embedder) == key), None)
        if row is not None and len(row.scores) > 1:
            for name, place in (("best", row.best), ("worst", row.worst)):
                if place is not None and place[0].png == keyframe.png:
                    parts.append((f"{name} of {len(row.scores)}", "ink"))
        face = head.face
        if face is not None and face.state == "repaired" and face.before is not None:
            parts.append((f"was {face.before:.2f}", ""))
        lines.append(HeadLine(head.verdict, head.character, parts))
    return lines


def summary_lines(table: Sequence[CharacterRow]) -> list[HeadLine]:
    """A line for each character that has scores: its mean, and in how many frames it is itself."""
    lines = []
    for row in table:
        if not row.scores:
            continue
        mean = row.mean.value if row.mean is not None else row.scores[0]
        parts = [(f"mean {mean:.2f}", "ink")]
        for verdict, words in verdict_words.items():
            if row.verdicts.get(verdict):
                parts.append((f"{row.verdicts[verdict]} {words}", verdict))
        missing = sum(row.no_face.values())
        parts += [(f"{missing} no face", "")] if missing else []
        if row.worst is not None:
            parts.append((f"worst {row.worst[1]:.2f} in {row.worst[0].title}", ""))
        parts += [(f"LoRA {lora_words(row)}", "")] if row.loras else []
        most = max(row.verdicts, key=lambda v: row.verdicts[v])
        lines.append(HeadLine(most, row.character, parts))
    return lines


def _kinds(request: dict[str, Any]) -> list[str]:
    used = [m["kind"] for m in request["maps"]]
    return [k for k in shown_maps if k in used][:most_maps]


def _map(
    request: dict[str, Any], kind: str, read_blob: Callable[[str], bytes | None]
) -> Image.Image | None:
    blob = next(m["blob"] for m in request["maps"] if m["kind"] == kind)
    data = read_blob(blob)
    if data is None:
        return None
    with Image.open(io.BytesIO(data)) as image:
        crop = request["canvas"]["crop"]
        left, top = crop["x"], crop["y"]
        box = (left, top, left + crop["width"], top + crop["height"])
        return image.convert("RGB").crop(tuple(round(v) for v in box))

# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether anybody is ever drawn with somebody else's LoRA, prompt or mask.

Two kinds of scenes. Crowds of the world: two to five people who turn any way, cross, cover each
other and leave the picture (`world.frames`, loose plans). And every keyframe of the sample, as the
add-on captures it. Each character has a LoRA of its own by name alone (nothing is drawn), and the
server's own code says what it would do: which mask gets which LoRAs and prompt, and which head is
redrawn with which.

The truth is worked out apart from all that. A region has to be most alike (IoU) to the silhouette
of its own person among all people, in the picture of the people themselves; in the sample the
middle of the head bone, by Blender's own projection, has to be nearer to its own head's box than to
anybody else's. Heads that are hidden, turned away or outside are counted, not left out: what is
not drawn again must say why.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from addon.core.request import Box as RequestBox
from addon.core.request import Canvas, FacePass, Lora, to_data
from addon.render import requests
from bench import cast_film
from bench.cast_drawing import Blobs, captured, frames, map_kinds
from bench.harness import Figure
from bench.lora_test import first_stranger, looks
from world.frame_plans import Frame, Plan

Array = np.ndarray

counts = (2, 3, 4, 5)
default_crowds = 52
framings = ("full body shot", "three-quarter shot", "medium shot")


@dataclass
class Found:
    """What was looked at, and what was wrong, in words."""

    regions: int = 0
    heads: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def run() -> list[Figure]:
    """All figures; needs no trained LoRA."""
    from onmodel.models import libraries
    from onmodel.models.registry import Registry

    libraries.prepare()
    entry = Registry().find("rehearsal")
    crowds, shots = Found(), Found()
    plans = crowd_plans(int(os.environ.get("ONMODEL_CAST_FRAMES") or default_crowds))
    for frame in frames(plans):
        request, blobs = crowd_request(frame, entry.name)
        _check_crowd(frame, request, blobs, entry, crowds)
    rows, images = cast_film.read()
    for row in rows:
        _check_shot(row, images, entry, shots)
    return [_figure("crowds", len(plans), crowds), _figure("the sample", len(rows), shots)]


def crowd_plans(count: int) -> list[Plan]:
    """Loose frames; looks, framings, canvases and numbers of people take turns."""
    plans = []
    for number in range(count):
        people = counts[number % len(counts)]
        identities = tuple(first_stranger + i for i in range(people))
        size = (256, 256) if number // 4 % 3 else (352, 192)
        framing = framings[number // 2 % len(framings)]
        look = looks[number // len(counts) % len(looks)]
        plans.append(Plan(number, look, identities, framing, size, loose=True))
    return plans


def crowd_request(frame: Frame, model: str) -> tuple[dict[str, Any], Blobs]:
    """A crowd's request as the add-on builds it, everybody with a LoRA of its own name."""
    names = [f"c{person.identity}" for person in frame.people]
    actors = [
        requests.Actor(name, person.noun, "", f"{name}, {person.traits}", (Lora(name),))
        for name, person in zip(names, frame.people, strict=True)
    ]
    width, height = frame.plan.size
    settings = requests.ShotSettings(
        film="bench",
        shot="crowd",
        seed=frame.plan.number,
        model=model,
        prompt=frame.shot,
        maps=tuple(requests.MapSetting(kind) for kind in map_kinds),
        face_pass=FacePass(),
    )
    shown = captured(frame, names)
    assert shown.canvas == Canvas(width, height, RequestBox(0, 0, width, height))
    encoded = requests.encode(shown, map_kinds, {})
    request, images = requests.build(encoded, settings, actors, 1)
    blobs = Blobs()
    blobs.data = {blob.hash: blob.data for blob in images}
    return to_data(request), blobs


def planned(request: dict[str, Any], blobs: Blobs, entry: Any) -> tuple[Any, Any, list[str]]:
    """The server's picture and plan of heads, and each character's adapter."""
    from onmodel.faces.keyframe import plan_keyframe
    from onmodel.generate import casting
    from onmodel.generate.conditioning import picture
    from onmodel.models.registry import LoraEntry

    def find(name: str, pinned: str | None) -> LoraEntry:
        return LoraEntry(name, Path(f"{name}.safetensors"), f"{name:x>16}" + "0" * 48)

    cast = casting.characters(request, find)
    made = picture(request, blobs, entry, [bound.regional for bound in cast])
    plan = plan_keyframe(request, blobs, entry, cast)
    own = [find(character["loras"][0]["name"], None).adapter for character in request["characters"]]
    return made, plan, own


def _check_crowd(
    frame: Frame, request: dict[str, Any], blobs: Blobs, entry: Any, found: Found
) -> None:
    made, plan, own = planned(request, blobs, entry)
    # Whom nobody sees is not in the request.
    index = {f"c{person.identity}": i for i, person in enumerate(frame.people)}
    places = [index[character["name"]] for character in request["characters"]]
    for number, region in enumerate(made.regions):
        place, where = places[number], f"frame {frame.plan.number}, region {number}"
        found.regions += 1
        name = f"c{frame.people[place].identity}"
        if [adapter for adapter, _ in region.loras] != [own[number]] or name not in region.prompt:
            found.wrong.append(f"{where} has the LoRA or prompt of somebody else")
        if not np.array_equal(region.mask, frame.owner == place + 1):
            found.wrong.append(f"{where} is not where its person stands")
        nearest = most_alike(region.mask, frame)
        covered = (region.mask & (frame.person == place + 1)).any()
        if covered and nearest != place:
            found.wrong.append(f"{where} is where somebody else is seen")
    middles = [frame.people[place].middle for place in places]
    _check_heads(request, plan, own, middles, f"frame {frame.plan.number}", found)
    for draft in (draft for rank in plan.ranks for draft in rank):
        if (draft.repair.head.mask & (frame.owner != places[draft.index] + 1)).any():
            found.wrong.append(f"frame {frame.plan.number}: a head's mask leaves its person")
    if len(places) < len(frame.people):
        found.seen["not in the picture"] += len(frame.people) - len(places)


def most_alike(mask: Array, frame: Frame) -> int:
    """Whose own silhouette in the people's picture has the highest IoU with this mask."""
    alike = []
    for place in range(len(frame.people)):
        person = frame.person == place + 1
        either = (mask | person).sum()
        alike.append(float((mask & person).sum() / either) if either else 0.0)
    return int(np.argmax(alike))


def _check_shot(row: dict[str, Any], blobs: Blobs, entry: Any, found: Found) -> None:
    request = row["request"]
    for character in request["characters"]:
        character["loras"] = [{"name": character["name"].lower(), "weight": 1.0, "hash": None}]
    made, plan, own = planned(request, blobs, entry)
    where = f"{request['shot']} {request['frame']}"
    for number, region in enumerate(made.regions):
        found.regions += 1
        if [adapter for adapter, _ in region.loras] != [own[number]]:
            found.wrong.append(f"{where}: region {number} has somebody else's LoRA")
    middles = [row["middles"][character["name"]] for character in request["characters"]]
    _check_heads(request, plan, own, middles, where, found)


def _check_heads(
    request: dict[str, Any],
    plan: Any,
    own: Sequence[str],
    middles: Sequence[Sequence[float] | None],
    where: str,
    found: Found,
) -> None:
    """Every head: redrawn with its own LoRA where it truly is, or left with a reason."""
    drafts = {draft.index: draft for rank in plan.ranks for draft in rank}
    boxes = [(c.get("head") or {}).get("box") for c in request["characters"]]
    for index, middle in enumerate(middles):
        found.heads += 1
        box = boxes[index]
        if box is not None and middle is not None:
            away = [np.inf if other is None else distance(other, middle) for other in boxes]
            if away[index] > min(away):
                found.wrong.append(f"{where}: head {index} is at somebody else's place")
        draft = drafts.get(index)
        if draft is None:
            reason = plan.skips.get(index)
            found.seen["left with a reason"] += 1
            if not reason:
                found.wrong.append(f"{where}: head {index} is left without a reason")
            continue
        found.seen["redrawn"] += 1
        if [adapter for adapter, _ in draft.loras] != [own[index]]:
            found.wrong.append(f"{where}: head {index} is redrawn with somebody else's LoRA")
        rows, columns = draft.repair.square.rows_columns
        held = draft.repair.head.mask[rows, columns].sum() == draft.repair.head.mask.sum()
        if not held or middle is None:
            found.wrong.append(f"{where}: head {index} is not in its square")


def distance(box: dict[str, float], point: Sequence[float]) -> float:
    """Of a point [x, y] from a box's middle, in half sizes of the box, the larger of both ways."""
    across = abs(point[0] - box["x"] - box["width"] / 2) / max(box["width"] / 2, 1e-6)
    down = abs(point[1] - box["y"] - box["height"] / 2) / max(box["height"] / 2, 1e-6)
    return float(max(across, down))


def _figure(what: str, scenes: int, found: Found) -> Figure:
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(found.seen.items()))
    note = f"{scenes} frames, {found.regions} regions, {found.heads} heads: {kinds}"
    note = "; ".join([note, *found.wrong[:3]])
    return Figure(f"bindings: wrong ones, {what}", float(len(found.wrong)), "", 0.0, "==", note)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames in which one to five given people stand in one set, in one look.

    python -m world.frames OUT PLANS

PLANS is a JSON list of `frame_plans.Plan`; what is in OUT already is kept. A frame is made of its
plan alone: the same one every time, in any process and order. People stand beside and behind one
another in any order, in natural poses, and cover parts of each other; the camera is chosen so that
all are in the picture and every head is well seen, unless the plan is loose.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from addon.capture.raster import cover
from addon.core.depth import depth_map, depth_range
from addon.core.openpose import apply_facing, draw_pose
from addon.core.request import Box, Head, Keypoint, Pose
from world import looks, people, samples, sets
from world.cast import (
    Actor,
    act,
    bone,
    facing,
    frame,
    head_boxes,
    head_turn,
    stand_ins,
    view,
)
from world.characters import reference_light, reference_set
from world.frame_plans import Frame, Person, Plan, View, heads_fit, plan_of, save, there
from world.studio import Lens, Maps, Studio

Array = np.ndarray
log = logging.getLogger(__name__)

least_seen = 0.55
"""The least part of every head that nothing covers, in both pictures."""
widest_yaw = 70.0
_attempts, _lenses, _turns = 60, 14, 8
_near = 0.02
_head_parts = (people.regions.index("head"), people.regions.index("hair"))
_sets = tuple(name for name in sets.names if name != reference_set)
_lights = tuple(i for i in range(len(looks.lights)) if i != reference_light)


def make(plan: Plan, studio: Studio) -> Frame:
    """The frame of a plan. Raises RuntimeError where nothing fit is found."""
    kind = [len(plan.identities), looks.looks.index(plan.look), int(plan.loose)]
    for attempt in range(_attempts):
        rng = np.random.default_rng([plan.number, 9151, *kind, attempt])
        actors = _crowd(rng, plan)
        lens = _aimed(rng, actors, plan)
        if lens is None:
            continue
        words = samples.Words(plan.number, plan.framing, str(rng.choice(_sets)), plan.look)
        made = samples.shoot(rng, studio, actors, lens, words, _lights)
        if made is None:
            continue
        # `shoot` leaves the stand-ins before the camera.
        found = _described(plan, actors, lens, made, studio.maps())
        if plan.loose or all(_well_seen(person) for person in found.people):
            return found
    raise RuntimeError(f"No fit frame of {plan} in {_attempts} attempts: see `_well_seen`.")


def _well_seen(person: Person) -> bool:
    return person.head is not None and min(person.seen, person.head.visible) >= least_seen


# --- who stands where ----------------------------------------------------------------------------


def _crowd(rng: np.random.Generator, plan: Plan) -> list[Actor]:
    """The people in a row with gaps, some nearer, some farther, in any order."""
    count = len(plan.identities)
    gap = float(rng.uniform(0.15, 0.55) if plan.loose else rng.uniform(0.46, 0.60))
    x = (np.arange(count) - (count - 1) / 2) * gap + rng.normal(0, 0.04, count)
    y = rng.uniform(-0.4, 0.4, count)
    places = rng.permutation(count)
    actors = []
    for seed, place in zip(plan.identities, places, strict=True):
        who, at = people.resident(seed), np.array([x[place], y[place], 0.0])
        actors.append(_standing(rng, who, plan, at))
    return actors


def _standing(rng: np.random.Generator, who: people.Identity, plan: Plan, at: Array) -> Actor:
    """This person at that place; unless the plan is loose, looking more or less ahead."""
    for _ in range(_turns):
        yaw = facing(rng, 60, away=0.3) if plan.loose else float(rng.normal(0, 20))
        actor = act(rng, who, plan.look, yaw, at)
        ahead = Lens.towards(bone(actor, "Head"), 2.0, 75, 2, plan.size)
        if plan.loose or abs(head_turn(actor, ahead)[0]) <= widest_yaw - 5:
            break
    return actor


def _aimed(rng: np.random.Generator, actors: list[Actor], plan: Plan) -> Lens | None:
    """A camera that has all heads in the picture, apart from one another; None: none was found."""
    ends = sorted(actors, key=lambda a: float(bone(a, "Head")[0]))
    pair = [ends[0], ends[-1]] if len(ends) > 1 else ends
    if plan.loose:
        return frame(rng, pair if rng.random() < 0.5 else actors[:1], plan.framing, plan.size)
    for _ in range(_lenses):
        lens = frame(rng, pair, plan.framing, plan.size)
        boxes = [head_boxes(actor, lens)[1] for actor in actors]
        known = [box for box in boxes if box is not None]
        if len(known) == len(actors) and heads_fit(known, plan.size):
            turns = [abs(head_turn(actor, lens)[0]) for actor in actors]
            if max(turns) <= widest_yaw:
                return lens
    return None


# --- what is seen --------------------------------------------------------------------------------


def _described(
    plan: Plan,
    actors: list[Actor],
    lens: Lens,
    made: tuple[dict[str, Array], dict[str, Any]],
    plain: Maps,
) -> Frame:
    """The frame out of what `samples.shoot` gave and the stand-ins' maps."""
    arrays, told = made
    height, width = plain.owner.shape
    disparity = arrays["disparity"].astype(np.float32)
    z = np.divide(1, disparity, out=np.full_like(disparity, np.inf), where=disparity > 0)
    heads = np.zeros((height, width), np.uint8)
    found, drawn = [], []
    doubles = stand_ins(actors, plan.framing)
    for index, (actor, double) in enumerate(zip(actors, doubles, strict=True)):
        own = told["people"][index]
        true = Maps(z, arrays["person"], arrays["normal"], arrays["part"])
        _, seen = _head(actor, index, lens, true)
        mask, visible = _head(double, index, lens, plain)
        heads[mask] = index + 1
        yaw, pitch = head_turn(double, lens)
        box = _box(head_boxes(double, lens)[1])
        rows = own["standin_pose"]
        points: dict[str, Any] = {part: [Keypoint(*p) for p in rows[part]] for part in rows}
        pose = Pose(**points)
        turned = apply_facing(pose, yaw, pitch) if box is not None else pose
        middle = (bone(double, "Head") + bone(double, "Head", tail=True)) / 2
        person = Person(
            identity=actor.who.seed,
            noun=people.noun(actor.who),
            traits=people.description(actor.who),
            expression=actor.expression,
            view=view(head_turn(actor, lens)[0]),
            face=_box(head_boxes(actor, lens)[1]),
            yaw=head_turn(actor, lens)[0],
            seen=seen,
            head=None if box is None else Head(box, yaw, pitch, visible),
            middle=[float(v) for v in lens.project(middle[None])[0]],
            pose=turned,
        )
        found.append(person)
        drawn.append((own["distance"], turned, bool((plain.owner == index + 1).any())))
    drawn.sort(key=lambda one: -one[0])
    near, far = depth_range([plain.depth])
    return Frame(
        plan=plan,
        set_name=told["set"],
        view=_view(lens),
        people=found,
        rgb=arrays["rgb"],
        person=arrays["person"],
        pose=draw_pose([pose for _, pose, shown in drawn if shown], width, height),
        depth=depth_map(plain.depth, near, far),
        normal=plain.normal,
        owner=plain.owner,
        heads=heads,
    )


def _head(actor: Actor, index: int, lens: Lens, maps: Maps) -> tuple[Array, float]:
    """(H, W) bool: the head's visible pixels; and the part of it, 0..1, that nothing covers, of
    what lies in the picture."""
    person = actor.person
    neck = person.heads[person.bones.index("mixamorig:Head"), 2] - 0.01
    faces = person.faces[(person.part == "head") & (person.vertices[person.faces, 2] > neck).all(1)]
    corners = lens.project(actor.posed.vertices[faces].reshape(-1, 3)).reshape(-1, 4, 3)
    triangles = np.concatenate([corners[:, [0, 1, 2]], corners[:, [0, 2, 3]]])
    covered, _ = cover(triangles, maps.depth, not lens.orthographic, _near)
    mask = covered & (maps.owner == index + 1) & np.isin(maps.part, _head_parts)
    return mask, float(mask.sum() / covered.sum()) if covered.any() else 0.0


def _box(bounds: tuple[float, float, float, float] | None) -> Box | None:
    if bounds is None:
        return None
    x0, y0, x1, y1 = (round(float(v), 2) for v in bounds)
    return Box(x0, y0, x1 - x0, y1 - y0)


def _view(lens: Lens) -> View:
    width, height = lens.size
    top = lens.reach / 2 if lens.orthographic else 18 / lens.focal
    right = top * width / height
    matrix = [float(v) for v in lens.matrix_world.ravel()]
    return View(matrix, [-right, right, -top, top], lens.orthographic)


def main(argv: list[str]) -> int:
    """Make frames into a folder; those that are there already are kept."""
    parser = argparse.ArgumentParser(prog="python -m world.frames", description=main.__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("plans", type=Path)
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    plans = [plan_of(one) for one in json.loads(options.plans.read_text())]
    wanted = [plan for plan in plans if not there(plan, options.out)]
    studio = Studio()
    for plan in wanted:
        save(make(plan, studio), options.out)
    log.info("%d frames made, %d were there", len(wanted), len(plans) - len(wanted))
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # bpy as a module can crash while Python tears it down; all files are closed by now.
    os._exit(code)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Who stands before the camera and how: actors, framing, their points, boxes and stand-ins."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from world import people, poses
from world.studio import Lens

Array = np.ndarray
Box = tuple[float, float, float, float]

framings = {
    "close-up": 0.30,
    "portrait": 0.52,
    "medium shot": 0.95,
    "three-quarter shot": 1.35,
    "full body shot": 2.05,
}
"""Height of the picture at the subject, in metres (of a full body shot: the least)."""
close_framings = ("close-up", "portrait")
_body_points = (
    None,
    None,
    ("RightArm", 0),
    ("RightForeArm", 0),
    ("RightHand", 0),
    ("LeftArm", 0),
    ("LeftForeArm", 0),
    ("LeftHand", 0),
    ("RightUpLeg", 0),
    ("RightLeg", 0),
    ("RightFoot", 0),
    ("LeftUpLeg", 0),
    ("LeftLeg", 0),
    ("LeftFoot", 0),
)
"""COCO-18 points 0-13 as (bone, 0 = head); nose and neck are worked out."""
_fingers = ("Thumb", "Index", "Middle", "Ring", "Pinky")


@dataclass(frozen=True)
class Actor:
    """One person of a sample. rotations: the pose, by bone, as `poses.pose_figure` takes it."""

    who: people.Identity
    person: people.Figure
    posed: poses.Posed
    expression: str
    rotations: dict[str, Array]

    @property
    def sits(self) -> bool:
        """Whether the thighs are raised so far that something has to carry the person."""
        return all(
            f"{side}UpLeg" in self.rotations and float(self.rotations[f"{side}UpLeg"][1, 1]) < 0.5
            for side in ("Left", "Right")
        )


@functools.lru_cache(maxsize=24)
def figure_of(who: people.Identity, expression: str, look: str) -> people.Figure:
    """`people.figure`, the last few kept."""
    return people.figure(who, expression, look)


def act(rng: np.random.Generator, who: people.Identity, look: str, yaw: float, at: Array) -> Actor:
    """This person in a random pose with a random expression, hips over `at`, turned by yaw."""
    expression = str(rng.choice(list(people.expressions)))
    return placed(who, expression, look, poses.random_pose(rng), yaw, at)


def placed(
    who: people.Identity,
    expression: str,
    look: str,
    rotations: dict[str, Array],
    yaw: float,
    at: Array,
) -> Actor:
    """This person in this pose, hips over `at` (3,), turned by yaw degrees."""
    person = figure_of(who, expression, look)
    posed = poses.pose_figure(person, rotations)
    hips = posed.heads[person.bones.index("mixamorig:Hips")]
    turned = poses.turn("z", yaw)
    posed = posed.moved(turned, at - turned @ np.array([hips[0], hips[1], 0.0]))
    return Actor(who, person, posed, expression, {**rotations, "": turned})


def bone(actor: Actor, name: str, tail: bool = False) -> Array:
    """World position (3,) of a bone's head or tail."""
    ends = actor.posed.tails if tail else actor.posed.heads
    return ends[actor.person.bones.index(f"mixamorig:{name}")]


def facing(rng: np.random.Generator, spread: float, away: float = 0.12) -> float:
    """Degrees a body is turned from the camera: mostly towards it, now and then aside.

    spread: degrees; away: the share that turns its back.
    """
    kind = rng.random()
    if kind < away:
        return float(rng.uniform(110, 250))
    if kind < away + 0.18:
        return float(rng.choice([-1, 1])) * float(rng.uniform(50, 100))
    return float(rng.normal(0, spread))


def cast(
    rng: np.random.Generator, first: int, pool: tuple[int, int], framing: str, look: str
) -> list[Actor]:
    """The resident of seed `first`, and in about a quarter of the samples another of the pool.

    pool: (first seed, count) of the people who may stand beside.
    """
    close = framing in close_framings
    yaw = facing(rng, 32 if close else 42)
    actors = [act(rng, people.resident(first), look, yaw, np.zeros(3))]
    if rng.random() < (0.12 if close else 0.32):
        second = int(rng.integers(pool[1])) + pool[0]
        side = float(rng.choice([-1, 1])) * float(rng.uniform(0.28 if close else 0.34, 0.85))
        back = float(rng.uniform(-0.25 if close else -0.4, 0.9))
        yaw = facing(rng, 50)
        at = np.array([side, back, 0.0])
        actors.append(act(rng, people.resident(second), look, yaw, at))
    return actors


def frame(
    rng: np.random.Generator, actors: Sequence[Actor], framing: str, size: tuple[int, int]
) -> Lens:
    """A camera for a framing of `framings` on the first actor; size: (width, height) px."""
    width, height = size
    main = actors[0]
    head = bone(main, "Head") + np.array([0, 0, 0.09])
    hips = bone(main, "Hips")
    low, high = main.posed.vertices.min(0), main.posed.vertices.max(0)
    centre = {
        "close-up": head,
        "portrait": head - [0, 0, 0.09],
        "medium shot": head * 0.62 + hips * 0.38,
        "three-quarter shot": head * 0.42 + hips * 0.58,
        "full body shot": (low + high) / 2,
    }[framing]
    reach = framings[framing] * float(rng.uniform(0.9, 1.15))
    if framing == "full body shot":
        reach = max(reach * 0.5, float(high[2] - low[2]) * float(rng.uniform(1.1, 1.5)))
    if len(actors) > 1:
        other = bone(actors[1], "Head") + np.array([0, 0, 0.09])
        share = float(rng.uniform(0.35, 0.5))
        centre = centre + np.array([(other[0] - head[0]) * share, 0, 0])
        reach = max(reach, 1.15 * abs(float(other[0] - head[0])) * height / width)
    # A tall canvas still has to hold the subject's width.
    reach *= max(1.0, 0.8 * height / width)
    centre = centre + rng.normal(0, 0.04, 3) * reach
    degrees = float(rng.normal(2, 8))
    focal = float(rng.uniform(32, 75))
    return Lens.towards(centre, reach, focal, degrees, size, orthographic=bool(rng.random() < 0.06))


def stand_ins(actors: Sequence[Actor], framing: str) -> list[Actor]:
    """The generic stand-in in each actor's place: same pose, scaled and moved onto its joints."""
    person = people.stand_in()
    joints = ["Head", "Neck", "LeftArm", "RightArm", "Hips"]
    if framing not in close_framings:
        joints += ["LeftUpLeg", "RightUpLeg", "LeftHand", "RightHand", "LeftFoot", "RightFoot"]
    at = [person.bones.index(f"mixamorig:{name}") for name in joints]
    head = person.bones.index("mixamorig:Head")
    out = []
    for actor in actors:
        scale = float(actor.person.heads[head, 2] / person.heads[head, 2])
        posed = poses.pose_figure(person, actor.rotations)
        turned = actor.rotations[""] * scale
        posed = posed.moved(turned, np.zeros(3))
        offset = (actor.posed.heads[at] - posed.heads[at]).mean(0)
        if framing == "full body shot":
            offset[2] = 0.0  # Feet stay on the floor.
        posed = posed.moved(np.eye(3), offset)
        out.append(dataclasses.replace(actor, person=person, posed=posed, expression="neutral"))
    return out


def _state(z_buffer: Array, owner: Array, index: int, point: Array, slack: float) -> str:
    """request.Keypoint's state of a projected point (x, y, z)."""
    height, width = z_buffer.shape
    x, y, z = point
    if z <= 0:
        return "behind"
    if not (0 <= x < width and 0 <= y < height):
        return "outside"
    before = z_buffer[int(y), int(x)]
    own = owner[int(y), int(x)] == index + 1
    return "hidden" if before < z - (slack if own else 0.05) else "visible"


def _points(actor: Actor) -> dict[str, list[tuple[Array, float]]]:
    """World points of a pose by part, each with how deep it may lie in its own body (m)."""
    inside, hand, surface = 0.17, 0.06, 0.02
    v, marks, ears = actor.posed.vertices, actor.person.landmarks, actor.person.ears
    shoulders = (bone(actor, "RightArm") + bone(actor, "LeftArm")) / 2
    body: list[tuple[Array, float]] = [(v[marks[30]], surface), (shoulders, inside)]
    body += [(bone(actor, one[0]), inside) for one in _body_points if one is not None]
    body += [(v[marks[68]], surface), (v[marks[69]], surface)]
    body += [(v[ears[0]], 0.05), (v[ears[1]], 0.05)]
    out = {"body": body, "face": [(v[m], surface) for m in marks]}
    for side in ("left", "right"):
        name = f"{side.title()}Hand"
        points = [(bone(actor, name), hand)]
        for finger in _fingers:
            points += [(bone(actor, f"{name}{finger}{k}"), hand) for k in (1, 2, 3)]
            points.append((bone(actor, f"{name}{finger}3", tail=True), hand))
        out[f"{side}_hand"] = points
    return out


def pose_points(
    actor: Actor, index: int, lens: Lens, z_buffer: Array, owner: Array
) -> dict[str, Any]:
    """[x, y, z, state] by part of `request.Pose`; z_buffer (H, W) m, owner (H, W), 1 + index."""
    out = {}
    for part, points in _points(actor).items():
        projected = lens.project(np.array([p for p, _ in points]))
        states = [
            _state(z_buffer, owner, index, point, slack)
            for point, (_, slack) in zip(projected, points, strict=True)
        ]
        out[part] = [
            [round(float(x), 2), round(float(y), 2), round(float(z), 4), state]
            for (x, y, z), state in zip(projected, states, strict=True)
        ]
    return out


def _box(points: Array, lens: Lens) -> Box | None:
    projected = lens.project(points)
    if projected[:, 2].min() < 0.05:
        return None
    (x0, y0), (x1, y1) = projected[:, :2].min(0), projected[:, :2].max(0)
    return float(x0), float(y0), float(x1), float(y1)


def head_boxes(actor: Actor, lens: Lens) -> tuple[Box | None, Box | None]:
    """Boxes (px, they may leave the picture) of head and hair, and of the head without what hangs.

    None: part of it is behind the camera.
    """
    person = actor.person
    neck = person.heads[person.bones.index("mixamorig:Head"), 2] - 0.01
    skull = np.unique(person.faces[person.part == "head"])
    skull = skull[person.vertices[skull, 2] > neck]
    hanging = np.unique(person.faces[person.part == "hair"])
    whole = np.concatenate([skull, hanging])
    return _box(actor.posed.vertices[whole], lens), _box(actor.posed.vertices[skull], lens)


def head_turn(actor: Actor, lens: Lens) -> tuple[float, float]:
    """Yaw and pitch of the head to the camera, degrees.

    0, 0: it looks into the camera. yaw > 0: towards the picture's right edge; 180: away. pitch >
    0: up. The head's rotation is Kabsch's best fit of its bone, eyes and ears, rest to posed.
    """
    person, at = actor.person, actor.person.bones.index("mixamorig:Head")
    marks = [*person.landmarks[[68, 69]], *person.ears]

    def points(vertices: Array, heads: Array, tails: Array) -> Array:
        stack = np.stack([heads[at], tails[at], *vertices[marks]])
        return stack - stack.mean(0)

    rest = points(person.vertices, person.heads, person.tails)
    posed = points(actor.posed.vertices, actor.posed.heads, actor.posed.tails)
    u, _, vt = np.linalg.svd(rest.T @ posed)
    flip = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = (u @ flip @ vt).T
    if lens.orthographic:
        away = lens.matrix_world[:3, 2]
    else:
        away = lens.position - actor.posed.heads[at]
    x, y, z = rotation.T @ (away / np.linalg.norm(away))
    return -float(np.degrees(np.arctan2(x, -y))), -float(np.degrees(np.arcsin(np.clip(z, -1, 1))))


def view(yaw: float) -> str:
    """Where a head turned by yaw looks, in words."""
    angle = abs(yaw)
    return "from behind" if angle > 110 else "in profile" if angle > 55 else "facing"

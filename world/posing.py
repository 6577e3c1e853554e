# SPDX-License-Identifier: GPL-3.0-or-later
"""Poses a person as an animator thinks of them, for any rig: numpy only.

A `Pose` says where the pelvis, the gaze, the hands and the feet are. `solve` turns it into one
rigid motion (4, 4) per body part, from the part's rest place to its posed place, which
`world.rigging` gives to the bones of a Mixamo or a Rigify rig.

Frames of reference
    body     metres; x to the person's left, y to the back (a person faces -y), z up, the floor
             under the person's own origin. The rig's armature space.
    side     (out, forward, up): out is away from the body's middle plane, so that one offset
             serves the left and the right arm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Triple = tuple[float, float, float]

forward = np.array([0.0, -1.0, 0.0])
up = np.array([0.0, 0.0, 1.0])
fingers = ("thumb", "index", "middle", "ring", "pinky")
spine = ("hips", "spine1", "spine2", "chest", "neck", "head")


@dataclass(frozen=True)
class Arm:
    """Where a wrist is.

    anchor: what `offset` starts from: "shoulder", "hip", "chest" (the middle of both shoulders),
        "head" (offsets turn with that part), or "world" (offset is a point in metres).
    offset: (out, forward, up) in lengths of the straight arm (world: metres).
    elbow: the direction (out, forward, up) to which the elbow points.
    palm: the direction (out, forward, up) the palm looks to; None leaves it as it falls.
    bend: degrees, wrist towards the palm. curl: fingers, 0 straight to 1 a fist.
    """

    anchor: str = "shoulder"
    offset: Triple = (0.10, 0.10, -0.94)
    elbow: Triple = (0.35, -1.0, 0.0)
    palm: Triple | None = (-1.0, 0.0, 0.0)
    bend: float = 0.0
    curl: float = 0.25


@dataclass(frozen=True)
class Foot:
    """Where a foot stands.

    place: (out, forward, lift) in metres from the person's origin, of the ankle; lift 0 is on
        the floor. turn: degrees outwards. pitch: degrees, positive lifts the heel (the ball stays
        down), negative lifts the toes (the heel stays down).
    """

    place: Triple = (0.10, 0.0, 0.0)
    turn: float = 8.0
    pitch: float = 0.0


@dataclass(frozen=True)
class Pose:
    """A person at one moment.

    at: the origin in the world, metres (x, y, z of the floor). facing: degrees about z, 0 looks
    along -y, 90 along +x. drop: metres the pelvis sinks from standing; shift: (left, back) metres
    it moves. pelvis: (lean forward, tilt to the left, turn to the left) in degrees; trunk the
    same, on top of it, over the spine. look: a world point to look at, or head: (up, tilt, left)
    in degrees from the chest.
    """

    at: Triple = (0.0, 0.0, 0.0)
    facing: float = 0.0
    drop: float = 0.01
    shift: tuple[float, float] = (0.0, 0.0)
    pelvis: Triple = (0.0, 0.0, 0.0)
    trunk: Triple = (0.0, 0.0, 0.0)
    head: Triple = (0.0, 0.0, 0.0)
    look: Triple | None = None
    left_arm: Arm = field(default_factory=Arm)
    right_arm: Arm = field(default_factory=Arm)
    left_foot: Foot = field(default_factory=Foot)
    right_foot: Foot = field(default_factory=Foot)

    def root(self) -> Array:
        """(4, 4) body to world."""
        m = np.eye(4)
        m[:3, :3] = turn(up, self.facing)
        m[:3, 3] = self.at
        return m

    def but(self, **changes: object) -> Pose:
        """The same pose with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


def turn(axis: Array, degrees: float) -> Array:
    """(3, 3) rotation about `axis` by the right-hand rule (Rodrigues)."""
    a = axis / np.linalg.norm(axis)
    k = np.array([[0, -a[2], a[1]], [a[2], 0, -a[0]], [-a[1], a[0], 0]])
    t = math.radians(degrees)
    return np.eye(3) + math.sin(t) * k + (1 - math.cos(t)) * (k @ k)


def solve(pose: Pose, rest: Mapping[str, Array]) -> dict[str, Array]:
    """The rigid motion (4, 4) of every body part in body space, rest place to posed place.

    rest: joints of the rig in body space at rest: `spine`, and for each side `.L`/`.R`: clavicle,
        shoulder, elbow, wrist, hip, knee, ankle, ball, and `<finger>1` … `<finger>3`.
    Parts are named as the joint they turn about ("shoulder.L" moves the upper arm).
    """
    done: dict[str, Array] = {}
    _solve_trunk(pose, rest, done)
    for side, arm, foot in (
        ("L", pose.left_arm, pose.left_foot),
        ("R", pose.right_arm, pose.right_foot),
    ):
        _solve_leg(foot, side, rest, done)
        _solve_arm(arm, side, pose, rest, done)
    return done


def _about(rotation: Array, rest_point: Array, point: Array) -> Array:
    m = np.eye(4)
    m[:3, :3] = rotation
    m[:3, 3] = point - rotation @ rest_point
    return m


def _apply(m: Array, point: Array) -> Array:
    return m[:3, :3] @ point + m[:3, 3]


def _lean(angles: Triple, share: float = 1.0) -> Array:
    pitch, roll, yaw = (a * share for a in angles)
    return turn(up, yaw) @ turn(np.array([1.0, 0, 0]), pitch) @ turn(np.array([0, 1.0, 0]), roll)


def _leg_reach(pose: Pose, rest: Mapping[str, Array]) -> float:
    """How far (m) the pelvis must sink so that both ankles can be reached with bent knees."""
    sink = pose.drop
    for side, foot in (("L", pose.left_foot), ("R", pose.right_foot)):
        reach = 0.995 * (
            np.linalg.norm(rest[f"knee.{side}"] - rest[f"hip.{side}"])
            + np.linalg.norm(rest[f"ankle.{side}"] - rest[f"knee.{side}"])
        )
        ankle, _ = _ankle(foot, side, rest)
        hip = rest[f"hip.{side}"] + [pose.shift[0], pose.shift[1], 0.0]
        flat = float(np.hypot(*(hip - ankle)[:2]))
        height = math.sqrt(max(float(reach) ** 2 - flat**2, 0.01))
        sink = max(sink, float(hip[2] - ankle[2]) - height)
    return sink


def _solve_trunk(pose: Pose, rest: Mapping[str, Array], done: dict[str, Array]) -> None:
    place = rest["hips"] + [pose.shift[0], pose.shift[1], -_leg_reach(pose, rest)]
    rotation = _lean(pose.pelvis)
    done["hips"] = _about(rotation, rest["hips"], place)
    parent = "hips"
    for name in ("spine1", "spine2", "chest"):
        rotation = rotation @ _lean(pose.trunk, 1 / 3)
        done[name] = _about(rotation, rest[name], _apply(done[parent], rest[name]))
        parent = name
    head = _gaze(pose, rest, done) if pose.look is not None else pose.head
    head = (-head[0], head[1], head[2])  # up is a lean backwards
    for name, share in (("neck", 0.4), ("head", 0.6)):
        rotation = rotation @ _lean(head, share)
        done[name] = _about(rotation, rest[name], _apply(done[parent], rest[name]))
        parent = name


def _gaze(pose: Pose, rest: Mapping[str, Array], done: Mapping[str, Array]) -> Triple:
    assert pose.look is not None
    local = np.linalg.inv(pose.root()) @ np.array([*pose.look, 1.0])
    eyes = _apply(done["chest"], rest["head"] + [0.0, -0.08, 0.09])
    d = done["chest"][:3, :3].T @ (local[:3] - eyes)
    yaw = math.degrees(math.atan2(d[0], -d[1]))
    pitch = math.degrees(math.atan2(d[2], float(np.hypot(d[0], d[1]))))
    return (float(np.clip(pitch, -40, 35)), pose.head[1], float(np.clip(yaw, -72, 72)))


def _two_bones(
    root: Array, target: Array, upper: float, lower: float, hint: Array
) -> tuple[Array, Array, Array]:
    """Directions of both bones and their hinge axis; the target is pulled in when out of reach."""
    d = target - root
    length = float(np.linalg.norm(d))
    d = d / length
    length = float(np.clip(length, abs(upper - lower) * 1.05, 0.998 * (upper + lower)))
    out = hint - d * float(hint @ d)
    out = out / np.linalg.norm(out)
    along = (upper**2 - lower**2 + length**2) / (2 * length)
    middle = d * along + out * math.sqrt(max(upper**2 - along**2, 0.0))
    return middle / upper, (d * length - middle) / lower, np.cross(out, d)


def _frame(direction: Array, hinge: Array) -> Array:
    d = direction / np.linalg.norm(direction)
    h = hinge - d * float(hinge @ d)
    h = h / np.linalg.norm(h)
    return np.stack([d, h, np.cross(d, h)], axis=1)


def _ankle(foot: Foot, side: str, rest: Mapping[str, Array]) -> tuple[Array, Array]:
    """The ankle's place and the foot's rotation."""
    s = 1.0 if side == "L" else -1.0
    yaw = turn(up, s * foot.turn)
    rotation = yaw @ turn(np.array([1.0, 0, 0]), foot.pitch)
    ankle, ball = rest[f"ankle.{side}"], rest[f"ball.{side}"]
    pivot = ball.copy() if foot.pitch >= 0 else ankle + np.array([0.0, 0.04, 0.0])
    pivot[2] = 0.0
    place = np.array([s * foot.place[0], -foot.place[1], ankle[2] + foot.place[2]])
    swing = yaw @ (pivot - ankle) + rotation @ (ankle - pivot)
    return place + swing, rotation


def _solve_leg(foot: Foot, side: str, rest: Mapping[str, Array], done: dict[str, Array]) -> None:
    s = 1.0 if side == "L" else -1.0
    hip, knee, ankle = (rest[f"{n}.{side}"] for n in ("hip", "knee", "ankle"))
    root = _apply(done["hips"], hip)
    target, foot_rotation = _ankle(foot, side, rest)
    hint = turn(up, s * foot.turn * 0.7) @ (done["hips"][:3, :3] @ forward + 0.5 * forward)
    upper, lower, hinge = _two_bones(
        root, target, float(np.linalg.norm(knee - hip)), float(np.linalg.norm(ankle - knee)), hint
    )
    rest_hinge = np.cross(forward, ankle - hip)
    thigh = _frame(upper, hinge) @ _frame(knee - hip, rest_hinge).T
    shin = _frame(lower, hinge) @ _frame(ankle - knee, rest_hinge).T
    done[f"hip.{side}"] = _about(thigh, hip, root)
    done[f"knee.{side}"] = _about(shin, knee, _apply(done[f"hip.{side}"], knee))
    at = _apply(done[f"knee.{side}"], ankle)
    done[f"ankle.{side}"] = _about(foot_rotation, ankle, at)
    ball = rest[f"ball.{side}"]
    toes = turn(up, s * foot.turn) if foot.pitch > 0 else foot_rotation
    done[f"ball.{side}"] = _about(toes, ball, _apply(done[f"ankle.{side}"], ball))


def _solve_arm(
    arm: Arm, side: str, pose: Pose, rest: Mapping[str, Array], done: dict[str, Array]
) -> None:
    s = 1.0 if side == "L" else -1.0
    clavicle, shoulder, elbow, wrist = (
        rest[f"{n}.{side}"] for n in ("clavicle", "shoulder", "elbow", "wrist")
    )
    lengths = float(np.linalg.norm(elbow - shoulder)), float(np.linalg.norm(wrist - elbow))
    to_body = np.array([[s, 0, 0], [0, -1.0, 0], [0, 0, 1.0]])
    chest = done["chest"]
    target = _arm_target(arm, side, pose, rest, done, to_body, sum(lengths))
    hint = chest[:3, :3] @ to_body @ np.array(arm.elbow)
    lift = np.eye(3)
    for _ in range(2):  # the collar bone follows the raised arm, then the arm is solved from it
        base = _about(chest[:3, :3] @ lift, clavicle, _apply(chest, clavicle))
        root = _apply(base, shoulder)
        upper, lower, hinge = _two_bones(root, target, *lengths, hint)
        raised = max(0.0, float(chest[:3, 2] @ upper) + 0.35)
        ahead = max(0.0, float(chest[:3, :3] @ forward @ upper))
        lift = turn(np.array([0, -1.0, 0]), s * 16 * raised) @ turn(up, -s * 12 * ahead)
    rest_hinge = np.cross(elbow - shoulder, wrist - elbow)
    upper_arm = _frame(upper, hinge) @ _frame(elbow - shoulder, rest_hinge).T
    forearm = _frame(lower, hinge) @ _frame(wrist - elbow, rest_hinge).T
    palm_rest = palm_normal(side, rest)
    twist = 0.0
    if arm.palm is not None:
        wanted = chest[:3, :3] @ to_body @ np.array(arm.palm)
        now = forearm @ palm_rest
        a, b = now - lower * (now @ lower), wanted - lower * (wanted @ lower)
        twist = math.degrees(math.atan2(float(np.cross(a, b) @ lower), float(a @ b)))
        twist = float(np.clip(twist, -110, 110))
    done[f"clavicle.{side}"] = base
    done[f"shoulder.{side}"] = _about(upper_arm, shoulder, root)
    at = _apply(done[f"shoulder.{side}"], elbow)
    done[f"elbow.{side}"] = _about(turn(lower, 0.6 * twist) @ forearm, elbow, at)
    bend_axis = np.cross(wrist - elbow, palm_rest)
    hand = turn(lower, twist) @ forearm @ turn(bend_axis, arm.bend)
    done[f"wrist.{side}"] = _about(hand, wrist, _apply(done[f"elbow.{side}"], wrist))
    _curl(arm.curl, side, palm_rest, rest, done)


def _arm_target(
    arm: Arm,
    side: str,
    pose: Pose,
    rest: Mapping[str, Array],
    done: Mapping[str, Array],
    to_body: Array,
    length: float,
) -> Array:
    offset = np.array(arm.offset, float)
    if arm.anchor == "world":
        return (np.linalg.inv(pose.root()) @ np.array([*offset, 1.0]))[:3]
    if arm.anchor == "hip":
        part, point = done["hips"], rest[f"hip.{side}"]
    elif arm.anchor == "head":
        part, point = done["head"], rest["head"]
    elif arm.anchor == "chest":
        part, point = done["chest"], (rest["shoulder.L"] + rest["shoulder.R"]) / 2
    elif arm.anchor == "shoulder":
        part, point = done["chest"], rest[f"shoulder.{side}"]
    else:
        raise ValueError(f"An arm has no anchor {arm.anchor!r}.")
    return _apply(part, point) + part[:3, :3] @ to_body @ offset * length


def palm_normal(side: str, rest: Mapping[str, Array]) -> Array:
    """(3,) the way the palm looks at rest."""
    wrist = rest[f"wrist.{side}"]
    n = np.cross(rest[f"index1.{side}"] - wrist, rest[f"pinky1.{side}"] - wrist)
    return (-1.0 if side == "L" else 1.0) * n / np.linalg.norm(n)


def _curl(
    amount: float, side: str, palm: Array, rest: Mapping[str, Array], done: dict[str, Array]
) -> None:
    hand = done[f"wrist.{side}"]
    knuckles = rest[f"pinky1.{side}"] - rest[f"index1.{side}"]
    for finger in fingers:
        rotation, parent = hand[:3, :3], hand
        most = (12.0, 25.0, 35.0) if finger == "thumb" else (70.0, 85.0, 55.0)
        along = rest[f"{finger}2.{side}"] - rest[f"{finger}1.{side}"]
        towards = knuckles if finger == "thumb" else palm
        axis = np.cross(along, towards)
        for i in (1, 2, 3):
            name = f"{finger}{i}.{side}"
            rotation = rotation @ turn(axis, most[i - 1] * amount)
            done[name] = _about(rotation, rest[name], _apply(parent, rest[name]))
            parent = done[name]

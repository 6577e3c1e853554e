# SPDX-License-Identifier: GPL-3.0-or-later
"""Which end of which bone is which joint of an OpenPose skeleton.

A joint is named as the subject has it: "left_elbow", "right_index_2" (fingers: 1 at the palm, 4
the tip; "thumb", "index", "middle", "ring", "pinky"). The neck is no joint of its own: OpenPose
puts it midway between the shoulders. Nose, eyes and ears that a rig has no bones for are placed
from the head bone by `face_at_rest`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from . import rig_tables
from .rig_tables import BoneEnd, Family, fingers, limbs

body_joints = (
    *("nose", "neck", "right_shoulder", "right_elbow", "right_wrist"),
    *("left_shoulder", "left_elbow", "left_wrist", "right_hip", "right_knee", "right_ankle"),
    *("left_hip", "left_knee", "left_ankle", "right_eye", "left_eye", "right_ear", "left_ear"),
)
"""The 18 points of `request.Pose.body` in order; "neck" is the middle of the shoulders."""

face_joints = ("nose", "right_eye", "left_eye", "right_ear", "left_ear")

sides = ("left", "right")


def hand_joints(side: str) -> tuple[str, ...]:
    """The 21 points of a hand in order; the first is the wrist."""
    return (f"{side}_wrist", *(f"{side}_{f}_{n}" for f in fingers for n in range(1, 5)))


joint_names = (
    *(name for name in body_joints if name != "neck"),
    *(name for side in sides for name in hand_joints(side)[1:]),
)
"""Every joint that a bone can be bound to."""

_limb_joints = tuple(f"{side}_{limb}" for side in sides for limb in limbs)
_least_limbs = 8
"""Of the 12 joints of arms and legs; with fewer, a rig is not taken for one of a family."""

face_offsets: dict[str, tuple[float, float, float]] = {
    "nose": (0.0, 0.315, 0.10),
    "right_eye": (-0.065, 0.25, 0.20),
    "left_eye": (0.065, 0.25, 0.20),
    "right_ear": (-0.16, 0.05, 0.155),
    "left_ear": (0.16, 0.05, 0.155),
}
"""To the subject's left, forward, up from the head bone's head, in torso lengths (middle of the
shoulders to middle of the hips). Means over the CC0 bodies of `world`, men, women and children,
where the largest miss is 2.5 cm; the bones of Rigify's human metarig lie within 2 cm too."""


class RigError(ValueError):
    """A correction that cannot be: the message says why."""


@dataclass(frozen=True)
class RigMap:
    """The joints that a rig has bones for.

    family: the rig's kind in words, "" when it is none that is known.
    joints: joint name -> (bone, "head" or "tail").
    head: the head bone. guessed: joints of the face without bones, placed by `face_at_rest`.
    unmapped: joints that are neither bound nor guessed, see `in_words`.
    problem: a sentence where the rig was not recognised, else "".
    """

    family: str
    joints: dict[str, BoneEnd]
    head: str | None
    guessed: list[str] = field(default_factory=list)
    unmapped: list[str] = field(default_factory=list)
    problem: str = ""

    def with_override(self, joint: str, bone: str, end: str = "head") -> RigMap:
        """The map with this joint bound to this end of a bone. Raises RigError for no joint."""
        if joint not in joint_names:
            raise RigError(f"{joint} is not a joint that can be bound.")
        if end not in ("head", "tail"):
            raise RigError(f'A joint is at the "head" or the "tail" of a bone, not at {end!r}.')
        return dataclasses.replace(
            self,
            joints={**self.joints, joint: (bone, end)},
            guessed=[name for name in self.guessed if name != joint],
            unmapped=[name for name in self.unmapped if name != joint],
        )


def map_bones(bone_names: Iterable[str], parents: Mapping[str, str | None]) -> RigMap:
    """Find out what kind of rig this is and where its joints are.

    bone_names: of one armature. parents: bone -> its parent (None or "" for a root); a limb whose
    bones hang upside down (a hand above its arm) counts for nothing.
    Never raises: `RigMap.problem` says what is wrong with a rig that is not recognised.
    """
    bones = {name.casefold(): name for name in bone_names}
    best: list[tuple[tuple[int, int], str, RigMap]] = []
    nearest: tuple[int, str, list[str]] = (0, "", [])
    for family in rig_tables.families:
        for prefix in _prefixes(family, bones):
            found = _map_family(family, prefix, bones, parents)
            missing = [name for name in _limb_joints if name not in found.joints]
            score = len(_limb_joints) - len(missing)
            if score > nearest[0]:
                nearest = (score, family.name, missing)
            if score >= _least_limbs:
                best.append(((score, len(found.joints)), prefix, found))
    if not best:
        return _unknown(nearest)
    best.sort(key=lambda entry: entry[0], reverse=True)
    top = [entry for entry in best if entry[0] == best[0][0]]
    if len({frozenset(entry[2].joints.items()) for entry in top}) > 1:
        which = " and ".join(_described(entry[2].family, entry[1]) for entry in top[:2])
        return _empty(
            f"This armature holds two rigs: {which}. "
            "Use one armature for each character, or bind the joints by hand."
        )
    return best[0][2]


def face_at_rest(
    rest_joints: Mapping[str, np.ndarray], head_at: np.ndarray, wanted: Sequence[str] = face_joints
) -> dict[str, np.ndarray]:
    """Where nose, eyes and ears are on a rig that has no bones for them.

    rest_joints: joint name -> (3,) at rest, in armature space. head_at: (3,) the head bone's head.
    The skeleton at rest stands upright and looks ahead; its front is left x up, whichever axis the
    rig was built along. The points move with the head bone.
    Returns joint -> (3,); nothing where shoulders or hips are not known.
    """
    ends = [f"{side}_{joint}" for joint in ("shoulder", "hip") for side in sides]
    if not set(ends) <= set(rest_joints):
        return {}
    left_shoulder, right_shoulder, left_hip, right_hip = (
        np.asarray(rest_joints[name], np.float64) for name in ends
    )
    up = (left_shoulder + right_shoulder - left_hip - right_hip) / 2
    torso = float(np.linalg.norm(up))
    across = left_shoulder - right_shoulder
    if torso < 1e-9 or np.linalg.norm(across) < 1e-9:
        return {}
    up = up / torso
    left = across - up * (across @ up)
    left = left / np.linalg.norm(left)
    axes = np.stack([left, np.cross(left, up), up])
    return {
        name: np.asarray(head_at, np.float64) + np.array(face_offsets[name]) * torso @ axes
        for name in wanted
    }


def in_words(joints: Iterable[str]) -> list[str]:
    """Joint names for people: whole hands and fingers together, "left elbow", "right thumb"."""
    names = list(joints)
    words = []
    done: set[str] = set()
    for name in names:
        side, _, rest = name.partition("_")
        finger = rest.rpartition("_")[0]
        if finger not in fingers:
            words.append(name.replace("_", " "))
            continue
        hand = {f"{side}_{f}_{n}" for f in fingers for n in range(1, 5)}
        whole = {f"{side}_{finger}_{n}" for n in range(1, 5)}
        if hand <= set(names):
            word = f"fingers of the {side} hand"
        elif whole <= set(names):
            word = f"{side} {finger}"
        else:
            word = f"part of the {side} {finger}"
        if word not in done:
            done.add(word)
            words.append(word)
    return words


def _prefixes(family: Family, bones: Mapping[str, str]) -> list[str]:
    """What stands before the family's names in this armature, in lower case."""
    if not family.prefixed:
        return [""]
    found = set()
    for template in (family.limbs[0], family.limbs[3]):
        for side in family.sides:
            anchor = template.replace("{side}", side).casefold()
            found |= {name[: -len(anchor)] for name in bones if name.endswith(anchor)}
    # "Left" + "Arm" ends "ForeLeftArm" too, but a prefix ends where a word does.
    return sorted(p for p in found if not p or not p[-1].isalpha())


def _map_family(
    family: Family, prefix: str, bones: Mapping[str, str], parents: Mapping[str, str | None]
) -> RigMap:
    joints: dict[str, BoneEnd] = {}

    def look(template: str, word: str = "") -> str | None:
        return bones.get(prefix + template.replace("{side}", word).casefold())

    head = next((bone for bone in map(look, family.head) if bone), None)
    for joint, ends, word in (
        ("nose", family.nose, ""),
        *((f"{side}_eye", family.eye, word) for side, word in _both(family)),
        *((f"{side}_ear", family.ear, word) for side, word in _both(family)),
    ):
        found = next(((b, end) for b, end in ((look(t, word), end) for t, end in ends) if b), None)
        if found:
            joints[joint] = found
    for side, word in _both(family):
        chain = [look(template, word) for template in family.limbs]
        for start in (0, 3):
            limb = chain[start : start + 3]
            if _is_chain([bone for bone in limb if bone], parents):
                for name, bone in zip(limbs[start : start + 3], limb, strict=True):
                    if bone:
                        joints[f"{side}_{name}"] = (bone, "head")
        for finger, ways in zip(fingers, family.fingers, strict=True):
            named = max(([look(t, word) for t in way] for way in ways), key=_count)
            ends_of_finger = [(bone, "head") for bone in named if bone]
            if len(ends_of_finger) == len(named) == 3:
                ends_of_finger.append((ends_of_finger[-1][0], "tail"))
            elif len(named) == 4 and named[2] and not named[3]:
                ends_of_finger.append((named[2], "tail"))
            if None in named[:3]:
                continue
            for n, end in enumerate(ends_of_finger, 1):
                joints[f"{side}_{finger}_{n}"] = end
    guessed = [name for name in face_joints if head and name not in joints]
    unmapped = [name for name in joint_names if name not in joints and name not in guessed]
    return RigMap(family.name, joints, head, guessed, unmapped)


def _both(family: Family) -> tuple[tuple[str, str], ...]:
    return tuple(zip(sides, family.sides, strict=True))


def _count(bones: Sequence[str | None]) -> int:
    return sum(bone is not None for bone in bones)


def _is_chain(limb: Sequence[str], parents: Mapping[str, str | None]) -> bool:
    """Whether no bone hangs above the one before it.

    Below it they need not be: rigs for animators keep deforming bones beside each other.
    """
    return all(b not in _ancestors(a, parents) for a, b in itertools.pairwise(limb))


def _ancestors(bone: str, parents: Mapping[str, str | None]) -> set[str]:
    found: set[str] = set()
    parent = parents.get(bone)
    while parent and parent not in found:
        found.add(parent)
        parent = parents.get(parent)
    return found


def _unknown(nearest: tuple[int, str, list[str]]) -> RigMap:
    score, family, missing = nearest
    known = ", ".join(f.name for f in rig_tables.families[:-1])
    advice = "Bind the joints to bones by hand."
    if score:
        return _empty(
            f"This rig looks a little like {family}, but has no bone for "
            f"{', '.join(in_words(missing))}. {advice}"
        )
    return _empty(f"The bones of this rig have names that are not known ({known}). {advice}")


def _empty(problem: str) -> RigMap:
    return RigMap("", {}, None, [], list(joint_names), problem)


def _described(family: str, prefix: str) -> str:
    return f"{family} ({prefix.rstrip(':_')})" if prefix else family

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the bones of known rigs are called. Data only; `rigs.py` reads it.

In the names, {side} is the family's word for left or right.
"""

from __future__ import annotations

from dataclasses import dataclass

limbs = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
fingers = ("thumb", "index", "middle", "ring", "pinky")

BoneEnd = tuple[str, str]
"""A bone's name and "head" or "tail"."""


@dataclass(frozen=True)
class Family:
    """How one kind of rig names its bones.

    sides: the words for left and right. head: names to try for the head bone.
    limbs: the bones whose heads are the joints of `rig_tables.limbs`, in that order.
    fingers: for each of `rig_tables.fingers` the ways to name its three bones, from the palm
        outwards; a fourth name, where there is one, is a bone whose head is the finger's tip.
    nose, eye, ear: bone ends to try, in rigs that have bones for them.
    prefixed: whether anything may stand before all names ("mixamorig1:", "Ada_").
    """

    name: str
    sides: tuple[str, str]
    head: tuple[str, ...]
    limbs: tuple[str, ...]
    fingers: tuple[tuple[tuple[str, ...], ...], ...]
    nose: tuple[BoneEnd, ...] = ()
    eye: tuple[BoneEnd, ...] = ()
    ear: tuple[BoneEnd, ...] = ()
    prefixed: bool = True


def _numbered(
    pattern: str, words: tuple[str, ...], first: int = 1, count: int = 3
) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Fingers whose bones are counted: `pattern` with {finger} and {n}."""
    return tuple(
        (
            tuple(
                pattern.replace("{finger}", word).replace("{n}", str(n))
                for n in range(first, first + count)
            ),
        )
        for word in words
    )


def _parts(
    pattern: str, words: tuple[str, ...], parts: tuple[str, ...], thumb: tuple[str, ...]
) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """VRM's fingers: `pattern` with {finger} and {part}. The thumb's parts had other names once."""

    def way(word: str, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(pattern.replace("{finger}", word).replace("{part}", n) for n in names)

    first, *others = words
    return ((way(first, thumb), way(first, parts)), *((way(w, parts),) for w in others))


_english = ("thumb", "index", "middle", "ring", "pinky")
_rigify_fingers = ("thumb", "f_index", "f_middle", "f_ring", "f_pinky")
_rigify_limbs = ("upper_arm", "forearm", "hand", "thigh", "shin", "foot")

families = (
    Family(
        name="Mixamo",
        sides=("Left", "Right"),
        head=("Head",),
        limbs=tuple(
            f"{{side}}{bone}" for bone in ("Arm", "ForeArm", "Hand", "UpLeg", "Leg", "Foot")
        ),
        fingers=_numbered(
            "{side}Hand{finger}{n}", ("Thumb", "Index", "Middle", "Ring", "Pinky"), count=4
        ),
        eye=(("{side}Eye", "head"),),
    ),
    Family(
        name="Rigify",
        sides=("L", "R"),
        head=("DEF-spine.006", "DEF-head"),
        limbs=tuple(f"DEF-{bone}.{{side}}" for bone in _rigify_limbs),
        fingers=_numbered("DEF-{finger}.0{n}.{side}", _rigify_fingers),
        nose=(("DEF-nose.002", "head"),),
        # The generated rig's plain "eye.L" is a handle in the air before the face.
        eye=(("ORG-eye.{side}", "head"), ("MCH-eye.{side}", "head"), ("DEF-eye.{side}", "head")),
        ear=(("DEF-ear.{side}", "head"),),
        prefixed=False,
    ),
    Family(
        name="Rigify metarig",
        sides=("L", "R"),
        head=("spine.006", "head"),
        limbs=tuple(f"{bone}.{{side}}" for bone in _rigify_limbs),
        fingers=_numbered("{finger}.0{n}.{side}", _rigify_fingers),
        nose=(("nose.002", "head"),),
        eye=(("eye.{side}", "head"),),
        ear=(("ear.{side}", "head"),),
        prefixed=False,
    ),
    Family(
        name="MakeHuman",
        sides=("L", "R"),
        head=("head",),
        limbs=tuple(
            f"{bone}.{{side}}"
            for bone in ("upperarm01", "lowerarm01", "wrist", "upperleg01", "lowerleg01", "foot")
        ),
        fingers=_numbered("finger{finger}-{n}.{side}", ("1", "2", "3", "4", "5")),
        eye=(("eye.{side}", "head"),),
    ),
    Family(
        name="Unreal mannequin",
        sides=("l", "r"),
        head=("head",),
        limbs=tuple(
            f"{bone}_{{side}}" for bone in ("upperarm", "lowerarm", "hand", "thigh", "calf", "foot")
        ),
        fingers=_numbered("{finger}_0{n}_{side}", _english),
        eye=(("FACIAL_{side}_Eye", "head"), ("eye_{side}", "head")),
    ),
    Family(
        name="VRoid",
        sides=("L", "R"),
        head=("J_Bip_C_Head",),
        limbs=tuple(
            f"J_Bip_{{side}}_{bone}"
            for bone in ("UpperArm", "LowerArm", "Hand", "UpperLeg", "LowerLeg", "Foot")
        ),
        fingers=_numbered(
            "J_Bip_{side}_{finger}{n}", ("Thumb", "Index", "Middle", "Ring", "Little")
        ),
        eye=(("J_Adj_{side}_FaceEye", "head"),),
    ),
    Family(
        name="VRM",
        sides=("left", "right"),
        head=("head",),
        limbs=tuple(
            f"{{side}}{bone}"
            for bone in ("UpperArm", "LowerArm", "Hand", "UpperLeg", "LowerLeg", "Foot")
        ),
        fingers=_parts(
            "{side}{finger}{part}",
            ("Thumb", "Index", "Middle", "Ring", "Little"),
            ("Proximal", "Intermediate", "Distal"),
            ("Metacarpal", "Proximal", "Distal"),
        ),
        eye=(("{side}Eye", "head"),),
    ),
    Family(
        # The names that the VRM add-on for Blender gives to a new humanoid.
        name="VRM for Blender",
        sides=("L", "R"),
        head=("head",),
        limbs=tuple(
            f"{bone}.{{side}}"
            for bone in ("upper_arm", "lower_arm", "hand", "upper_leg", "lower_leg", "foot")
        ),
        fingers=_parts(
            "{finger}_{part}.{side}",
            ("thumb", "index", "middle", "ring", "little"),
            ("proximal", "intermediate", "distal"),
            ("metacarpal", "proximal", "distal"),
        ),
        eye=(("eye.{side}", "head"),),
        prefixed=False,
    ),
)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Dressed people as meshes: the identity's body with clothes, hair, colours and skin weights.

Adults only, always clothed. The same identity gives the same figure. See `world.body` for frames.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np

from world import body, hair, looks
from world.face import FaceFrame, face_frame, head_colours, landmarks_on_base, scalp_cover
from world.identities import (
    Identity,
    clothes,
    cloths,
    description,
    express,
    expressions,
    from_data,
    hairs,
    identity,
    irises,
    noun,
    resident,
    shape,
    skins,
    to_data,
)

Array = np.ndarray

regions = ("background", "skin", "head", "hair", "top", "bottom", "shoes")
"""What a pixel of the `part` map shows; "head" is face, neck, eyes and mouth."""


@dataclass(frozen=True)
class Figure:
    """A dressed person at rest (arms in an A-pose).

    vertices (N, 3) m, feet on z = 0. faces (M, 4), a triangle repeats its last corner. colours
    (N, 3) sRGB 0..1. weights (N, B). bones, parents (-1: none), heads and tails (B, 3).
    part: (M,) names: "skin", "head", "eyes", "mouth", "hair", "top", "bottom", "shoes".
    region: (M,) uint8, index of `regions`: as part, but hair on the scalp is "hair".
    piece: (M,) numbers; a drawing outlines the faces of one number together.
    landmarks: (70,) vertex indices in iBUG order (68) and the right and left pupil, -1: none.
    ears: vertex indices of the right and the left ear.
    """

    vertices: Array
    faces: Array
    colours: Array
    weights: Array
    bones: tuple[str, ...]
    parents: tuple[int, ...]
    rolls: tuple[float, ...]
    heads: Array
    tails: Array
    part: Array
    region: Array
    piece: Array
    landmarks: Array
    ears: tuple[int, int]


_outlined = {
    "skin": 0,
    "head": 0,
    "eyes": 4,
    "mouth": 0,
    "hair": 1,
    "top": 2,
    "bottom": 3,
    "shoes": 3,
}


@dataclass(frozen=True)
class _Piece:
    """Some faces of one part, their vertices' positions, colours, weights.

    base: base vertex index of each vertex, -1 for one that subdivision made. hairy: (faces,)
    bool, scalp under hair.
    """

    name: str
    faces: Array
    vertices: Array
    colours: Array
    weights: Array
    base: Array
    hairy: Array | None = None

    @property
    def region(self) -> Array:
        """(faces,) uint8, index of `regions`."""
        name = "head" if self.name in ("eyes", "mouth") else self.name
        whole = np.full(len(self.faces), regions.index(name), np.uint8)
        if self.hairy is not None:
            whole[self.hairy] = regions.index("hair")
        return whole


@functools.lru_cache(maxsize=8)
def _kept_shape(who: Identity) -> Array:
    return shape(who)


@functools.lru_cache(maxsize=2)
def stand_in() -> Figure:
    """Nobody: average face and build of both sexes, no hair, one plain skin-tight suit."""
    average = dataclasses.replace(
        identity(0),
        age=0.6,
        muscle=0.5,
        weight=0.5,
        height=0.5,
        people=(1 / 3, 1 / 3, 1 / 3),
        features=(),
        head_shape_weight=0.0,
        hair_length="bald",
        beard=False,
        top="sweater",
        bottom="trousers",
    )
    both = [shape(dataclasses.replace(average, male=male)) for male in (False, True)]
    return _dressed(average, (both[0] + both[1]) / 2, "neutral", "realistic")


def figure(who: Identity, expression: str = "neutral", look: str = "storyboard") -> Figure:
    """The identity dressed, with an expression.

    look: of `looks.looks`; "storyboard": realistic with the data set's own teeth.
    """
    # Clothes do not change a body.
    rest = _kept_shape(dataclasses.replace(who, top="", top_colour="", bottom_colour=""))
    return _dressed(who, looks.stylise(rest) if look == "animated" else rest, expression, look)


def _dressed(who: Identity, rest: Array, expression: str, look: str) -> Figure:
    face = face_frame(rest)
    acted = express(rest, who, expression)
    heads, tails = body.bone_ends(rest)
    pieces = [
        _head(who, rest, acted, face, look),
        *_limbs(who, rest),
        *_inside(who, rest, acted, look),
        *_clothes(who, rest),
    ]
    if who.hair_length == "long":
        pieces.append(_long_hair(who, rest, face))
    grown = hair.extra(who.hair_length, face, rest[body.group("body")])
    if grown is not None:
        pieces.append(_grown(who, *grown))
    skeleton = body.rig()
    offset, faces, part, base_of = 0, [], [], []
    for piece in pieces:
        faces.append(piece.faces + offset)
        part.append(np.full(len(piece.faces), piece.name))
        base_of.append(piece.base)
        offset += len(piece.vertices)
    vertices = np.concatenate([p.vertices for p in pieces])
    ground = np.array([0.0, 0.0, vertices[:, 2].min()])
    sources = np.concatenate(base_of)
    where = np.full(len(body.base().vertices), -1)
    known = np.flatnonzero(sources >= 0)[::-1]
    where[sources[known]] = known  # Backwards: the first vertex made of a base vertex stays.
    points, ears = landmarks_on_base()
    return Figure(
        vertices=vertices - ground,
        faces=np.concatenate(faces),
        colours=np.clip(np.concatenate([p.colours for p in pieces]), 0, 1),
        weights=np.concatenate([p.weights for p in pieces]),
        bones=skeleton.bones,
        parents=skeleton.parents,
        rolls=skeleton.rolls,
        heads=heads - ground,
        tails=tails - ground,
        part=np.concatenate(part),
        region=np.concatenate([p.region for p in pieces]),
        piece=np.concatenate([np.full(len(p.faces), _outlined[p.name]) for p in pieces]),
        landmarks=where[points],
        ears=(int(where[ears[0]]), int(where[ears[1]])),
    )


def face_landmarks(person: Figure | None = None) -> Array:
    """(70,) vertex indices, iBUG order and the two pupils: of the base mesh, or of a figure."""
    return landmarks_on_base()[0] if person is None else person.landmarks


@functools.cache
def _neck_height() -> float:
    """The base body above this height is drawn refined."""
    at = body.rig().bones.index("mixamorig:Neck")
    return float(body.bone_ends(body.base().vertices)[0][at, 2]) - 0.02


@functools.cache
def _quads_of(*groups: str) -> Array:
    data = body.base()
    return data.quads[np.isin(data.groups, groups)]


@functools.cache
def _head_surface() -> body.Subdivision:
    quads = _quads_of("body")
    middle = body.base().vertices[quads].mean(1)
    return body.Subdivision(quads[middle[:, 2] > _neck_height()])


@functools.cache
def _head_weights() -> Array:
    return _head_surface().linear(body.rig().weights)


def _head(who: Identity, rest: Array, acted: Array, face: FaceFrame, look: str) -> _Piece:
    surface = _head_surface()
    fine_rest, fine = surface.smooth(rest), surface.smooth(acted)
    colours, cover = head_colours(
        fine_rest,
        face,
        surface.linear(_lip_weights()[:, None])[:, 0],
        skin=np.array(skins[who.skin]),
        hair=np.array(hairs[who.hair]),
        bald=who.hair_length == "bald",
        beard=who.beard,
        brow=who.brow,
        male=who.male,
        temples=hair.temples(who.hair_length),
        eye_growth=looks.eye_growth if look == "animated" else 0.0,
    )
    away = fine_rest - face.skull
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    depth = 0.10 if who.hair_length == "long" else hair.depths.get(who.hair_length, 0.13)
    thick = cover * depth
    if who.hair_length == "curly":
        thick = thick * hair.curls(fine_rest, face)
    fine = fine + away * thick[:, None] * face.unit
    source = np.full(len(fine), -1)
    source[: len(surface.used)] = surface.used
    hairy = cover[surface.faces].mean(1) > 0.5
    return _Piece("head", surface.faces, fine, colours, _head_weights(), source, hairy)


@functools.cache
def _lip_weights() -> Array:
    """How much each base vertex is lip, 0..1, from the lips' own volume targets."""
    weight = np.zeros(len(body.base().vertices))
    for name in ("mouth/mouth-upperlip-volume-incr", "mouth/mouth-lowerlip-volume-incr"):
        indices, offsets = body.target(name)
        strength = np.linalg.norm(offsets, axis=1)
        weight[indices] = np.maximum(weight[indices], strength / strength.max())
    return weight


def _piece(name: str, quads: Array, vertices: Array, colours: Array) -> _Piece:
    """A piece of the base mesh. colours: one (3,) for all, or (V, 3) of the base vertices."""
    used, faces = np.unique(quads, return_inverse=True)
    colours = np.broadcast_to(colours, (len(vertices), 3))[used]
    weights = body.rig().weights[used]
    return _Piece(name, faces.reshape(quads.shape), vertices[used], colours, weights, used)


@dataclass(frozen=True)
class _Cut:
    """Heights (m, base frame) and arm stations at which garments end, for one body."""

    waist: float
    hip: float
    knee: float
    ankle: float
    sleeve: float
    wrist: float


def _cut(who: Identity, rest: Array) -> _Cut:
    heads, _ = body.bone_ends(rest)
    at = {n.split(":")[1]: heads[i] for i, n in enumerate(body.rig().bones)}
    arm = float(np.linalg.norm(at["LeftForeArm"] - at["LeftArm"]))
    whole = arm + float(np.linalg.norm(at["LeftHand"] - at["LeftForeArm"]))
    waist, hip = float(at["Spine"][2]) - 0.03, float(at["LeftUpLeg"][2])
    return _Cut(
        waist=waist,
        hip=hip,
        knee=float(at["LeftLeg"][2]),
        ankle=float(at["LeftFoot"][2]),
        sleeve=arm * 0.55 if who.top == "t-shirt" else whole * 0.97,
        wrist=whole,
    )


@functools.cache
def _arm_share() -> tuple[Array, Array]:
    """How much each base vertex goes with the left and with the right arm, (V,) each."""
    skeleton = body.rig()
    sides = []
    for side in ("Left", "Right"):
        names = [
            i
            for i, bone in enumerate(skeleton.bones)
            if bone.startswith((f"mixamorig:{side}Arm", f"mixamorig:{side}ForeArm"))
            or bone.startswith(f"mixamorig:{side}Hand")
        ]
        sides.append(skeleton.weights[:, names].sum(1))
    return sides[0], sides[1]


def _along_arm(rest: Array, quads: Array) -> Array:
    """Distance (m) of quads (n, 4) from the shoulder along their arm, -1 on trunk and legs."""
    heads, _ = body.bone_ends(rest)
    order = body.rig().bones
    middle = rest[quads].mean(1)
    out = np.full(len(quads), -1.0)
    for side, share in zip(("Left", "Right"), _arm_share(), strict=True):
        shoulder, elbow, hand = (
            heads[order.index(f"mixamorig:{side}{n}")] for n in ("Arm", "ForeArm", "Hand")
        )
        upper, lower = elbow - shoulder, hand - elbow
        first = (middle - shoulder) @ (upper / np.linalg.norm(upper))
        second = (middle - elbow) @ (lower / np.linalg.norm(lower))
        along = np.where(second > 0, np.linalg.norm(upper) + second, first)
        out = np.where(share[quads].mean(1) > 0.5, np.maximum(along, 0), out)
    return out


def _limbs(who: Identity, rest: Array) -> list[_Piece]:
    """Hands, and what sleeves, trousers or skirt leave free of arms and legs; shoes."""
    cut = _cut(who, rest)
    quads = _quads_of("body")
    middle = rest[quads].mean(1)
    below_head = body.base().vertices[quads].mean(1)[:, 2] <= _neck_height()
    along = _along_arm(rest, quads)
    bare_arm = along > cut.sleeve - 0.025
    leg_end = {"trousers": cut.ankle + 0.03, "shorts": cut.knee + 0.10, "skirt": cut.knee + 0.10}
    bare_leg = (middle[:, 2] < leg_end[who.bottom]) & (along < 0)
    shoe = bare_leg & (middle[:, 2] < cut.ankle + 0.01)
    # The neck and its base, where a wide collar could show it.
    neck = (middle[:, 2] > _neck_height() - 0.05) & (np.abs(middle[:, 0]) < 0.09)
    skin = below_head & (bare_arm | bare_leg | neck) & ~shoe
    colour = np.array(skins[who.skin])
    sole = np.array(cloths[who.bottom_colour]) * 0.25 + 0.04
    shoes = _piece("shoes", quads[below_head & shoe], rest, sole)
    return [_piece("skin", quads[skin], rest, colour), shoes]


def _clothes(who: Identity, rest: Array) -> list[_Piece]:
    """Top and bottom cut from the body's own tights and skirt, a little off the skin."""
    cut = _cut(who, rest)
    tights = _quads_of("helper-tights")
    middle = rest[tights].mean(1)
    along = _along_arm(rest, tights)
    normals = _vertex_normals(rest, tights)
    trunk = along < 0
    top = (middle[:, 2] > cut.hip + 0.02) & (along < cut.sleeve)
    colour = np.array(cloths[who.top_colour])
    pieces = [_piece("top", tights[top], rest + normals * 0.009, colour)]
    colour = np.array(cloths[who.bottom_colour])
    if who.bottom == "skirt":
        skirt = _quads_of("helper-skirt")
        kept = rest[skirt].mean(1)[:, 2] > cut.knee - 0.03
        hips = trunk & (middle[:, 2] < cut.waist + 0.03) & (middle[:, 2] > cut.hip - 0.12)
        pieces.append(_piece("bottom", skirt[kept], rest, colour))
        pieces.append(_piece("bottom", tights[hips], rest, colour))
    else:
        end = cut.ankle + 0.02 if who.bottom == "trousers" else cut.knee + 0.06
        legs = trunk & (middle[:, 2] < cut.waist + 0.03) & (middle[:, 2] > end)
        pieces.append(_piece("bottom", tights[legs], rest + normals * 0.004, colour))
    return pieces


def _vertex_normals(vertices: Array, quads: Array) -> Array:
    """(V, 3) unit normals of the vertices that the quads use, zeros elsewhere."""
    a, b, c, d = (vertices[quads[:, k]] for k in range(4))
    across = np.cross(c - a, d - b)
    out = np.zeros_like(vertices)
    for k in range(4):
        np.add.at(out, quads[:, k], across)
    length = np.linalg.norm(out, axis=1, keepdims=True)
    return out / np.where(length > 0, length, 1)


def _inside(who: Identity, rest: Array, acted: Array, look: str) -> list[_Piece]:
    """Eyes, teeth, tongue; drawn people have wide irises."""
    iris, pupil = (0.80, 0.30) if look == "animated" else (0.60, 0.28)
    glow = 0.22 if look == "animated" else 0.0
    pieces = []
    for side in "lr":
        name = f"helper-{side}-eye"
        indices = body.group(name)
        around = rest[indices] - rest[indices].mean(0)
        radius = np.linalg.norm(around, axis=1).max()
        ring = np.hypot(around[:, 0], around[:, 2]) / radius
        colours = np.full((len(rest), 3), 0.95)
        front = around[:, 1] < 0
        colours[indices[front & (ring < iris)]] = np.array(irises[who.eyes]) * (1 - glow) + glow
        colours[indices[front & (ring < pupil)]] = (0.02, 0.02, 0.02)
        pieces.append(_piece("eyes", _quads_of(name), acted, colours))
    teeth = _quads_of("helper-upper-teeth", "helper-lower-teeth")
    white = np.array((0.93, 0.92, 0.88))
    if look != "storyboard":
        # The lower jaw does not open in the expressions: its teeth would stand in the mouth, and
        # the upper row's ends would come through the cheeks.
        teeth, white = _quads_of("helper-upper-teeth"), white * 0.92
        used = np.unique(teeth)
        middle = acted[used].mean(0)
        acted = acted.copy()
        acted[used] = middle + (acted[used] - middle) * (0.72, 0.9, 0.8) + (0, 0.004, 0.002)
    pieces.append(_piece("mouth", teeth, acted, white))
    tongue = np.array((0.60, 0.25, 0.25))
    pieces.append(_piece("mouth", _quads_of("helper-tongue"), acted, tongue))
    return pieces


def _long_hair(who: Identity, rest: Array, face: FaceFrame) -> _Piece:
    """MakeHuman's hair helper without the curtain over the face."""
    quads = _quads_of("helper-hair")
    middle = rest[quads].mean(1)
    return _piece("hair", quads[~face.before_face(middle)], rest, np.array(hairs[who.hair]))


def _grown(who: Identity, vertices: Array, quads: Array) -> _Piece:
    """Hair of `world.hair`, rigid with the head."""
    weights = np.zeros((len(vertices), len(body.rig().bones)), np.float32)
    weights[:, body.rig().bones.index("mixamorig:Head")] = 1
    colours = np.tile(np.array(hairs[who.hair]), (len(vertices), 1))
    return _Piece("hair", quads, vertices, colours, weights, np.full(len(vertices), -1))


__all__ = [
    "Figure",
    "Identity",
    "clothes",
    "cloths",
    "description",
    "express",
    "expressions",
    "face_landmarks",
    "figure",
    "from_data",
    "hairs",
    "identity",
    "irises",
    "noun",
    "regions",
    "resident",
    "scalp_cover",
    "shape",
    "skins",
    "stand_in",
    "to_data",
]

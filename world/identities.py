# SPDX-License-Identifier: GPL-3.0-or-later
"""Who somebody is: random adults, the words for them, and the shapes of their bodies.

The same seed gives the same person. See `world.body` for frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from world import body, hair

Array = np.ndarray

skins = {
    "pale": (0.93, 0.76, 0.68),
    "fair": (0.87, 0.66, 0.54),
    "tan": (0.74, 0.53, 0.40),
    "brown": (0.53, 0.35, 0.25),
    "dark": (0.33, 0.21, 0.15),
}
hairs = {
    "black": (0.05, 0.045, 0.05),
    "brown": (0.27, 0.15, 0.08),
    "blond": (0.84, 0.66, 0.32),
    "red": (0.62, 0.21, 0.07),
    "grey": (0.58, 0.58, 0.60),
    "white": (0.92, 0.91, 0.88),
}
irises = {"blue": (0.20, 0.42, 0.80), "green": (0.20, 0.52, 0.28), "brown": (0.30, 0.17, 0.08)}
cloths = {
    "red": (0.78, 0.09, 0.09),
    "blue": (0.12, 0.22, 0.72),
    "green": (0.10, 0.50, 0.18),
    "yellow": (0.92, 0.76, 0.12),
    "white": (0.93, 0.93, 0.93),
    "black": (0.07, 0.07, 0.08),
    "purple": (0.46, 0.15, 0.62),
    "orange": (0.92, 0.43, 0.08),
    "grey": (0.48, 0.49, 0.51),
    "pink": (0.93, 0.52, 0.64),
}
"""sRGB, 0..1."""
tops = ("sweater", "t-shirt")
bottoms = ("trousers", "shorts", "skirt")
hair_lengths = ("bald", "short", "long")
head_shapes = ("oval", "round", "square", "triangular", "rectangular", "diamond")
peoples = ("african", "asian", "caucasian")

_features: dict[str, tuple[str, str]] = {
    "nose/nose-scale-horiz": ("incr", "decr"),
    "nose/nose-scale-depth": ("incr", "decr"),
    "nose/nose-hump": ("incr", "decr"),
    "nose/nose-point": ("up", "down"),
    "nose/nose-width3": ("incr", "decr"),
    "nose/nose-volume": ("incr", "decr"),
    "chin/chin-height": ("incr", "decr"),
    "chin/chin-width": ("incr", "decr"),
    "chin/chin-prominent": ("incr", "decr"),
    "head/head-scale-horiz": ("incr", "decr"),
    "head/head-scale-vert": ("incr", "decr"),
    "head/head-fat": ("incr", "decr"),
    "mouth/mouth-scale-horiz": ("incr", "decr"),
    "mouth/mouth-lowerlip-volume": ("incr", "decr"),
    "mouth/mouth-upperlip-volume": ("incr", "decr"),
    "mouth/mouth-trans": ("up", "down"),
    "eyes/{}-eye-scale": ("incr", "decr"),
    "eyes/{}-eye-height2": ("incr", "decr"),
    "eyes/{}-eye-trans": ("out", "in"),
    "cheek/{}-cheek-bones": ("incr", "decr"),
    "cheek/{}-cheek-volume": ("incr", "decr"),
}

expressions: dict[str, dict[str, float]] = {
    "neutral": {},
    "smiling": {"mouth-corner-puller": 1.0, "mouth-part-later": 0.2},
    "laughing": {
        "mouth-corner-puller": 1.0,
        "mouth-open": 0.6,
        "eye-left-slit": 0.5,
        "eye-right-slit": 0.5,
    },
    "sad": {
        "mouth-depression": 1.0,
        "eyebrows-left-inner-up": 1.0,
        "eyebrows-right-inner-up": 1.0,
    },
    "angry": {
        "eyebrows-left-down": 1.0,
        "eyebrows-right-down": 1.0,
        "mouth-compression": 0.8,
        "eye-left-slit": 0.4,
        "eye-right-slit": 0.4,
    },
    "surprised": {
        "mouth-open": 0.9,
        "eyebrows-left-up": 1.0,
        "eyebrows-right-up": 1.0,
        "eye-left-opened-up": 1.0,
        "eye-right-opened-up": 1.0,
    },
}


@dataclass(frozen=True)
class Identity:
    """Who somebody is. age: 0.5 (about 25 years) to 1 (old). muscle, weight, height: 0..1.

    people: weights of `peoples`, sum 1. features: strength of facial features, about -1..1.
    The rest are words of this module's tables: they are also the words of the captions.
    """

    seed: int
    male: bool
    age: float
    muscle: float
    weight: float
    height: float
    people: tuple[float, float, float]
    features: tuple[tuple[str, float], ...]
    head_shape: str
    head_shape_weight: float
    brow: float
    skin: str
    hair: str
    hair_length: str
    beard: bool
    eyes: str
    top: str
    top_colour: str
    bottom: str
    bottom_colour: str


def identity(seed: int, **chosen: Any) -> Identity:
    """The person of this seed; fields named in `chosen` are taken as given.

    Example: identity(3, male=False, hair="red", hair_length="long", top_colour="yellow").
    """
    rng = np.random.default_rng([seed, 77])

    def pick(words: Any) -> str:
        return str(rng.choice(list(words)))

    male = bool(rng.random() < 0.5)
    male = bool(chosen.get("male", male))
    age = float(rng.choice([0.5, 0.53, 0.62, 0.75, 0.97]))
    length = pick(
        ("short",) * 7 + ("long",) + ("bald",) * 2 if male else ("long",) * 3 + ("short",)
    )
    hair_colour = pick(hairs)
    if age > 0.9 and rng.random() < 0.6:
        hair_colour = pick(("grey", "white"))
    values: dict[str, Any] = {
        "seed": seed,
        "male": male,
        "age": age,
        "muscle": float(rng.uniform(0.25, 0.85)),
        "weight": float(rng.beta(2.5, 2.5)),
        "height": float(rng.uniform(0.3, 0.7)),
        "people": tuple(rng.dirichlet([0.6] * 3).tolist()),
        "features": tuple((name, float(rng.normal(0, 0.5))) for name in _features),
        "head_shape": pick(head_shapes),
        "head_shape_weight": float(rng.uniform(0.2, 0.9)),
        "brow": float(rng.uniform(0.7, 1.2)),
        "skin": pick(skins),
        "hair": hair_colour,
        "hair_length": length,
        "beard": bool(male and rng.random() < 0.35),
        "eyes": pick(irises),
        "top": pick(tops),
        "top_colour": pick(cloths),
        "bottom": pick(("trousers",) * 4 + ("shorts",) if male else ("trousers", "skirt", "skirt")),
        "bottom_colour": pick(cloths),
    }
    values.update(chosen)
    return Identity(**values)


def resident(seed: int) -> Identity:
    """The person of this seed in the training world: milder features, more hairstyles.

    The sample storyboard's two people come from `identity` itself and stay as they are.
    """
    who = identity(seed)
    rng = np.random.default_rng([seed, 78])
    features = []
    for name, strength in who.features:
        limit = 0.5 if name.startswith("nose") else 0.8
        features.append((name, float(np.clip(strength * 0.7, -limit, limit))))
    length = who.hair_length
    if length == "long" and not who.male:
        length = str(
            rng.choice(
                ["loose", "bob", "ponytail", "bun", "curly"], p=[0.3, 0.25, 0.15, 0.15, 0.15]
            )
        )
    elif length == "long":
        length = str(rng.choice(["loose", "ponytail"]))
    elif length == "short" and rng.random() < 0.2:
        length = "curly"
    return dataclasses.replace(who, features=tuple(features), hair_length=length)


def noun(who: Identity) -> str:
    """The class noun of a caption: "young woman", "man", "old man"."""
    word = "man" if who.male else "woman"
    return f"old {word}" if who.age > 0.9 else f"young {word}" if who.age < 0.55 else word


def description(who: Identity) -> str:
    """Skin, hair, beard, eyes and clothes in words, as the captions have them."""
    beard = f"{who.hair} beard, " if who.beard else ""
    return (
        f"{who.skin} skin, {hair.words(who.hair_length, who.hair)}, {beard}{who.eyes} eyes, "
        f"{clothes(who)}"
    )


def clothes(who: Identity) -> str:
    """The last part of `description`."""
    return f"{who.top_colour} {who.top}, {who.bottom_colour} {who.bottom}"


def shape(who: Identity) -> Array:
    """Base mesh vertices (V, 3) of the identity's body at rest, neutral face."""
    v = body.base().vertices.copy()
    sex = "male" if who.male else "female"
    old = min(1.0, max(0.0, (who.age - 0.5) / 0.5))
    for age, age_weight in (("young", 1 - old), ("old", old)):
        for people, weight in zip(peoples, who.people, strict=True):
            body.morph(v, f"macrodetails/{people}-{sex}-{age}", age_weight * weight)
        for muscle, muscle_weight in _between(who.muscle, "muscle"):
            for weight_name, weight in _between(who.weight, "weight"):
                share = age_weight * muscle_weight * weight
                build = f"{sex}-{age}-{muscle}-{weight_name}"
                body.morph(v, f"macrodetails/universal-{build}", share)
                end = "minheight" if who.height < 0.5 else "maxheight"
                reach = abs(who.height - 0.5) * 2
                body.morph(v, f"macrodetails/height/{build}-{end}", reach * share)
    body.morph(v, f"head/head-{who.head_shape}", who.head_shape_weight)
    for name, strength in who.features:
        more, less = _features[name]
        for one in (name.format("l"), name.format("r")) if "{}" in name else (name,):
            body.morph(v, f"{one}-{more if strength > 0 else less}", min(1.0, abs(strength)))
    return v


def _between(value: float, what: str) -> list[tuple[str, float]]:
    """MakeHuman's blend of average with the nearer end."""
    end = f"min{what}" if value < 0.5 else f"max{what}"
    reach = abs(value - 0.5) * 2
    return [(f"average{what}", 1 - reach), (end, reach)]


def express(vertices: Array, who: Identity, expression: str) -> Array:
    """Vertices (V, 3) with an expression of `expressions` on the face."""
    people = peoples[int(np.argmax(who.people))]
    out = vertices.copy()
    for unit, weight in expressions[expression].items():
        body.morph(out, f"expression/units/{people}/{unit}", weight)
    return out


def from_data(data: Mapping[str, Any]) -> Identity:
    """An identity from what `to_data` gave."""
    fields = dict(data)
    fields["people"] = tuple(fields["people"])
    fields["features"] = tuple((str(n), float(w)) for n, w in fields["features"])
    return Identity(**fields)


def to_data(who: Identity) -> dict[str, Any]:
    """An identity as plain JSON data."""
    return dataclasses.asdict(who)

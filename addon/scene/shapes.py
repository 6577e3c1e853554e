# SPDX-License-Identifier: GPL-3.0-or-later
"""Shapes of settings that come up more than once: a share, a weight, pixels, takes, a file.

Each returns what Blender's own property functions return, to stand in an annotation. Names and
descriptions are the artist's; a description is a whole sentence without its full stop.
"""

from __future__ import annotations

from typing import Any

import bpy
from bpy.props import FloatProperty, IntProperty, StringProperty

largest_seed = 2**31 - 1
"""Blender's integers have 32 bits; the contract allows 63."""

most_takes = 99

_path_options: set[str] = (
    {"PATH_SUPPORTS_BLEND_RELATIVE"} if bpy.app.version >= (4, 5, 0) else set()
)
"""Blender 4.5 wants to be told that a path may start with "//"; earlier ones refuse the word."""


def share(name: str, description: str, default: float, least: float = 0.0) -> Any:
    """A part of a whole, up to 1."""
    return FloatProperty(
        name=name,
        description=description,
        default=default,
        min=least,
        max=1.0,
        subtype="FACTOR",
    )


def weight(name: str, description: str, default: float = 1.0, usual_most: float = 1.5) -> Any:
    """How strongly something acts, 0 to 2. usual_most: as far as dragging goes."""
    return FloatProperty(
        name=name, description=description, default=default, min=0.0, max=2.0, soft_max=usual_most
    )


def pixels(name: str, description: str, default: int = 0, least: int = 0, most: int = 4096) -> Any:
    """A length in pixels; as it stands a side of what a model draws, where 0 is the model's own."""
    return IntProperty(
        name=name, description=description, default=default, min=least, max=most, subtype="PIXEL"
    )


def delivered(name: str, default: int) -> Any:
    """A side of what is delivered, in pixels, as far as Blender renders and servers take it."""
    return pixels(name, "", default, 16, 16384)


def seed(description: str, default: int = 0) -> Any:
    """What the noise of a drawing is made of."""
    return IntProperty(
        name="Seed", description=description, default=default, min=0, max=largest_seed
    )


def takes(
    name: str, description: str, default: int = 1, least: int = 1, usual_most: int = 8
) -> Any:
    """A number of takes of a keyframe. usual_most: as far as dragging goes."""
    return IntProperty(
        name=name,
        description=description,
        default=default,
        min=least,
        soft_max=usual_most,
        max=most_takes,
    )


def handles(description: str) -> Any:
    """Frames before and after a shot."""
    return IntProperty(name="Handles", description=description, default=10, min=0, soft_max=100)


def path(name: str, description: str, subtype: str, **more: Any) -> Any:
    """A file ("FILE_PATH") or folder ("DIR_PATH"), which may be relative to the .blend file.

    more: of StringProperty, such as its default or what is called on a change.
    """
    return StringProperty(
        name=name, description=description, subtype=subtype, options=_path_options, **more
    )

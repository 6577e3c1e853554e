# SPDX-License-Identifier: GPL-3.0-or-later
"""What the artist sets about faces: portraits, the face pass, retakes. See properties.py.

No `from __future__ import annotations` here: Blender reads the annotations as values.
"""

from pathlib import Path

import bpy
from bpy.props import BoolProperty, FloatProperty, PointerProperty

from ..core import retakes
from ..core.request import FacePass
from . import shapes

_pass = FacePass()
_rule = retakes.RetakeRule()


def _portrait_chosen(self: bpy.types.PropertyGroup, _context: object) -> None:
    """Take the file as an image of the .blend too, which Blender packs and whose path it keeps
    right when the file is saved elsewhere."""
    path = Path(bpy.path.abspath(self.filepath))
    self.image = None
    if not self.filepath.strip() or not path.is_file():
        return
    try:
        self.image = bpy.data.images.load(str(path), check_existing=True)
    except RuntimeError:
        return  # no picture, which `problems.validate` says
    if self.filepath.startswith("//"):
        self.image.filepath = self.filepath


class OnmodelReference(bpy.types.PropertyGroup):
    """A portrait of a character: a file, and the image that Blender has made of it."""

    filepath: shapes.path(
        "Portrait",
        "Picture of the character's face, PNG or JPEG",
        "FILE_PATH",
        update=_portrait_chosen,
    )
    image: PointerProperty(type=bpy.types.Image, name="Image", options={"HIDDEN"})


class OnmodelFacePass(bpy.types.PropertyGroup):
    """How heads are drawn again, large; see `core.request.FacePass`."""

    enabled: BoolProperty(
        name="Face Pass",
        description="Draw every head again, large, with its own character's words and LoRAs",
        default=_pass.enabled,
    )
    first: shapes.share(
        "Repair",
        "Denoise strength inside the head's outline: a share of the sampler's way, 0 to 1. More"
        " changes the face more",
        _pass.first,
        least=0.01,
    )
    second: shapes.share(
        "Blend",
        "Denoise strength of the pass over head and surroundings after it, 0 to 1; 0 leaves it out",
        _pass.second,
    )
    size: shapes.pixels(
        "Size",
        "Side in pixels of the square in which a head is drawn; 0 takes the model's",
        _pass.size or 0,
    )
    min_height: FloatProperty(
        name="Least Height",
        description="Heads lower than this many pixels of the drawing are left as they are",
        default=_pass.min_height,
        min=0.0,
        soft_max=256.0,
        max=4096.0,
        precision=0,
        step=100,
    )
    min_visible: shapes.share(
        "Least Visible",
        "Heads of which less than this share, 0 to 1, is uncovered are left as they are",
        _pass.min_visible,
    )
    max_yaw: FloatProperty(
        name="Most Turned",
        description="Heads turned further than this from the camera, in degrees, are left as they"
        " are; 180 is seen from behind",
        default=_pass.max_yaw,
        min=0.0,
        max=180.0,
        precision=0,
        step=100,
    )
    feather: FloatProperty(
        name="Soft Edge",
        description="Width of the seam's soft edge as a share of the head's height, 0 to 0.5",
        default=_pass.feather,
        min=0.0,
        max=0.5,
    )
    keep_if_better: BoolProperty(
        name="Only If Better",
        description="Keep the old head where the new one is less like the character's portraits",
        default=_pass.keep_if_better,
    )


class OnmodelRetakes(bpy.types.PropertyGroup):
    """When to draw further takes by itself; see `core.retakes.RetakeRule`."""

    enabled: BoolProperty(
        name="Retakes",
        description="Draw further takes of a keyframe until its characters are like their"
        " portraits, and show the best. Keyframes whose take you picked are left alone",
        default=False,
    )
    score: FloatProperty(
        name="Until",
        description="Score that every face of the drawing is to reach: likeness to the portraits"
        " as a cosine, 1 for the very same face. Results shows which scores are on model",
        default=_rule.score,
        min=-1.0,
        max=1.0,
        soft_min=0.0,
        step=1,
    )
    most: shapes.takes(
        "At Most",
        "Takes of a keyframe in all, with those that are on disk already",
        _rule.most,
        usual_most=16,
    )


classes: tuple[type, ...] = (OnmodelReference, OnmodelFacePass, OnmodelRetakes)

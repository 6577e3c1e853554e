# SPDX-License-Identifier: GPL-3.0-or-later
"""Operators on the portraits of a character.

No `from __future__ import annotations` here: Blender reads the annotations as values.
"""

import hashlib
from pathlib import Path

import bpy
from bpy.props import CollectionProperty, StringProperty

from ..core import png, portraits
from ..core.shots import file_name
from ..planes import planes
from ..render import results
from ..scene import cast
from ..scene.errors import SceneError
from . import text
from .operator_base import Reporting
from .operators_cast import OfCharacter
from .operators_results import shown

folder_name = "portraits"
"""Beside the .blend file: where heads that are cut out of drawings go."""


class ONMODEL_OT_portraits_add(OfCharacter, bpy.types.Operator):
    bl_idname = "onmodel.portraits_add"
    bl_label = "Add Portraits"
    bl_description = (
        "Choose pictures of the character's face, PNG or JPEG; several at once, or drop them here"
    )

    directory: StringProperty(subtype="DIR_PATH", options={"HIDDEN", "SKIP_SAVE"})
    files: CollectionProperty(
        type=bpy.types.OperatorFileListElement, options={"HIDDEN", "SKIP_SAVE"}
    )
    filter_glob: StringProperty(default="*.png;*.jpg;*.jpeg", options={"HIDDEN"})

    def invoke(self, context: bpy.types.Context, _event: bpy.types.Event) -> set[str]:
        if self.files:  # dropped
            return self.execute(context)
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def apply(self, context: bpy.types.Context) -> None:
        row = self.character(context)
        names = [f.name for f in self.files if f.name]
        if not names:
            raise SceneError("No picture was chosen.", "Choose one or more PNG or JPEG files.")
        for name in names:
            cast.add_portrait(row, Path(bpy.path.abspath(self.directory)) / name)
        text.redraw()


class ONMODEL_OT_references_drop_lost(OfCharacter, bpy.types.Operator):
    bl_idname = "onmodel.references_drop_lost"
    bl_label = "Remove Lost Portraits"
    bl_description = "Remove the portraits whose files are gone"

    def apply(self, context: bpy.types.Context) -> None:
        cast.drop_lost_references(self.character(context))


class ONMODEL_OT_portrait_from_drawing(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.portrait_from_drawing"
    bl_label = "Use as Portrait"
    bl_description = (
        "Cut this head out of the drawing, save it beside the .blend file and give it to the"
        " character as a portrait. Drawings are compared with it from then on"
    )
    bl_options = {"REGISTER", "UNDO"}

    who: StringProperty(name="Character", options={"SKIP_SAVE"})

    def apply(self, context: bpy.types.Context) -> None:
        scene = context.scene
        row = next((r for r in scene.onmodel.cast if r.name.strip() == self.who), None)
        if row is None:
            raise SceneError(f"{self.who} is not in the cast.", "Choose another head.")
        if not bpy.data.filepath:
            raise SceneError(
                "The file was never saved, so there is no folder for portraits beside it.",
                "Save the file first.",
            )
        picture, box = _drawn_head(scene, self.who)
        try:
            pixels = png.decode(picture.read_bytes())
        except (OSError, png.PngError) as error:
            raise SceneError(
                f"The drawing {picture.name} cannot be read: {error}.", "Draw the keyframe again."
            ) from None
        left, top, right, bottom = portraits.head_square(box, pixels.shape[1], pixels.shape[0])
        data = png.encode(pixels[top:bottom, left:right].copy(), level=6)
        # Named by its content: what is drawn anew later does not change an old portrait.
        name = f"{file_name(self.who)}_{picture.stem}_{hashlib.sha256(data).hexdigest()[:6]}.png"
        path = Path(bpy.data.filepath).parent / folder_name / name
        try:
            path.parent.mkdir(exist_ok=True)
            results.write_atomic(path, data)
        except OSError as error:
            wrong = results.output_error(error, path)
            raise SceneError(wrong.message, wrong.fix) from None
        cast.add_portrait(row, path)
        self.report({"INFO"}, f"{self.who} has a portrait more: {path.name}")
        text.redraw()


def _drawn_head(scene: bpy.types.Scene, who: str) -> tuple[Path, tuple[float, float, float, float]]:
    """The file of the drawing that is shown, and the box of this character's head in it."""
    key = shown(scene)
    for plane in planes.planes(scene, key.shot, key.frame) if key else ():
        head = next((h for h in planes.heads_of(plane) if h.character == who and h.box), None)
        image = planes.picture_of(plane)
        if planes.key_of(plane) == key and head and head.box and image is not None:
            return Path(bpy.path.abspath(image.filepath)), head.box
    raise SceneError(
        f"No head of {who} is known in the drawing at this frame.", "Go to one where it is seen."
    )


class ONMODEL_FH_portraits(bpy.types.FileHandler):
    """Picture files dropped on the sidebar become portraits of the selected character."""

    bl_idname = "ONMODEL_FH_portraits"
    bl_label = "Portraits of the selected character"
    bl_import_operator = "onmodel.portraits_add"
    bl_file_extensions = ".png;.jpg;.jpeg"

    @classmethod
    def poll_drop(cls, context: bpy.types.Context) -> bool:
        region = context.region
        on_sidebar = region is not None and region.type == "UI"
        in_view = context.area is not None and context.area.type == "VIEW_3D"
        return on_sidebar and in_view and cast.active_row(context.scene) is not None


classes = (
    ONMODEL_OT_portraits_add,
    ONMODEL_OT_references_drop_lost,
    ONMODEL_OT_portrait_from_drawing,
    ONMODEL_FH_portraits,
)

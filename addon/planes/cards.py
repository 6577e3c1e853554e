# SPDX-License-Identifier: GPL-3.0-or-later
"""One image plane's own data: square, picture, shadeless material."""

from __future__ import annotations

import logging
from pathlib import Path

import bpy

from .errors import PlaneError

log = logging.getLogger(__name__)

_inverse_views = {"Filmic": "Filmic sRGB", "AgX": "AgX Base sRGB", "Raw": "Non-Color"}
"""View transform to the colour space that undoes it, so that a picture is seen as it was drawn.

Exact but for the purest colours, which AgX never shows."""


def load_image(scene: bpy.types.Scene, path: Path) -> bpy.types.Image:
    """The picture as an image of the file, read anew if it is known already.

    Raises PlaneError for a file that is not there or is no picture.
    """
    if not path.is_file():
        raise PlaneError(f"The drawing {path} is gone.", "Render the keyframe again.")
    try:
        image = bpy.data.images.load(str(path), check_existing=True)
    except RuntimeError as error:
        raise PlaneError(f"Blender cannot read the drawing {path}.", "Render it again.") from error
    image.reload()
    if not image.has_data and (image.size[0] == 0 or image.size[1] == 0):
        bpy.data.images.remove(image)
        raise PlaneError(f"The drawing {path} is no picture.", "Render the keyframe again.")
    image.colorspace_settings.name = _colour_space(scene)
    if bpy.data.filepath:
        try:
            image.filepath = bpy.path.relpath(image.filepath)
        except ValueError:
            log.debug("%s is on another drive than the file: its path stays absolute.", path)
    return image


def _colour_space(scene: bpy.types.Scene) -> str:
    wanted = _inverse_views.get(scene.view_settings.view_transform, "sRGB")
    known = bpy.types.ColorManagedInputColorspaceSettings.bl_rna.properties["name"].enum_items
    return wanted if wanted in known else "sRGB"


def make_card(image: bpy.types.Image, scene: bpy.types.Scene, opacity: float) -> bpy.types.Object:
    """A unit square about its origin in the xy plane that shows the image, linked nowhere yet."""
    mesh = bpy.data.meshes.new("Keyframe")
    corners = [(-0.5, -0.5, 0.0), (0.5, -0.5, 0.0), (0.5, 0.5, 0.0), (-0.5, 0.5, 0.0)]
    mesh.from_pydata(corners, [], [(0, 1, 2, 3)])
    layer = mesh.uv_layers.new(name="UVMap")
    for corner, at in zip(layer.data, ((0, 0), (1, 0), (1, 1), (0, 1)), strict=True):
        corner.uv = at
    mesh.materials.append(_material(image, scene, opacity))
    card = bpy.data.objects.new("Keyframe", mesh)
    # Only the camera sees it: it takes no light, gives none and throws no shadow.
    card.visible_shadow = card.visible_diffuse = card.visible_glossy = False
    card.visible_transmission = card.visible_volume_scatter = False
    # It covers the whole camera view: a click must reach what is behind it.
    card.hide_select = True
    return card


def name_card(card: bpy.types.Object, name: str) -> None:
    """Name the object and its data."""
    card.name = card.data.name = card.data.materials[0].name = name


def _material(image: bpy.types.Image, scene: bpy.types.Scene, opacity: float) -> bpy.types.Material:
    material = bpy.data.materials.new("Keyframe")
    if bpy.app.version < (5, 0, 0):  # from then on a material always has nodes
        material.use_nodes = True
    tree = material.node_tree
    tree.nodes.clear()
    picture = tree.nodes.new("ShaderNodeTexImage")
    picture.image = image
    picture.extension = "EXTEND"
    glow = tree.nodes.new("ShaderNodeEmission")
    # The scene's exposure is for its lights, not for a finished picture.
    glow.inputs["Strength"].default_value = 2.0**-scene.view_settings.exposure
    clear = tree.nodes.new("ShaderNodeBsdfTransparent")
    share = tree.nodes.new("ShaderNodeMath")
    share.name, share.label, share.operation = "Opacity", "Opacity", "MULTIPLY"
    mix = tree.nodes.new("ShaderNodeMixShader")
    out = tree.nodes.new("ShaderNodeOutputMaterial")
    for x, node in zip((-600, -300, -300, -300, 0, 200), tree.nodes, strict=True):
        node.location.x = x
    glow.location.y, clear.location.y, share.location.y = 0, -150, 200
    link = tree.links.new
    link(picture.outputs["Color"], glow.inputs["Color"])
    link(picture.outputs["Alpha"], share.inputs[0])
    link(share.outputs[0], mix.inputs[0])
    link(clear.outputs[0], mix.inputs[1])
    link(glow.outputs[0], mix.inputs[2])
    link(mix.outputs[0], out.inputs["Surface"])
    tree.nodes.active = picture  # what Solid view shows with colour set to Texture
    material.use_backface_culling = False
    material.specular_intensity, material.roughness = 0.0, 1.0  # no glare in Solid view
    _fade(material, opacity)
    return material


def set_opacity(card: bpy.types.Object, opacity: float) -> None:
    """0 lets everything through, 1 nothing but what the picture's own alpha does."""
    _fade(card.data.materials[0], opacity)


def _fade(material: bpy.types.Material, opacity: float) -> None:
    material.node_tree.nodes["Opacity"].inputs[1].default_value = min(max(opacity, 0.0), 1.0)
    # Dithering a half-clear picture shows grain; blending an opaque one costs its sorting.
    material.surface_render_method = "BLENDED" if opacity < 1.0 else "DITHERED"
    material.diffuse_color[3] = min(max(opacity, 0.0), 1.0)


def delete_card(card: bpy.types.Object) -> None:
    """Remove the object and what only it used."""
    mesh = card.data
    materials = [m for m in mesh.materials if m is not None]
    images = [n.image for m in materials for n in m.node_tree.nodes if n.type == "TEX_IMAGE"]
    action = card.animation_data.action if card.animation_data else None
    bpy.data.objects.remove(card)
    bpy.data.meshes.remove(mesh)
    for material in materials:
        if material.users == 0:
            bpy.data.materials.remove(material)
    for image in images:
        if image is not None and image.users == 0:
            bpy.data.images.remove(image)
    if action is not None and action.users == 0:
        bpy.data.actions.remove(action)

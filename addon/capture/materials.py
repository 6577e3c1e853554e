# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the film's materials change where its surfaces are.

They cost a capture their textures and shaders. Where every surface is opaque, one flat material
shows the same depth, normals and objects; holes (hair cards, leaves), displacement and fog need
the real ones.
"""

from __future__ import annotations

import bpy

_see_through = frozenset({"BSDF_TRANSPARENT", "HOLDOUT", "RAY_PORTAL"})
_opaque = 0.999


def needs_materials(layer: bpy.types.ViewLayer) -> bool:
    """Whether any material on the view layer's objects has holes, displacement or no surface.

    Objects of instanced collections count; so do materials that geometry nodes set. Excluded
    collections do not: real materials bend the normals of grazing surfaces and have bumps, so what
    cannot be seen, such as the drawings placed by the run so far, must not switch them on.
    """
    seen: set[bpy.types.ID] = set()
    return any(_shapes_surface(m, seen) for m in _materials(layer))


def _materials(layer: bpy.types.ViewLayer) -> set[bpy.types.Material]:
    found: set[bpy.types.Material] = set()
    objects, waiting = set(), list(layer.objects)
    while waiting:
        item = waiting.pop()
        if item in objects:
            continue
        objects.add(item)
        if item.instance_type == "COLLECTION" and item.instance_collection:
            waiting.extend(item.instance_collection.all_objects)
        found.update(slot.material for slot in item.material_slots if slot.material)
        for modifier in item.modifiers:
            if modifier.type == "NODES" and modifier.node_group:
                found.update(_materials_of_nodes(modifier.node_group, set()))
                given = (value for _, value in modifier.items())
                found.update(v for v in given if isinstance(v, bpy.types.Material))
    return found


def _materials_of_nodes(
    tree: bpy.types.NodeTree, seen: set[bpy.types.ID]
) -> set[bpy.types.Material]:
    found: set[bpy.types.Material] = set()
    if tree in seen:
        return found
    seen.add(tree)
    for node in tree.nodes:
        for socket in node.inputs:
            if socket.type == "MATERIAL" and socket.default_value:
                found.add(socket.default_value)
        inner = getattr(node, "node_tree", None)
        if inner:
            found |= _materials_of_nodes(inner, seen)
    return found


def _shapes_surface(material: bpy.types.Material, seen: set[bpy.types.ID]) -> bool:
    plain = bpy.app.version < (5, 0, 0) and not material.use_nodes
    tree = None if plain else material.node_tree
    if tree is None:
        return False
    output = tree.get_output_node("CYCLES") or tree.get_output_node("ALL")
    if output is None or not output.inputs["Surface"].is_linked:
        return True
    displaced = output.inputs["Displacement"].is_linked
    if displaced and material.displacement_method != "BUMP":
        return True
    return _has_holes(tree, seen)


def _has_holes(tree: bpy.types.NodeTree, seen: set[bpy.types.ID]) -> bool:
    if tree in seen:
        return False
    seen.add(tree)
    for node in tree.nodes:
        if node.mute:
            continue
        if node.type in _see_through:
            return True
        if node.type == "BSDF_PRINCIPLED":
            alpha = node.inputs["Alpha"]
            if alpha.is_linked or alpha.default_value < _opaque:
                return True
        inner = getattr(node, "node_tree", None)
        if inner and _has_holes(inner, seen):
            return True
    return False

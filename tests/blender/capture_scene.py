# SPDX-License-Identifier: GPL-3.0-or-later
"""Small people of boxes on Mixamo bones, and the state of a file as plain data."""

import math
from types import SimpleNamespace

import bpy
import numpy as np

# Bone: parent, head, tail, half width of its box. Feet on the floor, facing -y, left is +x.
_middle = {
    "Hips": (None, (0, 0, 0.95), (0, 0, 1.05), 0.15),
    "Spine": ("Hips", (0, 0, 1.05), (0, 0, 1.45), 0.14),
    "Neck": ("Spine", (0, 0, 1.45), (0, 0, 1.55), 0.05),
    "Head": ("Neck", (0, 0, 1.55), (0, 0, 1.8), 0.1),
}
_sides = {
    "Shoulder": ("Spine", (0.03, 0, 1.42), (0.18, 0, 1.42), 0.05),
    "Arm": ("Shoulder", (0.18, 0, 1.42), (0.45, 0, 1.42), 0.05),
    "ForeArm": ("Arm", (0.45, 0, 1.42), (0.7, 0, 1.42), 0.04),
    "Hand": ("ForeArm", (0.7, 0, 1.42), (0.8, 0, 1.42), 0.03),
    "UpLeg": ("Hips", (0.1, 0, 0.95), (0.1, 0, 0.5), 0.08),
    "Leg": ("UpLeg", (0.1, 0, 0.5), (0.1, 0, 0.1), 0.06),
    "Foot": ("Leg", (0.1, 0, 0.1), (0.1, -0.05, 0.05), 0.05),
}


def bones():
    """name -> (parent, head, tail, half width) of the whole skeleton."""
    found = {}
    for name, (parent, head, tail, size) in _middle.items():
        found[f"mixamorig:{name}"] = (parent and f"mixamorig:{parent}", head, tail, size)
    for side, sign in (("Left", 1), ("Right", -1)):
        for name, (parent, head, tail, size) in _sides.items():
            above = parent if parent in _middle else side + parent
            ends = [(p[0] * sign, p[1], p[2]) for p in (head, tail)]
            found[f"mixamorig:{side}{name}"] = (f"mixamorig:{above}", *ends, size)
    return found


def make_person(name, at=(0, 0, 0), turn=0.0, collection=None):
    """A cast member: armature object, one mesh, rig map. turn: degrees about z."""
    from addon.core import rigs

    collection = collection or bpy.context.scene.collection
    data = bpy.data.armatures.new(f"{name} rig")
    rig = bpy.data.objects.new(f"{name} rig", data)
    collection.objects.link(rig)
    bpy.context.view_layer.objects.active = rig
    bpy.ops.object.mode_set(mode="EDIT")
    skeleton = bones()
    for bone, (parent, head, tail, _) in skeleton.items():
        new = data.edit_bones.new(bone)
        new.head, new.tail = head, tail
        new.parent = data.edit_bones[parent] if parent else None
    bpy.ops.object.mode_set(mode="OBJECT")
    vertices, faces, groups = [], [], {}
    for bone, (_, head, tail, size) in skeleton.items():
        first = len(vertices)
        low, high = np.minimum(head, tail), np.maximum(head, tail)
        flat = (high - low) < 2 * size
        low, high = (
            np.where(flat, (low + high) / 2 - size, low),
            np.where(flat, (low + high) / 2 + size, high),
        )
        for x in (low[0], high[0]):
            for y in (low[1], high[1]):
                vertices += [(x, y, low[2]), (x, y, high[2])]
        for face in ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4)):
            faces.append([first + i for i in face])
        faces.append([first + i for i in (1, 5, 7, 3)])
        groups[bone] = list(range(first, first + 8))
    mesh = bpy.data.meshes.new(name)
    mesh.from_pydata(vertices, [], faces)
    body = bpy.data.objects.new(name, mesh)
    collection.objects.link(body)
    for bone, members in groups.items():
        body.vertex_groups.new(name=bone).add(members, 1.0, "REPLACE")
    body.parent = rig
    body.modifiers.new("Armature", "ARMATURE").object = rig
    rig.location = at
    rig.rotation_euler.z = math.radians(turn)
    parents = {b: p[0] for b, p in skeleton.items()}
    return SimpleNamespace(
        name=name, armature=rig, meshes=[body], rig_map=rigs.map_bones(list(parents), parents)
    )


def make_camera(at, to=None, name="Camera", **settings):
    """A camera at a place that looks at another, or along +y."""
    from mathutils import Vector

    data = bpy.data.cameras.new(name)
    for key, value in settings.items():
        setattr(data, key, value)
    camera = bpy.data.objects.new(name, data)
    bpy.context.scene.collection.objects.link(camera)
    camera.location = at
    direction = Vector(to) - Vector(at) if to else Vector((0, 1, 0))
    camera.rotation_euler = direction.to_track_quat("-Z", "Y").to_euler()
    bpy.context.view_layer.update()
    return camera


def make_box(name, at, size):
    """A box of edge lengths `size` about `at`."""
    half = np.array(size) / 2
    corners = [at + half * (x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
    mesh = bpy.data.meshes.new(name)
    faces = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    mesh.from_pydata([tuple(c) for c in corners], [], faces)
    item = bpy.data.objects.new(name, mesh)
    bpy.context.scene.collection.objects.link(item)
    return item


_skip = {
    *("rna_type", "original", "is_evaluated", "session_uid", "library_weak_reference"),
    *("animation_visualization", "preview", "is_updated", "is_updated_data", "depsgraph"),
    "tag",  # Blender's own scratch mark, without a meaning between calls
    "uv_sculpt",  # reading its brush crashes Blender 4.2
}


def state():
    """Everything a capture could touch: every readable property of scenes, objects, cameras,
    materials and node trees three levels deep, all datablocks with their users, handlers."""
    found = {}
    for collection in dir(bpy.data):
        items = getattr(bpy.data, collection)
        if isinstance(items, bpy.types.bpy_prop_collection):
            for item in items:
                found[f"{collection}/{item.name_full}/users"] = (item.users, item.use_fake_user)
    roots = [*bpy.data.scenes, *bpy.data.objects, *bpy.data.cameras, *bpy.data.materials]
    for root in roots:
        _walk(found, f"{type(root).__name__}/{root.name_full}", root, 4)
    for layer in bpy.context.scene.view_layers:
        _walk(found, f"layer/{layer.name}", layer, 4)
    for name in dir(bpy.app.handlers):
        handlers = getattr(bpy.app.handlers, name)
        if isinstance(handlers, list):
            found[f"handlers/{name}"] = list(handlers)
    found["context"] = (bpy.context.scene.name, bpy.context.view_layer.name)
    found["active"] = getattr(bpy.context.view_layer.objects.active, "name", None)
    found["selected"] = [o.name for o in bpy.context.scene.objects if o.select_get()]
    return found


def _walk(found, path, item, depth):
    for prop in item.bl_rna.properties:
        key = prop.identifier
        if key in _skip or key.startswith("bl_"):
            continue
        try:
            value = getattr(item, key)
        except (AttributeError, RuntimeError, TypeError):
            continue
        where = f"{path}.{key}"
        if isinstance(value, bpy.types.ID):
            found[where] = value.name_full
        elif isinstance(value, bpy.types.bpy_struct):
            if depth:
                _walk(found, where, value, depth - 1)
        elif isinstance(value, bpy.types.bpy_prop_collection):
            found[where] = len(value)
            if depth and len(value) < 40:
                for i, child in enumerate(value):
                    if isinstance(child, bpy.types.ID):
                        found[f"{where}[{i}]"] = child.name_full
                    elif isinstance(child, bpy.types.bpy_struct):
                        _walk(found, f"{where}[{i}]", child, depth - 1)
        elif isinstance(value, (int, float, str, bool, set, frozenset, type(None))):
            found[where] = value
        else:
            found[where] = _plain(value)


def _plain(value):
    try:
        return [_plain(v) for v in value]
    except TypeError:
        return repr(value) if not isinstance(value, (int, float)) else value


def difference(before, after):
    """What is not the same in two states."""
    keys = sorted(set(before) | set(after))
    return {k: (before.get(k), after.get(k)) for k in keys if before.get(k) != after.get(k)}

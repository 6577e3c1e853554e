# SPDX-License-Identifier: GPL-3.0-or-later
"""Captured joints of the sample against Blender's own projection of its bones and its ray cast."""

from __future__ import annotations

from typing import Any

import numpy as np

from addon.core import rigs
from bench.harness import Figure
from bench.sample import captured

sides = ("right", "left")
skin = 0.05


def run() -> list[Figure]:
    """Largest error in pixels over all rigs and lenses, and how the states agree."""
    worst, count, families = 0.0, 0, set()
    blocked = wrongly_seen = free = wrongly_hidden = 0
    for scene, shot, cast, keyframe in captured(1024 * 1024, 64):
        scene.frame_set(keyframe.frame)
        camera = scene.objects[shot.camera]
        for member in cast:
            families.add(member.rig_map.family)
            pose = keyframe.poses.get(member.name)
            if pose is None:
                continue
            for name, point in zip(rigs.body_joints, pose.body, strict=True):
                bound = member.rig_map.joints.get(name)
                if point is None or bound is None or name == "neck":
                    continue
                world = bone_end(member.armature, *bound)
                expected = blenders_pixel(scene, shot, camera, world, keyframe.canvas)
                if point.z > 0:
                    worst = max(worst, float(np.hypot(*(expected - (point.x, point.y)))))
                    count += 1
                what = blocked_by(scene, camera, world, {m.name for m in member.meshes})
                if point.state in ("visible", "hidden"):
                    blocked += what == "other"
                    wrongly_seen += what == "other" and point.state == "visible"
                    free += what == "skin"
                    wrongly_hidden += what == "skin" and point.state == "hidden"
    note = f"{count} joints, {len(families)} rigs: {', '.join(sorted(families))}"
    return [
        Figure("joints, largest error from Blender's projection", worst, "px", 1, note=note),
        Figure(
            "joints behind another object, marked hidden",
            1 - wrongly_seen / max(1, blocked),
            bar=0.95,
            op=">=",
            note=f"{blocked} of them by ray cast; one ray against a disc of pixels",
        ),
        Figure(
            "joints with only their own skin before them, marked visible",
            1 - wrongly_hidden / max(1, free),
            bar=0.95,
            op=">=",
            note=f"{free} of them by ray cast, skin within 5 cm",
        ),
        behind_camera(),
    ]


def bone_end(armature: Any, bone: str, end: str) -> np.ndarray:
    """World position (3,) of a bone's head or tail as Blender poses it now."""
    import bpy

    posed = armature.evaluated_get(bpy.context.evaluated_depsgraph_get())
    return np.array(posed.matrix_world @ getattr(posed.pose.bones[bone], end))


def blenders_pixel(scene: Any, shot: Any, camera: Any, world: np.ndarray, canvas: Any) -> Any:
    """Where bpy_extras puts a point, on the canvas."""
    from bpy_extras.object_utils import world_to_camera_view
    from mathutils import Vector

    render = scene.render
    kept = render.resolution_x, render.resolution_y
    if shot.frame_size:
        render.resolution_x, render.resolution_y = shot.frame_size.width, shot.frame_size.height
    u, v, _ = world_to_camera_view(scene, camera, Vector(world))
    render.resolution_x, render.resolution_y = kept
    crop = canvas.crop
    return np.array([crop.x + u * crop.width, crop.y + (1 - v) * crop.height])


def blocked_by(scene: Any, camera: Any, world: np.ndarray, own: set[str]) -> str:
    """What a ray from the camera meets first before a point.

    "other": another object; "skin": the point's own skin right over it; "own": farther skin.
    """
    import bpy
    from mathutils import Vector

    matrix = camera.matrix_world
    target = Vector(world)
    if camera.data.type == "ORTHO":
        local = matrix.inverted() @ target
        origin = matrix @ Vector((local.x, local.y, 0.0))
    else:
        origin = matrix.translation
    way = target - origin
    graph = bpy.context.evaluated_depsgraph_get()
    hit, place, _, _, item, _ = scene.ray_cast(graph, origin, way.normalized(), distance=way.length)
    if not hit or (item.name in own and (target - place).length < skin):
        return "skin"
    return "own" if item.name in own else "other"


def behind_camera() -> Figure:
    """Joints of a character seen by a camera inside its chest: half of them are behind it."""
    import bpy
    from mathutils import Vector

    from addon.capture.capture import capture_keyframe
    from bench.sample import open_sample

    scene, shots, cast = open_sample()
    scene.frame_set(shots[0].keyframes[0])
    member = cast[0]
    joints = member.rig_map.joints
    right, left = (Vector(bone_end(member.armature, *joints[f"{s}_shoulder"])) for s in sides)
    camera = bpy.data.objects.new("inside", bpy.data.cameras.new("inside"))
    scene.collection.objects.link(camera)
    camera.location = (left + right) / 2
    camera.rotation_euler = (left - right).to_track_quat("-Z", "Y").to_euler()
    keyframe = capture_keyframe(scene, camera, scene.frame_current, cast, 65536, 32)
    bpy.context.view_layer.update()
    inverse = camera.matrix_world.inverted()
    wrong = total = 0
    for name, point in zip(rigs.body_joints, keyframe.poses[member.name].body, strict=True):
        if point is None or name not in joints:
            continue
        behind = (inverse @ Vector(bone_end(member.armature, *joints[name]))).z > 0
        total += behind
        wrong += behind != (point.state == "behind")
    note = f"{total} joints behind a camera inside a chest"
    value = wrong if total else None
    return Figure("joints behind the camera, wrongly marked", value, bar=0, op="==", note=note)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Operators of the Shots panel. What they do is in `scene/shots.py`.

No `from __future__ import annotations` here: Blender reads the annotations as values.
"""

import bpy
from bpy.props import BoolProperty, IntProperty, StringProperty

from ..scene import shots
from ..scene.errors import SceneError
from .operator_base import Reporting


class _OfShot(Reporting):
    """An operator on one shot: the named one, else the selected one."""

    bl_options = {"REGISTER", "UNDO"}

    uid: StringProperty(options={"HIDDEN", "SKIP_SAVE"})

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return bool(shots.camera_markers(context.scene))

    def shot(self, context: bpy.types.Context) -> shots.Placed:
        """The shot, its row made. Raises SceneError when there is none."""
        shots.sync(context.scene)
        if self.uid:
            return shots.find(context.scene, self.uid)
        row = shots.active_row(context.scene)
        if row is None:
            raise SceneError("No shot is selected.", "Choose one in the list.")
        return shots.find(context.scene, row.uid)


class ONMODEL_OT_shot_add(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.shot_add"
    bl_label = "Make a Shot Here"
    bl_description = "Bind the scene's camera to a marker at the current frame"
    bl_options = {"REGISTER", "UNDO"}

    def apply(self, context: bpy.types.Context) -> None:
        picked = context.object
        camera = context.scene.camera
        if picked is not None and picked.type == "CAMERA" and picked.select_get():
            camera = picked
        if camera is None:
            cameras = [o for o in context.scene.objects if o.type == "CAMERA"]
            camera = cameras[0] if len(cameras) == 1 else None
        shots.add_shot(context.scene, camera=camera)
        context.scene.camera = camera


class ONMODEL_OT_shot_add_from_view(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.shot_add_from_view"
    bl_label = "Shot from View"
    bl_description = "Place a new camera where you look from and bind it to a marker here"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return context.region_data is not None

    def apply(self, context: bpy.types.Context) -> None:
        scene = context.scene
        view = context.region_data
        data = bpy.data.cameras.new("Shot")
        camera = bpy.data.objects.new("Shot Camera", data)
        scene.collection.objects.link(camera)
        if context.space_data is not None:
            data.lens = context.space_data.lens
        if view.view_perspective == "ORTHO":
            data.type = "ORTHO"
            data.ortho_scale = 2.0 * view.view_distance
        camera.matrix_world = view.view_matrix.inverted()
        try:
            row = shots.add_shot(scene, camera=camera)
        except SceneError:
            bpy.data.cameras.remove(data)
            raise
        camera.name = data.name = f"Camera {row.name}"
        scene.camera = camera
        view.view_perspective = "CAMERA"


class ONMODEL_OT_shot_remove(_OfShot, bpy.types.Operator):
    bl_idname = "onmodel.shot_remove"
    bl_label = "Remove Shot"
    bl_description = "Remove the shot and its marker. The camera and the drawings stay"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return bool(context.scene.onmodel.shots)

    def apply(self, context: bpy.types.Context) -> None:
        row = shots.active_row(context.scene)
        uid = self.uid or (row.uid if row else "")
        if not uid:
            raise SceneError("No shot is selected.", "Choose one in the list.")
        shots.remove_shot(context.scene, uid)


class ONMODEL_OT_shot_move(_OfShot, bpy.types.Operator):
    bl_idname = "onmodel.shot_move"
    bl_label = "Move Shot"
    bl_description = "Let the shot change places with its neighbour in time. The animation stays"

    step: IntProperty(default=1, min=-1, max=1, options={"SKIP_SAVE"})

    def apply(self, context: bpy.types.Context) -> None:
        shots.move_shot(context.scene, self.shot(context).uid, self.step)


class ONMODEL_OT_shot_rename(_OfShot, bpy.types.Operator):
    bl_idname = "onmodel.shot_rename"
    bl_label = "Rename Shot"
    bl_description = "Name the shot and its marker"

    new_name: StringProperty(name="Name")

    def apply(self, context: bpy.types.Context) -> None:
        shots.rename_shot(context.scene, self.shot(context).uid, self.new_name)


class ONMODEL_OT_shots_name_markers(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.shots_name_markers"
    bl_label = "Name Markers by Shots"
    bl_description = "Give every camera marker the name of its shot"
    bl_options = {"REGISTER", "UNDO"}

    def apply(self, context: bpy.types.Context) -> None:
        shots.name_markers(context.scene)


class ONMODEL_OT_shot_bind(_OfShot, bpy.types.Operator):
    bl_idname = "onmodel.shot_bind"
    bl_label = "Bind Camera"
    bl_description = "Give the shot the selected camera"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        picked = context.object
        return super().poll(context) and picked is not None and picked.type == "CAMERA"

    def apply(self, context: bpy.types.Context) -> None:
        shots.bind_camera(context.scene, self.shot(context).uid, context.object)


class ONMODEL_OT_shot_go(_OfShot, bpy.types.Operator):
    bl_idname = "onmodel.shot_go"
    bl_label = "Look Through Shot"
    bl_description = "Go to the shot's first frame and look through its camera"

    def apply(self, context: bpy.types.Context) -> None:
        placed = self.shot(context)
        go(context, placed.marker.camera, placed.start)
        context.scene.onmodel.shot_index = next(
            k for k, r in enumerate(context.scene.onmodel.shots) if r.uid == placed.uid
        )


class ONMODEL_OT_keyframe_go(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.keyframe_go"
    bl_label = "Go to Keyframe"
    bl_description = "Go to this keyframe and look through its shot's camera"
    bl_options = {"REGISTER", "UNDO"}

    frame: IntProperty(options={"SKIP_SAVE"})

    def apply(self, context: bpy.types.Context) -> None:
        placed = shots.at_frame(context.scene, self.frame)
        go(context, placed.marker.camera if placed else context.scene.camera, self.frame)


class ONMODEL_OT_keyframe_step(Reporting, bpy.types.Operator):
    bl_idname = "onmodel.keyframe_step"
    bl_label = "Next Keyframe"
    bl_description = "Go to the film's next or previous keyframe"
    bl_options = {"REGISTER", "UNDO"}

    step: IntProperty(default=1, min=-1, max=1, options={"SKIP_SAVE"})

    def apply(self, context: bpy.types.Context) -> None:
        scene = context.scene
        frames = sorted({k for s in shots.read_shots(scene) for k in s.keyframes})
        now = scene.frame_current
        ahead = [f for f in frames if (f - now) * self.step > 0]
        if not ahead:
            return
        frame = min(ahead, key=lambda f: abs(f - now))
        placed = shots.at_frame(scene, frame)
        go(context, placed.marker.camera if placed else scene.camera, frame)


class ONMODEL_OT_keyframe_mark(_OfShot, bpy.types.Operator):
    bl_idname = "onmodel.keyframe_mark"
    bl_label = "Mark Keyframe"
    bl_description = "Draw the current frame of this shot too, or no longer"

    frame: IntProperty(options={"SKIP_SAVE"})
    use_frame: BoolProperty(options={"HIDDEN", "SKIP_SAVE"})

    def apply(self, context: bpy.types.Context) -> None:
        placed = self.shot(context)
        frame = self.frame if self.use_frame else context.scene.frame_current
        if any(k.frame == frame and k.marked for k in placed.kept.keyframes):
            shots.unmark_keyframe(context.scene, placed.uid, frame)
        else:
            shots.mark_keyframe(context.scene, placed.uid, frame)


class ONMODEL_OT_keyframe_first(_OfShot, bpy.types.Operator):
    bl_idname = "onmodel.keyframe_first"
    bl_label = "Draw First Frame"
    bl_description = "Make the first frame of the shot a keyframe"

    def apply(self, context: bpy.types.Context) -> None:
        self.shot(context).kept.first = True


class ONMODEL_OT_keyframes_drop_stray(_OfShot, bpy.types.Operator):
    bl_idname = "onmodel.keyframes_drop_stray"
    bl_label = "Unmark Frames Outside"
    bl_description = "Unmark the keyframes that lie outside the shot"

    def apply(self, context: bpy.types.Context) -> None:
        shots.drop_stray_keyframes(context.scene, self.shot(context).uid)


def go(context: bpy.types.Context, camera: bpy.types.Object | None, frame: int) -> None:
    """Show this frame through this camera, in the 3D viewport that asked if one did."""
    context.scene.frame_set(frame)
    if camera is not None:
        context.scene.camera = camera
        if context.region_data is not None:
            context.region_data.view_perspective = "CAMERA"


classes = (
    ONMODEL_OT_shot_add,
    ONMODEL_OT_shot_add_from_view,
    ONMODEL_OT_shot_remove,
    ONMODEL_OT_shot_move,
    ONMODEL_OT_shot_rename,
    ONMODEL_OT_shots_name_markers,
    ONMODEL_OT_shot_bind,
    ONMODEL_OT_shot_go,
    ONMODEL_OT_keyframe_go,
    ONMODEL_OT_keyframe_step,
    ONMODEL_OT_keyframe_mark,
    ONMODEL_OT_keyframe_first,
    ONMODEL_OT_keyframes_drop_stray,
)

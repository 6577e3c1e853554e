# SPDX-License-Identifier: GPL-3.0-or-later
"""A shot's keyframes as maps: depth, normals, lines, poses, character masks, heads.

`ShotCapture` works in steps, so that a window stays alive between them. Everything that touches
Blender happens inside one step and is undone before the step ends (see `passes.py`): the scene is
as it was whenever a step has returned, has raised, or is not called again.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import bpy
import numpy as np

from ..core import depth, lines, normals, openpose, projection
from ..core.projection import View
from ..core.request import Camera, Canvas, Keypoint, Pose, Size
from . import heads, joints
from .errors import CaptureError
from .gather import Figure, Watcher
from .heads import CapturedHead
from .passes import Passes, free_indices, render_passes

if TYPE_CHECKING:
    from ..core.shots import Shot
    from ..scene.cast import CastMember

log = logging.getLogger(__name__)


@dataclass
class CapturedKeyframe:
    """Everything of one keyframe, on its canvas; H x W is the canvas.

    maps: kind -> uint8, "pose" and "normal" (H, W, 3) RGB, "depth" and "lineart" (H, W).
    masks: character -> (H, W) uint8, 255 on its visible pixels; disjoint. heads: of the characters
    whose head is known and before the camera. poses: with the points that are hidden, too.
    present: the characters that the frame shows, from far to near. depth: (H, W) float32 metres
    along the view axis, inf where nothing is. timings: seconds of each part.
    """

    frame: int
    frame_size: Size
    canvas: Canvas
    camera: Camera
    view: View
    depth: np.ndarray
    masks: dict[str, np.ndarray]
    poses: dict[str, Pose]
    heads: dict[str, CapturedHead]
    present: list[str]
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)


class ShotCapture:
    """Captures the keyframes of a shot, step by step.

    scene: the film scene. shot: gives camera, keyframes and size. cast: every member of the cast
    whose objects are in the scene. native_pixels, multiple: of the model that will draw.
    view_layer: the one that says what is seen; the window's, else the first.

        with ShotCapture(scene, shot, cast, 1024 * 1024, 64) as capture:
            for what in capture.steps(): ...
        capture.keyframes

    `keyframes` is complete when the steps are through: depth maps share one range over the shot.
    """

    def __init__(
        self,
        scene: bpy.types.Scene,
        shot: Shot,
        cast: Sequence[CastMember],
        native_pixels: int,
        multiple: int,
        view_layer: str | None = None,
    ) -> None:
        self.scene, self.shot, self.cast = scene, shot, list(cast)
        self.native_pixels, self.multiple = native_pixels, multiple
        self.view_layer = view_layer
        self.keyframes: list[CapturedKeyframe] = []
        self.closed = False

    def __enter__(self) -> ShotCapture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is left to do. The scene needs no restoring: it is as it was."""
        self.closed = True

    def steps(self) -> Iterator[str]:
        """Do the capture; yields after each step what was done. Raises CaptureError."""
        camera = find_camera(self.scene, self.shot.camera)
        size = self.shot.frame_size
        watchers = _watchers(self.cast)
        for frame in self.shot.keyframes:
            where = f"{self.shot.name} frame {frame}"
            for what in _keyframe_steps(
                self.scene,
                camera,
                frame,
                watchers,
                size,
                self.native_pixels,
                self.multiple,
                self.view_layer,
                self.keyframes,
            ):
                yield f"{where}: {what}"
                if self.closed:
                    return
        finish_depth(self.keyframes)
        yield f"{self.shot.name}: depth"


def capture_keyframe(
    scene: bpy.types.Scene,
    camera: bpy.types.Object,
    frame: int,
    cast: Sequence[CastMember],
    native_pixels: int = 1024 * 1024,
    multiple: int = 64,
    size: Size | None = None,
    view_layer: str | None = None,
) -> CapturedKeyframe:
    """One keyframe at once, with a depth range of its own."""
    found: list[CapturedKeyframe] = []
    for _ in _keyframe_steps(
        scene, camera, frame, _watchers(cast), size, native_pixels, multiple, view_layer, found
    ):
        pass
    finish_depth(found)
    return found[0]


def finish_depth(keyframes: Sequence[CapturedKeyframe]) -> None:
    """Draw the depth maps of a shot with one range, so that they do not flicker."""
    near, far = depth.depth_range([k.depth for k in keyframes])
    for keyframe in keyframes:
        began = time.perf_counter()
        keyframe.maps["depth"] = depth.depth_map(keyframe.depth, near, far)
        keyframe.timings["depth"] = time.perf_counter() - began


def find_camera(scene: bpy.types.Scene, name: str) -> bpy.types.Object:
    """The camera of that name, the scene's own one first. Raises CaptureError without it."""
    camera = scene.objects.get(name) or bpy.data.objects.get(name)
    if camera is None or camera.type != "CAMERA":
        raise CaptureError(
            f"The camera {name} is not in the scene any more.",
            "Bind a camera to the shot's marker (Marker > Bind Camera to Markers).",
        )
    return camera


def frame_size(scene: bpy.types.Scene) -> Size:
    """The film's delivery size in pixels, percentage applied."""
    render = scene.render
    return Size(
        *projection.render_size(
            render.resolution_x, render.resolution_y, render.resolution_percentage
        )
    )


# --- one keyframe --------------------------------------------------------------------------------


def _watchers(cast: Sequence[CastMember]) -> list[Watcher]:
    owners: dict[bpy.types.Object, str] = {}
    for member in cast:
        for item in member.meshes:
            if owners.setdefault(item, member.name) != member.name:
                raise CaptureError(
                    f"{item.name} belongs to {owners[item]} and to {member.name}.",
                    "Remove it from one of them in the Cast panel.",
                )
    indices = dict(zip(owners, free_indices(len(owners)), strict=True))
    return [Watcher(m, {o: indices[o] for o in m.meshes}) for m in cast]


def _keyframe_steps(
    scene: bpy.types.Scene,
    camera: bpy.types.Object,
    frame: int,
    watchers: Sequence[Watcher],
    size: Size | None,
    native_pixels: int,
    multiple: int,
    view_layer: str | None,
    found: list[CapturedKeyframe],
) -> Iterator[str]:
    """Captures one keyframe and appends it to `found`, all but its depth map."""
    size = size or frame_size(scene)
    pixel_aspect = (scene.render.pixel_aspect_x, scene.render.pixel_aspect_y)
    _check_projection(camera)
    canvas = _canvas(size, pixel_aspect, native_pixels, multiple)
    timings: dict[str, float] = {}
    views: list[View] = []
    figures: list[Figure] = []

    def look(depsgraph: bpy.types.Depsgraph) -> View:
        views.append(_view(camera.evaluated_get(depsgraph), size, pixel_aspect, canvas))
        figures.extend(w.read(depsgraph) for w in watchers)
        return views[0]

    indices = {o: i for w in watchers for o, i in w.indices.items()}
    passes = render_passes(
        scene,
        view_layer or _window_layer(scene),
        camera,
        frame,
        canvas.width,
        canvas.height,
        indices,
        look,
        timings,
    )
    yield "rendered"
    with _timed(timings, "masks"):
        masks = {w.member.name: _mask(passes.ids, w.indices.values()) for w in watchers}
    yield "masks"
    keyframe = CapturedKeyframe(
        frame,
        size,
        canvas,
        _camera(camera.name, views[0]),
        views[0],
        passes.z,
        masks,
        {},
        {},
        _far_to_near(masks, passes.z),
        timings=timings,
    )
    for watcher, figure in zip(watchers, figures, strict=True):
        name = watcher.member.name
        if name in keyframe.present:
            with _timed(timings, "heads"):
                head = _head(figure, masks[name] > 0, passes, keyframe.view)
            with _timed(timings, "joints"):
                keyframe.poses[name] = _pose(figure, head, masks[name] > 0, passes, keyframe.view)
            if head:
                keyframe.heads[name] = head
            yield f"joints of {name}"
    with _timed(timings, "pose"):
        people = [keyframe.poses[n] for n in keyframe.present]
        keyframe.maps["pose"] = openpose.draw_pose(people, canvas.width, canvas.height)
    yield "pose"
    with _timed(timings, "normal"):
        background = ~np.isfinite(passes.z)
        matrix = np.asarray(keyframe.view.matrix_world)
        keyframe.maps["normal"] = normals.normal_map(passes.normals, matrix, background)
    yield "normals"
    with _timed(timings, "lineart"):
        keyframe.maps["lineart"] = lines.line_map(passes.z, passes.normals, passes.ids)
    found.append(keyframe)
    yield "lines"


def _window_layer(scene: bpy.types.Scene) -> str:
    """The view layer that the artist looks at."""
    if bpy.context.scene == scene and bpy.context.view_layer:
        return bpy.context.view_layer.name
    return scene.view_layers[0].name


def _canvas(
    size: Size, pixel_aspect: tuple[float, float], native_pixels: int, multiple: int
) -> Canvas:
    aspect = size.width * pixel_aspect[0] / (size.height * pixel_aspect[1])
    try:
        width, height, crop = projection.canvas_for(aspect, native_pixels, multiple)
    except projection.ProjectionError as error:
        raise CaptureError(str(error), "Check the shot's resolution and pixel aspect.") from error
    return Canvas(width, height, crop)


def _check_projection(camera: bpy.types.Object) -> str:
    try:
        return projection.projection_of(camera.data.type)
    except projection.ProjectionError as error:
        raise CaptureError(f"{camera.name} cannot be captured: {error}") from error


def _view(
    camera: bpy.types.Object, size: Size, pixel_aspect: tuple[float, float], canvas: Canvas
) -> View:
    """What the evaluated camera sees on the canvas."""
    data = camera.data
    try:
        frame = projection.frame_frustum(
            data.lens,
            data.sensor_width,
            data.sensor_height,
            data.sensor_fit,
            data.shift_x,
            data.shift_y,
            data.ortho_scale,
            data.type,
            size.width,
            size.height,
            *pixel_aspect,
        )
    except projection.ProjectionError as error:
        raise CaptureError(f"{camera.name} cannot be captured: {error}") from error
    view = View(
        projection.canvas_frustum(frame, canvas),
        projection.projection_of(data.type),
        np.array(camera.matrix_world, np.float64),
        data.clip_start,
        data.clip_end,
    )
    return replace(view, matrix_world=view.rigid())


def _camera(name: str, view: View) -> Camera:
    return Camera(
        name,
        view.projection,
        [float(v) for v in np.asarray(view.matrix_world).ravel()],
        [float(v) for v in view.frustum],
        view.clip_start,
        view.clip_end,
    )


def _mask(ids: np.ndarray, indices: Iterable[int]) -> np.ndarray:
    """255 on the pixels of these objects. Disjoint, for each pixel has one id."""
    table = np.zeros(int(ids.max(initial=0)) + 1, np.uint8)
    table[[i for i in indices if i < len(table)]] = 255
    return table[ids]


def _far_to_near(masks: dict[str, np.ndarray], z: np.ndarray) -> list[str]:
    distance = {n: float(np.median(z[m > 0])) for n, m in masks.items() if m.any()}
    return sorted(distance, key=lambda n: -distance[n])


def _head(figure: Figure, own: np.ndarray, passes: Passes, view: View) -> CapturedHead | None:
    if figure.head_posed is None or figure.head_rest is None:
        return None
    axes = heads.head_axes(figure.rest, figure.head_rest, figure.head_posed)
    return heads.find_head(
        figure.head_triangles,
        axes.skull(figure.head_triangles),
        figure.head_objects,
        own,
        passes,
        view,
        heads.yaw_and_pitch(axes.forward, axes.position, view),
    )


def _pose(
    figure: Figure, head: CapturedHead | None, own: np.ndarray, passes: Passes, view: View
) -> Pose:
    """The character's points with their states, those of a face that looks away hidden."""

    def found(points: np.ndarray, depths: np.ndarray | float) -> list[Keypoint | None]:
        return joints.keypoints(points, depths * figure.scale, own, passes, view)

    def hand(side: str) -> list[Keypoint | None]:
        return _or_empty(found(joints.hand_points(figure.joints, side), joints.hand_depth))

    pose = Pose(
        body=found(joints.body_points(figure.joints, figure.face), joints.body_depths),
        left_hand=hand("left"),
        right_hand=hand("right"),
        face=_or_empty(found(figure.face, joints.face_depth)),
    )
    return openpose.apply_facing(pose, head.yaw, head.pitch) if head else pose


def _or_empty(points: list[Keypoint | None]) -> list[Keypoint | None]:
    return points if any(points) else []


@contextlib.contextmanager
def _timed(timings: dict[str, float], part: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    timings[part] = timings.get(part, 0.0) + time.perf_counter() - began

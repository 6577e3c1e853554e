# SPDX-License-Identifier: GPL-3.0-or-later
"""A shot's keyframes as maps: depth, normals, lines, poses, character masks, heads.

`ShotCapture` works in steps, so that a window stays alive between them. Everything that touches
Blender happens inside one step and is undone before the step ends (see `passes.py`): the scene is
as it was whenever a step has returned, has raised, or is not called again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import bpy
import numpy as np

from ..core import projection
from ..core.projection import View
from ..core.request import Canvas, Size
from .develop import CapturedKeyframe, Exposure, develop, finish_depth
from .errors import CaptureError
from .gather import Figure, Watcher
from .passes import free_indices, render_passes

if TYPE_CHECKING:
    from ..core.shots import Shot
    from ..scene.cast import CastMember

log = logging.getLogger(__name__)

_patience = 0.02
"""Seconds that a step waits for the maps: a window still answers at once."""

_ahead = 0
"""Keyframes whose maps may lag behind the renders.

None: no other Python thread may run while Blender renders. Operators release the interpreter's
lock, and on Python 3.11 (Blender 4.2 to 5.0) Blender then reads context overrides and scripted
drivers without it as long as any other thread runs: a crash in about one of 100 renders.
"""

_in_work: set[Future[Any]] = set()
"""Of all captures, those that were given up too."""

T = TypeVar("T")


class ShotCapture:
    """Captures the keyframes of a shot, step by step.

    scene: the film scene. shot: gives camera, keyframes and size. cast: every member of the cast
    whose objects are in the scene. native_pixels, multiple: of the model that will draw.
    view_layer: the one that says what is seen; the window's, else the first. frames: capture these
    of the shot's keyframes alone; None takes all.

        with ShotCapture(scene, shot, cast, 1024 * 1024, 64) as capture:
            for what in capture.steps(): ...
        capture.keyframes

    `keyframes` is complete when the steps are through. The range of the depth maps is the shot's:
    that of all its keyframes, whichever are captured. The others are rendered for their depths
    only, so that a keyframe captured alone is the same to the byte as captured among them.
    """

    def __init__(
        self,
        scene: bpy.types.Scene,
        shot: Shot,
        cast: Sequence[CastMember],
        native_pixels: int,
        multiple: int,
        view_layer: str | None = None,
        frames: Collection[int] | None = None,
    ) -> None:
        self.scene, self.shot, self.cast = scene, shot, list(cast)
        self.frames = frozenset(shot.keyframes if frames is None else frames)
        self.native_pixels, self.multiple = native_pixels, multiple
        self.view_layer = view_layer
        self.keyframes: list[CapturedKeyframe] = []
        self.closed = False
        self._watchers: list[Watcher] | None = None
        self._other_depths: list[np.ndarray] = []
        self._developing: deque[Future[CapturedKeyframe]] = deque()
        self._darkroom = ThreadPoolExecutor(1, thread_name_prefix="onmodel-capture")

    def __enter__(self) -> ShotCapture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is left to do. The scene needs no restoring: it is as it was."""
        self.closed = True
        self._darkroom.shutdown(wait=False, cancel_futures=True)

    def steps(self) -> Iterator[str]:
        """Do the capture; yields after each step what was done.

        Only the renders take long. All that follows them is done beside, in a thread that does
        not touch Blender; waiting for it comes in steps of at most `_patience` seconds.
        Raises CaptureError.
        """
        name = self.shot.name
        for frame in sorted(self.frames.union(self.shot.keyframes)):
            if self.closed:
                return
            if frame not in self.frames:
                self._other_depths.append(self._expose(frame, depth_only=True).passes.z)
                yield f"{name} frame {frame}: depth"
                continue
            exposure = self._expose(frame)
            self._developing.append(self._develop(develop, exposure))
            yield f"{name} frame {frame}: rendered"
            while len(self._developing) > _ahead and not self.closed:
                yield self._wait(f"{name}: maps")
        while self._developing and not self.closed:
            yield self._wait(f"{name}: maps")
        if not self.closed:
            finishing = self._develop(finish_depth, self.keyframes, self._other_depths)
            while not self.closed and not _is_done(finishing):
                yield f"{name}: depth"
            if not self.closed:
                finishing.result()
                self.close()
                yield f"{name}: captured"

    def _develop(self, work: Callable[..., T], *given: Any) -> Future[T]:
        future = self._darkroom.submit(work, *given)
        _in_work.add(future)
        future.add_done_callback(_in_work.discard)
        return future

    def _expose(self, frame: int, depth_only: bool = False) -> Exposure:
        # What a cancelled capture left in work must be through before Blender renders.
        wait(set(_in_work))
        try:
            camera = find_camera(self.scene, self.shot.camera)
            if self._watchers is None:
                self._watchers = _watchers(self.cast)
            return _expose(
                self.scene,
                camera,
                frame,
                [] if depth_only else self._watchers,
                self.shot.frame_size,
                self.native_pixels,
                self.multiple,
                self.view_layer,
            )
        except ReferenceError as error:
            raise CaptureError(
                f"Something of shot {self.shot.name} was deleted while it was captured.",
                "Start again.",
            ) from error

    def _wait(self, what: str) -> str:
        if _is_done(self._developing[0]):
            self.keyframes.append(self._developing.popleft().result())
        return what


def _is_done(future: Future[Any]) -> bool:
    """Waits a little for it."""
    return bool(wait([future], timeout=_patience).done)


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
    """One keyframe at once, with a depth range of its own. Raises CaptureError."""
    wait(set(_in_work))
    watchers = _watchers(cast)
    exposure = _expose(scene, camera, frame, watchers, size, native_pixels, multiple, view_layer)
    keyframe = develop(exposure)
    finish_depth([keyframe])
    return keyframe


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


def _expose(
    scene: bpy.types.Scene,
    camera: bpy.types.Object,
    frame: int,
    watchers: Sequence[Watcher],
    size: Size | None,
    native_pixels: int,
    multiple: int,
    view_layer: str | None,
) -> Exposure:
    """Read one keyframe out of Blender; the scene is as it was when this returns or raises."""
    size = size or frame_size(scene)
    pixel_aspect = (scene.render.pixel_aspect_x, scene.render.pixel_aspect_y)
    _check_projection(camera)
    canvas = _canvas(size, pixel_aspect, native_pixels, multiple)
    timings: dict[str, float] = {}
    views: list[View] = []
    figures: dict[str, Figure] = {}

    def look(depsgraph: bpy.types.Depsgraph) -> View:
        views.append(_view(camera.evaluated_get(depsgraph), size, pixel_aspect, canvas))
        figures.update((w.member.name, w.read(depsgraph)) for w in watchers)
        return views[0]

    passes = render_passes(
        scene,
        view_layer or _window_layer(scene),
        camera,
        frame,
        canvas.width,
        canvas.height,
        {o: i for w in watchers for o, i in w.indices.items()},
        look,
        timings,
    )
    indices = {w.member.name: list(w.indices.values()) for w in watchers}
    return Exposure(frame, size, canvas, camera.name, views[0], passes, figures, indices, timings)


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

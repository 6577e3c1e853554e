# SPDX-License-Identifier: GPL-3.0-or-later
"""From what was read of a scene to maps, masks, poses and heads: numbers only, for any thread."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..core import depth, lines, normals, openpose
from ..core.projection import View
from ..core.request import Camera, Canvas, Keypoint, Pose, Size
from . import heads, joints
from .gather import Figure
from .heads import CapturedHead
from .passes import Passes


@dataclass
class Exposure:
    """A keyframe as it came out of Blender.

    figures: character -> where it is. indices: character -> its numbers on `passes.ids`.
    """

    frame: int
    frame_size: Size
    canvas: Canvas
    camera: str
    view: View
    passes: Passes
    figures: dict[str, Figure]
    indices: dict[str, list[int]]
    timings: dict[str, float]


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


def develop(exposure: Exposure) -> CapturedKeyframe:
    """All of a keyframe but its depth map, see `finish_depth`."""
    passes, view, timings = exposure.passes, exposure.view, exposure.timings
    with _timed(timings, "masks"):
        masks = {name: _mask(passes.ids, own) for name, own in exposure.indices.items()}
        present = _far_to_near(masks, passes.z)
    keyframe = CapturedKeyframe(
        exposure.frame,
        exposure.frame_size,
        exposure.canvas,
        _camera(exposure.camera, view),
        view,
        passes.z,
        masks,
        {},
        {},
        present,
        timings=timings,
    )
    for name, figure in exposure.figures.items():
        if not figure.present:
            continue
        own = masks[name] > 0
        with _timed(timings, "heads"):
            head = _head(figure, own, passes, view) if name in present else None
        with _timed(timings, "joints"):
            keyframe.poses[name] = _pose(figure, head, own, passes, view)
        if head:
            keyframe.heads[name] = head
    height, width = passes.z.shape
    with _timed(timings, "pose"):
        people = [keyframe.poses[n] for n in present if n in keyframe.poses]
        keyframe.maps["pose"] = openpose.draw_pose(people, width, height)
    with _timed(timings, "normal"):
        matrix = np.asarray(view.matrix_world)
        keyframe.maps["normal"] = normals.normal_map(passes.normals, matrix, ~np.isfinite(passes.z))
    with _timed(timings, "lineart"):
        keyframe.maps["lineart"] = lines.line_map(passes.z, passes.normals, passes.ids)
    return keyframe


def finish_depth(
    keyframes: Sequence[CapturedKeyframe], other_depths: Sequence[np.ndarray] = ()
) -> None:
    """Draw the depth maps of a shot with one range, so that they do not flicker.

    other_depths: (H, W) float32 metres of the shot's keyframes that are not captured themselves.
    """
    near, far = depth.depth_range([*(k.depth for k in keyframes), *other_depths])
    for keyframe in keyframes:
        began = time.perf_counter()
        keyframe.maps["depth"] = depth.depth_map(keyframe.depth, near, far)
        keyframe.timings["depth"] = time.perf_counter() - began


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

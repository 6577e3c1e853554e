# SPDX-License-Identifier: GPL-3.0-or-later
"""The shots of a scene: reading them, and what the artist does to them.

A shot is a camera bound to a timeline marker and lasts until the next such marker (inclusive
frames). What Blender's marker cannot hold (prompt, seed, keyframes, picked takes) is in the rows
of `Scene.onmodel.shots`, paired with markers by `binding.py`. Reading never writes to the scene:
`read_shots` works in a file that Onmodel has never seen. `sync` writes the rows; every edit here
does so first.
"""

from __future__ import annotations

from dataclasses import dataclass

import bpy

from ..core import shots as core
from ..core.request import Size
from ..core.shots import Shot
from . import binding
from .binding import Mark
from .errors import SceneError

_state = {"syncing": False}


@dataclass(frozen=True)
class Placed:
    """A camera marker with its row, in order of time.

    row: None as long as `sync` has not made one. start and end: inclusive frames. shot: what the
    rest of the add-on works with; None where the marker makes no shot, because it lies outside the
    scene's frames or another camera is bound at its frame.
    """

    marker: bpy.types.TimelineMarker
    row: bpy.types.PropertyGroup | None
    uid: str
    name: str
    start: int
    end: int
    shot: Shot | None

    @property
    def kept(self) -> bpy.types.PropertyGroup:
        """The row of a shot that `sync` has seen."""
        assert self.row is not None, "sync comes before every edit"
        return self.row


# --- reading -------------------------------------------------------------------------------------


def read_shots(scene: bpy.types.Scene) -> list[Shot]:
    """The shots of the scene in order of time, disabled ones included. Writes nothing."""
    return [p.shot for p in place(scene) if p.shot is not None]


def camera_markers(scene: bpy.types.Scene) -> list[bpy.types.TimelineMarker]:
    """The markers that have a camera, in order of time."""
    bound = [m for m in scene.timeline_markers if m.camera is not None]
    return sorted(bound, key=lambda m: m.frame)


def place(scene: bpy.types.Scene) -> list[Placed]:
    """Each camera marker with its row, uid, name and range, in order of time. Writes nothing."""
    markers = camera_markers(scene)
    rows = list(scene.onmodel.shots)
    marks = [_mark_of_marker(m) for m in markers]
    bound = [
        None if i is None else rows[i] for i in binding.bind(marks, [_mark_of_row(r) for r in rows])
    ]
    names = core.unique_names([_wanted_name(m, r) for m, r in zip(marks, bound, strict=True)])
    uids, taken = [], {r.uid for r in rows}
    for marker, mark, row in zip(markers, marks, bound, strict=True):
        uid = row.uid if row else binding.uid_for(mark, marker.camera.name, taken)
        taken.add(uid)
        uids.append(uid)
    found = core.shots_from_markers(
        [
            core.Marker(m.frame, m.name, m.camera.name, uid)
            for m, uid in zip(markers, uids, strict=True)
        ],
        scene.frame_start,
        scene.frame_end,
        {
            uid: _overrides(scene, row, name)
            for uid, row, name in zip(uids, bound, names, strict=True)
        },
    )
    by_uid = {shot.uid: shot for shot in found}
    placed = []
    for k, (marker, row, uid, name) in enumerate(zip(markers, bound, uids, names, strict=True)):
        shot = by_uid.get(uid)
        end = markers[k + 1].frame - 1 if k + 1 < len(markers) else scene.frame_end
        start, end = (shot.start, shot.end) if shot else (marker.frame, max(end, marker.frame))
        placed.append(Placed(marker, row, uid, name, start, end, shot))
    return placed


def find(scene: bpy.types.Scene, uid: str) -> Placed:
    """The shot with this uid. Raises SceneError when it has no marker any more."""
    for placed in place(scene):
        if placed.uid == uid:
            return placed
    raise SceneError(
        "This shot has no marker on the timeline any more.",
        "Undo its removal, or remove the shot from the list.",
    )


def names(scene: bpy.types.Scene) -> dict[str, str]:
    """uid -> name of every shot that has a marker."""
    return {p.uid: p.name for p in place(scene)}


def at_frame(scene: bpy.types.Scene, frame: int) -> Placed | None:
    """The shot that this frame is in."""
    return next((p for p in place(scene) if p.start <= frame <= p.end), None)


def active_row(scene: bpy.types.Scene) -> bpy.types.PropertyGroup | None:
    """The selected shot's row."""
    settings = scene.onmodel
    known = 0 <= settings.shot_index < len(settings.shots)
    return settings.shots[settings.shot_index] if known else None


def is_synced(scene: bpy.types.Scene, placed: list[Placed] | None = None) -> bool:
    """Whether the rows say exactly what the markers say. Cheap; for drawing code.

    placed: `place(scene)`, where the caller has it already.
    """
    rows = scene.onmodel.shots
    placed = place(scene) if placed is None else placed
    attached = [r for r in rows if not r.detached]
    if len(attached) != len(placed) or len(rows) < len(placed):
        return False
    for row, p in zip(rows, placed, strict=False):
        if p.row is None or p.row.uid != row.uid or row.detached:
            return False
        if _mark_of_row(row) != _mark_of_marker(p.marker) or row.name != p.name:
            return False
    return True


# --- writing -------------------------------------------------------------------------------------


def sync(scene: bpy.types.Scene) -> None:
    """Make the rows say what the markers say: one each, in order of time, the lost ones last."""
    settings = scene.onmodel
    rows = settings.shots
    selected = rows[settings.shot_index].uid if 0 <= settings.shot_index < len(rows) else ""
    _state["syncing"] = True
    try:
        placed = place(scene)
        wanted = {p.uid for p in placed}
        for row in rows:
            row.detached = row.uid not in wanted
        for target, p in enumerate(placed):
            if p.row is None:
                rows.add().uid = p.uid
            rows.move(_index(rows, p.uid), target)
            row = rows[target]
            row.camera = p.marker.camera
            row.marker_name = p.marker.name
            row.marker_frame = p.marker.frame
            row.detached = False
            if row.name != p.name:
                row.name = p.name
    finally:
        _state["syncing"] = False
    if selected:
        settings.shot_index = _index(rows, selected)


def add_shot(
    scene: bpy.types.Scene,
    frame: int | None = None,
    camera: bpy.types.Object | None = None,
) -> bpy.types.PropertyGroup:
    """Bind a camera to a new marker and return the shot's row.

    frame: the current one when None. camera: the scene's camera when None.
    """
    frame = scene.frame_current if frame is None else frame
    camera = scene.camera if camera is None else camera
    if camera is None:
        raise SceneError(
            "The scene has no camera.", "Add one (Add > Camera), or make a shot from the view."
        )
    _require_camera(camera)
    sync(scene)
    if any(m.frame == frame for m in camera_markers(scene)):
        raise SceneError(
            f"A shot already starts at frame {frame}.",
            "Go to the frame where the new shot begins.",
        )
    markers = scene.timeline_markers
    marker = next((m for m in markers if m.frame == frame), None)
    if marker is None:
        marker = markers.new("", frame=frame)
    marker.camera = camera
    new = next(p for p in place(scene) if p.row is None)
    if marker.name != new.name:
        marker.name = new.name
    sync(scene)
    index = next(k for k, p in enumerate(place(scene)) if p.start == frame)
    scene.onmodel.shot_index = index
    return scene.onmodel.shots[index]


def remove_shot(scene: bpy.types.Scene, uid: str) -> None:
    """Remove the shot: its row and its marker. The camera stays."""
    sync(scene)
    for p in place(scene):
        if p.uid == uid:
            scene.timeline_markers.remove(p.marker)
    settings = scene.onmodel
    settings.shots.remove(_index(settings.shots, uid))
    settings.shot_index = max(0, min(settings.shot_index, len(settings.shots) - 1))
    sync(scene)


def rename_shot(scene: bpy.types.Scene, uid: str, name: str) -> None:
    """Name the shot and its marker."""
    name = name.strip()
    if not name:
        raise SceneError("A shot needs a name.", "Type one, such as 010.")
    sync(scene)
    others = {r.name.casefold() for r in scene.onmodel.shots if r.uid != uid and not r.detached}
    if name.casefold() in others:
        raise SceneError(f"There is already a shot named {name}.", "Choose another name.")
    find(scene, uid).kept.name = name
    sync(scene)


def name_markers(scene: bpy.types.Scene) -> int:
    """Give every camera marker the name of its shot, where they differ; returns how many."""
    sync(scene)
    differ = [p for p in place(scene) if p.marker.name != p.name]
    for p in differ:
        p.marker.name = p.name
    sync(scene)
    return len(differ)


def move_shot(scene: bpy.types.Scene, uid: str, step: int) -> None:
    """Let the shot change places with the next (step 1) or the one before (step -1).

    Both keep their lengths; the markers and the marked frames move in time, the animation stays.
    """
    sync(scene)
    placed = place(scene)
    at = next((k for k, p in enumerate(placed) if p.uid == uid), None)
    if at is None or not 0 <= at + step < len(placed):
        return
    early, late = placed[min(at, at + step)], placed[max(at, at + step)]
    for p, frames in ((early, late.end - late.start + 1), (late, early.start - late.start)):
        p.marker.frame = p.start + frames
        for keyframe in p.kept.keyframes:
            keyframe.frame += frames
    sync(scene)
    scene.onmodel.shot_index = _index(scene.onmodel.shots, uid)


def bind_camera(scene: bpy.types.Scene, uid: str, camera: bpy.types.Object) -> None:
    """Give the shot another camera."""
    _require_camera(camera)
    sync(scene)
    find(scene, uid).marker.camera = camera
    sync(scene)


def mark_keyframe(scene: bpy.types.Scene, uid: str, frame: int) -> None:
    """Mark a frame of the shot to be drawn. Raises SceneError for a frame outside the shot."""
    sync(scene)
    placed = find(scene, uid)
    if not placed.start <= frame <= placed.end:
        raise SceneError(
            f"Frame {frame} is not in shot {placed.name} ({placed.start}-{placed.end}).",
            "Go to a frame of the shot.",
        )
    keyframe_row(placed.kept, frame).marked = True


def unmark_keyframe(scene: bpy.types.Scene, uid: str, frame: int) -> None:
    """Do not draw this marked frame any more. First and last have their own switches."""
    sync(scene)
    keyframes = _row(scene, uid).keyframes
    for index in reversed(range(len(keyframes))):
        if keyframes[index].frame == frame:
            keyframes[index].marked = False
            if keyframes[index].take == 0:
                keyframes.remove(index)


def drop_stray_keyframes(scene: bpy.types.Scene, uid: str) -> int:
    """Unmark the frames that lie outside the shot; returns how many."""
    sync(scene)
    placed = find(scene, uid)
    stray = [
        k.frame
        for k in placed.kept.keyframes
        if k.marked and not placed.start <= k.frame <= placed.end
    ]
    for frame in stray:
        unmark_keyframe(scene, uid, frame)
    return len(stray)


def keyframe_row(row: bpy.types.PropertyGroup, frame: int) -> bpy.types.PropertyGroup:
    """What is kept about this frame of the shot; made when there is nothing yet."""
    for keyframe in row.keyframes:
        if keyframe.frame == frame:
            return keyframe
    keyframe = row.keyframes.add()
    keyframe.frame = frame
    return keyframe


def picked_take(scene: bpy.types.Scene, uid: str, frame: int) -> int:
    """The take of this keyframe that the artist has picked; 0 for none. Writes nothing."""
    for row in scene.onmodel.shots:
        if row.uid == uid:
            return next((int(k.take) for k in row.keyframes if k.frame == frame), 0)
    return 0


def pick_take(scene: bpy.types.Scene, uid: str, frame: int, take: int) -> None:
    """Keep that the artist has picked this take; 0 takes the pick back."""
    keyframe_row(_row(scene, uid), frame).take = take


def name_marker(row: bpy.types.PropertyGroup) -> None:
    """Carry a row's new name to its marker. Called by Blender when the name is edited."""
    if _state["syncing"]:
        return
    scene = row.id_data
    for p in place(scene):
        if p.uid == row.uid and row.name and p.marker.name != row.name:
            p.marker.name = row.name
            row.marker_name = row.name


# --- helpers -------------------------------------------------------------------------------------


def _mark_of_marker(marker: bpy.types.TimelineMarker) -> Mark:
    return Mark(marker.frame, marker.name, marker.camera)


def _mark_of_row(row: bpy.types.PropertyGroup) -> Mark:
    return Mark(row.marker_frame, row.marker_name, row.camera, row.detached)


def _wanted_name(mark: Mark, row: bpy.types.PropertyGroup | None) -> str:
    """The row's name, unless the marker was renamed in the timeline since."""
    if row is None or not row.name:
        return mark.name
    renamed = mark.name != row.marker_name and not core.is_default_name(mark.name)
    return mark.name if renamed else row.name


def _overrides(
    scene: bpy.types.Scene, row: bpy.types.PropertyGroup | None, name: str
) -> core.Overrides:
    if row is None:
        return core.Overrides(name=name, handles=scene.onmodel.handles)
    return core.Overrides(
        name=name,
        enabled=row.enabled,
        prompt=row.prompt.strip(),
        negative_prompt=row.negative_prompt.strip(),
        seed=row.seed if row.use_seed else None,
        frame_size=Size(row.width, row.height) if row.use_resolution else None,
        handles=row.handles if row.use_handles else scene.onmodel.handles,
        first=row.first,
        last=row.last,
        marked=frozenset(k.frame for k in row.keyframes if k.marked),
        takes=row.takes or None,
    )


def _index(rows: bpy.types.bpy_prop_collection, uid: str) -> int:
    for index, row in enumerate(rows):
        if row.uid == uid:
            return index
    return 0


def _row(scene: bpy.types.Scene, uid: str) -> bpy.types.PropertyGroup:
    for row in scene.onmodel.shots:
        if row.uid == uid:
            return row
    raise SceneError("This shot is not in the scene.", "Choose a shot from the list.")


def _require_camera(item: bpy.types.Object) -> None:
    if item.type != "CAMERA":
        raise SceneError(f"{item.name} is not a camera.", "Choose a camera.")

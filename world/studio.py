# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of people in sets with their depth, owners, parts and normals, by Workbench (bpy)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix

from addon.core.normals import normal_map
from world import looks
from world.sets import SetMesh

Array = np.ndarray


@dataclass(frozen=True)
class Body:
    """vertices (N, 3) world metres, faces (M, 4), colours (N, 3) sRGB, regions (M,) uint8 of
    `people.regions`, pieces (M,) numbers: faces of one number are one object, outlined alone."""

    vertices: Array
    faces: Array
    colours: Array
    regions: Array
    pieces: Array


@dataclass(frozen=True)
class Lens:
    """A camera that looks at a point, no roll.

    matrix_world: (4, 4) camera to world. height_at: metres the picture is high at `distance`.
    size: (width, height) pixels.
    """

    matrix_world: Array
    focal: float
    reach: float
    size: tuple[int, int]
    orthographic: bool

    @property
    def position(self) -> Array:
        return self.matrix_world[:3, 3]

    @classmethod
    def towards(
        cls,
        centre: Array,
        reach: float,
        focal: float,
        degrees: float,
        size: tuple[int, int],
        orthographic: bool = False,
    ) -> Lens:
        """Looks from -y, from `degrees` above the horizon, at `centre`.

        reach: metres that the picture's height covers at the centre. focal: mm on a 36 mm high
        sensor.
        """
        distance = reach * focal / 36
        angle = np.radians(degrees)
        position = centre + distance * np.array([0, -np.cos(angle), np.sin(angle)])
        position[2] = max(position[2], 0.1)
        back = position - centre
        back = back / np.linalg.norm(back)
        right = np.cross([0, 0, 1.0], back)
        right /= np.linalg.norm(right)
        matrix = np.eye(4)
        matrix[:3, :3] = np.stack([right, np.cross(back, right), back], axis=1)
        matrix[:3, 3] = position
        return cls(matrix, focal, reach, size, orthographic)

    def camera_space(self, points: Array) -> Array:
        """World points (N, 3) to Blender's camera space (x right, y up, looks along -z)."""
        return (points - self.position) @ self.matrix_world[:3, :3]

    def project(self, points: Array) -> Array:
        """World points (N, 3) to canvas x, y in pixels and planar z in metres, (N, 3)."""
        width, height = self.size
        local = self.camera_space(points)
        depth = -local[:, 2]
        if self.orthographic:
            scale: Array = np.full(len(local), height / self.reach)
        else:
            safe = np.where(np.abs(depth) < 1e-6, 1e-6, depth)
            scale = height * self.focal / 36 / safe
        x, y = width / 2 + scale * local[:, 0], height / 2 - scale * local[:, 1]
        return np.stack([x, y, depth], axis=1)


@dataclass(frozen=True)
class Maps:
    """depth (H, W) float32 m, inf = nothing; owner (H, W) uint8, 1 + index of the body; normal
    (H, W, 3) uint8, the add-on's normal map; part (H, W) uint8, index of `people.regions`."""

    depth: Array
    owner: Array
    normal: Array
    part: Array


class Studio:
    """One empty Blender scene that is used again for every picture.

    `prepare` places camera and set, `seat` the bodies; then `maps` and `picture` show them.
    """

    def __init__(self) -> None:
        bpy.ops.wm.read_factory_settings(use_empty=True)
        self._scene = bpy.context.scene
        scene = self._scene
        scene.render.engine = "BLENDER_WORKBENCH"
        scene.render.film_transparent = True
        scene.render.threads_mode = "FIXED"
        scene.render.threads = 1
        scene.view_settings.view_transform = "Standard"
        scene.display.shading.color_type = "VERTEX"
        scene.display.shading.show_specular_highlight = False
        scene.world = bpy.data.worlds.new("world")
        self._camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
        scene.collection.objects.link(self._camera)
        scene.camera = self._camera
        self._folder = tempfile.TemporaryDirectory(prefix="onmodel-world-")
        self._lights: dict[tuple[str, int], str] = {}
        self._lens: Lens | None = None

    def prepare(self, scene: SetMesh, lens: Lens) -> None:
        """A set before a camera, nobody in it."""
        self._remove("")
        self._lens = lens
        width, height = lens.size
        render = self._scene.render
        render.resolution_x, render.resolution_y = width, height
        camera = self._camera.data
        camera.type = "ORTHO" if lens.orthographic else "PERSP"
        camera.sensor_fit = "VERTICAL"
        camera.sensor_height = 36
        camera.lens, camera.ortho_scale = lens.focal, lens.reach
        camera.clip_start, camera.clip_end = 0.02, 300
        self._camera.matrix_world = Matrix(lens.matrix_world.tolist())
        bpy.context.view_layer.update()
        nothing = np.zeros(len(scene.faces), np.uint8)
        self._put("set", scene.vertices, scene.faces, scene.colours, 0, nothing)

    def seat(self, bodies: Sequence[Body]) -> None:
        """These bodies in place of those that were there."""
        self._remove("body")
        for index, one in enumerate(bodies):
            for piece in np.unique(one.pieces):
                mine = one.pieces == piece
                used, faces = np.unique(one.faces[mine], return_inverse=True)
                self._put(
                    f"body {index} {piece}",
                    one.vertices[used],
                    faces.reshape(-1, 4),
                    one.colours[used],
                    index + 1,
                    one.regions[mine],
                )

    def maps(self) -> Maps:
        """What the add-on would capture."""
        return _read(self._render("data"), self._aimed())

    def picture(self, look: str, light: int) -> Array:
        """(H, W, 4) float32 sRGB, alpha last. look: of `looks`; light: index of `looks.lights`."""
        shading = self._scene.display.shading
        shading.light = "MATCAP"
        shading.studio_light = self._light(look, light)
        shading.show_object_outline = look == "animated"
        shading.object_outline_color = (0.05, 0.03, 0.05)
        shading.show_cavity = look == "realistic"
        shading.cavity_type = "SCREEN"
        shading.curvature_ridge_factor, shading.curvature_valley_factor = 0.2, 0.4
        return self._render("colour")

    def _aimed(self) -> Lens:
        if self._lens is None:
            raise RuntimeError("Prepare the studio before looking at it.")
        return self._lens

    def _light(self, look: str, light: int) -> str:
        """The name of Blender's studio light of that look, made on first use."""
        key = (look, light)
        if key not in self._lights:
            ball = looks.ball(look, light)
            side = ball.shape[0]
            image = bpy.data.images.new("ball", side, side, float_buffer=True)
            rgba = np.concatenate([ball, np.ones((side, side, 1))], axis=2)
            image.pixels.foreach_set(rgba.astype(np.float32).ravel())
            image.filepath_raw = str(Path(self._folder.name) / f"onmodel-{look}-{light}.exr")
            image.file_format = "OPEN_EXR"
            image.save()
            loaded = bpy.context.preferences.studio_lights.load(image.filepath_raw, "MATCAP")
            bpy.data.images.remove(image)
            self._lights[key] = loaded.name
        return self._lights[key]

    def _remove(self, prefix: str) -> None:
        for obj in [o for o in self._scene.objects if o.type == "MESH"]:
            if obj.name.startswith(prefix):
                mesh = obj.data
                bpy.data.objects.remove(obj)
                bpy.data.meshes.remove(mesh)

    def _put(
        self, name: str, vertices: Array, faces: Array, colours: Array, owner: int, parts: Array
    ) -> None:
        """A mesh with its colours and, on its corners, what the maps need."""
        lens = self._aimed()
        mesh = bpy.data.meshes.new(name)
        # A triangle repeats its last corner.
        corners = np.where(faces[:, 3] == faces[:, 2], 3, 4)
        loops = faces.ravel()[(np.arange(4)[None] < corners[:, None]).ravel()]
        mesh.vertices.add(len(vertices))
        mesh.vertices.foreach_set("co", vertices.astype(np.float32).ravel())
        mesh.loops.add(len(loops))
        mesh.loops.foreach_set("vertex_index", loops.astype(np.int32))
        mesh.polygons.add(len(faces))
        starts = np.concatenate([[0], np.cumsum(corners)[:-1]])
        mesh.polygons.foreach_set("loop_start", starts.astype(np.int32))
        mesh.update(calc_edges=True)
        mesh.polygons.foreach_set("use_smooth", np.full(len(faces), owner > 0))
        linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
        _paint(mesh, "colour", "POINT", linear)
        depth = -lens.camera_space(vertices)[:, 2]
        flat = np.empty(len(vertices) * 3, np.float32)
        mesh.vertex_normals.foreach_get("vector", flat)
        normal = flat.reshape(-1, 3) @ lens.matrix_world[:3, :3]
        data = np.stack([depth, 4.0 * owner + normal[:, 0], normal[:, 1]], axis=1)[loops]
        data[:, 2] += 4.0 * np.repeat(parts, corners)
        _paint(mesh, "data", "CORNER", data)
        self._scene.collection.objects.link(bpy.data.objects.new(name, mesh))

    def _render(self, layer: str) -> Array:
        """(H, W, 4) float32, row 0 on top. layer: the colour attribute shown."""
        scene = self._scene
        shading, image = scene.display.shading, scene.render.image_settings
        for obj in scene.objects:
            if obj.type == "MESH":
                attributes = obj.data.color_attributes
                attributes.active_color = attributes[layer]
        beauty = layer == "colour"
        if not beauty:
            shading.light = "FLAT"
            shading.show_object_outline = shading.show_cavity = False
        scene.display.render_aa = "5" if beauty else "OFF"
        image.file_format = "PNG" if beauty else "OPEN_EXR"
        image.color_mode = "RGBA"
        image.color_depth = "8" if beauty else "32"
        image.compression = 0
        path = Path(self._folder.name) / ("picture.png" if beauty else "picture.exr")
        scene.render.filepath = str(path)
        bpy.ops.render.render(write_still=True)
        loaded = bpy.data.images.load(str(path))
        loaded.colorspace_settings.name = "Non-Color"
        loaded.alpha_mode = "CHANNEL_PACKED"
        width, height = loaded.size
        pixels = np.empty(width * height * 4, np.float32)
        loaded.pixels.foreach_get(pixels)
        bpy.data.images.remove(loaded)
        return pixels.reshape(height, width, 4)[::-1]


def _paint(mesh: bpy.types.Mesh, name: str, domain: str, colours: Array) -> None:
    rgba = np.concatenate([colours, np.ones((len(colours), 1))], axis=1).astype(np.float32)
    layer = mesh.color_attributes.new(name, "FLOAT_COLOR", domain)
    layer.data.foreach_set("color", rgba.ravel())


def _read(data: Array, lens: Lens) -> Maps:
    """Unpack the data render: depth, 4 * owner + normal x, 4 * part + normal y."""
    empty = data[..., 3] < 0.5
    depth = np.where(empty, np.inf, data[..., 0]).astype(np.float32)
    owner, part = np.rint(data[..., 1] / 4), np.rint(data[..., 2] / 4)
    x, y = data[..., 1] - 4 * owner, data[..., 2] - 4 * part
    # Surfaces seen from within (a sleeve's end) have normals that look away: they are turned.
    z = np.sqrt(np.clip(1 - x * x - y * y, 0, None))
    world = np.stack([x, y, z], axis=-1) @ lens.matrix_world[:3, :3].T
    normal = normal_map(world, lens.matrix_world, empty)
    owner, part = (np.where(empty, 0, v).astype(np.uint8) for v in (owner, part))
    return Maps(depth, owner, normal, part)

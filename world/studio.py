# SPDX-License-Identifier: GPL-3.0-or-later
"""Pictures of people in sets with their depth, owners and normals, by Workbench (bpy)."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix

from addon.core.normals import normal_map
from world.sets import SetMesh

Array = np.ndarray
Triple = tuple[float, float, float]
Body = tuple[Array, Array, Array]
"""vertices (N, 3) world metres, faces (M, 4), colours (N, 3) sRGB."""


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
class Picture:
    """colour (H, W, 4) float sRGB, alpha last; depth (H, W) float32 m, inf = nothing;
    owner (H, W) uint8, 1 + index of the body; normal (H, W, 3) uint8, the add-on's normal map."""

    colour: Array
    depth: Array
    owner: Array
    normal: Array

    def over(self, sky: Triple, tint: Triple) -> Array:
        """(H, W, 3) uint8: before a sky that lightens downwards, all of it tinted."""
        height = self.colour.shape[0]
        ramp = np.linspace(0.93, 1.08, height)[:, None, None]
        alpha = self.colour[..., 3:]
        rgb = self.colour[..., :3] * np.asarray(tint) * alpha + np.asarray(sky) * ramp * (1 - alpha)
        return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)


class Studio:
    """One empty Blender scene that is used again for every picture."""

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

    def shoot(self, bodies: list[Body], scene: SetMesh, lens: Lens) -> Picture:
        """Render the bodies in the set."""
        self._aim(lens)
        meshes = [
            self._put(f"body {i}", v, f, c, smooth=True) for i, (v, f, c) in enumerate(bodies)
        ]
        meshes.append(self._put("set", scene.vertices, scene.faces, scene.colours, smooth=False))
        colour = self._render(beauty=True)
        rotation = lens.matrix_world[:3, :3]
        for index, mesh in enumerate(meshes):
            count = len(mesh.vertices)
            flat = np.empty(count * 3, np.float32)
            mesh.vertices.foreach_get("co", flat)
            depth = -lens.camera_space(flat.reshape(-1, 3))[:, 2]
            mesh.vertex_normals.foreach_get("vector", flat)
            normal = flat.reshape(-1, 3) @ rotation
            owner = 4.0 * (index + 1 if index < len(bodies) else 0)
            _paint(mesh, np.stack([depth, owner + normal[:, 0], normal[:, 1]], axis=1))
        data = self._render(beauty=False)
        for obj in [o for o in self._scene.objects if o.type == "MESH"]:
            mesh = obj.data
            bpy.data.objects.remove(obj)
            bpy.data.meshes.remove(mesh)
        return _read(colour, data, lens)

    def _aim(self, lens: Lens) -> None:
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

    def _put(self, name: str, vertices: Array, faces: Array, colours: Array, smooth: bool):  # type: ignore[no-untyped-def]
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
        mesh.polygons.foreach_set("use_smooth", np.full(len(faces), smooth))
        mesh.color_attributes.new("colour", "FLOAT_COLOR", "POINT")
        mesh.color_attributes.active_color = mesh.color_attributes["colour"]
        c = np.asarray(colours)
        _paint(mesh, np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4))
        self._scene.collection.objects.link(bpy.data.objects.new(name, mesh))
        return mesh

    def _render(self, beauty: bool) -> Array:
        """(H, W, 4) float32, row 0 on top."""
        scene = self._scene
        shading, image = scene.display.shading, scene.render.image_settings
        shading.light = "STUDIO" if beauty else "FLAT"
        scene.display.render_aa = "8" if beauty else "OFF"
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


def _paint(mesh, colours: Array) -> None:  # type: ignore[no-untyped-def]
    rgba = np.concatenate([colours, np.ones((len(colours), 1))], axis=1).astype(np.float32)
    mesh.color_attributes["colour"].data.foreach_set("color", rgba.ravel())
    mesh.update()


def _read(colour: Array, data: Array, lens: Lens) -> Picture:
    """Unpack the data render: depth, 4 * owner + normal x, normal y."""
    empty = data[..., 3] < 0.5
    depth = np.where(empty, np.inf, data[..., 0]).astype(np.float32)
    owner = np.rint(data[..., 1] / 4)
    x, y = data[..., 1] - 4 * owner, data[..., 2]
    # Surfaces seen from within (a sleeve's end) have normals that look away: they are turned.
    z = np.sqrt(np.clip(1 - x * x - y * y, 0, None))
    world = np.stack([x, y, z], axis=-1) @ lens.matrix_world[:3, :3].T
    normal = normal_map(world, lens.matrix_world, empty)
    return Picture(colour, depth, np.where(empty, 0, owner).astype(np.uint8), normal)

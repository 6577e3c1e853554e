# SPDX-License-Identifier: GPL-3.0-or-later
"""Corners of the image planes from the corners of the frame, for every lens of the sample."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from addon.core import png
from bench.harness import Figure
from bench.sample import open_sample


def run() -> list[Figure]:
    """The largest error in pixels at the shots' delivery sizes."""
    from addon.planes.check import corner_error_px
    from addon.planes.planes import Frame, frame_of_scene, place

    scene, shots, _ = open_sample()
    worst, lenses = 0.0, set()
    with tempfile.TemporaryDirectory() as folder:
        for shot in shots:
            camera = scene.objects[shot.camera]
            size = shot.frame_size or frame_of_scene(scene)
            for frame in shot.keyframes:
                path = Path(folder) / f"{shot.name}_{frame}.png"
                path.write_bytes(png.encode(np.full((64, 64, 3), 200, np.uint8), 1))
                scene.frame_set(frame)
                plane = place(
                    scene,
                    camera,
                    path,
                    shot.name,
                    frame,
                    1,
                    (frame, frame),
                    Frame(size.width, size.height),
                )
                scene.frame_set(frame)
                worst = max(worst, corner_error_px(scene, camera, plane))
            data = camera.data
            shifted = ", shift" if data.shift_x or data.shift_y else ""
            upright = ", portrait" if size.height > size.width else ""
            lenses.add(f"{data.type.lower()}{shifted}{upright}")
    note = f"{len(shots)} cameras: {'; '.join(sorted(lenses))}"
    return [Figure("image planes, largest corner error", worst, "px", 0.5, note=note)]

# SPDX-License-Identifier: GPL-3.0-or-later
"""Shared by the drawing tests: requests, blobs in memory, a tiny model in a data folder."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from onmodel.generate.artist import Artist
from onmodel.jobs.artist import Drawn, Task
from onmodel.models.registry import Registry
from PIL import Image

from addon.core.request import FacePass, to_data
from bench.random_model import build


class Blobs:
    """A blob store in memory."""

    def __init__(self):
        self.data = {}

    def put(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.data[digest] = data
        return digest

    def put_image(self, array: np.ndarray) -> str:
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        return self.put(file.getvalue())

    def read(self, sha256: str) -> bytes:
        return self.data[sha256]

    def path(self, sha256: str) -> Path:
        raise AssertionError("drawing reads blobs, not files")


def make_data(folder: Path) -> Path:
    """A data folder with one tiny model named "tiny" and no LoRAs."""
    build(folder / "models" / "tiny")
    return folder


def make_artist(data: Path) -> Artist:
    return Artist(Registry(data, extra=[], embedded=data / "none"))


def make_request(blobs: Blobs, **changes) -> dict:
    """A valid keyframe for "tiny": 128x96, two maps, a man on the left, a woman on the right."""
    rng = np.random.default_rng(5)
    pose = rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)
    depth = rng.integers(0, 255, (96, 128), dtype=np.uint8)
    left = np.zeros((96, 128), np.uint8)
    left[10:90, 4:60] = 255
    right = np.zeros((96, 128), np.uint8)
    right[10:90, 70:124] = 255

    def character(name: str, noun: str, prompt: str, mask: np.ndarray) -> dict:
        return {
            "name": name,
            "noun": noun,
            "trigger": "",
            "prompt": prompt,
            "mask": blobs.put_image(mask),
            "loras": [],
            "pose": {"body": [], "left_hand": [], "right_hand": [], "face": []},
            "head": None,
            "references": [],
            "reference_weight": None,
        }

    def control(kind: str, image: np.ndarray) -> dict:
        return {
            "kind": kind,
            "blob": blobs.put_image(image),
            "weight": 1.0,
            "start": 0.0,
            "end": 1.0,
        }

    return {
        "film": "film",
        "shot": "010",
        "frame": 1,
        "take": 1,
        "seed": 7,
        "frame_size": {"width": 1920, "height": 1280},
        "canvas": {
            "width": 128,
            "height": 96,
            "crop": {"x": 0.0, "y": 6.0, "width": 128.0, "height": 84.0},
        },
        "camera": {
            "name": "Camera",
            "projection": "perspective",
            "matrix_world": [float(i % 5 == 0) for i in range(16)],
            "frustum": [-1.0, 1.0, -0.75, 0.75],
            "clip_start": 0.1,
            "clip_end": 100.0,
        },
        "model": "tiny",
        "prompt": "a man in the street",
        "negative_prompt": "",
        "model_hash": None,
        "sampling": {"preset": "default", "steps": 3, "guidance": None, "method": None},
        "loras": [],
        "maps": [control("pose", pose), control("depth", depth)],
        "characters": [
            character("Ann", "woman", "red coat", right),
            character("Bob", "man", "angry", left),
        ],
        "face_pass": to_data(FacePass()),
        "version": 2,
    } | changes


def draw(artist: Artist, blobs: Blobs, *requests, cancelled=None, report=None) -> dict[str, Drawn]:
    """Draw requests as one batch; ids are "0", "1", …"""
    tasks = [Task(str(i), r) for i, r in enumerate(requests)]
    report = report or (lambda task, kind, data: None)
    return dict(artist.draw(tasks, blobs, report, cancelled or (lambda task: False)))


def pixels(drawn: Drawn) -> np.ndarray:
    """(H, W, 3) int16 of a result."""
    return np.array(Image.open(io.BytesIO(drawn.png))).astype(np.int16)

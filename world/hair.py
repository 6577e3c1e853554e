# SPDX-License-Identifier: GPL-3.0-or-later
"""Hair that hangs or is tied: surfaces grown round the head at rest, rigid with it."""

from __future__ import annotations

import numpy as np

from world.face import FaceFrame

Array = np.ndarray

lengths = ("bald", "short", "curly", "bob", "loose", "ponytail", "bun")
"""How the people of the training world wear their hair; see `words` for the captions."""

depths = {"bald": 0.0, "short": 0.16, "curly": 0.42}
"""How far hair stands off the skull, in eye distances; of the others 0.13."""


def words(length: str, colour: str) -> str:
    """The caption of a hairstyle: "curly red hair"."""
    if length == "bald":
        return "bald"
    if length in ("ponytail", "bun"):
        return f"{colour} hair in a {length}"
    length = {"loose": "long", "bob": "chin-length"}.get(length, length)
    return f"{length} {colour} hair"


def curls(points: Array, face: FaceFrame) -> Array:
    """(n,) factor of the hair's depth at points (n, 3): bumps, for curly hair."""
    p = points / face.unit * 7.5
    waves = np.sin(p[:, 0]) * np.sin(p[:, 1] + 1.3) * np.sin(p[:, 2] + 0.7)
    return 1.0 + 0.35 * waves


def _grid(rows: int, columns: int, closed: bool) -> Array:
    """Quads of a grid of rows x columns points; closed: the last column meets the first."""
    last = columns if closed else columns - 1
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(last), indexing="ij")
    r, c = r.ravel(), c.ravel()
    after = (c + 1) % columns
    corners = [
        r * columns + c,
        r * columns + after,
        (r + 1) * columns + after,
        (r + 1) * columns + c,
    ]
    return np.stack(corners, axis=1)


def _ellipsoid(centre: Array, radii: Array) -> tuple[Array, Array]:
    rows, columns = 9, 14
    up = np.linspace(0.02, np.pi - 0.02, rows)[:, None]
    round_ = np.linspace(0, 2 * np.pi, columns, endpoint=False)[None]
    unit = np.stack(
        [np.sin(up) * np.cos(round_), np.sin(up) * np.sin(round_), np.cos(up) + 0 * round_], axis=-1
    )
    return centre + unit.reshape(-1, 3) * radii, _grid(rows, columns, closed=True)


def _curtain(face: FaceFrame, drop: float, sides: float) -> tuple[Array, Array]:
    """Hair from the crown down behind the ears, open to the face.

    drop: how far below the eyes it ends at the back, sides: beside the face (both in units).
    """
    u, rows, columns, reach = face.unit, 13, 33, 118
    # 0 = straight back; 118 degrees: before the ear.
    angle = np.radians(np.linspace(-reach, reach, columns))[None]
    down = np.linspace(0, 1, rows)[:, None]
    share = np.abs(angle) / np.radians(reach)
    low = drop + (sides - drop) * np.clip((share - 0.35) / 0.4, 0, 1)
    top = face.crown / u * 0.80
    height = top - down * (top + low)
    # Half axes of the head at eye height: it narrows to the crown, hair flares below.
    flat = np.clip(height / (face.crown / u * 1.12), 0, 1)
    narrow = np.sqrt(1 - flat**2)
    flare = 1 + 0.07 * np.clip(-height, 0, None)
    wide = (1.34 * narrow * flare + 0.02 * np.sin(angle * 14)) * u
    deep = (1.72 * narrow * flare + 0.02 * np.sin(angle * 14)) * u
    x = np.sin(angle) * wide
    y = face.skull[1] + 0.06 * u + np.cos(angle) * deep
    z = face.eye_z + height * u + 0 * angle
    # The ends curl in a little.
    turned = np.clip(down - 0.85, 0, None) * 0.9
    points = np.stack([x * (1 - turned), y - turned * 0.4 * u, z], axis=-1).reshape(-1, 3)
    return points, _grid(rows, columns, closed=False)


def _tail(face: FaceFrame, behind: float) -> tuple[Array, Array]:
    """A ponytail from the back of the head, at y = behind."""
    u, rows, columns = face.unit, 12, 10
    t = np.linspace(0, 1, rows)[:, None]
    angle = np.linspace(0, 2 * np.pi, columns, endpoint=False)[None]
    back = behind + (0.85 * np.sin(np.pi * np.clip(t * 0.75, 0, 0.5)) - 0.15) * u
    z = face.eye_z + (0.75 + 0.55 * np.sin(np.pi * t * 0.9) - 3.6 * t**1.3) * u
    radius = (0.26 + 0.26 * np.sin(np.pi * np.clip(t + 0.12, 0, 1)) ** 0.8) * u * (1 - 0.75 * t**4)
    points = np.stack(
        [np.cos(angle) * radius, back + np.sin(angle) * radius * 0.8, z + 0 * angle], axis=-1
    )
    return points.reshape(-1, 3), _grid(rows, columns, closed=True)


def temples(length: str) -> str:
    """How the hair meets the temples, a word of `face.scalp_cover`."""
    return {"bob": "hidden", "loose": "hidden", "ponytail": "combed", "bun": "combed"}.get(
        length, "shaved"
    )


def extra(length: str, face: FaceFrame, head: Array) -> tuple[Array, Array] | None:
    """Vertices (n, 3) and quads (m, 4) of what hangs from the scalp, None: nothing.

    head: points (k, 3) of the bare head; what is tied sits on its back.
    """
    tied = np.abs(head[:, 2] - face.eye_z - 0.8 * face.unit) < 0.2 * face.unit
    behind = float(head[tied, 1].max())
    if length == "loose":
        return _curtain(face, drop=3.6, sides=2.0)
    if length == "bob":
        return _curtain(face, drop=1.5, sides=1.35)
    if length == "ponytail":
        return _tail(face, behind)
    if length == "bun":
        centre = np.array([0, behind + 0.32 * face.unit, face.eye_z + 0.85 * face.unit])
        return _ellipsoid(centre, np.array([0.62, 0.55, 0.58]) * face.unit)
    return None

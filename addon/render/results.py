# SPDX-License-Identifier: GPL-3.0-or-later
"""Drawn keyframes on disk: each a PNG with a sidecar JSON that says how it came to be.

The sidecar is written last and names the PNG's hash, so that a keyframe counts as drawn only when
both are whole. Files appear under their names in one step (written beside, then renamed). What a
new drawing replaces is kept in the folder "replaced". No bpy.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import tempfile
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.request import KeyframeRequest, to_data

log = logging.getLogger(__name__)

sidecar_format = 1


class OutputError(RuntimeError):
    """A result could not be written. full: whether it is for want of space.

    message: what is wrong; fix: what to do about it.
    """

    def __init__(self, message: str, fix: str, full: bool = False) -> None:
        super().__init__(f"{message} {fix}")
        self.message = message
        self.fix = fix
        self.full = full


def output_error(error: OSError, path: Path) -> OutputError:
    """The sentence for a failed write at `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"The disk of {path.parent} is full.",
            "Free some space and draw again: what the server has drawn is not drawn twice.",
            full=True,
        )
    if isinstance(error, PermissionError):
        return OutputError(
            f"{path.parent} may not be written.", "Choose another output folder, or its rights."
        )
    return OutputError(
        f"{path} could not be written: {error.strerror or error}.", "Choose another output folder."
    )


def new_run_folder(film_folder: Path) -> Path:
    """Where a run that begins now keeps its record; not made yet."""
    return film_folder / "runs" / (time.strftime("%Y%m%d-%H%M%S-") + uuid.uuid4().hex[:6])


def write_run(folder: Path, data: dict[str, Any]) -> str:
    """Writes the record of a run into its folder; a sentence if that cannot be done, else ""."""
    path = folder / "run.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(data, indent=1).encode(), durable=False)
    except OSError as error:
        return output_error(error, path).message
    return ""


def sidecar_path(png: Path) -> Path:
    """Where the sidecar of a drawn keyframe lies."""
    return png.with_suffix(".json")


def read_sidecar(png: Path) -> dict[str, Any] | None:
    """The sidecar of a keyframe's file; None where there is none or it is damaged."""
    try:
        data = json.loads(sidecar_path(png).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read: %s", sidecar_path(png), error)
        return None
    return data if isinstance(data, dict) and data.get("format") == sidecar_format else None


def is_drawn(png: Path, key: str) -> bool:
    """Whether the file at `png` is the whole drawing of the request with this key."""
    data = read_sidecar(png)
    if data is None or data.get("request_key") != key:
        return False
    try:
        return hashlib.sha256(png.read_bytes()).hexdigest() == data.get("png_sha256")
    except OSError:
        return False


def drawn_at(item_path: Path, former: Path | None, request: KeyframeRequest) -> Path | None:
    """Where the whole drawing of the request lies: at its own path, or at a former one.

    former: a file of the same keyframe under another name of its shot or film. Names do not change
    a drawing, so it counts if nothing but they differ.
    """
    if is_drawn(item_path, request.key()):
        return item_path
    old = read_sidecar(former) if former else None
    if former is None or old is None or not isinstance(old.get("request"), dict):
        return None
    film, shot = (str(old["request"].get(name, "")) for name in ("film", "shot"))
    return former if is_drawn(former, replace(request, film=film, shot=shot).key()) else None


def write_result(
    png: Path, data: bytes, request: KeyframeRequest, record: dict[str, Any]
) -> dict[str, Any]:
    """Writes a drawn keyframe and its sidecar; returns the sidecar's content.

    record: what the server told about the drawing, and the timings of each stage in seconds.
    Raises OutputError; what was there before is then still there.
    """
    sidecar = {
        "format": sidecar_format,
        "request_key": request.key(),
        "png_sha256": hashlib.sha256(data).hexdigest(),
        "request": to_data(request),
        "record": record,
    }
    try:
        png.parent.mkdir(parents=True, exist_ok=True)
        keep_replaced(png, sidecar["request_key"])
        write_atomic(png, data)
        write_sidecar(png, sidecar)
    except OSError as error:
        raise output_error(error, png) from error
    return sidecar


def write_sidecar(png: Path, sidecar: dict[str, Any]) -> None:
    """Writes the sidecar of a keyframe's file. Raises OSError."""
    # Not synced: a sidecar that a power cut takes is noticed, and the server still has the drawing.
    data = json.dumps(sidecar, indent=1, allow_nan=False).encode()
    write_atomic(sidecar_path(png), data, durable=False)


def keep_replaced(png: Path, key: str) -> None:
    """Copies a drawing of another request that is about to be replaced into "replaced".

    By hard links where the disk has them, so that the old one stays in place until the rename.
    """
    old = read_sidecar(png)
    if old is None or old.get("request_key") == key or not png.is_file():
        return
    folder = png.parent / "replaced"
    folder.mkdir(exist_ok=True)
    for path in (png, sidecar_path(png)):
        kept = folder / f"{path.stem}_{str(old['request_key'])[:8]}{path.suffix}"
        if not kept.exists():
            try:
                os.link(path, kept)
            except OSError:
                write_atomic(kept, path.read_bytes())


def write_atomic(path: Path, data: bytes, durable: bool = True) -> None:
    """Writes a file so that it is there whole or not at all. Raises OSError.

    durable: also after a power cut; waits for the disk, some tens of milliseconds on a busy one.
    """
    descriptor, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if os.name == "posix":
            # A temporary file is its owner's alone; a picture in a film's folder is not.
            umask = os.umask(0)
            os.umask(umask)
            Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise

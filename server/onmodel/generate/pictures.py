# SPDX-License-Identifier: GPL-3.0-or-later
"""Results as PNG files that say what they are."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

png_level = 4
"""zlib level: 6 takes twice as long and saves little on drawn pictures."""


def encode_png(pixels: np.ndarray, record: dict[str, Any] | None = None) -> bytes:
    """(H, W, 3) uint8 RGB to a PNG file; `record` goes into its text field "onmodel" as JSON."""
    info = PngInfo()
    if record is not None:
        info.add_itxt("onmodel", json.dumps(record, sort_keys=True))
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(
        file, "PNG", compress_level=png_level, pnginfo=info
    )
    return file.getvalue()


def request_key(request: dict[str, Any]) -> str:
    """SHA-256 of a request's canonical JSON, as `KeyframeRequest.key` of the contract gives it."""
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()

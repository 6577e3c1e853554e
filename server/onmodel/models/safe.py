# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of safetensors files before anything is read out of them. No other format is opened.

A file is judged by its header alone (8 bytes of length, little endian, then JSON), which is read
strictly: a limit on its size, no duplicate keys, known dtypes, offsets that fill the file without
gap or overlap, shapes that agree with them. Needs neither torch nor the safetensors package.
LoRA files are judged further in `onmodel.models.lora_file`.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onmodel.models.errors import ModelError

header_limit = 100_000_000
dtype_bytes = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
float_dtypes = frozenset({"F64", "F32", "F16", "BF16"})

_again = "Download or export the file again."


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file. start, end: bytes in the file, absolute."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself, checked."""

    path: Path
    size: int
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


class _Duplicate(ValueError):
    """A key that stands twice in one JSON object."""


def read_header(path: Path) -> Header:
    """The checked header of a safetensors file. Raises ModelError."""
    if path.suffix.lower() != ".safetensors":
        raise ModelError(
            f"“{path.name}” is not a .safetensors file.",
            "Other formats can run code when they are opened: convert it to safetensors first.",
        )
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else -1
            if length < 2 or length > header_limit or 8 + length > size:
                raise _broken(path, "its header does not fit the file, so it is cut off or damaged")
            raw = file.read(length)
    except OSError as error:
        raise ModelError(
            f"“{path.name}” cannot be read: {error.strerror or error}.",
            "Check that the file is there and may be read.",
        ) from error
    tensors, metadata = _parse(path, raw)
    return Header(path, size, _check_layout(path, tensors, 8 + length, size), metadata)


def file_hash(path: Path) -> str:
    """SHA-256 of the whole file as hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(paths: list[Path], root: Path) -> str:
    """A hash that names the weights of a model of many gigabytes, taken in a moment.

    SHA-256 over each file's name below `root`, its size, its first and last MiB and 64 blocks of
    64 KiB spread evenly between. Files up to 8 MiB go in whole. Any further training, merge or
    conversion changes nearly every byte, so it changes this.
    """
    digest = hashlib.sha256()
    mib = 1 << 20
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(root).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= 8 * mib:
                digest.update(file.read())
                continue
            digest.update(file.read(mib))
            for i in range(64):
                file.seek(mib + (size - 2 * mib) * i // 64)
                digest.update(file.read(1 << 16))
            file.seek(size - mib)
            digest.update(file.read(mib))
    return digest.hexdigest()


def _broken(path: Path, why: str) -> ModelError:
    return ModelError(f"“{path.name}” is not a sound safetensors file: {why}.", _again)


def _parse(path: Path, raw: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise _Duplicate
        return found

    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except _Duplicate:
        raise _broken(path, "a name stands twice in its header") from None
    except (ValueError, RecursionError):
        raise _broken(path, "its header is not JSON") from None
    if not isinstance(data, dict):
        raise _broken(path, "its header is not a JSON object")
    metadata = data.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _broken(path, "its metadata is not a list of texts")
    if not data:
        raise _broken(path, "it holds no tensors")
    return data, metadata


def _check_layout(
    path: Path, tensors: dict[str, Any], data_start: int, size: int
) -> dict[str, TensorInfo]:
    found: dict[str, TensorInfo] = {}
    for name, value in tensors.items():
        info = _tensor(value, data_start)
        if info is None:
            raise _broken(path, f"the entry of “{name[:80]}” is not a tensor's")
        if info.dtype not in dtype_bytes:
            raise _broken(path, f"“{name[:80]}” has the unknown type “{info.dtype[:20]}”")
        if math.prod(info.shape) * dtype_bytes[info.dtype] != info.end - info.start:
            raise _broken(path, f"the shape of “{name[:80]}” does not agree with its bytes")
        found[name] = info
    at = data_start
    for info in sorted(found.values(), key=lambda t: (t.start, t.end)):
        if info.start != at:
            raise _broken(path, "its tensors overlap or leave gaps")
        at = info.end
    if at != size:
        raise _broken(path, "its tensors do not end where the file ends, so it is cut off")
    return found


def _tensor(value: Any, data_start: int) -> TensorInfo | None:
    """The entry of one tensor, None if it is not of the format."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        return None
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [-1]
    if not isinstance(dtype, str) or any(type(n) is not int or n < 0 for n in numbers):
        return None
    if len(offsets) != 2 or len(shape) > 8 or offsets[0] > offsets[1]:
        return None
    return TensorInfo(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])

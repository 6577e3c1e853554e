# SPDX-License-Identifier: GPL-3.0-or-later
"""PNG in and out with numpy and zlib: Blender brings neither Pillow nor OpenCV.

The encoder is made for maps that travel to a server on the same machine: at level 0 nothing is
compressed and the pixels are copied once, straight to their place in the file. The decoder trusts
nothing: sizes are checked before memory is taken, chunks against their checksums, and the data
must fill the image exactly.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

signature = b"\x89PNG\r\n\x1a\n"
max_side = 16384
max_pixels = 100_000_000

_diagonal_pixels = 4_000_000
"""So many are unfiltered at once: it takes several times their memory."""

_colour_types = {1: 0, 3: 2, 4: 6}
_channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


class PngError(ValueError):
    """An array that no PNG can hold, or bytes that are not a PNG we take; says which and why."""


@dataclass(frozen=True)
class Header:
    """What a PNG says of itself: size in pixels, bits per sample and the PNG colour type."""

    width: int
    height: int
    depth: int
    colour_type: int

    @property
    def channels(self) -> int:
        return _channels[self.colour_type]

    @property
    def row_bytes(self) -> int:
        return (self.width * self.channels * self.depth + 7) // 8


def encode(array: np.ndarray, level: int = 0, palette: np.ndarray | None = None) -> bytes:
    """An image as a PNG file.

    array: (H, W) or (H, W, 1) gray, (H, W, 3) RGB, (H, W, 4) RGBA, uint8; gray may be uint16.
    level: 0 (stored, fastest) to 9 (smallest), of zlib.
    palette: (N <= 256, 3) uint8 RGB; then `array` is (H, W) uint8 entries of it.
    Raises PngError for other arrays, and for sizes that `decode` would not take back.
    """
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    channels = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if channels not in _colour_types:
        raise PngError(f"A PNG holds (H, W), (H, W, 3) or (H, W, 4), not {array.shape}.")
    if not (array.dtype == np.uint8 or (array.dtype == np.uint16 and channels == 1)):
        raise PngError(f"A PNG holds uint8, or uint16 gray, not {array.dtype}.")
    if not 0 <= level <= 9:
        raise PngError(f"A compression level is 0 to 9, not {level}.")
    height, width = array.shape[:2]
    _check_size(width, height)
    colour_type = _colour_types[channels]
    extra = b""
    if palette is not None:
        if channels != 1 or array.dtype != np.uint8 or not 1 <= len(palette) <= 256:
            raise PngError("A palette is of 1 to 256 colours, for a (H, W) uint8 image.")
        if int(array.max()) >= len(palette):
            raise PngError(f"Entry {int(array.max())} is outside the palette of {len(palette)}.")
        colour_type, extra = 3, _chunk(b"PLTE", np.ascontiguousarray(palette, np.uint8).tobytes())
    depth = 8 * array.dtype.itemsize
    if depth == 16:
        array = array.astype(">u2")
    rows = np.ascontiguousarray(array).view(np.uint8).reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    start = signature + _chunk(b"IHDR", head) + extra
    body = _stored(rows) if level == 0 else _deflated(rows, level, channels * depth // 8)
    return b"".join([start, body, _chunk(b"IEND", b"")])


def read_header(data: bytes) -> Header:
    """The size and kind of a PNG from its first bytes. Raises PngError where it is none we take."""
    if data[:8] != signature:
        raise PngError("This is not a PNG file.")
    if len(data) < 33 or data[8:16] != b"\x00\x00\x00\rIHDR":
        raise PngError("This PNG is cut off or broken: its header is missing.")
    width, height, depth, colour_type, method, filters, interlace = struct.unpack(
        ">IIBBBBB", data[16:29]
    )
    if zlib.crc32(data[12:29]) != struct.unpack(">I", data[29:33])[0]:
        raise PngError("This PNG is broken: the checksum of its header is wrong.")
    if depth not in _depths.get(colour_type, ()) or method or filters or interlace > 1:
        raise PngError("This PNG is of a kind that the standard does not know.")
    _check_size(width, height)
    if interlace:
        raise PngError("This PNG is interlaced. Save it without interlacing.")
    return Header(width, height, depth, colour_type)


def decode(data: bytes) -> np.ndarray:
    """The pixels of a PNG file.

    Returns uint8 (H, W), (H, W, 3) or (H, W, 4); uint16 where the file has 16 bits a sample. Gray
    with alpha becomes RGBA, palettes become RGB or, with transparency, RGBA; grays of fewer than 8
    bits are spread to 0..255.
    Raises PngError for what is not a whole, sound PNG of `max_side` and `max_pixels` at most.
    """
    header = read_header(data)
    chunks = _read_chunks(data)
    rows = _unfilter(_inflate(chunks[b"IDAT"], header), header)
    pixels = _samples(rows, header)
    if header.colour_type == 3:
        return _with_palette(pixels[:, :, 0], chunks)
    if b"tRNS" in chunks:
        raise PngError("This PNG has a transparent colour. Save it with an alpha channel.")
    if header.colour_type == 4:
        return np.concatenate([np.repeat(pixels[:, :, :1], 3, axis=2), pixels[:, :, 1:]], axis=2)
    return pixels[:, :, 0] if header.channels == 1 else pixels


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise PngError("This image has no pixels.")
    if max(width, height) > max_side or width * height > max_pixels:
        raise PngError(
            f"This image is {width} x {height} pixels. The largest taken is {max_side} pixels a "
            f"side and {max_pixels // 1_000_000} megapixels: make it smaller."
        )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _stored(rows: np.ndarray) -> bytes | memoryview:
    """The IDAT chunk of uncompressed rows (H, bytes), each behind its filter byte 0.

    Deflate's stored blocks hold 65535 bytes: each takes as many whole rows as fit, so that the
    whole chunk is an array of equal blocks into which the image is copied once. Rows that are
    longer than a block go the ordinary way.
    """
    height, row_bytes = rows.shape[0], rows.shape[1] + 1
    per_block = 65535 // row_bytes
    if not per_block:
        return _deflated(rows, 0, 1)
    full, rest = divmod(height, per_block)
    sizes = [per_block * row_bytes] * full + ([rest * row_bytes] if rest else [])
    length = 2 + sum(sizes) + 5 * len(sizes) + 4
    out = np.empty(12 + length, np.uint8)
    out[:10] = np.frombuffer(struct.pack(">I", length) + b"IDAT\x78\x01", np.uint8)
    place, row, adler = 10, 0, 1
    for start, count, blocks in ((0, per_block, full), (full * per_block, rest, int(rest > 0))):
        if not blocks:
            continue
        size = count * row_bytes
        area = out[place : place + blocks * (5 + size)].reshape(blocks, 5 + size)
        area[:, :5] = np.frombuffer(struct.pack("<BHH", 0, size, size ^ 0xFFFF), np.uint8)
        lines = area[:, 5:].reshape(blocks, count, row_bytes)
        lines[:, :, 0] = 0
        row = start + blocks * count
        lines[:, :, 1:] = rows[start:row].reshape(blocks, count, row_bytes - 1)
        for block in area:
            adler = zlib.adler32(block[5:].data, adler)
        area[-1, 0] = row == height
        place += area.size
    out[place : place + 4] = np.frombuffer(struct.pack(">I", adler), np.uint8)
    out[place + 4 :] = np.frombuffer(
        struct.pack(">I", zlib.crc32(out[4 : place + 4].data)), np.uint8
    )
    return out.data


def _deflated(rows: np.ndarray, level: int, pixel_bytes: int) -> bytes:
    """The IDAT chunk of compressed rows.

    Flat areas (masks, sticks) shrink best as they are, shaded ones as differences from the row
    above; a sample of the rows tells which they are.
    """
    sample = rows[:: max(1, len(rows) // 64)]
    if rows.shape[1] > pixel_bytes:
        flat = float(np.mean(sample[:, pixel_bytes:] == sample[:, :-pixel_bytes]))
    else:
        flat = 1.0
    lines = np.empty((rows.shape[0], rows.shape[1] + 1), np.uint8)
    lines[:, 1:] = rows
    if flat > 0.8:
        lines[:, 0] = 0
    else:
        lines[:, 0] = 2
        lines[1:, 1:] -= rows[:-1]
    packer = zlib.compressobj(level, zlib.DEFLATED, 15, 9)
    return _chunk(b"IDAT", packer.compress(lines.data) + packer.flush())


def _read_chunks(data: bytes) -> dict[bytes, bytes]:
    """The chunks that matter, IDAT joined. Raises PngError where they do not hold together."""
    found: dict[bytes, bytes] = {}
    parts: list[bytes] = []
    place, previous = 33, b"IHDR"
    view = memoryview(data)
    while True:
        if place + 12 > len(data):
            raise PngError("This PNG is cut off: its end is missing.")
        (length,) = struct.unpack(">I", view[place : place + 4])
        kind = bytes(view[place + 4 : place + 8])
        end = place + 12 + length
        if end > len(data):
            raise PngError("This PNG is cut off: its end is missing.")
        if zlib.crc32(view[place + 4 : end - 4]) != struct.unpack(">I", view[end - 4 : end])[0]:
            raise PngError("This PNG is broken: a checksum in it is wrong.")
        if kind == b"IEND":
            break
        if kind == b"IDAT":
            if parts and previous != b"IDAT":
                raise PngError("This PNG is broken: its image data is not in one piece.")
            parts.append(bytes(view[place + 8 : end - 4]))
        elif kind in (b"PLTE", b"tRNS"):
            if parts or kind in found or length > 768:
                raise PngError("This PNG is broken: its palette is out of place.")
            found[kind] = bytes(view[place + 8 : end - 4])
        elif not kind[0] & 0x20:
            raise PngError("This PNG has a part that the standard does not know.")
        place, previous = end, kind
    if not parts:
        raise PngError("This PNG has no image data.")
    found[b"IDAT"] = b"".join(parts)
    return found


def _inflate(packed: bytes, header: Header) -> np.ndarray:
    """The filtered rows (H, 1 + row bytes), never more memory than the header's size asks for."""
    size = header.height * (1 + header.row_bytes)
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(packed, size + 1)
    except zlib.error as error:
        raise PngError("This PNG is broken: its image data cannot be unpacked.") from error
    if len(raw) < size:
        raise PngError("This PNG is broken: it has fewer pixels than it says.")
    if len(raw) > size:
        raise PngError("This PNG is broken: it has more pixels than it says.")
    if not unpacker.eof:
        # With the output full, the stream's end and checksum may still be unread.
        try:
            more = unpacker.decompress(unpacker.unconsumed_tail, 1)
        except zlib.error as error:
            raise PngError("This PNG is broken: its image data cannot be unpacked.") from error
        if more or not unpacker.eof:
            raise PngError("This PNG is broken: its image data does not end where it should.")
    return np.frombuffer(raw, np.uint8).reshape(header.height, 1 + header.row_bytes)


def _unfilter(lines: np.ndarray, header: Header) -> np.ndarray:
    """Undo PNG's row filters. Returns (H, row bytes) uint8."""
    kinds, filtered = lines[:, 0], lines[:, 1:]
    if kinds.max() > 4:
        raise PngError("This PNG is broken: it has an unknown row filter.")
    step = max(1, header.channels * header.depth // 8)
    if not kinds.any():
        return filtered
    out = np.empty(filtered.shape, np.uint8)
    above = np.zeros(filtered.shape[1], np.uint8)
    row = 0
    while row < len(kinds):
        if kinds[row] < 3:
            line = filtered[row]
            if kinds[row] == 1:
                line = np.cumsum(line.reshape(-1, step), axis=0, dtype=np.uint8).ravel()
            elif kinds[row] == 2:
                line = line + above
            out[row], row = line, row + 1
        else:
            hard = np.flatnonzero(kinds[row:] < 3)
            end = row + int(hard[0]) if len(hard) else len(kinds)
            end = min(end, row + max(64, _diagonal_pixels // header.width))
            out[row:end] = _unfilter_diagonally(filtered[row:end], kinds[row:end], above, step)
            row = end
        above = out[row - 1]
    return out


def _unfilter_diagonally(
    filtered: np.ndarray, kinds: np.ndarray, above: np.ndarray, step: int
) -> np.ndarray:
    """Undo the filters "average" (3) and "Paeth" (4), where a pixel needs those before it.

    All pixels of one diagonal need only earlier diagonals, so each is done at once. In the padded
    image, flattened, a diagonal is a slice with the stride of a row less one pixel.
    """
    rows, columns = filtered.shape[0], filtered.shape[1] // step
    wide = columns + 1
    flat = np.zeros(((rows + 1) * wide, step), np.int16)
    flat[1:wide] = above.reshape(columns, step)
    source = filtered.reshape(rows * columns, step).astype(np.int16)
    paeth = (kinds == 4)[:, None]
    for d in range(rows + columns - 1):
        low, high = max(0, d - columns + 1), min(rows - 1, d)
        count = high - low + 1
        first = wide + d + 1 + low * columns
        last = first + (count - 1) * columns + 1
        left = flat[first - 1 : last - 1 : columns]
        up = flat[first - wide : last - wide : columns]
        corner = flat[first - wide - 1 : last - wide - 1 : columns]
        from_left, from_up = np.abs(up - corner), np.abs(left - corner)
        from_corner = np.abs(left + up - 2 * corner)
        nearest = np.where(
            (from_left <= from_up) & (from_left <= from_corner),
            left,
            np.where(from_up <= from_corner, up, corner),
        )
        guess = np.where(paeth[low : high + 1], nearest, (left + up) >> 1)
        start = low * columns + d - low
        stride = max(1, columns - 1)
        value = source[start : start + (count - 1) * stride + 1 : stride]
        flat[first:last:columns] = (value + guess) & 255
    return flat.reshape(rows + 1, wide, step)[1:, 1:].astype(np.uint8).reshape(rows, -1)


def _samples(rows: np.ndarray, header: Header) -> np.ndarray:
    """(H, W, channels) uint8 or uint16."""
    shape = (header.height, header.width, header.channels)
    if header.depth == 8:
        return rows.reshape(shape)
    if header.depth == 16:
        return np.ascontiguousarray(rows).view(">u2").astype(np.uint16).reshape(shape)
    bits = np.unpackbits(rows, axis=1).reshape(header.height, -1, header.depth)
    values = bits @ (1 << np.arange(header.depth)[::-1]).astype(np.uint8)
    values = values[:, : header.width]
    if header.colour_type == 0:
        values = values * np.uint8(255 // ((1 << header.depth) - 1))
    return values.astype(np.uint8).reshape(shape)


def _with_palette(entries: np.ndarray, chunks: dict[bytes, bytes]) -> np.ndarray:
    colours = np.frombuffer(chunks.get(b"PLTE", b""), np.uint8)
    if not len(colours) or len(colours) % 3 or int(entries.max()) >= len(colours) // 3:
        raise PngError("This PNG is broken: its palette does not hold all its colours.")
    colours = colours.reshape(-1, 3)
    if b"tRNS" in chunks:
        alpha = np.full((len(colours), 1), 255, np.uint8)
        given = np.frombuffer(chunks[b"tRNS"], np.uint8)[: len(colours)]
        alpha[: len(given), 0] = given
        colours = np.concatenate([colours, alpha], axis=1)
    return colours[entries]

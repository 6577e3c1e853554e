# SPDX-License-Identifier: GPL-3.0-or-later
import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from addon.core import png
from addon.core.blob import Blob, is_hash
from addon.core.png import PngError

noise = np.random.default_rng(0)


def pictures():
    for shape in [(1, 1), (7, 5), (64, 300), (3, 5, 3), (33, 17, 4), (130, 700, 3)]:
        yield noise.integers(0, 256, shape, np.uint8)
    smooth = np.add.outer(np.arange(200), np.arange(300)) % 256
    yield smooth.astype(np.uint8)
    yield (np.add.outer(np.arange(90), np.arange(300)) > 200).astype(np.uint8) * 255
    yield noise.integers(0, 65536, (40, 30), np.uint16)
    # A row longer than one of deflate's stored blocks, and rows that fill several blocks.
    yield noise.integers(0, 256, (2, 16384, 4), np.uint8)
    yield np.zeros((300, 1000), np.uint8)


@pytest.mark.parametrize("level", [0, 1, 6, 9])
def test_what_is_encoded_is_read_back_by_us_and_by_pillow(level):
    for picture in pictures():
        data = png.encode(picture, level)
        again = png.decode(data)
        assert again.dtype == picture.dtype and (again == picture).all()
        assert (np.array(Image.open(io.BytesIO(data))) == picture).all()


def test_arrays_that_are_views_are_encoded_as_what_they_show():
    whole = noise.integers(0, 256, (40, 60, 4), np.uint8)
    for view in (whole[::-1, ::2, :3], whole[:, :, 0], whole[:, :, 1:2].transpose(1, 0, 2)):
        assert (png.decode(png.encode(view)) == view.squeeze()).all()


def test_a_palette_with_transparency_becomes_rgba():
    picture = Image.new("P", (3, 2))
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.putpixel((1, 0), 1)
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=0)
    again = png.decode(file.getvalue())
    assert again[0].tolist() == [[0, 0, 0, 0], [10, 20, 30, 255], [0, 0, 0, 0]]


def test_a_palette_gives_the_colours():
    palette = noise.integers(0, 256, (58, 3), np.uint8)
    entries = noise.integers(0, 58, (50, 70), np.uint8)
    data = png.encode(entries, 0, palette)
    assert (png.decode(data) == palette[entries]).all()
    assert (np.array(Image.open(io.BytesIO(data)).convert("RGB")) == palette[entries]).all()
    with pytest.raises(PngError, match="outside the palette"):
        png.encode(entries, 0, palette[:10])


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "I;16"])
def test_pictures_of_pillow_are_read_with_every_row_filter(mode):
    base = np.add.outer(np.arange(61), np.arange(83) * 2)[..., None] + [0, 40, 90, 7]
    base = (base + noise.integers(0, 9, base.shape)) % 256
    picture = Image.fromarray(base.astype(np.uint8))
    if mode == "I;16":
        picture = Image.fromarray((base[..., 0] * 200).astype(np.uint16))
    else:
        picture = (picture.convert("RGB") if mode == "P" else picture).convert(mode)
    file = io.BytesIO()
    picture.save(file, "PNG")
    expected = {"LA": "RGBA", "P": "RGB", "1": "L"}.get(mode)
    expected = np.array(picture.convert(expected) if expected else picture)
    assert (png.decode(file.getvalue()) == expected).all()


@pytest.mark.parametrize("filters", [[0], [1], [2], [3], [4], [4, 3, 3, 1, 4, 2, 0, 3]])
@pytest.mark.parametrize("shape", [(9, 1, 3), (1, 9, 3), (8, 11, 4), (16, 5, 1)])
def test_row_filters_are_undone_by_the_letter_of_the_standard(filters, shape):
    height, width, step = shape
    kinds = [filters[i % len(filters)] for i in range(height)]
    filtered = noise.integers(0, 256, (height, width * step), np.uint8)
    raw = b"".join(bytes([k]) + row.tobytes() for k, row in zip(kinds, filtered, strict=True))
    ours = png.decode(file_of(width, height, 8, {1: 0, 3: 2, 4: 6}[step], raw))
    assert (ours.reshape(height, -1) == slow_unfilter(kinds, filtered, step)).all()


def slow_unfilter(kinds, filtered, step):
    out = np.zeros_like(filtered)
    for y, kind in enumerate(kinds):
        for x in range(filtered.shape[1]):
            a = int(out[y, x - step]) if x >= step else 0
            b = int(out[y - 1, x]) if y else 0
            c = int(out[y - 1, x - step]) if y and x >= step else 0
            nearest = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            out[y, x] = (int(filtered[y, x]) + [0, a, b, (a + b) // 2, nearest][kind]) % 256
    return out


def test_row_filters_go_on_across_blocks(monkeypatch):
    picture = np.add.outer(np.arange(300), np.arange(40) * 2)[..., None] + [0, 40, 90]
    picture = ((picture + noise.integers(0, 9, picture.shape)) % 256).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    monkeypatch.setattr(png, "_diagonal_pixels", 1)
    assert (png.decode(file.getvalue()) == picture).all()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def file_of(width, height, depth, colour, raw, *more, packed=None, interlace=0):
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    body = zlib.compress(raw) if packed is None else packed
    return b"".join(
        [png.signature, chunk(b"IHDR", head), *more, chunk(b"IDAT", body), chunk(b"IEND", b"")]
    )


def test_a_picture_of_20000_pixels_is_refused_before_it_takes_memory():
    bomb = file_of(20000, 20000, 8, 2, b"")
    with pytest.raises(PngError, match=r"20000 x 20000 pixels.*make it smaller"):
        png.decode(bomb)
    with pytest.raises(PngError, match="20000 x 1"):
        png.read_header(file_of(20000, 1, 8, 0, b""))
    with pytest.raises(PngError, match="megapixels"):
        png.decode(file_of(16000, 16000, 8, 0, b""))
    with pytest.raises(PngError, match="20000 x 2"):
        png.encode(np.zeros((2, 20000), np.uint8))


def test_a_bomb_is_not_unpacked_beyond_the_size_it_states():
    with pytest.raises(PngError, match="more pixels"):
        png.decode(file_of(8, 8, 8, 0, bytes(50_000_000)))


good = png.encode(noise.integers(0, 256, (20, 30, 3), np.uint8), 6)


@pytest.mark.parametrize("cut", [0, 7, 20, 33, 40, 200, len(good) - 12, len(good) - 1])
def test_truncated_files_are_refused(cut):
    with pytest.raises(PngError, match=r"cut off|not a PNG"):
        png.decode(good[:cut])


def test_no_flipped_bit_goes_unnoticed():
    for place in range(0, len(good), 13):
        broken = bytearray(good)
        broken[place] ^= 4
        with pytest.raises(PngError):
            png.decode(bytes(broken))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GIF89a", "not a PNG"),
        (file_of(4, 4, 8, 0, bytes(19)), "fewer pixels"),
        (file_of(4, 4, 8, 0, bytes(21)), "more pixels"),
        (file_of(4, 4, 8, 0, b"\5" + bytes(19)), "row filter"),
        (file_of(4, 4, 8, 0, b"", packed=b"nonsense"), "unpacked"),
        (file_of(4, 4, 8, 0, b"", packed=zlib.compress(bytes(20))[:-2]), "broken"),
        (file_of(4, 4, 8, 0, bytes(20), interlace=1), "interlaced"),
        (file_of(0, 4, 8, 0, b""), "no pixels"),
        (file_of(4, 4, 3, 0, bytes(20)), "does not know"),
        (file_of(4, 4, 8, 5, bytes(20)), "does not know"),
        (file_of(4, 4, 8, 0, bytes(20), chunk(b"ABCD", b"")), "does not know"),
        (file_of(4, 4, 8, 3, bytes(20)), "palette"),
        (file_of(4, 4, 8, 3, b"\0\1\0\0\0" * 4, chunk(b"PLTE", bytes(3))), "palette"),
        (file_of(4, 4, 8, 2, bytes(52), chunk(b"tRNS", bytes(6))), "transparent colour"),
    ],
)
def test_broken_files_are_refused_in_words(data, words):
    with pytest.raises(PngError, match=words):
        png.decode(data)


def test_whatever_a_header_claims_only_our_error_comes_of_it():
    raw = noise.integers(0, 5, 500, np.uint8).tobytes()
    for _ in range(400):
        width, height = noise.integers(0, 40, 2)
        depth, colour = noise.choice([0, 1, 2, 4, 8, 16]), noise.integers(0, 8)
        more = [chunk(b"PLTE", bytes(3 * int(noise.integers(0, 20))))] * int(noise.integers(0, 2))
        length = int(noise.choice([500, (width * 3 + 1) * height, (width + 1) * height]))
        data = file_of(width, height, depth, colour, (raw * 10)[:length], *more)
        try:
            assert png.decode(data).shape[:2] == (height, width)
        except PngError:
            continue


def test_other_parts_of_a_file_are_passed_over():
    data = file_of(4, 4, 8, 0, bytes(20), chunk(b"tEXt", b"Comment\0hello"))
    assert png.decode(data).shape == (4, 4)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 2), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((0, 4), np.uint8),
    ],
)
def test_arrays_that_are_no_picture_are_refused(array):
    with pytest.raises(PngError):
        png.encode(array)
    with pytest.raises(PngError):
        png.encode(np.zeros((4, 4), np.uint8), level=10)


def test_flat_pictures_become_small_and_shaded_ones_smaller_by_differences():
    mask = np.zeros((1080, 1920), np.uint8)
    mask[200:800, 600:1200] = 255
    assert len(png.encode(mask, 1)) < 20_000
    slope = np.add.outer(np.arange(512), np.arange(512) * 3) % 251
    shaded = np.stack([slope, slope, slope], -1).astype(np.uint8)
    plain = zlib.compress(shaded.tobytes(), 1)
    assert len(png.encode(shaded, 1)) < len(plain)


def test_a_blob_is_named_by_its_bytes():
    blob = Blob(b"onmodel")
    assert blob.hash == hashlib.sha256(b"onmodel").hexdigest()
    assert is_hash(blob.hash)
    assert not any(is_hash(t) for t in ("", "../" + blob.hash, blob.hash.upper(), blob.hash + "\n"))

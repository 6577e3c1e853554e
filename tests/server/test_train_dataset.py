# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders of training pictures: kept or refused, buckets, and the order of showing."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onmodel.train.buckets import Order, bucket_sizes, fit
from onmodel.train.dataset import DataSet, Picture, complete_caption, content_digest, scan
from onmodel.train.pictures import largest_pixels, open_mask, open_picture
from onmodel.train.plan import DataPlan, PlanError, SchedulePlan, TrainingPlan
from PIL import Image, ImageCms

plan = DataPlan(
    trigger="mira", noun="woman", resolution=128, bucket_step=16, min_bucket=64, max_bucket=256
)


def picture(
    folder: Path,
    name: str,
    size: tuple[int, int] = (128, 128),
    caption: str | None = "mira woman, portrait",
    seed: int | None = None,
) -> Image.Image:
    """A picture of noise (no two alike) and its caption."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed if seed is not None else zlib.crc32(name.encode()))
    image = Image.fromarray(random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    image.save(folder / name)
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption, "utf-8")
    return image


def mask(path: Path, size: tuple[int, int], box: tuple[int, int, int, int] | None) -> None:
    """A black mask with a white box."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", size)
    if box:
        image.paste(255, box)
    image.save(path)


def scanned(folder: Path, **changes: object) -> DataSet:
    return scan(replace(plan, images=str(folder), **changes))  # type: ignore[arg-type]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    data = b"IDAT" + zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + head + struct.pack(">I", 8) + data + struct.pack(">I", 0)


def test_every_file_is_kept_or_refused_with_its_reason(tmp_path: Path) -> None:
    picture(tmp_path, "a.png")
    picture(tmp_path, "b.webp")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "copy.txt").write_text("mira")
    picture(tmp_path, "small.png", (60, 200))
    picture(tmp_path, "long.png", (64, 300))
    picture(tmp_path, "silent.png", caption=None)
    picture(tmp_path, "empty.png", caption=" \n")
    picture(tmp_path, "wrong_mask.png")
    mask(tmp_path / "wrong_mask.mask.png", (64, 64), (0, 0, 9, 9))
    picture(tmp_path, "no_mask.png")
    mask(tmp_path / "masks" / "no_mask.png", (128, 128), None)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "huge.png").write_bytes(png_header(20000, 20000))
    (tmp_path / "huger.png").write_bytes(png_header(11000, 10000))
    (tmp_path / "scan.tif").write_bytes(b"II*")
    Image.new("CMYK", (128, 128)).save(tmp_path / "ink.jpg")
    frames = [Image.new("RGB", (128, 128), (i * 90, 0, 0)) for i in range(2)]
    frames[0].save(tmp_path / "film.webp", save_all=True, append_images=frames[1:])
    (tmp_path / "other.txt").write_text("of nothing")
    (tmp_path / "extra").mkdir()

    data = scanned(tmp_path)
    assert [p.name for p in data.pictures] == ["a.png", "b.webp"]
    reasons = {r.name: r.reason for r in data.refused}
    for name, word in {
        "copy.png": "same pixels as a.png",
        "small.png": "too small",
        "long.png": "too long",
        "silent.png": "no caption",
        "empty.png": "is empty",
        "wrong_mask.png": "64 x 64",
        "no_mask.png": "empty",
        "cut.png": "cannot be decoded",
        "text.png": "not a PNG",
        "huge.png": "million pixels",
        "huger.png": "million pixels",
        "scan.tif": ".tif",
        "ink.jpg": "CMYK",
        "film.webp": "animation",
    }.items():
        assert word in reasons.pop(name), name
    assert reasons == {}
    assert any("other.txt" in note for note in data.notes)
    assert any("extra" in note for note in data.notes)


def test_masks_maps_and_digests(tmp_path: Path) -> None:
    image = picture(tmp_path, "a.png", (128, 96))
    mask(tmp_path / "a.mask.png", (128, 96), (0, 0, 64, 96))
    image.save(tmp_path / "a.pose.png")
    picture(tmp_path, "b.png")
    data = scanned(tmp_path, conditioning=True)
    a, b = data.pictures
    assert a.mask == tmp_path / "a.mask.png" and a.mask_share == pytest.approx(0.5)
    assert [m.kind for m in a.maps] == ["pose"] and b.mask is None and b.maps == ()

    before = content_digest(data)
    mask(tmp_path / "a.mask.png", (128, 96), (0, 0, 63, 96))
    after = scanned(tmp_path, conditioning=True)
    assert after.pictures[0].digest == a.digest
    assert after.pictures[0].mask_digest != a.mask_digest and content_digest(after) != before
    assert scanned(tmp_path, masks=False).pictures[0].mask is None
    mask(tmp_path / "a.depth.png", (12, 12), None)
    assert "depth map" in scanned(tmp_path, conditioning=True).refused[0].reason


def test_kohyas_folders_repeat_and_caption(tmp_path: Path) -> None:
    picture(tmp_path / "7_mira woman", "a.png", caption=None)
    picture(tmp_path / "7_mira woman", "b.png", caption="a woman laughing")
    data = scanned(tmp_path, repeats=2)
    assert [(p.name, p.repeats) for p in data.pictures] == [
        ("7_mira woman/a.png", 14),
        ("7_mira woman/b.png", 14),
    ]
    assert [p.caption for p in data.pictures] == ["mira woman", "a mira woman laughing"]
    assert "completed" in data.pictures[1].notes[0]


@pytest.mark.parametrize(
    ("caption", "full"),
    [
        ("mira woman, smiling", "mira woman, smiling"),
        ("Mira, smiling", "mira woman, smiling"),
        ("photo of a woman, two women behind", "photo of a mira woman, two women behind"),
        ("smiling, studio", "mira woman, smiling, studio"),
        ("admiral", "mira woman, admiral"),
    ],
)
def test_captions_are_completed(caption: str, full: str) -> None:
    assert complete_caption(caption, "mira", "woman") == full


def test_regularisation_pictures_are_of_somebody_else(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    picture(own, "a.png")
    picture(other, "r.png", caption=None)
    picture(other, "s.png", caption="mira woman")
    picture(other, "t.png", caption="in a park")
    (other / "a.png").write_bytes((own / "a.png").read_bytes())
    data = scanned(own, regularisation=str(other))
    assert [p.name for p in data.own] == ["a.png"]
    assert {p.name: p.caption for p in data.others} == {
        "r.png": "woman",
        "t.png": "woman, in a park",
    }
    reasons = {r.name: r.reason for r in data.refused}
    assert "trigger" in reasons["s.png"] and "same pixels" in reasons["a.png"]
    with pytest.raises(PlanError, match="no folder"):
        scanned(tmp_path / "nowhere")


def test_pictures_come_upright_opaque_and_in_eight_bits(tmp_path: Path) -> None:
    turned = Image.new("RGB", (4, 2))
    turned.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right brings it upright
    turned.save(tmp_path / "turned.png", exif=exif)
    image, notes = open_picture(tmp_path / "turned.png")
    assert image.size == (2, 4) and image.getpixel((1, 0)) == (255, 0, 0) and "EXIF" in notes[0]

    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "glass.png")
    image, notes = open_picture(tmp_path / "glass.png")
    assert image.mode == "RGB" and image.getpixel((0, 0)) == (127, 127, 127) and notes

    deep = np.full((2, 2), 65535, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    image, notes = open_picture(tmp_path / "deep.png")
    assert image.getpixel((0, 0)) == (255, 255, 255) and "16 bits" in notes[0]
    assert open_mask(tmp_path / "deep.png").getpixel((1, 1)) == 255

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    Image.new("RGB", (2, 2), (9, 9, 9)).save(tmp_path / "odd.png", icc_profile=profile)
    _, notes = open_picture(tmp_path / "odd.png")
    assert notes
    Image.new("RGBA", (2, 2), (255, 255, 255, 0)).save(tmp_path / "clear.png")
    assert open_mask(tmp_path / "clear.png").getextrema() == (0, 0)
    assert largest_pixels == 100_000_000


def test_bucket_sizes_are_the_field_s() -> None:
    sizes = bucket_sizes(1024, 64, 512, 2048)
    assert {(1024, 1024), (832, 1216), (896, 1152), (768, 1344), (640, 1600)} <= set(sizes)
    assert all(w * h <= 1024 * 1024 and w % 64 == h % 64 == 0 for w, h in sizes)
    assert all((h, w) in sizes for w, h in sizes)


def test_fit_crops_little_and_says_how_much() -> None:
    large = DataPlan(resolution=1024, bucket_step=64, min_bucket=512, max_bucket=2048)
    found = fit(3000, 2000, large)
    assert found.bucket == (1216, 832) and found.lost == pytest.approx(0.026, abs=0.01)
    assert found.apply(Image.new("RGB", (300, 200)), Image.Resampling.BILINEAR).size == (1216, 832)
    assert fit(1000, 1000, large).bucket == (960, 960)  # smaller, never enlarged
    assert fit(1000, 1000, replace(large, upscale=True)).bucket == (1024, 1024)
    assert fit(1024, 1024, large).lost == 0
    with pytest.raises(PlanError, match="bucket"):
        fit(50, 50, large)


def pictures(*rows: tuple[int, int, int, bool]) -> list[Picture]:
    """width, height, repeats, regularisation."""
    return [
        Picture(Path(f"{i}.png"), f"{i}.png", w, h, "", f"{i}", n, r)
        for i, (w, h, n, r) in enumerate(rows)
    ]


def test_an_epoch_shows_every_picture_as_often_as_asked() -> None:
    order = Order(
        pictures((128, 128, 3, False), (128, 128, 1, False), (96, 160, 2, False)),
        TrainingPlan(data=replace(plan, flip=True), schedule=SchedulePlan(epochs=2, batch=2)),
    )
    assert order.showings == 6 and order.batches_per_epoch == 3 and order.steps == 6
    assert order.epochs == 2 and order.epoch_at(3) == 1
    shown = [s for step in range(3) for batch in order.batch_at(step) for s in batch]
    assert Counter(s.index for s in shown) == {0: 3, 1: 1, 2: 2}
    assert {s.flipped for s in shown if s.index == 0} == {True, False}
    for step in range(6):
        for batch in order.batch_at(step):
            assert len({order.fits[s.index].bucket for s in batch}) == 1


def test_the_order_depends_on_seed_and_step_alone() -> None:
    rows = pictures(*[(128, 128, 2, False)] * 9, *[(160, 96, 1, True)] * 4)
    made = TrainingPlan(data=plan, schedule=SchedulePlan(steps=50, batch=4, accumulate=3))
    first = [Order(rows, made).batch_at(step) for step in range(50)]
    again = Order(rows, made)
    assert [again.batch_at(step) for step in reversed(range(50))] == first[::-1]
    other = replace(made, run=replace(made.run, seed=1))
    assert [Order(rows, other).batch_at(step) for step in range(50)] != first
    assert all(len(step) == 3 for step in first)


def test_regularisation_is_as_frequent_and_goes_through_its_folder() -> None:
    rows = pictures(*[(128, 128, 2, False)] * 3, *[(128, 128, 1, True)] * 15)
    order = Order(rows, TrainingPlan(data=plan, schedule=SchedulePlan(epochs=5, batch=2)))
    shown = Counter(s.index for n in range(order.steps) for b in order.batch_at(n) for s in b)
    assert sum(n for i, n in shown.items() if i < 3) == 30
    assert sum(n for i, n in shown.items() if i >= 3) == 30
    assert all(shown[i] == 2 for i in range(3, 18))  # 5 epochs of 6 are two rounds of 15

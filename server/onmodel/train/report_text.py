# SPDX-License-Identifier: GPL-3.0-or-later
"""A preflight report as text for a terminal, and its pictures with their masks laid over."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from onmodel.train.buckets import Fit
from onmodel.train.dataset import Picture
from onmodel.train.estimates import readable
from onmodel.train.pictures import open_mask, open_picture
from onmodel.train.preflight import Report
from onmodel.train.progress import duration

tile = 192
caption_height = 14


def text(report: Report) -> str:
    """The report, some lines per part."""
    lines = [f"Preflight of {report.plan.name}", ""]
    lines += _pictures(report)
    if report.order is not None:
        lines += _course(report)
    if report.estimate is not None:
        lines += _needs(report)
    if report.warnings:
        lines += ["", "To consider"] + [f"  {warning}" for warning in report.warnings]
    if report.problems:
        lines += ["", "It cannot start"]
        lines += [f"  {problem.message} {problem.fix}" for problem in report.problems]
    else:
        lines += ["", "It can start."]
    return "\n".join(lines)


def _pictures(report: Report) -> list[str]:
    data, order = report.data, report.order
    kept = f"{len(data.own)} pictures kept"
    if data.others:
        kept += f", {len(data.others)} for regularisation"
    lines = [f"{kept}, {len(data.refused)} refused"]
    fits = order.fits if order else (None,) * len(data.pictures)
    width = max((len(p.name) for p in data.pictures), default=0)
    for picture, fit in zip(data.pictures, fits, strict=True):
        lines.append(f"  kept     {picture.name:{width}}  {_picture(picture, fit)}")
    for refused in data.refused:
        lines.append(f"  refused  {refused.name}: {refused.reason}")
    return lines + [f"  note     {note}" for note in data.notes]


def _picture(picture: Picture, fit: Fit | None) -> str:
    words = [f"{picture.width} x {picture.height}"]
    if fit:
        words.append(f"-> {fit.bucket[0]} x {fit.bucket[1]}")
        if fit.lost >= 0.005:
            words.append(f"({fit.lost:.0%} cropped)")
    words.append(f"mask {picture.mask_share:.0%}" if picture.mask else "no mask")
    if picture.regularisation:
        words[-1] = "regularisation"
    if picture.maps:
        words.append("maps " + "+".join(m.kind for m in picture.maps))
    if picture.repeats > 1:
        words.append(f"x{picture.repeats}")
    return " ".join(words) + "".join(f"; {note}" for note in picture.notes)


def _course(report: Report) -> list[str]:
    order, schedule = report.order, report.plan.schedule
    assert order is not None
    lines = ["", "Buckets"]
    for row in report.buckets():
        lines.append(
            f"  {row.width:5} x {row.height:<5} {row.pictures:4} pictures, {row.showings:5} "
            f"showings an epoch, at most {row.lost:.0%} cropped"
        )
    partial = order.batches_per_epoch - order.full_batches
    full = f", {partial} of them not full" if partial else ""
    lines += [
        "",
        "Course",
        f"  {order.steps} steps of {schedule.batch * schedule.accumulate} pictures "
        f"= {order.epochs:.1f} epochs of {order.batches_per_epoch} batches{full}",
    ]
    if report.measurement and report.seconds is not None:
        measured = report.measurement
        lines.append(
            f"  {measured.seconds_per_step:.2f} s a step, measured on {measured.device or 'this'}: "
            f"about {duration(report.seconds)}, validation drawings not counted"
        )
    else:
        lines.append("  seconds per step not measured")
    return lines


def _needs(report: Report) -> list[str]:
    needs, measured = report.estimate, report.measurement
    assert needs is not None
    if measured and measured.peak_bytes:
        memory = f"{readable(measured.peak_bytes)}, measured"
    else:
        memory = f"about {readable(needs.memory)}, a rough estimate"
    return [
        "",
        "Needs",
        f"  {needs.trained / 1e6:.2f} million weights are trained; the file has about "
        f"{readable(needs.trained * 2)} in half precision",
        f"  memory   {memory}",
        f"  disk     {readable(needs.disk)}: {readable(needs.cache)} of caches, "
        f"{needs.checkpoints} checkpoints of {readable(needs.checkpoint)}, "
        f"the state to resume from {readable(needs.state)}; "
        f"{readable(report.free_disk)} free",
    ]


def latent_mask(picture: Picture, fit: Fit, scale: int) -> np.ndarray:
    """The mask as the loss sees it, float32 in 0..1, shape (height/scale, width/scale).

    Each value is the mean of the mask over a latent's pixels; ones where there is no mask.
    """
    size = (fit.bucket[0] // scale, fit.bucket[1] // scale)
    if picture.mask is None:
        return np.ones((size[1], size[0]), np.float32)
    mask = fit.apply(open_mask(picture.mask), Image.Resampling.BOX)
    # Averaged as float: rounding to 8 bits would drop a thin mask's faint edge.
    small = mask.convert("F").resize(size, Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255


def overlay_sheet(report: Report, columns: int = 6) -> Image.Image | None:
    """The pictures as trained, what the mask leaves out darkened and red, a latent a square.

    None where nothing was kept.
    """
    pictures = report.data.own
    if not pictures or report.order is None:
        return None
    scale = report.model.latent_scale if report.model else 8
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * tile, rows * (tile + caption_height)), (24, 24, 24))
    pen = ImageDraw.Draw(sheet)
    for number, picture in enumerate(pictures):
        fit = report.order.fits[number]
        left, top = number % columns * tile, number // columns * (tile + caption_height)
        shown = _overlaid(picture, fit, scale)
        sheet.paste(shown, (left + (tile - shown.width) // 2, top + (tile - shown.height) // 2))
        share = f" {picture.mask_share:.0%}" if picture.mask else " no mask"
        pen.text((left + 2, top + tile + 1), picture.name[-24:] + share, fill=(220, 220, 220))
    return sheet


def _overlaid(picture: Picture, fit: Fit, scale: int) -> Image.Image:
    image = fit.apply(open_picture(picture.path)[0], Image.Resampling.LANCZOS)
    weight = Image.fromarray(np.uint8(np.round(latent_mask(picture, fit, scale) * 255)))
    factor = tile / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    weight = weight.resize(size, Image.Resampling.NEAREST)
    red = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", size, (140, 0, 0)), 0.6)
    return Image.composite(image, red, weight)

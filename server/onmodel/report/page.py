# SPDX-License-Identifier: GPL-3.0-or-later
"""The film's report as one HTML file: pictures within it, nothing fetched, no scripts.

Whatever comes from a film (names, prompts, reasons) is escaped; a content security policy forbids
everything but the page's own style and pictures, should an escape ever be missed.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from onmodel.report.crops import head_crop
from onmodel.report.film import CharacterRow, Head, Keyframe, verdict_words
from onmodel.report.output import face_counts, lora_words, most_first, verdict_counts

thumbnail_height = 240
worst_side = 96
"""Pixels of a side of the worst frame's head."""

_policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_none = "&ndash;"
_marks = {"same": "●", "unsure": "◐", "other": "✕", "": _none}
_style = """
:root { color-scheme: dark }
body { margin: 0 auto; padding: 32px 36px 56px; max-width: 1400px; background: #262628;
  color: #e8e8e6; font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 26px; font-weight: 500; margin: 0 }
h2 { font-size: 18px; font-weight: 500; margin: 44px 0 12px }
h2 .quiet { font-size: 15px; font-weight: 400; margin-left: 8px }
p, .quiet, figcaption { color: #a0a0a3 }
p { margin: 2px 0 26px; max-width: 78ch }
.wide { overflow-x: auto }
table { border-collapse: collapse; min-width: 100% }
th { text-align: left; font-weight: 400; font-size: 13px; color: #a0a0a3; padding: 4px 32px 8px 0 }
td { padding: 14px 32px 14px 0; border-top: 1px solid #3a3a3d; vertical-align: top;
  white-space: nowrap }
td .quiet { font-size: 14px }
.figure { font-variant-numeric: tabular-nums }
.same { color: #62be78 } .unsure { color: #e2ac42 } .other { color: #ec6c62 }
ul { list-style: none; margin: 0; padding: 0 }
.mark { display: inline-block; width: 1.2em }
a { color: inherit; text-decoration: none } a:hover { text-decoration: underline }
.worst { display: flex; gap: 12px }
.shots { display: flex; flex-wrap: wrap; gap: 26px 22px }
figure { margin: 0; width: min-content; min-width: 19em }
figure:target { outline: 2px solid #e8e8e6; outline-offset: 6px }
img { display: block }
figcaption { font-size: 13px; margin: 6px 0 2px }
.heads { font-size: 14px; display: grid; column-gap: 8px;
  grid-template-columns: 1em max-content max-content 1fr }
.heads li { display: contents }
.heads .all { grid-column: 3 / 5 }
"""


def page(
    title: str,
    table: Sequence[CharacterRow],
    keyframes: Sequence[Keyframe],
    prompts: Mapping[str, str],
) -> str:
    """The page. prompts: what each shot's prompt says.

    Raises OSError where a picture cannot be read.
    """
    anchors = {keyframe.png: f"k{number}" for number, keyframe in enumerate(keyframes)}
    shots: dict[str, list[Keyframe]] = {}
    for keyframe in keyframes:
        shots.setdefault(keyframe.shot, []).append(keyframe)
    takes = f"{len(keyframes)} keyframe{'s' * (len(keyframes) != 1)}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{takes}. A score is the cosine between a head and its character's portraits, by the "
        "embedder that is named; means have 95 % intervals from drawing the shots again.</p>",
        _table(table, anchors),
    ]
    for shot, own in shots.items():
        prompt = f' <span class="quiet">{escape(prompts[shot])}</span>' if prompts.get(shot) else ""
        body.append(f"<h2>{escape(shot)}{prompt}</h2>")
        figures = "".join(_figure(keyframe, anchors[keyframe.png], table) for keyframe in own)
        body.append(f'<div class="shots">{figures}</div>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{_style}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _table(table: Sequence[CharacterRow], anchors: Mapping[Path, str]) -> str:
    if not table:
        return "<p>No head is recorded in these drawings.</p>"
    heads = ("Character", "Mean", "Frames", "Worst frame", "No face", "Face pass")
    lines = [f"<table><tr>{''.join(f'<th>{h}</th>' for h in heads)}</tr>"]
    for row in table:
        mean = row.mean
        by = _quiet(f"by {escape(row.embedder)}") if row.embedder else ""
        if row.loras:
            by += _quiet(f"LoRA {escape(lora_words(row))}")
        if mean is not None:
            figure = f"{mean.value:.3f}" + _quiet(f"{mean.low:.3f} to {mean.high:.3f}")
        else:
            figure = f"{row.scores[0]:.3f}" if row.scores else _none
        verdicts = "".join(
            f'<li class="{v or "quiet"}"><span class="mark">{_marks[v]}</span>'
            f"{count} {verdict_words.get(v, 'not calibrated')}</li>"
            for v, count in verdict_counts(row)
        )
        lines.append(
            f"<tr><td>{escape(row.character)}{by}</td>"
            f'<td class="figure">{figure}</td>'
            f"<td><ul>{verdicts or _none}</ul></td>"
            f"<td>{_worst(row, anchors)}</td>"
            f"<td>{_counts(dict(row.no_face))}</td>"
            f"<td>{_counts(face_counts(row))}{_gain(row)}</td></tr>"
        )
    return "\n".join(['<div class="wide">', *lines, "</table></div>"])


def _counts(found: dict[str, int]) -> str:
    lines = "".join(f"<li>{count} {escape(words)}</li>" for words, count in most_first(found))
    return f"<ul>{lines}</ul>" if lines else _none


def _gain(row: CharacterRow) -> str:
    """What repairs brought, on average."""
    gain = row.gain
    if gain is None:
        return ""
    mean = f'<span class="figure">{gain.value:+.3f}</span> per repair'
    between = f'<span class="figure">{gain.low:+.3f} to {gain.high:+.3f}</span>'
    return _quiet(mean) + _quiet(between)


def _quiet(html: str) -> str:
    """A line of its own beneath what it belongs to."""
    return f'<div class="quiet">{html}</div>'


def _worst(row: CharacterRow, anchors: Mapping[Path, str]) -> str:
    if row.worst is None:
        return _none
    keyframe, value = row.worst
    box = next((h.box for h in keyframe.heads if h.character == row.character), None)
    if box is None:
        image = _thumbnail(keyframe.png, worst_side, "")
    else:
        image = _picture(head_crop(keyframe.png, box, worst_side), "")
    where = _quiet(f"shot {escape(keyframe.shot)}")
    where += _quiet(f"frame {keyframe.frame}, take {keyframe.take}")
    words = f'<div><span class="figure">{value:.3f}</span>{where}</div>'
    return f'<a class="worst" href="#{anchors[keyframe.png]}">{image}{words}</a>'


def _figure(keyframe: Keyframe, anchor: str, table: Sequence[CharacterRow]) -> str:
    heads = "".join(_head(keyframe, head, table) for head in keyframe.heads)
    alt = f"Drawing of {keyframe.title}"
    return (
        f'<figure id="{anchor}">{_thumbnail(keyframe.png, thumbnail_height, alt)}'
        f"<figcaption>frame {keyframe.frame}, take {keyframe.take}</figcaption>"
        f'<ul class="heads">{heads}</ul></figure>'
    )


def _head(keyframe: Keyframe, head: Head, table: Sequence[CharacterRow]) -> str:
    name = f"<span>{escape(head.character)}</span>"
    if head.value is None:
        said = f'<span class="all" title="{escape(head.no_score, quote=True)}">{escape(head.words)}'
        return f'<li class="quiet"><span>{_none}</span>{name}{said}</span></li>'
    verdict = head.verdict if head.verdict in verdict_words else ""
    extra = ""
    for row in table:
        if (row.character, row.embedder) == (head.character, head.embedder) and len(row.scores) > 1:
            places = (("best", row.best), ("worst", row.worst))
            named = [n for n, place in places if place and place[0].png == keyframe.png]
            extra += "".join(f" {n} of {len(row.scores)}" for n in named)
    face = head.face
    if face is not None and face.state == "repaired" and face.before is not None:
        extra += f' <span class="quiet">was {face.before:.2f}</span>'
    elif face is not None and face.state == "kept":
        extra += ' <span class="quiet">repair not kept</span>'
    return (
        f'<li><span class="{verdict}">{_marks[verdict]}</span>{name}'
        f'<span class="figure">{head.value:.2f}</span>'
        f'<span><span class="{verdict}">{escape(head.words)}</span>{extra}</span></li>'
    )


def _thumbnail(png: Path, height: int, alt: str) -> str:
    """A picture's file, brought to `height` pixels, as an image element."""
    with Image.open(png) as image:
        picture = image.convert("RGB")
    width = max(1, round(picture.width * height / picture.height))
    return _picture(picture.resize((width, height), Image.Resampling.LANCZOS), alt)


def _picture(picture: Image.Image, alt: str) -> str:
    """An image element with the picture in it, as JPEG."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img {size} alt="{escape(alt, quote=True)}" src="data:image/jpeg;base64,{data}">'

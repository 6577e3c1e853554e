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

from onmodel.report.film import CharacterRow, Head, Keyframe, verdict_words
from onmodel.report.output import counted, face_pass_words, lora_words, verdict_counts

thumbnail_height = 180

_policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_none = "&ndash;"
_marks = {"same": "●", "unsure": "◐", "other": "✕", "": _none}
_style = """
:root { color-scheme: dark }
body { margin: 0 auto; padding: 28px 32px 48px; max-width: 1400px; background: #262628;
  color: #e8e8e6; font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 26px; font-weight: 500; margin: 0 }
h2 { font-size: 18px; font-weight: 500; margin: 34px 0 10px }
p, .quiet, figcaption { color: #a0a0a3 }
p { margin: 2px 0 20px; max-width: 72ch }
table { border-collapse: collapse; width: 100% }
th { text-align: left; font-weight: 400; font-size: 13px; color: #a0a0a3; padding: 4px 18px 6px 0 }
td { padding: 10px 18px 10px 0; border-top: 1px solid #3a3a3d; vertical-align: top }
td.figure, .figure { font-variant-numeric: tabular-nums; white-space: nowrap }
.same { color: #62be78 } .unsure { color: #e2ac42 } .other { color: #ec6c62 }
ul { list-style: none; margin: 0; padding: 0 }
a { color: inherit } a img { display: block; margin-top: 4px }
.shots { display: flex; flex-wrap: wrap; gap: 22px }
figure { margin: 0 } figure:target { outline: 2px solid #e8e8e6; outline-offset: 6px }
figcaption { font-size: 13px; margin-top: 4px }
figure ul { font-size: 14px }
.name { display: inline-block; min-width: 4.5em; padding-right: 6px }
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
        by = f'<div class="quiet">by {escape(row.embedder)}</div>' if row.embedder else ""
        if row.loras:
            by += f'<div class="quiet">LoRA {escape(lora_words(row))}</div>'
        if mean is not None:
            figure = f'{mean.value:.3f}<div class="quiet">{mean.low:.3f} to {mean.high:.3f}</div>'
        else:
            figure = f"{row.scores[0]:.3f}" if row.scores else _none
        verdicts = "".join(
            f'<li class="{v}">{_marks[v]} {count} {verdict_words.get(v, "not calibrated")}</li>'
            for v, count in verdict_counts(row)
        )
        lines.append(
            f"<tr><td>{escape(row.character)}{by}</td>"
            f'<td class="figure">{figure}</td>'
            f"<td><ul>{verdicts or _none}</ul></td>"
            f"<td>{_worst(row, anchors)}</td>"
            f"<td>{escape(counted(dict(row.no_face))) or _none}</td>"
            f"<td>{escape(face_pass_words(row)) or _none}</td></tr>"
        )
    return "\n".join([*lines, "</table>"])


def _worst(row: CharacterRow, anchors: Mapping[Path, str]) -> str:
    if row.worst is None:
        return _none
    keyframe, value = row.worst
    words = f'<span class="figure">{value:.2f}</span> in {escape(keyframe.title)}'
    image = _thumbnail(keyframe.png, 90, "")
    return f'<a href="#{anchors[keyframe.png]}">{words}{image}</a>'


def _figure(keyframe: Keyframe, anchor: str, table: Sequence[CharacterRow]) -> str:
    heads = "".join(_head(keyframe, head, table) for head in keyframe.heads)
    alt = f"Drawing of {keyframe.title}"
    return (
        f'<figure id="{anchor}">{_thumbnail(keyframe.png, thumbnail_height, alt)}'
        f"<figcaption>frame {keyframe.frame}, take {keyframe.take}</figcaption>"
        f"<ul>{heads}</ul></figure>"
    )


def _head(keyframe: Keyframe, head: Head, table: Sequence[CharacterRow]) -> str:
    name = f'<span class="name">{escape(head.character)}</span>'
    if head.value is None:
        why = escape(head.no_score, quote=True)
        return f'<li class="quiet" title="{why}">&ndash; {name} {escape(head.words)}</li>'
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
    return (
        f'<li><span class="{verdict}">{_marks[verdict]}</span> {name} '
        f'<span class="figure">{head.value:.2f}</span> '
        f'<span class="{verdict}">{escape(head.words)}</span>{extra}</li>'
    )


def _thumbnail(png: Path, height: int, alt: str) -> str:
    """An image element with the picture in it, as JPEG, at most `height` pixels tall."""
    with Image.open(png) as image:
        picture = image.convert("RGB")
    width = max(1, round(picture.width * height / picture.height))
    file = io.BytesIO()
    picture.resize((width, height), Image.Resampling.LANCZOS).save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    size = f'width="{width}" height="{height}"'
    return f'<img {size} alt="{escape(alt, quote=True)}" src="data:image/jpeg;base64,{data}">'

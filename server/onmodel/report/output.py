# SPDX-License-Identifier: GPL-3.0-or-later
"""A film's table of characters as text for a terminal and as plain data for --json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onmodel.identity.report import Interval
from onmodel.report.film import CharacterRow, Keyframe, verdict_words

_columns = (
    "character",
    "mean",
    "95 %",
    "frames",
    "verdicts",
    "worst",
    "no face",
    "face pass",
    "LoRA",
)


def as_text(table: Sequence[CharacterRow]) -> str:
    """Aligned columns, a line a character; a sentence where there is none."""
    if not table:
        return (
            "No head is recorded in these drawings: draw them again with this version, with "
            "portraits in the cast."
        )
    rows = [_columns, *map(_line, table)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(_columns))]
    lines = [
        "  ".join(text.ljust(wide) for text, wide in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    embedders = sorted({row.embedder for row in table if row.embedder})
    if embedders:
        lines.append("")
        lines.append(f"Scores are cosines by {' and '.join(embedders)}; see docs/identity.md.")
    return "\n".join(lines)


def as_data(table: Sequence[CharacterRow], keyframes: Sequence[Keyframe]) -> dict[str, Any]:
    """Plain data: the film, how many takes were looked at, and a list of characters."""
    return {
        "film": keyframes[0].film if keyframes else "",
        "keyframes": len(keyframes),
        "characters": [
            {
                "character": row.character,
                "embedder": row.embedder or None,
                "scored": len(row.scores),
                "mean": _interval(row.mean),
                "worst": _place(row.worst),
                "best": _place(row.best),
                "verdicts": dict(row.verdicts),
                "no_face": dict(row.no_face),
                "face_pass": dict(row.faces),
                "gain": _interval(row.gain),
                "loras": [{"name": name, "weight": weight} for name, weight in row.loras],
            }
            for row in table
        ],
    }


def verdict_counts(row: CharacterRow) -> list[tuple[str, int]]:
    """(verdict, how many), the good ones first, those without thresholds last."""
    return [(v, row.verdicts[v]) for v in (*verdict_words, "") if row.verdicts.get(v)]


def counted(reasons: dict[str, int]) -> str:
    """ "3 turned away, 1 too small", the most frequent first."""
    return ", ".join(f"{count} {words}" for words, count in most_first(reasons))


def most_first(reasons: dict[str, int]) -> list[tuple[str, int]]:
    """The words and how many there are of each, the most frequent first."""
    return sorted(reasons.items(), key=lambda item: (-item[1], item[0]))


def face_pass_words(row: CharacterRow) -> str:
    """What the face pass did to a character's heads, and what repairs brought."""
    said = counted(face_counts(row))
    if row.gain is None:
        return said
    gain = row.gain
    return f"{said}; repairs {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def face_counts(row: CharacterRow) -> dict[str, int]:
    """How many of a character's heads the face pass repaired, kept and left, by words for it."""
    words = {"repaired": "repaired", "kept": "kept as drawn", "skipped": "left alone"}
    return {words.get(state, state): count for state, count in row.faces.items()}


def lora_words(row: CharacterRow) -> str:
    """ "Mara, Coat (0.8)": the LoRAs that a character was drawn with; "" without any."""
    return ", ".join(f"{name} ({w:g})" if w != 1 else name for name, w in row.loras)


def _line(row: CharacterRow) -> tuple[str, ...]:
    verdicts = ", ".join(
        f"{n} {verdict_words.get(v, 'not calibrated')}" for v, n in verdict_counts(row)
    )
    worst = f"{row.worst[1]:.2f} {row.worst[0].title}" if row.worst else "-"
    mean = row.mean
    return (
        row.character,
        f"{mean.value:.3f}" if mean else (f"{row.scores[0]:.3f}" if row.scores else "-"),
        f"{mean.low:.3f} to {mean.high:.3f}" if mean else "-",
        str(len(row.scores)),
        verdicts or "-",
        worst,
        counted(dict(row.no_face)) or "-",
        face_pass_words(row) or "-",
        lora_words(row) or "-",
    )


def _interval(found: Interval | None) -> dict[str, float | int] | None:
    if found is None:
        return None
    return {
        "value": round(found.value, 4),
        "low": round(found.low, 4),
        "high": round(found.high, 4),
        "n": found.n,
    }


def _place(found: tuple[Keyframe, float] | None) -> dict[str, Any] | None:
    if found is None:
        return None
    keyframe, value = found
    return {
        "score": round(value, 4),
        "shot": keyframe.shot,
        "frame": keyframe.frame,
        "take": keyframe.take,
        "file": str(keyframe.png),
    }

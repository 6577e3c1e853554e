# SPDX-License-Identifier: GPL-3.0-or-later
"""What the face pass does for identity, on full-body and three-quarter frames of one or two.

Each frame is drawn once with the pass; the record has every head's score before and after, from one
seed. Two gains are printed. The barred one takes every head that was drawn again as it came out,
also those that the product then did not keep: choosing by the same score that is measured could not
but look well. The other is of the pictures as delivered. Other embedders look at the delivered
pictures and at those before the pass, where their AUC on the true heads of that kind is at least
.90. Intervals: two-stage bootstrap over characters and heads.

Only people with a LoRA count. ONMODEL_CAST_FRAMES: frames of each number of people.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bench.cast_drawing import Drawing, Eye, How, draughtsman, frames
from bench.cast_numbers import grouped
from bench.cast_people import Cell
from bench.cast_report import Company, Row, assembled, eyes, few, heads_auc, least_auc
from bench.harness import Figure
from world.frame_plans import Frame

framings = ("full body shot", "three-quarter shot")
paper_gain = 0.0996
"""Cosine, the smaller gain of the paper's two (III-D)."""
rows = [
    row
    for framing in framings
    for row in (
        Row(f"faces: {framing}, identity up, low end", 0.0, ">", "cosine"),
        Row(f"faces: {framing}, gain of the pass", paper_gain, ">=", "cosine"),
    )
]


def run() -> list[Figure]:
    """All figures of the pass."""
    company = assembled(rows)
    if isinstance(company, list):
        return company
    cells = [cell for count in (1, 2) for cell in company.cells(count)]
    shown = frames([cell.plan for cell in cells])
    with draughtsman(company.everybody) as hand:
        wanted = [hand.request(c, f, How()) for c, f in zip(cells, shown, strict=True)]
        drawn = hand.draw(wanted)
    found = list(zip(cells, shown, drawn, strict=True))
    looking = eyes()
    figures = []
    for framing in framings:
        figures += _framing(framing, [o for o in found if o[0].plan.framing == framing], looking)
        figures += _embedders(
            framing, [o for o in found if o[0].plan.framing == framing], looking, company
        )
    return figures


Shot = tuple[Cell, Frame, Drawing]


def _framing(framing: str, shots: Sequence[Shot], looking: Sequence[Eye]) -> list[Figure]:
    """What the records say."""
    from onmodel.identity.report import grouped_difference

    states: Counter[str] = Counter()
    raw, delivered = [], []
    for cell, _, drawing in shots:
        for member, head in zip(cell.members, drawing.heads, strict=True):
            if member.lora is None:
                continue
            face = head["face"]
            states[face["state"]] += 1
            if face["before"] is None or face["after"] is None:
                continue
            raw.append((member.name, face["after"] - face["before"]))
            kept = face["after"] if face["state"] == "repaired" else face["before"]
            delivered.append((member.name, kept - face["before"]))
    words = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
    name = f"faces: {framing}"
    figures = [Figure(f"{name}, frames", float(len(shots)), note=f"heads: {words or 'none'}")]
    if len(raw) < few:
        reason = f"{len(raw)} heads have a score before and after"
        return [
            *figures,
            Figure(f"{name}, identity up, low end", None, "cosine", 0.0, ">", reason),
            Figure(f"{name}, gain of the pass", None, "cosine", paper_gain, ">=", reason),
        ]
    gain = grouped_difference(grouped(raw))
    product = grouped_difference(grouped(delivered))
    note = f"{gain}, {len(raw)} heads, all that were drawn again"
    return [
        *figures,
        Figure(f"{name}, identity up, low end", gain.low, "cosine", 0.0, ">", note),
        Figure(f"{name}, gain of the pass", gain.value, "cosine", paper_gain, ">=", note),
        Figure(
            f"{name}, gain as delivered", product.value, "cosine", note=f"{product}; better is kept"
        ),
    ]


def _embedders(
    framing: str, shots: Sequence[Shot], looking: Sequence[Eye], company: Company
) -> list[Figure]:
    """What each embedder makes of the delivered pictures."""
    from onmodel.identity.report import grouped_difference

    figures = []
    cells, shown = [s[0] for s in shots], [s[1] for s in shots]
    for eye in looking:
        name = f"faces: {framing}, {eye.embedder.name}"
        known = heads_auc(eye, cells, shown, company)
        if known is None:
            figures.append(Figure(f"{name}, AUC on true heads", None, note="too few have a face"))
            continue
        area, refused = known
        admitted = area.value >= least_auc
        words = "" if admitted else f"; below {least_auc:.2f}: does not judge here"
        note = f"{area}; {refused} heads refused{words}"
        figures.append(Figure(f"{name}, AUC on true heads", area.value, note=note))
        if not admitted:
            continue
        gains = []
        for cell, frame, drawing in shots:
            for index, member in enumerate(cell.members):
                skipped = drawing.heads[index]["face"]["state"] == "skipped"
                if member.lora is None or skipped or not eye.can_know(member):
                    continue
                after = eye.drawn(drawing.pixels, frame, index)
                before = eye.drawn(drawing.base, frame, index)
                if after is not None and before is not None:
                    mean = eye.knows(member)
                    gains.append((member.name, float(mean @ after - mean @ before)))
        title = f"{name}, identity up as delivered, low end"
        if len(gains) < few:
            reason = f"{len(gains)} pairs show a face"
            figures.append(Figure(title, None, "cosine", 0.0, ">", reason))
            continue
        found = grouped_difference(grouped(gains))
        note = f"{found}, {len(gains)} heads"
        figures.append(Figure(title, found.low, "cosine", 0.0, ">", note))
    return figures

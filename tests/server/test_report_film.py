# SPDX-License-Identifier: GPL-3.0-or-later
"""A film's table out of sidecars; the sheets and the page that show it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from onmodel import cli
from onmodel.faces import heads as face_heads
from onmodel.faces import scores
from onmodel.faces.scores import Scorer
from onmodel.identity import interface
from onmodel.identity.report import clustered_mean
from onmodel.report import marks
from onmodel.report.before_after import before_after_sheet, pairs_of
from onmodel.report.film import film_table, short_reason, used_takes
from onmodel.report.results import ReportError, head_lines, keyframes_of, sheet_of, summary_lines
from PIL import Image

from tests.server.drawing import Blobs
from tests.server.test_identity_faces import Corners, picture


def head(name: str, value: float | None = None, verdict: str | None = "same", **more) -> dict:
    score = None
    if value is not None:
        score = {"value": value, "probability": 0.5, "verdict": verdict, "embedder": "rehearsal"}
    data = {"character": name, "box": [10, 5, 20, 24], "yaw": 0.0, "score": score}
    return data | {"no_score": None if score else "The head is 9 px high; 16 is least."} | more


def repaired(before: float, after: float, state: str = "repaired") -> dict:
    return {"face": {"state": state, "reason": None, "before": before, "after": after}}


def lay(folder: Path, shot: str, frame: int, heads: list[dict] | None, **changes) -> Path:
    """A drawn keyframe with its sidecar, as the add-on writes them."""
    fields = {"film": "park", "take": 1, "seed": 7, "prompt": f"shot {shot}", **changes}
    colour = fields.pop("colour", (90, 120, 60))
    png = folder / fields["film"] / shot / f"take_{fields['take']:02}" / f"f_{frame:04}.png"
    png.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 36), colour).save(png)
    request = fields | {"shot": shot, "frame": frame, "maps": [], "characters": []}
    request["canvas"] = {"width": 64, "height": 36, "crop": {}}
    record = {} if heads is None else {"heads": heads, "loras": fields.pop("loras", [])}
    told = {"format": 1, "request": request, "record": {"keyframe": {"record": record}}}
    png.with_suffix(".json").write_text(json.dumps(told))
    return png


@pytest.fixture
def film(tmp_path) -> Path:
    lay(tmp_path, "010", 1, [head("Ann", 0.7), head("Bob", 0.3, "other")])
    lay(tmp_path, "010", 25, [head("Ann", 0.5, "unsure"), head("Bob")])
    lay(tmp_path, "010", 25, [head("Ann", 0.6), head("Bob")], take=2)
    lay(tmp_path, "020", 30, [head("Ann", 0.2, "other", **repaired(0.1, 0.2)), head("Bob", 0.8)])
    lay(tmp_path, "030", 40, None)
    return tmp_path


def test_a_character_over_the_film(film):
    used = used_takes(keyframes_of(film))
    assert [(k.shot, k.frame, k.take) for k in used] == [
        ("010", 1, 1),
        ("010", 25, 2),
        ("020", 30, 1),
        ("030", 40, 1),
    ]
    ann, bob = film_table(used)
    assert ann.scores == (0.7, 0.6, 0.2) and ann.mean.value == pytest.approx(0.5)
    assert ann.mean.low < 0.5 < ann.mean.high
    assert (ann.worst[0].shot, ann.worst[0].frame, ann.worst[1]) == ("020", 30, 0.2)
    assert (ann.best[0].frame, dict(ann.verdicts)) == (1, {"same": 2, "other": 1})
    assert dict(ann.faces) == {"repaired": 1} and ann.gain is None
    assert dict(bob.no_face) == {"too small": 1} and len(bob.scores) == 2


def test_the_report_names_each_characters_lora(tmp_path, capsys):
    loras = [
        {"name": "ink", "hash": "0" * 64, "weight": 1.0, "character": None},
        {"name": "Ann", "hash": "1" * 64, "weight": 1.0, "character": "Ann"},
        {"name": "coat", "hash": "2" * 64, "weight": 0.8, "character": "Ann"},
    ]
    lay(tmp_path, "010", 1, [head("Ann", 0.7), head("Bob", 0.3)], loras=loras)
    lay(tmp_path, "010", 2, [head("Ann", 0.6)], loras=loras[1:2])
    ann, bob = film_table(keyframes_of(tmp_path))
    assert ann.loras == (("Ann", 1.0), ("coat", 0.8)) and bob.loras == ()
    assert cli.main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "LoRA Ann, coat (0.8)" in text and text.count("LoRA") == 1
    assert "Ann, coat (0.8)" in capsys.readouterr().out
    lines = [[t for t, _ in line.parts] for line in summary_lines([ann, bob])]
    assert "LoRA Ann, coat (0.8)" in lines[0] and not any("LoRA" in t for t in lines[1])


def test_which_take_counts(film):
    takes = keyframes_of(film)
    assert [k.take for k in used_takes(takes, "last")] == [1, 2, 1, 1]
    assert len(used_takes(takes, "all")) == 5
    lay(film, "010", 25, [head("Ann", 0.4), head("Bob")], take=3)
    best = used_takes(keyframes_of(film), "best")
    assert [k.take for k in best if k.frame == 25] == [2]
    with pytest.raises(ValueError, match="best, last or all"):
        used_takes(takes, "first")


def test_numbers_of_two_embedders_are_not_put_together(tmp_path):
    other = head("Ann", 0.9)
    other["score"]["embedder"] = "dlib"
    lay(tmp_path, "010", 1, [head("Ann", 0.3)])
    lay(tmp_path, "010", 2, [head("Ann", 0.4)])
    lay(tmp_path, "010", 3, [other])
    lay(tmp_path, "010", 4, [head("Ann")])
    first, second = film_table(keyframes_of(tmp_path))
    assert (first.embedder, first.scores, dict(first.no_face)) == (
        "rehearsal",
        (0.3, 0.4),
        {"too small": 1},
    )
    assert (second.embedder, second.scores, second.mean) == ("dlib", (0.9,), None)
    assert not second.no_face


def test_shots_are_drawn_again_whole():
    alike = clustered_mean([[0.2] * 10, [0.8] * 10])
    apart = clustered_mean([[0.2, 0.8]] * 10)
    assert alike.value == apart.value == pytest.approx(0.5) and alike.n == 20
    assert alike.high - alike.low > 0.5 > apart.high - apart.low
    assert clustered_mean([[0.1, 0.3]]).value == pytest.approx(0.2)


def test_damaged_records_are_read_as_far_as_they_go(tmp_path):
    broken = [
        {"character": 3},
        "nothing",
        {"character": "Ann", "score": {"value": "high"}, "box": [1, 2, 3], "face": "yes"},
        {"character": "Bob", "score": {"value": float("nan")}, "box": [1, 2, 0, 4]},
    ]
    lay(tmp_path, "010", 1, broken)
    (keyframe,) = keyframes_of(tmp_path)
    assert [(h.character, h.value, h.box) for h in keyframe.heads] == [
        ("Ann", None, None),
        ("Bob", None, None),
    ]
    assert keyframe.heads[0].words == "no face: no reason given"


def test_short_reasons_fit_the_sentences_that_the_server_says(monkeypatch):
    image = picture()
    said = {
        "too small": interface.unusable(image, (0, 0, 5, 5), None, 16, 90).reason,
        "turned away": interface.unusable(image, (0, 0, 50, 50), 120.0, 16, 90).reason,
        "cut off": interface.unusable(image, (-60, 0, 20, 50), None, 16, 90).reason,
        "no portraits": Scorer(Corners()).references_of({"name": "Ann"}, Blobs()),
        "no usable portrait": Scorer(Corners()).references_of(
            {"name": "Ann", "references": [(blobs := Blobs()).put(b"rubbish")]}, blobs
        ),
        "out of frame": face_heads.head_regions({"characters": [{"name": "A"}]}, None)[1][0].reason,
        "hidden": face_heads.hidden(0.1, 0.25),
    }
    monkeypatch.delenv(scores.pack_variable, raising=False)
    monkeypatch.setattr(scores.dlib_faces, "missing", lambda: "no dlib")
    said["no embedder"] = scores.choose(embedded=False).why_not
    assert {short_reason(sentence) for sentence in said.values()} == set(said)
    for short, sentence in said.items():
        assert short_reason(sentence) == short
    assert short_reason("Something nobody has thought of yet happened here.").endswith("…")


def test_lines_name_the_verdict_in_words_and_mark_best_and_worst(film):
    keyframes = used_takes(keyframes_of(film))
    table = film_table(keyframes)
    first, _, third, _ = ([(w.name, [t for t, _ in w.parts]) for w in head_lines(k, table)]
                          for k in keyframes)  # fmt: skip
    assert first == [
        ("Ann", ["0.70", "on model", "best of 3"]),
        ("Bob", ["0.30", "off model", "worst of 2"]),
    ]
    assert third[0] == ("Ann", ["0.20", "off model", "worst of 3", "was 0.10"])
    assert head_lines(keyframes[1], table)[1].parts == [("no face: too small", "")]
    texts = [text for line in summary_lines(table) for text, _ in line.parts]
    assert "mean 0.50" in texts and "worst 0.20 in 020, frame 30, take 1" in texts


def test_verdicts_differ_in_shape_not_in_colour_alone():
    shapes = []
    for verdict in ("same", "unsure", "other", ""):
        image = Image.new("RGB", (11, 11))
        marks.draw_mark(image, 0, 0, verdict)
        shapes.append(np.asarray(image).max(2) > 60)
    for one in range(4):
        for two in range(one):
            assert (shapes[one] != shapes[two]).mean() > 0.15


def test_the_contact_sheet_has_room_for_every_line(film):
    sheet = sheet_of(film, lambda sha256: None)
    pixels = np.asarray(sheet).reshape(-1, 3)
    for verdict in ("same", "unsure", "other"):
        assert (pixels == marks.colours[verdict]).all(1).any()
    assert sheet.width > 36 * 2 + marks.lines_width(summary_lines(film_table(keyframes_of(film))))


def test_the_contact_sheet_shows_a_shot_before_and_after_the_face_pass(tmp_path, caplog):
    before, after = tmp_path / "before", tmp_path / "after"
    for shot, frame in (("010", 1), ("020", 2), ("020", 3)):
        seed = 8 if frame == 3 else 7
        lay(before, shot, frame, [head("Ann", 0.2)], colour=(200, 0, 0), seed=seed)
        lay(after, shot, frame, [head("Ann", 0.6, **repaired(0.2, 0.6))], colour=(0, 0, 200))
    sheet = np.asarray(sheet_of(after, lambda sha256: None, ["020"], before))
    red, blue = ((sheet == c).all(2) for c in ((200, 0, 0), (0, 0, 200)))
    # Two frames of one shot; the second has no drawing of its seed to stand beside it.
    assert blue.sum() == 2 * red.sum() > 0
    assert np.nonzero(red)[1].max() < np.nonzero(blue)[1].min()
    assert "020, frame 3, take 1" in caplog.text
    with pytest.raises(ReportError, match="no drawing of shot 040; it has 010, 020"):
        sheet_of(after, lambda sha256: None, ["040"])


def test_heads_before_and_after_are_paired_by_take_and_seed(tmp_path, caplog):
    worked = repaired(0.2, 0.6)
    before, after = tmp_path / "before", tmp_path / "after"
    for folder, colour, more in ((before, (200, 0, 0), {}), (after, (0, 0, 200), worked)):
        lay(folder, "010", 1, [head("Ann", 0.6, **more), head("Bob", 0.5)], colour=colour)
        lay(folder, "010", 2, [head("Ann", 0.6, **more)], seed=7 if more else 8)
    lay(after, "010", 3, [head("Ann", 0.6, **worked)])
    pairs = pairs_of(keyframes_of(before), keyframes_of(after))
    assert [(p.after[0].frame, p.after[1].character) for p in pairs] == [(1, "Ann")]
    assert "has another seed there" in caplog.text and "is not in the folder" in caplog.text
    sheet = np.asarray(before_after_sheet("park", pairs, side=60))
    red, blue = ((sheet == c).all(2) for c in ((200, 0, 0), (0, 0, 200)))
    assert red.sum() == blue.sum() == 60 * 60
    assert np.nonzero(red)[1].max() < np.nonzero(blue)[1].min()
    with pytest.raises(ValueError, match="No head was drawn again"):
        before_after_sheet("park", [])


class Page(HTMLParser):
    """What a page opens and does not close, and what it refers to."""

    def __init__(self):
        super().__init__()
        self.open, self.refs, self.ids, self.tags = [], [], set(), set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        named = dict(attrs)
        self.ids |= {named["id"]} if "id" in named else set()
        self.refs += [named[k] for k in ("src", "href") if k in named]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_escapes_everything_and_fetches_nothing(film, capsys):
    nasty = "<script>alert('x')</script>\"&"
    bad = head(nasty, 0.4, **repaired(0.2, 0.4))
    lay(film, "040 <b>", 50, [bad, head("Q", no_score=nasty)], prompt=nasty)
    assert cli.main(["report", str(film), "--html", str(film / "page.html")]) == 0
    text = (film / "page.html").read_text(encoding="utf-8")
    read = Page()
    read.feed(text)
    assert not read.open
    assert "script" not in read.tags and "link" not in read.tags and "b" not in read.tags
    assert "&lt;script&gt;" in text and "default-src 'none'" in text
    for ref in read.refs:
        assert ref.startswith("data:image/jpeg;base64,") or ref[1:] in read.ids
    assert not re.search(r"https?:|url\(", text)
    assert text.count('width="96" height="96"') == 3, "three worst heads, cut out"
    assert "0.500" in capsys.readouterr().out


def test_the_command_prints_json_and_writes_sheets(film, capsys, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    line = ["report", str(film), "--json", "--sheet", str(out / "s.png"), "--data", str(out)]
    assert cli.main(line) == 0
    data = json.loads(capsys.readouterr().out)
    ann = data["characters"][0]
    assert (ann["character"], ann["mean"]["value"], ann["worst"]["frame"]) == ("Ann", 0.5, 30)
    assert data["keyframes"] == 4 and (film / "report.html").is_file()
    assert Image.open(out / "s.png").width > 100


def test_the_command_says_what_is_wrong(film, tmp_path_factory, capsys):
    empty = tmp_path_factory.mktemp("empty")
    assert cli.main(["report", str(empty)]) == 1
    assert "There is no drawn keyframe" in capsys.readouterr().err
    assert cli.main(["report", str(film), "--before", str(film)]) == 1
    assert "--before is for a sheet" in capsys.readouterr().err
    assert cli.main(["report", str(film), "--heads", str(empty / "h.png")]) == 1
    assert "needs --before" in capsys.readouterr().err
    assert cli.main(["report", str(film), "--shots", "010"]) == 1
    assert "--shots is for the contact sheet" in capsys.readouterr().err
    assert cli.main(["report", str(film), "--html", str(empty / "no" / "p.html")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_the_report_needs_no_torch(film):
    code = "import onmodel.report.command, sys; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"

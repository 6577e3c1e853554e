# SPDX-License-Identifier: GPL-3.0-or-later
"""Thresholds of a cast: pairs, too small casts, the shelf, the scorer's use of it."""

from __future__ import annotations

import numpy as np
import pytest
from onmodel.faces.calibrations import Calibrations, people
from onmodel.faces.scores import Scorer
from onmodel.identity import interface, rehearsal, strangers
from onmodel.identity.calibrate import (
    Calibration,
    CalibrationError,
    Member,
    calibrate_members,
    member_pairs,
)

from tests.server.drawing import Blobs
from tests.server.test_identity_faces import Corners, picture

has_weights = pytest.mark.skipif(bool(rehearsal.missing()), reason=rehearsal.missing())


def near(middle: int, spread: float, count: int, size: int = 40, seed: int = 0) -> list:
    """Unit vectors about a coordinate axis."""
    rng = np.random.default_rng(1000 * middle + seed)
    return [
        interface.unit(np.eye(size)[middle] + rng.normal(0, spread, size)) for _ in range(count)
    ]


def cast_of(count: int, shown: int = 3, spread: float = 0.05) -> dict[str, Member]:
    return {f"c{k}": Member(near(k, spread, shown)) for k in range(count)}


def test_pairs_are_heads_against_the_mean_of_other_portraits():
    axis = np.eye(4, dtype=np.float32)
    cast = {
        "Ann": Member([axis[0], axis[1]], variants=[[axis[0]], [axis[2]]], good=[axis[0]]),
        "Bob": Member([axis[3]]),
    }
    genuine, impostor = member_pairs(cast, np.array([axis[2], -axis[3]]))
    # Each portrait and its variant against the other portrait; the good head against both.
    assert sorted(genuine) == pytest.approx([0, 0, 0, 0, np.sqrt(0.5)])
    # Ann: Bob's portrait and two strangers. Bob: Ann's five heads and two strangers.
    assert len(impostor) == 3 + 5 + 2
    assert sorted(impostor)[0] == -1 and sum(impostor) == pytest.approx(-1)


def test_a_cast_is_calibrated_with_strangers_or_by_its_size():
    strangers_seen = np.stack(near(20, 0.4, 60))
    made = calibrate_members("corners", cast_of(2), strangers_seen)
    assert made.source == "a cast of 2 among strangers"
    assert made.genuine == 6 and made.impostors == 2 * (3 + 60)
    assert made.verdict(0.9) == "same" and made.verdict(0.1) == "other"
    assert made.probability(0.9) > 0.5 > made.probability(0.1)
    with pytest.raises(CalibrationError, match=r"6 heads .* and 6 impostor pairs are too few"):
        calibrate_members("corners", cast_of(2))
    assert calibrate_members("corners", cast_of(4)).source == "a cast of 4"
    # Three portraits that are also shown as drawn are still three heads.
    varied = {k: Member(m.references, [m.references] * 3) for k, m in cast_of(1).items()}
    with pytest.raises(CalibrationError, match=r"^3 heads"):
        calibrate_members("corners", varied, strangers_seen)


def test_the_shelf_keeps_by_content_and_serves_parts_of_a_cast(tmp_path):
    calls = []

    def members(count):
        return lambda: calls.append(count) or cast_of(count)

    hashes = {f"c{k}": (f"{k}" * 64, f"{k + 4}" * 64) for k in range(5)}
    whole = {name: hashes[name] for name in ("c0", "c1", "c2", "c3")}
    shelf = Calibrations(tmp_path / "kept")
    pair = {name: hashes[name] for name in ("c0", "c1")}
    small = shelf.of("corners", "state 1", pair, members(2), lambda: None)
    assert "too few" in small
    made = shelf.of("corners", "state 1", whole, members(4), lambda: None)
    assert isinstance(made, Calibration) and calls == [2, 4]
    # A second process finds the file; a part of the cast is served by the whole of it.
    again = Calibrations(tmp_path / "kept")
    assert again.of("corners", "state 1", pair, members(2), lambda: None) == made
    assert calls == [2, 4]
    # Another state of the embedder, or a stranger in the cast, is another matter.
    assert again.find("state 2", pair) is None
    assert again.find("state 1", {"c4": hashes["c4"]}) is None
    # The order of portraits and the names do not count.
    assert people({"x": hashes["c0"][::-1]}) == people({"c0": hashes["c0"]})


def test_a_drawing_does_not_fail_where_thresholds_cannot_be_kept(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    shelf = Calibrations(tmp_path / "file" / "below")
    cast = {f"c{k}": (f"{k}" * 64,) for k in range(4)}
    made = shelf.of("corners", "state 1", cast, lambda: cast_of(4), lambda: None)
    assert isinstance(made, Calibration) and "could not be kept" in caplog.text
    assert shelf.find("state 1", cast) == made


def test_a_broken_file_on_the_shelf_is_left_out(tmp_path, caplog):
    (tmp_path / "abc.json").write_text('{"fingerprint": "state 1", "people": 3}')
    assert Calibrations(tmp_path).find("state 1", {"c0": ("0" * 64,)}) is None
    assert "abc.json is no calibration" in caplog.text


def test_the_scorer_reads_by_the_casts_own_thresholds(tmp_path):
    blobs = Blobs()
    characters = [
        {"name": name, "references": [blobs.put_image(noisy(k, n)) for n in range(3)]}
        for k, name in enumerate("ABCD")
    ]
    scorer = Scorer(Corners(), Calibrations(tmp_path))
    made = scorer.calibration_of(characters, blobs)
    assert made.source == "a cast of 4" and made.genuine == 12
    references = scorer.references_of(characters[0], blobs)
    box = (0, 0, 96, 96)
    assert scorer.score(noisy(0, 9), box, 0.0, references, made).verdict == "same"
    assert scorer.score(noisy(2, 9), box, 0.0, references, made).verdict == "other"
    # Two of them alone: too few pairs, but the whole cast's thresholds are there.
    assert scorer.calibration_of(characters[:2], blobs) == made
    fresh = Scorer(Corners(), Calibrations(None))
    assert fresh.calibration_of(characters[:2], blobs) is None  # no general one for this embedder
    assert fresh.calibration_of([{"name": "E", "references": []}], blobs) is None


def noisy(seed: int, take: int) -> np.ndarray:
    """One of four pictures, with a little noise of its own."""
    rng = np.random.default_rng(100 * seed + take)
    image = picture(seed).astype(int) + rng.integers(-40, 40, (96, 96, 3))
    return image.clip(0, 255).astype(np.uint8)


@has_weights
def test_strangers_belong_to_the_shipped_network_and_no_other():
    state = rehearsal.RehearsalFaces().fingerprint
    found = strangers.shipped(state)
    assert found.shape[1] == 128 and len(found) >= 100
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    with pytest.raises(strangers.StrangersError, match="another state"):
        strangers.shipped("0" * 16)


@has_weights
def test_the_rehearsal_scorer_calibrates_two_characters_among_strangers():
    from onmodel.identity import portrait

    blobs = Blobs()
    box = (20, 20, 76, 80)
    characters = [
        {"name": n, "references": [blobs.put(portrait.write(noisy(k, t), box)) for t in range(3)]}
        for k, n in enumerate("AB")
    ]
    scorer = Scorer(embedded=True)
    made = scorer.calibration_of(characters, blobs)
    assert made.source == "a cast of 2 among strangers"
    assert made.genuine == 2 * 3 * 4
    alone = scorer.calibration_of(
        [{**characters[0], "references": characters[0]["references"][:1]}], blobs
    )
    assert "the cast of 1 is too small" in alone.source
    assert "held-out people" in alone.source


@has_weights
def test_a_films_cast_is_calibrated_with_heads_that_were_found_right(tmp_path, capsys):
    import json

    from onmodel import cli
    from onmodel.identity import portrait
    from onmodel.jobs.blobs import BlobStore
    from PIL import Image

    store = BlobStore(tmp_path / "data" / "blobs")
    box = (20, 20, 76, 80)
    cast = {
        name: [store.put(portrait.write(noisy(k, t), box)) for t in range(2)]
        for k, name in enumerate("ABC")
    }
    for frame, names in ((1, "AB"), (2, "C")):
        png = tmp_path / "film" / f"f_{frame}.png"
        png.parent.mkdir(exist_ok=True)
        Image.fromarray(noisy(0, 7)).save(png)
        crop = {"x": 0.0, "y": 0.0, "width": 96.0, "height": 96.0}
        head = {"box": {"x": 20, "y": 20, "width": 56, "height": 60}, "yaw": 0.0}
        request = {
            "film": "park",
            "shot": "010",
            "frame": frame,
            "take": 1,
            "model": "rehearsal",
            "canvas": {"width": 96, "height": 96, "crop": crop},
            "characters": [
                {"name": n, "references": cast[n], "head": head if n == "A" else None}
                for n in names
            ],
        }
        png.with_suffix(".json").write_text(json.dumps({"request": request}))
    line = ["faces", "calibrate", str(tmp_path / "film"), "--data", str(tmp_path / "data")]
    assert cli.main([*line, "--good", str(tmp_path / "film" / "f_1.png"), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["source"] == "a cast of 3 among strangers, with 1 drawn head found right"
    assert made["genuine"] == 3 * 2 * 4 + 1
    # The server reads keyframes with a part of the cast by it.
    scorer = Scorer(embedded=True, calibrations=Calibrations(tmp_path / "data" / "calibrations"))
    two = [{"name": n, "references": cast[n]} for n in "AB"]
    assert scorer.calibration_of(two, store).source == made["source"]
    assert cli.main([*line, "--good", str(tmp_path / "data")]) == 1
    assert "is no drawn keyframe of this film" in capsys.readouterr().err

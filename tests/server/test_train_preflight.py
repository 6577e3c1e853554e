# SPDX-License-Identifier: GPL-3.0-or-later
"""Preflight and the command `onmodel train`, without training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onmodel import cli
from onmodel.train import plan_file, preflight, report_text
from onmodel.train.buckets import fit
from onmodel.train.dataset import scan
from onmodel.train.estimates import estimate, facts, find_model, model_path, trained_weights
from onmodel.train.plan import PlanError, TrainingPlan
from onmodel.train.preflight import Device, Measurement, Report
from PIL import Image

from tests.server.test_train_dataset import mask, picture

cpu = Device("cpu", 8 << 30)
gpu = Device("cuda", 24 << 30)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Nine pictures, eight of them with masks, and one that is none."""
    folder = tmp_path / "images"
    for number in range(9):
        picture(folder, f"{number}.png", (256, 256), "a woman, portrait")
        if number:
            mask(folder / "masks" / f"{number}.png", (256, 256), (64, 0, 192, 256))
    (folder / "broken.png").write_bytes(b"nothing")
    return folder


def plan(images: Path, *settings: str, preset: str = "rehearsal") -> TrainingPlan:
    given = [f"data.images={json.dumps(str(images))}", "data.trigger=mirazel", "data.noun=woman"]
    return plan_file.with_overrides(plan_file.load_preset(preset), [*given, *settings])


def said(report: Report) -> str:
    return " ".join(str(problem) for problem in report.problems)


def test_a_report_tells_the_course_the_needs_and_the_time(images: Path) -> None:
    calls: list[int] = []

    def measure() -> Measurement:
        calls.append(1)
        return Measurement(0.5, 0, "cpu", 3)

    found = preflight.preflight(plan(images, "schedule.steps=400"), measure, device=cpu)
    assert found.ok and calls == [1] and found.seconds == 200.0
    assert len(found.data.pictures) == 9 and [r.name for r in found.data.refused] == ["broken.png"]
    assert any("1 of 9 pictures have no mask" in w for w in found.warnings)
    text = report_text.text(found)
    for words in (
        "9 pictures kept, 1 refused",
        "refused  broken.png: It is not a PNG",
        "400 steps of 4 pictures = 133.3 epochs of 3 batches, 1 of them not full",
        "0.50 s a step, measured on cpu: about 3 min",
        "It can start.",
    ):
        assert words in text
    data = json.loads(json.dumps(found.json()))
    assert data["ok"] and data["steps"] == 400 and str(images) not in json.dumps(data)
    assert data["kept"][1]["mask"] == 0.5 and data["kept"][0]["mask"] is None
    assert data["buckets"] == [
        {"width": 256, "height": 256, "pictures": 9, "showings": 9, "lost": 0.0}
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["base.model=nowhere"], "no model “nowhere”"),
        (["base.family=flux", "adapter.convolutions=false"], "sdxl family"),
        (["base.dtype=fp16"], "CPU cannot train in fp16"),
        (["adapter.rank=400"], "rank of 400"),
        (["adapter.targets=['nothing']"], "No layer"),
        (["loss.prior_weight=0.5"], "no regularisation pictures"),
        (["validation.maps=nowhere"], "no maps in nowhere"),
        (["validation.references=nowhere"], "no folder nowhere"),
        (["optimizer.name=adamw8bit"], "adamw8bit"),
        (["data.min_bucket=256", "data.resolution=512", "data.upscale=false"], ""),
        (["schedule.steps=none", "schedule.epochs=1", "schedule.warm_up=3"], "still rises"),
        (["schedule.steps=none"], "neither steps nor epochs"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_measured(
    images: Path, settings: list[str], words: str
) -> None:
    def measure() -> Measurement:
        assert not words
        return Measurement(1.0)

    found = preflight.preflight(plan(images, *settings), measure, device=cpu)
    assert words in said(found) and found.ok == (not words)
    assert report_text.text(found)
    assert all(problem.fix for problem in found.problems)


def test_a_folder_that_leaves_nothing_is_refused_with_every_reason(tmp_path: Path) -> None:
    picture(tmp_path, "a.png", (20, 20))
    found = preflight.preflight(plan(tmp_path), device=cpu)
    assert "all 1 were refused" in said(found) and found.order is None
    assert "20 x 20 is too small" in report_text.text(found)
    assert report_text.overlay_sheet(found) is None


def test_masks_that_are_not_there_and_too_little_disk(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (images / "masks").iterdir():
        file.unlink()
    assert "no picture has a mask" in said(preflight.preflight(plan(images), device=cpu))
    monkeypatch.setattr(preflight, "_free_disk", lambda out: 1000)
    found = preflight.preflight(plan(images, "loss.masked=false"), device=cpu)
    assert "are free" in said(found)


def test_warnings_do_not_forbid(images: Path) -> None:
    settings = ["data.trigger=mira", "base.dtype=bf16", "schedule.steps=2", "schedule.warm_up=0"]
    (images / "0.txt").write_text("woman " * 80)
    found = preflight.preflight(plan(images, *settings), device=replace(cpu, memory=1 << 20))
    words = " ".join(found.warnings)
    assert found.ok
    for part in ("one token", "tokens; the model reads", "less than one epoch", "faster in fp32"):
        assert part in words
    assert "no picture has one: it learns without" in words
    assert "of memory" in words and "saves nothing before its end" in words
    old = preflight.preflight(plan(images, "base.dtype=bf16"), device=replace(gpu, bf16=False))
    assert "knows no bf16" in said(old)


def test_an_engine_that_cannot_measure_forbids(images: Path) -> None:
    def measure() -> Measurement:
        raise PlanError("It does not fit.", "Take less.")

    assert "does not fit" in said(preflight.preflight(plan(images), measure, device=cpu))


def test_weights_are_counted_exactly(images: Path) -> None:
    """rank · (in + out) for each layer, of the shapes in the files."""
    model = facts(find_model(plan(images).base))
    layers = [shape for name, shape in model.layers.items() if name.endswith("attn1.to_q.weight")]
    only_q = plan(images, "adapter.targets=['attn1.to_q']", "adapter.rank=4")
    assert trained_weights(only_q.adapter, model) == sum(4 * (a + b) for a, b in layers)
    text = plan(images, "adapter.unet=false", "adapter.text_encoders=true")
    expected = sum(n * 16 * (8 * h + 2 * (h + i)) for h, i, n in model.text_widths)
    assert len(model.text_widths) == 2 and trained_weights(text.adapter, model) == expected
    full, fewer = (plan(images, f"adapter.convolutions={word}") for word in ("true", "false"))
    assert trained_weights(full.adapter, model) > trained_weights(fewer.adapter, model)


def test_memory_follows_the_plan(images: Path) -> None:
    from onmodel.train.buckets import Order

    model = facts(find_model(plan(images).base))
    data = scan(plan(images).data)

    def memory(*settings: str) -> int:
        made = plan(images, *settings)
        return estimate(made, model, Order(data.pictures, made), 9).memory

    assert memory("run.gradient_checkpointing=true") < memory()
    assert memory() < memory("schedule.batch=8")
    assert memory() < memory("run.cache_latents=false") and memory("base.dtype=bf16") < memory()


def test_a_folder_that_happens_to_be_called_like_a_model_is_not_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rehearsal").mkdir()
    monkeypatch.chdir(tmp_path)
    base = plan_file.load_preset("rehearsal").base
    assert model_path(base) is None and find_model(base).family == "sdxl"


def test_the_sheet_shows_the_mask_as_the_loss_sees_it(images: Path) -> None:
    found = preflight.preflight(plan(images), device=cpu)
    shape = found.data.pictures[1]
    seen = report_text.latent_mask(shape, found.order.fits[1], 8)  # type: ignore[union-attr]
    assert seen.shape == (32, 32) and seen[:, 8:24].min() == 1 and seen[:, :8].max() == 0
    sheet = report_text.overlay_sheet(found)
    assert sheet is not None
    pixels = np.asarray(sheet, np.int16)
    side = report_text.tile
    outside, inside = pixels[:side, side : side + 40], pixels[:side, side + 60 : side + 130]
    assert (outside[..., 0] - outside[..., 2]).mean() > 40  # red where nothing is learned
    assert abs((inside[..., 0] - inside[..., 2]).mean()) < 5


def test_the_engine_and_the_sheet_agree_on_a_mask(tmp_path: Path) -> None:
    import torch
    from onmodel.train import losses
    from onmodel.train.pictures import open_mask

    picture(tmp_path, "a.png", (256, 256), "a woman")
    mask(tmp_path / "a.mask.png", (256, 256), (3, 5, 100, 201))
    made = plan(tmp_path)
    shape = scan(made.data).pictures[0]
    place = fit(256, 256, made.data)
    fitted = place.apply(open_mask(tmp_path / "a.mask.png"), Image.Resampling.BOX)
    ours = report_text.latent_mask(shape, place, 8)
    theirs = losses.latent_mask(torch.from_numpy(np.asarray(fitted) / 255.0), (32, 32), 0.0)
    assert np.abs(ours - theirs[0].numpy()).max() < 1e-5


def test_the_command_looks_exports_and_refuses(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--images", str(images), "--trigger", "mirazel", "--noun", "woman", "--name", "mira"]
    out = tmp_path / "run"
    look = ["train", "--preset", "rehearsal", *given, "--preflight", "--no-measure"]
    assert cli.main([*look, "--out", str(out)]) == 0
    assert "It can start." in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"preflight.txt", "preflight.json", "masks.png"}
    assert cli.main([*look, "--json", "--set", "adapter.rank=500"]) == 1
    line = json.loads(capsys.readouterr().out)
    assert line["type"] == "preflight" and not line["ok"] and line["name"] == "mira"

    file = tmp_path / "mira.toml"
    file.write_text('preset = "rehearsal"\n[data]\nimages = "images"\n')
    there = ["--export", "ai-toolkit", str(tmp_path / "there")]
    assert cli.main(["train", str(file), *given[2:], *there]) == 0
    assert (tmp_path / "there" / "config.yaml").is_file()
    assert "cannot do this part" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "Which plan"),
        (["--preset", "rehersal", "--out", "x"], 1, "rehearsal"),
        (["--preset", "rehearsal"], 2, "Where to"),
        (["--preset", "rehearsal", "--out", "x", "--set", "a.b=1"], 1, "no key"),
        (["--preset", "rehearsal", "--resume", "--out", "x"], 2, "began with"),
        (["--resume", "--out", "nowhere"], 1, "no run in nowhere"),
        (["--preset", "rehearsal", "--export", "word", "x"], 2, "no export for word"),
        (["--preset", "rehearsal", "--export", "kohya", "x"], 1, "names no images"),
        (["nowhere.toml", "--out", "x"], 1, "cannot be read"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *arguments]) == code
    assert words in capsys.readouterr().err


def test_a_folder_with_a_run_is_not_overwritten(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.toml").write_text("")
    given = ["--images", str(images), "--trigger", "mirazel", "--noun", "woman"]
    assert cli.main(["train", "--preset", "rehearsal", *given, "--out", str(tmp_path)]) == 1
    assert "--resume" in capsys.readouterr().err
    assert (tmp_path / "plan.toml").read_text() == ""


def test_rehearsals_options_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    seen: list[Any] = []
    program = types.SimpleNamespace(main=lambda rest: seen.append(rest))
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: program)
    assert cli.main(["rehearsal", "--folder", "x", "train", "--steps", "3", "--help"]) == 0
    assert seen == [["--folder", "x", "train", "--steps", "3", "--help"]]
    with pytest.raises(SystemExit):
        cli.main(["models", "--folder", "x"])

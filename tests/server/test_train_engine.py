# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole runs on tiny models: caches, saving, resuming to the bit, drawings, errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from onmodel.lora import layouts
from onmodel.models import lora_file, lora_names
from onmodel.train import engine, plan_file
from onmodel.train.folder import read_metrics
from onmodel.train.plan import PlanError

from tests.server import tiny_models, tiny_training


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


def run(home: Path, out: Path, plan=None, **options):
    plan = tiny_training.plan(home) if plan is None else plan
    return engine.train(plan, out, cache=home / "cache", **options)


def curve(out: Path) -> list[tuple]:
    """What has to be the same to the bit."""
    rows = read_metrics(out / "metrics.jsonl")
    return [(r["step"], r["loss"], r["rate"], r["grad_norm"]) for r in rows]


@pytest.fixture(scope="module")
def whole(home):
    """An uninterrupted run: its folder, result and reports."""
    told = []
    out = home / "whole"
    result = run(home, out, report=lambda kind, data: told.append((kind, data)))
    return out, result, told


def test_a_run_writes_loras_metrics_and_reports(whole):
    out, result, told = whole
    assert (result.finished, result.steps) == (True, 6)
    assert [p.name for p in result.checkpoints] == [
        f"zanna-00000{n}.safetensors" for n in (2, 4, 6)
    ]
    kinds = [kind for kind, _ in told]
    assert list(dict.fromkeys(kinds)) == ["preparing", "caching", "step", "saved", "done"]
    assert [d["step"] for k, d in told if k == "step"] == [1, 2, 3, 4, 5, 6]
    assert [s for s, *_ in curve(out)] == [1, 2, 3, 4, 5, 6]
    assert plan_file.read(out / "plan.toml").name == "zanna"


def test_the_lora_says_what_it_is(whole):
    checked = lora_file.check(whole[1].lora)
    assert (checked.family, checked.title, checked.trigger) == ("sdxl", "zanna", "zanna woman")
    assert checked.metadata["ss_steps"] == "6"
    assert json.loads(checked.metadata["ss_dataset_dirs"]) == {
        "pictures": {"n_repeats": 1, "img_count": 4}
    }


def test_both_files_hold_the_same_and_change_the_model(home, whole):
    out = whole[0]
    sites = lora_names.sdxl_sites(tiny_models.components(tiny_models.parts(home)))
    kohya = layouts.read(out / "zanna.safetensors", sites)
    other = layouts.read(out / "zanna.diffusers.safetensors", sites)
    assert kohya.keys() == other.keys()
    assert {component for component, _ in kohya} == {"unet"}
    for key, delta in kohya.items():
        assert (delta.alpha, delta.rank) == (4.0, 2)
        assert torch.equal(delta.matrix(), other[key].matrix())
    assert max(d.matrix().abs().max() for d in kohya.values()) > 1e-5


def test_the_same_run_again_encodes_nothing_and_learns_the_same(home, whole, monkeypatch):
    from onmodel.train.family_sdxl import SDXLTraining

    def encoded(*args):
        raise AssertionError("everything was in the cache")

    monkeypatch.setattr(SDXLTraining, "encode_pictures", encoded)
    monkeypatch.setattr(SDXLTraining, "encode_text", encoded)
    run(home, home / "again")
    assert curve(home / "again") == curve(whole[0])


def test_a_damaged_cache_is_made_anew(home, whole):
    for path in (home / "cache" / "latents").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-7])
    run(home, home / "mended")
    assert curve(home / "mended") == curve(whole[0])


def test_cancelled_and_resumed_is_the_same_to_the_bit(home, whole):
    out = home / "cancelled"
    asked = iter(range(1000))
    # Caching asks for each picture and caption, then every step asks once.
    result = run(home, out, cancelled=lambda: next(asked) >= 10)
    assert not result.finished
    assert 0 < result.steps < 6
    run(home, out, resume=True)
    assert curve(out) == curve(whole[0])
    assert (out / "zanna.safetensors").is_file()


def test_ema_and_prodigy_resume_to_the_bit(home):
    pytest.importorskip("prodigyopt")
    plan = tiny_training.plan(
        home,
        optimizer={"name": "prodigy", "rate": 1.0},
        schedule={"ema": 0.9, "accumulate": 2, "warm_up": 1, "scheduler": "polynomial"},
        adapter={"dropout": 0.2},
        data={"flip": True, "shuffle_caption": True, "caption_dropout": 0.3},
        run={"cache_text": False},
        loss={"min_snr_gamma": 5.0, "noise_offset": 0.05, "background": 0.1},
    )
    run(home, home / "p1", plan)
    asked = iter(range(1000))
    run(home, home / "p2", plan, cancelled=lambda: next(asked) >= 11)
    assert len(curve(home / "p2")) < 6
    run(home, home / "p2", plan, resume=True)
    assert curve(home / "p1") == curve(home / "p2")
    first, second = (p / "zanna.safetensors" for p in (home / "p1", home / "p2"))
    hashes = [lora_file.check(p).metadata["sshs_model_hash"] for p in (first, second)]
    assert hashes[0] == hashes[1]


child = """
import sys
from pathlib import Path
from onmodel.models import libraries
libraries.prepare()
from onmodel.train import engine, plan_file
plan = plan_file.read(Path(sys.argv[1]))
engine.train(plan, Path(sys.argv[2]), cache=Path(sys.argv[3]), resume=True)
"""


def test_killed_at_any_step_it_resumes_to_the_bit(home):
    plan = tiny_training.plan(home, schedule={"steps": 12}, run={"save_every": 3})
    run(home, home / "unkilled", plan)
    out = home / "killed"
    file = home / "plan.toml"
    file.write_text(plan_file.to_toml(plan), encoding="utf-8")
    line = [sys.executable, "-c", child, str(file), str(out), str(home / "cache")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["server", "."])}
    process = subprocess.Popen(line, env=environment)
    metrics = out / "metrics.jsonl"
    while not metrics.is_file() or len(metrics.read_text().splitlines()) < 5:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # A kill can also cut a line short.
    with metrics.open("a") as unfinished:
        unfinished.write('{"step": 99, "lo')
    run(home, out, plan, resume=True)
    assert curve(out) == curve(home / "unkilled")
    assert not list(out.glob(".*.part"))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_text_encoders_learn_too(home, dtype):
    plan = tiny_training.plan(
        home,
        base={"dtype": dtype},
        adapter={"text_encoders": True, "text_encoder_rank": 3, "convolutions": True},
        run={"cache_text": False, "gradient_checkpointing": True},
        schedule={"steps": 2},
    )
    out = home / f"text-{dtype}"
    run(home, out, plan)
    sites = lora_names.sdxl_sites(tiny_models.components(tiny_models.parts(home)))
    found = layouts.read(out / "zanna.safetensors", sites)
    for component in ("unet", "text_encoder", "text_encoder_2"):
        mine = {m: d for (c, m), d in found.items() if c == component}
        assert mine
        assert max(d.up.abs().max() for d in mine.values()) > 0
    assert found["text_encoder", "encoder.layers.0.mlp.fc1"].rank == 3
    # alpha / rank is the same everywhere.
    assert {d.alpha / d.rank for d in found.values()} == {2.0}
    assert any(m.endswith("conv1") for _, m in found)


def test_maps_go_through_the_frozen_controlnet(home, whole):
    plan = tiny_training.plan(
        home,
        data={"conditioning": True},
        schedule={"steps": 2, "batch": 4},
        validation={
            "every": 1,
            "prompts": ("{trigger} {noun} in the street",),
            "count": 2,
            "steps": 2,
        },
    )
    out = home / "maps"
    told = []
    run(home, out, plan, report=lambda kind, data: told.append((kind, data)))
    drawn = [d for k, d in told if k == "validation"]
    assert [d["step"] for d in drawn] == [0, 1, 2]
    assert all(Path(f).is_file() for d in drawn for f in d["files"])
    assert len({Path(d["files"][0]).read_bytes() for d in drawn}) > 1
    without = tiny_training.plan(home, schedule={"steps": 2, "batch": 4})
    run(home, home / "no-maps", without)
    assert curve(out)[0] != curve(home / "no-maps")[0]


def test_only_so_many_checkpoints_stay(home):
    plan = tiny_training.plan(home, run={"save_every": 1, "keep": 2})
    result = run(home, home / "few", plan)
    assert [p.stem for p in result.checkpoints] == ["zanna-000005", "zanna-000006"]


def test_what_cannot_go_on_is_said(home, whole):
    out = whole[0]
    with pytest.raises(PlanError, match="a run already"):
        run(home, out)
    other = tiny_training.plan(home, optimizer={"rate": 3e-3})
    with pytest.raises(PlanError, match="another plan"):
        run(home, out, other, resume=True)
    (home / "broken").mkdir()
    (home / "broken" / "state.pt").write_bytes(b"not a state")
    with pytest.raises(PlanError, match="cannot be read"):
        run(home, home / "broken", resume=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": {"family": "flux"}, "data": {"bucket_step": 32}}, "family sdxl"),
        ({"adapter": {"targets": ("to_nowhere",)}}, "is called to_nowhere"),
        ({"data": {"conditioning": True, "flip": True}}, "do not fit their maps"),
        ({"optimizer": {"name": "adamw8bit"}}, "bitsandbytes|CUDA"),
    ],
)
def test_odd_plans_get_sentences(home, tmp_path, changes, words):
    with pytest.raises(PlanError, match=words):
        run(home, tmp_path / "odd", tiny_training.plan(home, **changes))


def test_a_loss_that_is_no_number_stops_the_run(home, tmp_path, monkeypatch):
    from onmodel.train.family_sdxl import SDXLTraining

    right = SDXLTraining.losses
    monkeypatch.setattr(SDXLTraining, "losses", lambda *a: right(*a) * float("nan"))
    with pytest.raises(PlanError, match="ran away: the loss of step 1 is nan"):
        run(home, tmp_path / "nan")


def test_measuring_leaves_nothing_behind(home, whole):
    found = engine.measure(tiny_training.plan(home), cache=home / "cache")
    assert found.steps == 3
    assert found.seconds_per_step > 0
    assert found.peak_bytes > 10_000_000


def test_a_folder_that_happens_to_be_called_like_a_model_is_not_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onmodel.train.plan import BasePlan

    (tmp_path / "rehearsal").mkdir()
    monkeypatch.chdir(tmp_path)
    entry = engine.find_entry(BasePlan(model="rehearsal"))
    assert entry.found.path != tmp_path / "rehearsal" and entry.name == "rehearsal"

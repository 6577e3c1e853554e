# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that draw while they learn: maps, the choice of a checkpoint, stops, and precision."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from onmodel.identity.interface import unit
from onmodel.lora import layouts
from onmodel.models import lora_names
from onmodel.models.memory import Place
from onmodel.train import accelerating, choose, engine, maps, validation
from onmodel.train.folder import read_metrics
from onmodel.train.plan import PlanError
from PIL import Image

from tests.server import tiny_models, tiny_training

every_two = {"every": 2, "prompts": ("{trigger} {noun}, {caption}",), "count": 2, "steps": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def shots(home):
    """A folder of maps of two shots; the second one's head is known."""
    folder = home / "shots"
    folder.mkdir()
    for name, colour in (("a", (90, 40, 10)), ("b", (10, 80, 30))):
        for kind in ("pose", "depth"):
            Image.new("RGB", (128, 64), colour).save(folder / f"{name}.{kind}.png")
    (folder / "a.txt").write_text("smiling,\n realistic")
    (folder / "b.head.json").write_text(json.dumps({"box": [64, 0, 96, 32]}))
    return folder


def run(home: Path, out: Path, plan, **options):
    return engine.train(plan, out, cache=home / "cache", **options)


def curve(out: Path) -> list[tuple]:
    rows = read_metrics(out / "metrics.jsonl")
    return [(r["step"], r["loss"], r["rate"], r["grad_norm"]) for r in rows]


class Brightness:
    """Takes mean colours for persons."""

    name, size = "brightness", 3

    def embed(self, image, head=None, yaw=None):
        return unit(image.reshape(-1, 3).mean(0) + 1.0)


def test_the_chosen_checkpoint_is_the_lora_and_drawing_changes_no_loss(home, shots, monkeypatch):
    run(home, home / "plain", tiny_training.plan(home))
    right, judged = choose.choose, []

    def second(*arguments):
        judged.append(arguments)
        return replace(right(*arguments), best=2)

    monkeypatch.setattr(choose, "choose", second)
    monkeypatch.setattr(choose, "judge_for", lambda embedded: choose.Judge(Brightness()))
    told = []
    out, plan = (
        home / "chosen",
        tiny_training.plan(home, validation={**every_two, "maps": str(shots)}),
    )
    result = run(home, out, plan, report=lambda kind, data: told.append((kind, data)))
    assert curve(out) == curve(home / "plain")
    assert result.chosen == 2
    assert (out / "zanna.safetensors").read_bytes() == (
        out / "zanna-000002.safetensors"
    ).read_bytes()
    sites = lora_names.sdxl_sites(tiny_models.components(tiny_models.parts(home)))
    ours, theirs = (
        layouts.read(out / name, sites)
        for name in ("zanna-000002.safetensors", "zanna.diffusers.safetensors")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(d.matrix(), theirs[key].matrix()) for key, d in ours.items())
    (chosen,) = [data for kind, data in told if kind == "chosen"]
    assert chosen["step"] == 2
    assert json.loads((out / "choice.json").read_text())["best"] == 2
    assert (out / "identity.png").is_file()
    ((drawings, training, _, heads, references),) = judged
    assert sorted(drawings) == [0, 2, 4, 6]
    assert len(training) == 4 and references is None
    # 128 x 64 comes to 64 x 32 here.
    assert heads == [None, (32.0, 0.0, 48.0, 16.0)]


def test_where_nobody_can_judge_the_last_checkpoint_is_taken(home, monkeypatch):
    monkeypatch.setattr(choose, "judge_for", lambda embedded: "There is no embedder.")
    told = {}
    plan = tiny_training.plan(home, schedule={"steps": 2}, validation=every_two)
    result = run(home, home / "last", plan, report=lambda kind, data: told.update({kind: data}))
    assert result.chosen == 2
    assert "step 2, is taken" in told["chosen"]["sentence"]


def test_a_lora_that_learned_nothing_is_named(home):
    plan = tiny_training.plan(home, schedule={"steps": 1}, optimizer={"rate": 1e-12})
    found = run(home, home / "idle", plan)
    assert found.choice is None  # the smallest rate still moves the numbers
    plan = tiny_training.plan(
        home, schedule={"steps": 2, "warm_up": 1}, optimizer={"rate": 1e-12}, validation=every_two
    )
    found = run(home, home / "faint", plan)
    assert found.choice is not None and found.choice.zero_effect


def test_stopped_while_drawing_it_draws_again(home, monkeypatch):
    plan = tiny_training.plan(home, schedule={"steps": 4}, validation=every_two)
    run(home, home / "through", plan)
    out, right = home / "stopped", validation.draw_all

    def half(family, wanted, folder):
        files = right(family, wanted[:1] if folder.name == "000002" else wanted, folder)
        if folder.name == "000002":
            raise KeyboardInterrupt
        return files

    monkeypatch.setattr(validation, "draw_all", half)
    with pytest.raises(KeyboardInterrupt):
        run(home, out, plan)
    monkeypatch.setattr(validation, "draw_all", right)
    run(home, out, plan, resume=True)
    assert curve(out) == curve(home / "through")
    for name in ("000002/00.png", "000002/01.png", "000004/01.png"):
        first, second = (place / "drawings" / name for place in (out, home / "through"))
        assert first.read_bytes() == second.read_bytes()


def test_other_drawings_than_before_are_put_aside(home):
    out = home / "changed"
    plan = tiny_training.plan(home, schedule={"steps": 4}, validation=every_two)
    asked = iter(range(1000))
    run(home, out, plan, cancelled=lambda: next(asked) >= 12)
    drawn = sorted(p.name for p in (out / "drawings").iterdir())
    other = replace(plan, validation=replace(plan.validation, seed=9, every=4))
    run(home, out, other, resume=True)
    assert sorted(p.name for p in (out / "drawings.1").iterdir()) == drawn
    assert sorted(p.name for p in (out / "drawings").iterdir()) == ["000000", "000004"]
    # The base model's drawings, though the run had begun to learn, as a run from its start has.
    run(home, home / "fresh", replace(other, schedule=replace(other.schedule, steps=1)))
    base = [(p / "drawings/000000/00.png").read_bytes() for p in (out, home / "fresh")]
    assert base[0] == base[1]


def test_maps_come_with_captions_and_heads(home, shots):
    plan = tiny_training.plan(home, validation={**every_two, "maps": str(shots)})
    first, second = maps.map_sets(plan, shots)
    assert sorted(first.files) == ["depth", "pose"]
    assert (first.caption, first.head) == ("smiling, realistic", None)
    assert plan.validation_prompts(first.caption) == ("zanna woman, smiling, realistic",)
    assert plan.validation_prompts(second.caption) == ("zanna woman",)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.head.json", "{}", "cannot be used"),
        ("a.head.json", '{"box": [1, 2, 3]}', "3 numbers"),
        ("a.depth.png", "no picture", "cannot be used"),
    ],
)
def test_maps_that_cannot_be_used_say_why(home, tmp_path, name, content, words):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.pose.png")
    (tmp_path / name).write_text(content)
    with pytest.raises(PlanError, match=words):
        maps.map_sets(tiny_training.plan(home), tmp_path)


def test_precision_is_each_runs_own(monkeypatch):
    place = Place("cpu", "float32", "cpu", 0)
    for dtype, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        found = accelerating.make(place, dtype)
        with found.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == kind
        assert found.device.type == "cpu"
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(PlanError, match="without accelerate launch"):
        accelerating.make(place, "fp32")

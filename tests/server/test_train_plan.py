# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans: presets, files, overrides, and what keeps a plan from running."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from onmodel.train.plan import PlanError, TrainingPlan, check, problems
from onmodel.train.plan_file import (
    all_keys,
    from_toml,
    load_preset,
    preset_names,
    read,
    to_toml,
    with_overrides,
)

person = ["base.model=rehearsal", "data.images=x", "data.trigger=mira", "data.noun=woman"]


@pytest.mark.parametrize("name", preset_names())
def test_presets_run_once_the_character_is_named_and_survive_a_file(name: str) -> None:
    plan = load_preset(name)
    check(plan, complete=False)
    whole = with_overrides(plan, person)
    assert problems(whole) == []
    assert from_toml(to_toml(whole)) == whole


def test_the_papers_figures() -> None:
    sdxl, flux = load_preset("paper-sdxl"), load_preset("paper-flux")
    assert sdxl.data.resolution == flux.data.resolution == 1024
    assert sdxl.optimizer.rate == sdxl.optimizer.text_encoder_rate == 1e-6
    assert sdxl.adapter.text_encoders and sdxl.adapter.rank == 64
    assert 400 <= (sdxl.schedule.epochs or 0) <= 600
    assert sdxl.loss.masked and sdxl.loss.background == 0
    assert flux.optimizer.rate == 5e-4 and flux.schedule.scheduler == "polynomial"
    assert flux.schedule.warm_up == 100 and 16 <= flux.adapter.rank <= 32
    assert 1400 <= (flux.schedule.steps or 0) <= 1600


def test_presets_tell_their_source() -> None:
    from onmodel.train.plan_file import preset_folder

    for name in preset_names():
        text = (preset_folder / f"{name}.toml").read_text("utf-8")
        assert sum(line.startswith("#") for line in text.splitlines()) >= 5, name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[schedule]\nstep = 3", "schedule.steps"),
        ("[data]\nrank = 3", "adapter.rank"),
        ('preset = "sdlx"', "sdxl"),
        ("[data]\nrepeats = 1.5", "whole number"),
        ("[data]\nflip = 1", "true or false"),
        ("[optimizer]\nbetas = [0.9]", "list of 2"),
        ("data = 3", "[data]"),
        ("[data", "not TOML"),
    ],
)
def test_files_are_refused_with_the_nearest_key_or_the_right_kind(text: str, said: str) -> None:
    with pytest.raises(PlanError) as error:
        from_toml(text)
    assert said in str(error.value)


def test_a_file_starts_from_a_preset_and_its_folders_lie_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "mira.toml"
    file.write_text('preset = "sdxl"\nname = "mira"\n[data]\nimages = "faces"\ntrigger = "mira"\n')
    plan = read(file)
    assert plan.adapter == load_preset("sdxl").adapter
    assert Path(plan.data.images) == tmp_path / "faces"
    assert plan.data.regularisation is None


def test_overrides_take_toml_values_bare_words_and_none() -> None:
    plan = with_overrides(
        load_preset("paper-sdxl"),
        [
            "schedule.epochs=none",
            "schedule.steps=12",
            "data.trigger=007",
            "adapter.targets=['to_q', 'to_v']",
            "schedule.ema=0.5",
            "name=a b",
        ],
    )
    assert (plan.schedule.steps, plan.schedule.epochs, plan.schedule.ema) == (12, None, 0.5)
    assert plan.data.trigger == "007" and plan.adapter.targets == ("to_q", "to_v")
    assert [p.message for p in problems(plan, complete=False)] == [
        "“a b” cannot be the name of the files."
    ]
    with pytest.raises(PlanError, match=r"optimizer\.betas"):
        with_overrides(plan, ["optimizer.betas=[1]"])
    with pytest.raises(PlanError, match=r"key\.sub=value"):
        with_overrides(plan, ["schedule.steps"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["schedule.epochs=3"], "both steps and epochs"),
        (["schedule.steps=none"], "neither steps nor epochs"),
        (["adapter.text_encoders=true"], "Text cannot be cached"),
        (["data.masks=false"], "reads no masks"),
        (["adapter.unet=false"], "trains nothing"),
        (["adapter.rank=0"], "adapter.rank is 0"),
        (["optimizer.rate=nan"], "optimizer.rate is nan"),
        (["optimizer.betas=[0.9, 1.0]"], "betas"),
        (["schedule.warm_up=1500"], "still rises"),
        (["data.bucket_step=60"], "bucket_step"),
        (["base.family=flux"], "Flux learns a flow"),
        (["base.dtype=int8"], "int8"),
        (["validation.prompts=[]"], "validation"),
        (["name=../x"], "cannot be the name"),
    ],
)
def test_what_cannot_run_is_said(settings: list[str], said: str) -> None:
    plan = with_overrides(load_preset("sdxl"), [*person, *settings])
    with pytest.raises(PlanError) as error:
        check(plan)
    assert said in str(error.value) and error.value.fix


def test_an_empty_plan_tells_all_of_its_problems() -> None:
    with pytest.raises(PlanError, match="4 more") as error:
        check(TrainingPlan())
    assert "trigger" in str(error.value)


def test_validation_prompts_name_the_character() -> None:
    plan = with_overrides(load_preset("sdxl"), person)
    assert plan.subject == "mira woman"
    assert all("mira woman" in prompt for prompt in plan.validation_prompts())
    assert replace(plan, name="x").name == "x" and "loss.background" in all_keys()

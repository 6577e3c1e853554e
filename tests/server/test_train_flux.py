# SPDX-License-Identifier: GPL-3.0-or-later
"""Flux: a tiny one learns, resumes to the bit, draws, and its LoRA loads in plain diffusers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from onmodel.models import lora_file
from onmodel.models.flux_tokens import pack, token_places, unpack
from onmodel.train import engine
from onmodel.train.folder import read_metrics
from onmodel.train.plan import BasePlan, PlanError, TrainingPlan

from tests.server import tiny_flux, tiny_training


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flux")
    tiny_flux.build(folder / "models" / "flux")
    return folder


def plan(home: Path, **parts) -> TrainingPlan:
    found = replace(
        tiny_training.plan(home),
        base=BasePlan(str(home / "models" / "flux"), "flux", "fp32"),
    )
    for part, changes in parts.items():
        found = replace(found, **{part: replace(getattr(found, part), **changes)})
    return found


def test_packing_is_the_librarys():
    latents = torch.randn(2, 4, 6, 8)
    theirs = FluxPipeline._pack_latents(latents, 2, 4, 6, 8)
    assert torch.equal(pack(latents), theirs)
    assert torch.equal(unpack(theirs, 6, 8), latents)
    places = FluxPipeline._prepare_latent_image_ids(2, 3, 4, "cpu", torch.float32)
    assert torch.equal(token_places(3, 4), places)


def test_it_learns_resumes_draws_and_loads(home):
    settings = {
        "schedule": {"steps": 4},
        "optimizer": {"rate": 1e-2},
        "validation": {"every": 4, "prompts": ("a {trigger} {noun}",), "steps": 2},
    }
    out = home / "run"
    told = []
    result = engine.train(
        plan(home, **settings), out, lambda k, d: told.append((k, d)), cache=home / "cache"
    )
    assert result.finished
    drawn = [d for k, d in told if k == "validation"]
    assert [d["step"] for d in drawn] == [0, 4]

    asked = iter(range(1000))
    cut = home / "cut"
    engine.train(
        plan(home, **settings), cut, cancelled=lambda: next(asked) >= 9, cache=home / "cache"
    )
    assert 0 < len(read_metrics(cut / "metrics.jsonl")) < 4
    engine.train(plan(home, **settings), cut, cache=home / "cache", resume=True)
    losses = [[r["loss"] for r in read_metrics(p / "metrics.jsonl")] for p in (out, cut)]
    assert losses[0] == losses[1]

    checked = lora_file.check(result.lora)
    assert checked.family == "flux"
    modules = {p.module for p in checked.pairs}
    assert "transformer_blocks.0.attn.add_k_proj" in modules
    assert "single_transformer_blocks.0.proj_mlp" in modules
    assert "proj_out" not in modules
    pipe = FluxPipeline.from_pretrained(home / "models" / "flux", local_files_only=True)
    pipe.load_lora_weights(str(result.lora))
    layer = pipe.transformer.get_submodule("transformer_blocks.0.attn.to_q")
    (name,) = layer.lora_A
    assert layer.scaling[name] == 2.0
    assert layer.lora_B[name].weight.abs().max() > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"conditioning": True}}, "without maps"),
        ({"loss": {"min_snr_gamma": 5.0}}, "Flux learns a flow"),
    ],
)
def test_what_flux_cannot_do_is_said(home, tmp_path, changes, words):
    with pytest.raises(PlanError, match=words):
        engine.train(plan(home, **changes), tmp_path / "odd", cache=home / "cache")

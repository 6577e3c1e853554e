# SPDX-License-Identifier: GPL-3.0-or-later
"""Losses, noise schedules and rates against sums done by hand."""

from __future__ import annotations

import math

import pytest
import torch
from onmodel.train import losses, optimizers
from onmodel.train.plan import OptimizerPlan, PlanError, SchedulePlan

sdxl = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def test_masked_loss_by_hand():
    squared = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[3.0, 2.0], [1.0, 0.0]]]])
    mask = torch.tensor([[[[1.0, 0.5], [0.0, 0.0]]]])
    # Means over channels: 2 2 / 2 2, then weighted by 1 and 0.5.
    assert losses.per_picture(squared, mask).tolist() == [2.0]
    squared[0, :, 0, 1] = 8.0
    assert losses.per_picture(squared, mask).tolist() == [(2 + 0.5 * 8) / 1.5]
    assert losses.per_picture(squared, None).tolist() == [(2 + 8 + 2 + 2) / 4]


def test_small_masks_weigh_as_much_as_large_ones():
    squared = torch.full((2, 4, 8, 8), 3.0)
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, 0, 0, 0] = 1
    masks[1] = 1
    assert losses.per_picture(squared, masks).tolist() == [3.0, 3.0]


def test_no_gradient_outside_of_the_mask():
    said = torch.randn(1, 4, 8, 8, requires_grad=True)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, 3:6] = 1
    losses.per_picture(said.square(), mask).sum().backward()
    outside = said.grad.masked_select((mask == 0).expand_as(said))
    assert outside.abs().max() == 0
    assert said.grad[..., 3, 4].abs().min() > 0


def test_latent_mask_is_the_share_of_each_cell_with_a_background():
    mask = torch.zeros(16, 16)
    mask[:8, :4] = 1
    assert losses.latent_mask(mask, (2, 2), 0.0).tolist() == [[[0.5, 0], [0, 0]]]
    found = losses.latent_mask(mask, (2, 2), 0.1)
    torch.testing.assert_close(found, torch.tensor([[[0.55, 0.1], [0.1, 0.1]]]))


def test_an_empty_mask_is_an_error_not_a_nan():
    with pytest.raises(ValueError, match="without any weight"):
        losses.per_picture(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))


def test_min_snr_weights():
    snr = torch.tensor([0.0, 1.0, 5.0, 20.0])
    epsilon = losses.min_snr_weight(snr, 5.0, "epsilon")
    v = losses.min_snr_weight(snr, 5.0, "v")
    assert epsilon.tolist() == [1.0, 1.0, 1.0, 0.25]
    torch.testing.assert_close(v, torch.tensor([0.0, 0.5, 5 / 6, 5 / 21]))


def test_noise_schedule_has_zero_terminal_snr_where_the_model_does():
    plain = losses.NoiseSchedule(sdxl)
    zero = losses.NoiseSchedule(
        {**sdxl, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    )
    assert plain.signal[-1] > 0.05
    assert zero.signal[-1] == 0.0
    assert zero.noise[-1] == 1.0
    assert (plain.prediction, zero.prediction) == ("epsilon", "v")
    for schedule in (plain, zero):
        torch.testing.assert_close(
            schedule.signal**2 + schedule.noise**2, torch.ones(1000), atol=1e-5, rtol=0
        )


def test_targets_recover_the_clean_picture():
    config = {**sdxl, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    schedule = losses.NoiseSchedule(config)
    clean, noise = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    times = torch.tensor([10, 999])
    noisy, v = schedule.mix(clean, noise, times)
    signal = schedule.signal[times].view(-1, 1, 1, 1)
    amount = schedule.noise[times].view(-1, 1, 1, 1)
    torch.testing.assert_close(signal * noisy - amount * v, clean)
    torch.testing.assert_close(v[1], -clean[1])
    torch.testing.assert_close(noisy[1], noise[1])


def test_unknown_prediction_is_named():
    with pytest.raises(ValueError, match="sample"):
        losses.NoiseSchedule({**sdxl, "prediction_type": "sample"})


def test_noise_offset_is_one_number_a_channel():
    noise = torch.zeros(2, 4, 8, 8)
    moved = losses.offset_noise(noise, 0.5, torch.Generator().manual_seed(0))
    assert moved.flatten(2).std(dim=2).max() == 0
    assert moved[..., 0, 0].unique().numel() == 8
    assert losses.offset_noise(noise, 0.0, torch.Generator()) is noise


def test_flow_path_and_shift():
    clean, noise = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    at, direction = losses.flow_mix(clean, noise, torch.tensor([0.25]))
    torch.testing.assert_close(at - 0.25 * direction, clean)
    few = losses.flow_levels(4000, 256, torch.Generator().manual_seed(1))
    many = losses.flow_levels(4000, 4096, torch.Generator().manual_seed(1))
    # The median of a logit-normal is 1/2; shifted by mu it is e^mu / (e^mu + 1).
    for levels, mu in ((few, 0.5), (many, 1.15)):
        assert levels.median().item() == pytest.approx(1 / (1 + math.exp(-mu)), abs=0.02)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.5, 0]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.5, 0]),
        ("polynomial", [1 / 3, 2 / 3, 1, 0.25, 0]),
    ],
)
def test_rates(kind, wanted):
    plan = SchedulePlan(steps=10, scheduler=kind, warm_up=2, power=2.0)
    found = [optimizers.factor(plan, step, 10) for step in (0, 1, 2, 6, 10)]
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["adamw", "prodigy", "adafactor"])
def test_optimizers_go_downhill_and_keep_each_groups_rate(name):
    if name == "prodigy":
        pytest.importorskip("prodigyopt")
    torch.manual_seed(0)
    weight, other = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    rate = 1.0 if name == "prodigy" else 0.05
    plan = OptimizerPlan(name=name, rate=rate, weight_decay=0.0)
    half = rate if name == "prodigy" else rate / 2
    groups = [{"params": [weight], "lr": rate}, {"params": [other], "lr": half}]
    optimizer = optimizers.make(plan, groups)
    schedule = SchedulePlan(steps=40, scheduler="linear")
    for step in range(40):
        assert optimizers.set_rates(optimizer, schedule, step, 40) == rate * (1 - step / 40)
        assert optimizer.param_groups[1]["lr"] == half * (1 - step / 40)
        loss = weight.square().sum() + other.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Prodigy starts at a millionth and feels its way.
    assert weight.square().sum() < (12 if name == "prodigy" else 7)


def test_prodigy_has_one_rate_for_all():
    pytest.importorskip("prodigyopt")
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in (1.0, 0.5)]
    with pytest.raises(PlanError, match="one rate"):
        optimizers.make(OptimizerPlan(name="prodigy"), groups)


def test_missing_packages_and_devices_are_sentences(monkeypatch):
    import importlib

    weight = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": 1.0}]

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    for name in ("adamw8bit", "prodigy"):
        with pytest.raises(PlanError, match="is not installed here"):
            optimizers.make(OptimizerPlan(name=name), weight)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The face network's training: what it sees, stopping and going on, new people, held-out trials."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onmodel.identity import augment, cuts, evaluate, interface, pack, train
from onmodel.identity.net import FaceNet, input_size
from onmodel.identity.pack import Head
from PIL import Image


def a_pack(folder, people: list[int], each: int = 3) -> None:
    """A pack of smooth random heads."""
    rng = np.random.default_rng(1)
    cuts, heads = [], []
    for who in people:
        for index in range(each):
            small = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
            side = (pack.stored_size, pack.stored_size)
            cuts.append(np.asarray(small.resize(side, Image.Resampling.BICUBIC)))
            look = "animated" if index % 2 else "realistic"
            heads.append(Head(who, look, "portrait", 60.0, 10.0, "man", f"t/{index}"))
    pack.save(folder, cuts, heads)


def test_the_net_sees_the_same_cut_in_training_and_in_use():
    rng = np.random.default_rng(2)
    small = Image.fromarray(rng.integers(0, 255, (7, 7, 3), dtype=np.uint8))
    picture = np.asarray(small.resize((200, 200), Image.Resampling.BICUBIC))
    head = (60.0, 50.0, 130.0, 140.0)
    stored = interface.cut(picture, interface.square(head, pack.stored_margin), pack.stored_size)
    trained = cuts.network_input(stored[None])
    used = interface.cut(picture, interface.square(head, pack.input_margin), input_size)
    apart = (trained - cuts.to_tensor(used[None])).abs()
    assert float(apart.mean()) < 0.02


def test_the_net_is_blind_outside_its_window():
    net = FaceNet().eval()
    x = torch.rand(1, 3, input_size, input_size) * 2 - 1
    other = x.clone()
    other[:, :, -8:, :8] = 1.0
    other[:, :, :6, -6:] = -1.0
    assert torch.equal(net(x), net(other))
    assert float(net(x).detach().norm()) == pytest.approx(1, abs=1e-5)


def test_blocks_lose_nothing_at_a_fine_step_and_all_but_their_mean_at_a_coarse_one():
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(augment.coarse_blocks(x, torch.zeros(2)), x, atol=1e-3)
    flat = augment.coarse_blocks(x, torch.full((2,), 60.0))
    assert float(flat[:, :, :8, :8].std(dim=(2, 3)).max()) < 1e-5


def test_spoiling_repeats_with_its_seed_and_changes_the_picture():
    x = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    one, two = (augment.spoil(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert float((one - x).abs().mean()) > 0.05
    assert float(one.abs().max()) <= 1


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    a_pack(tmp_path / "p", [3, 5, 4097])
    plan = train.Plan(batch=4)
    faces = train.training_faces(tmp_path, ["p"])
    assert faces.people == [3, 5]
    whole = train.Trainer(faces.people, plan)
    losses = [whole.train_step(faces)[0] for _ in range(3)]
    first = train.Trainer(faces.people, plan)
    begun = [first.train_step(faces)[0] for _ in range(2)]
    first.save(tmp_path / "state.pt")
    second = train.Trainer(faces.people, plan)
    second.load(tmp_path / "state.pt")
    assert [*begun, second.train_step(faces)[0]] == losses
    assert all(
        torch.equal(a, b)
        for a, b in zip(second.net.parameters(), whole.net.parameters(), strict=True)
    )


def test_people_who_join_leave_the_known_ones_where_they_were(tmp_path):
    a_pack(tmp_path / "p", [3, 5])
    faces = train.training_faces(tmp_path, ["p"])
    trainer = train.Trainer(faces.people, train.Plan(batch=4))
    trainer.train_step(faces)
    trainer.save(tmp_path / "state.pt")
    more = train.Trainer([1, 3, 4, 5], train.Plan(batch=4))
    more.load(tmp_path / "state.pt")
    assert torch.equal(more.directions.data[[1, 3]], trainer.directions.data)
    assert more.step == 1


def test_references_are_never_probes_and_kin_share_their_words():
    heads = [
        Head(who, "realistic", "portrait", 80.0 - k, 5.0, "man" if who < 2 else "woman", "t")
        for who in range(3)
        for k in range(5)
    ]
    rng = np.random.default_rng(5)
    centres = np.eye(8)[:3]
    points = np.repeat(centres, 5, axis=0) + rng.normal(0, 0.05, (15, 8))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    chosen = evaluate.choose_references(heads)
    assert chosen[0, "realistic"] == [0, 1, 2]
    found = evaluate.trials(heads, points, points)
    assert sorted(set(found.probe.tolist())) == [3, 4, 8, 9, 13, 14]
    assert (int(found.genuine.sum()), int(found.kin.sum()), len(found.cosine)) == (6, 4, 18)
    row = evaluate.table(heads, found, least=4)[0]
    assert (row["auc"], row["auc_kin"], row["eer"]) == (1.0, 1.0, 0.0)

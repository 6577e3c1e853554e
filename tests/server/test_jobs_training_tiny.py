# SPDX-License-Identifier: GPL-3.0-or-later
"""A tiny SDXL trained by a real server: preflight, cancel, retry, kill, the LoRA in its place."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onmodel.models import lora_file
from onmodel.train.folder import read_metrics
from onmodel.train.plan import ValidationPlan

from addon.core.client import Client, Refused
from tests.server import tiny_models, tiny_training
from tests.support.server import RunningServer, wait_for

final = ("done", "failed", "cancelled")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_models.entry(folder / "data")
    arguments = ["--artist", "onmodel.generate.artist:Artist"]
    arguments += ["--trainer", "onmodel.train.job:Trainer", "--train-root", str(folder)]
    with RunningServer(folder, arguments=arguments) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with server.client() as made:
        yield made


def plan(server: RunningServer, **parts: Any) -> dict[str, Any]:
    """Thirty steps of the tiny model, as JSON has it."""
    made = tiny_training.plan(
        server.data,
        schedule={"steps": 30, "batch": 2},
        run={"save_every": 4, "threads": 1},
        **parts,
    )
    images = tiny_training.pictures(server.folder / "pictures", maps=True)
    made = replace(
        made,
        base=replace(made.base, model="tiny"),
        data=replace(made.data, images=str(images)),
        validation=ValidationPlan(every=15, prompts=("{trigger} {noun}",), steps=2),
    )
    return dataclasses.asdict(made)


def wait_for_save(client: Client, training: str, over: int) -> dict[str, Any]:
    """The training once it is saved at a step over `over`; it has not ended by then."""

    def saved() -> dict[str, Any] | None:
        found = client.training(training)
        assert found["state"] not in final, found["error"]
        return found if found["saved"] > over else None

    found: dict[str, Any] = wait_for(saved, "nothing was saved", 300.0)
    return found


def test_preflight_says_what_becomes_of_every_picture(
    server: RunningServer, client: Client
) -> None:
    asked = plan(server)
    (server.folder / "pictures" / "odd.png").write_bytes(b"no picture")
    report = client.preflight(asked)
    (server.folder / "pictures" / "odd.png").unlink()
    assert report["ok"] and report["steps"] == 30 and report["measured"] is None
    assert [p["name"] for p in report["kept"]] == ["0.png", "1.png", "2.png", "3.png"]
    assert [r["name"] for r in report["refused"]] == ["odd.png"]
    assert str(server.folder) not in str(report)
    # A training begins with the same look, and what it finds it fails with.
    asked["adapter"]["rank"] = 1000
    made = client.train({**asked, "name": "wide"}, "wide")
    failed = next(e for e in client.events(made["id"]) if e["type"] == "failed")
    assert "rank of 1000" in failed["message"] and "adapter.rank" in failed["fix"]


def test_cancelled_retried_and_killed_it_learns_the_same_to_the_bit(
    server: RunningServer, client: Client
) -> None:
    asked = plan(server)
    made = client.train(asked, "once")["id"]
    assert client.train(asked, "once")["id"] == made
    wait_for_save(client, made, 0)
    client.cancel_training(made)
    # The step that runs is finished and saved; a retry waits for that by itself.
    client.retry_training(made)
    cut = wait_for_save(client, made, 7)
    worker = server.worker_pid()
    assert worker is not None
    os.kill(worker, getattr(signal, "SIGKILL", signal.SIGTERM))
    events = list(client.events(made, after=cut["last_event"]))
    told = [e["type"] for e in events]
    assert told[-2:] == ["done", "job_done"] and told.count("queued") == 1
    # Who hears of the end finds the LoRA: listed, whole, with what it was trained for.
    lora = events[-2]["lora"]
    assert (lora["name"], lora["hash"]) in [(x["name"], x["hash"]) for x in client.info()["loras"]]
    checked = lora_file.check(server.data / "loras" / "zanna.safetensors")
    assert (checked.trigger, checked.metadata["ss_steps"]) == ("zanna woman", "30")
    found = client.training(made)
    assert (found["state"], found["step"], found["saved"]) == ("done", 30, 30)
    assert [v["step"] for v in found["validation"]] == [0, 15, 30]
    for blob in (found["masks"], *(b for v in found["validation"] for b in v["blobs"])):
        assert client.blob(blob).startswith(b"\x89PNG")
    # An undisturbed run of the same plan.
    from onmodel.train import engine, plan_file

    alone = plan_file.from_table(asked)
    alone = replace(
        alone,
        base=replace(alone.base, model=str(server.data / "models" / "tiny")),
        validation=ValidationPlan(),
    )
    out = server.folder / "alone"
    engine.train(alone, out, cache=server.data / "cache" / "train")
    assert curve(out) == curve(server.data / "trainings" / made)


def curve(run: Path) -> list[tuple[float, ...]]:
    """Step and loss of every step."""
    return [(r["step"], r["loss"], r["grad_norm"]) for r in read_metrics(run / "metrics.jsonl")]


def test_links_put_there_after_the_submit_are_found_at_the_start(
    server: RunningServer, client: Client, tmp_path: Path
) -> None:
    """The worker looks again: what was allowed at submit may lead elsewhere by then."""
    from onmodel.jobs.trainer import TrainError, TrainingTask
    from onmodel.train.job import Trainer

    asked = plan(server)
    (tmp_path / "secret.txt").write_text("a secret")
    link = server.folder / "pictures" / "4.txt"
    link.symlink_to(tmp_path / "secret.txt")
    task = TrainingTask("0", asked, "", tmp_path)
    with pytest.raises(TrainError, match="is a link"):
        Trainer([server.folder]).train(task, lambda *_: None, lambda: False)
    with pytest.raises(Refused, match="is a link"):
        client.preflight(asked)
    link.unlink()

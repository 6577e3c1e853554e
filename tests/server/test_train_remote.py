# SPDX-License-Identifier: GPL-3.0-or-later
"""`onmodel train --server` and `onmodel jobs` against a real server with the fake trainer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from onmodel import cli
from onmodel.train import remote
from onmodel.train.plan import PlanError

from tests.support.server import RunningServer, wait_for


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("remote")
    (folder / "mira").mkdir()
    arguments = ["--trainer", "tests.support.fake_trainer:FakeTrainer", "--train-root", str(folder)]
    knobs = {"FAKE_TRAIN_GATE": str(folder / "gate"), "FAKE_TRAIN_STEP": "6"}
    with RunningServer(folder, knobs, arguments) as running:
        yield running


def command(server: RunningServer, name: str, *more: str, steps: int = 4) -> list[str]:
    given = ["train", "--preset", "rehearsal", "--images", str(server.folder / "mira")]
    given += ["--trigger", "mirazel", "--noun", "woman", "--name", name]
    given += ["--set", f"schedule.steps={steps}", "--set", "schedule.warm_up=0"]
    return [*given, "--set", "run.save_every=2", "--server", str(server.ready_file), *more]


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_plan_is_trained_there_and_followed(
    server: RunningServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(command(server, "one", "--json")) == 0
    told = lines(capsys.readouterr().out)
    kinds = list(dict.fromkeys(row["type"] for row in told))
    assert kinds[:2] == ["submitted", "queued"]
    assert kinds[-1] == "done"
    (done,) = [row for row in told if row["type"] == "done"]
    assert done["lora"]["name"] == "one"
    assert (server.data / "loras" / "one.safetensors").is_file()
    # The same command again tells what became of it.
    monkeypatch.setenv("ONMODEL_TOKEN", server.ready["token"])
    again = command(server, "one")
    again[again.index("--server") + 1] = server.ready["url"]
    assert cli.main(again) == 0
    assert "done: " in capsys.readouterr().out
    assert cli.main(["jobs", "--data", str(server.data)]) == 0
    (row,) = [row for row in capsys.readouterr().out.splitlines() if "LoRA one" in row]
    assert "done" in row and "step 4 of 4" in row
    assert cli.main(["jobs", "--data", str(server.data), "--json"]) == 0
    (data,) = [row for row in json.loads(capsys.readouterr().out) if row.get("name") == "one"]
    assert (data["kind"], data["state"]) == ("training", "done")


def test_ctrl_c_asks_and_the_same_command_goes_on(
    server: RunningServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, True])
    gate = server.folder / "gate"
    monkeypatch.setattr(remote, "at_the_terminal", lambda: next(answers))
    right, stopped = remote._follow, []

    def interrupted(*arguments):
        """Ctrl+C at the gate of the sixth step, once a start."""
        if len(stopped) < 2:
            wait_for((server.folder / "gate.waits").exists, "the gate")
            stopped.append(True)
            raise KeyboardInterrupt
        return right(*arguments)

    monkeypatch.setattr(remote, "_follow", interrupted)
    asked = command(server, "two", steps=8)
    try:
        assert cli.main(asked) == 130
        assert "It goes on" in capsys.readouterr().out
        assert cli.main(["jobs", "--data", str(server.data)]) == 0
        (row,) = [row for row in capsys.readouterr().out.splitlines() if "LoRA two" in row]
        assert "training" in row and "of 8" in row and "left" in row
        assert cli.main(asked) == 130
        assert "It stops after this step" in capsys.readouterr().out
    finally:
        gate.touch()
    assert cli.main(asked) == 0
    assert "It had been cancelled" in capsys.readouterr().out
    lora = server.data / "loras" / "two.safetensors"
    assert lora.read_text().startswith("[1, 2, 3, 4, 5, 6, 7, 8]")


def test_what_fails_there_is_said_here(
    server: RunningServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(command(server, "three", "--set", "data.noun=failure")) == 1
    assert "asked to fail" in capsys.readouterr().out
    assert cli.main(command(server, "one", "--set", "adapter.rank=8")) == 1
    assert "another one.safetensors" in capsys.readouterr().out
    assert cli.main(command(server, "five", "--set", "base.model=nowhere")) == 1
    assert "no model" in capsys.readouterr().err
    assert cli.main(command(server, "four", "--out", str(tmp_path))) == 2
    assert "leave --out" in capsys.readouterr().err


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONMODEL_TOKEN", raising=False)
    with pytest.raises(PlanError, match="wants a token"):
        remote.find_server("http://127.0.0.1:9", None)
    with pytest.raises(PlanError, match="does not answer"):
        remote.find_server("http://127.0.0.1:9", "t" * 16).ask("GET", "")
    with pytest.raises(PlanError, match="neither an address"):
        remote.find_server(str(tmp_path / "none.json"), None)

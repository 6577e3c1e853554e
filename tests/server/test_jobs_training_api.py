# SPDX-License-Identifier: GPL-3.0-or-later
"""Trainings over HTTP, real worker, fake trainer: submit, follow, cancel, kill, refuse."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from addon.core.client import Client, Refused
from tests.support.keyframes import job, unique
from tests.support.server import RunningServer, send_images, wait_for, wait_job

numbers = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("trainings")
    (made / "home" / "mira").mkdir(parents=True)
    (made / "outside").mkdir()
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    arguments = ["--trainer", "tests.support.fake_trainer:FakeTrainer"]
    arguments += ["--train-root", str(folder / "home")]
    knobs = {"FAKE_TRAIN_GATE": str(folder / "gate"), "FAKE_TRAIN_STEP": "6"}
    with RunningServer(folder, knobs, arguments) as running:
        send_images(running.client())
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with server.client() as made:
        yield made


def plan(folder: Path, **changes: Any) -> dict[str, Any]:
    """A plan of four steps; changes: values by key, "data.noun" and so on."""
    made: dict[str, Any] = {
        "preset": "rehearsal",
        "name": f"lora{next(numbers)}",
        "data": {"images": str(folder / "home" / "mira"), "trigger": "mirazel", "noun": "woman"},
        "schedule": {"steps": 4, "warm_up": 0},
        "run": {"save_every": 2},
    }
    for key, value in changes.items():
        part, _, sub = key.rpartition("__")
        (made.setdefault(part, {}) if part else made)[sub] = value
    return made


def request(asked: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"client_key": f"key {next(numbers)}", "plan": asked, **more}


def post(server: RunningServer, path: str, body: Any = None) -> requests.Response:
    headers = {"Authorization": f"Bearer {server.ready['token']}"}
    if isinstance(body, str):
        headers["Content-Type"] = "application/json"
        return requests.post(server.ready["url"] + path, body, headers=headers, timeout=60)
    return requests.post(server.ready["url"] + path, json=body, headers=headers, timeout=60)


def get(server: RunningServer, path: str) -> Any:
    headers = {"Authorization": f"Bearer {server.ready['token']}"}
    return requests.get(server.ready["url"] + path, headers=headers, timeout=60).json()


def test_a_training_is_run_and_told_of_in_order(
    server: RunningServer, client: Client, folder: Path
) -> None:
    asked = request(plan(folder))
    answer = post(server, "/v1/trainings", asked)
    assert answer.status_code == 201 and answer.json()["state"] == "queued"
    made = answer.json()["id"]
    events = list(client.events(made))  # a training's events are those of any job
    assert [e["id"] for e in events] == sorted({e["id"] for e in events})
    told = list(dict.fromkeys(e["type"] for e in events))
    assert told[0] == "queued" and told[-2:] == ["done", "job_done"] and "saved" in told
    found = get(server, f"/v1/trainings/{made}")
    assert (found["state"], found["step"], found["steps"]) == ("done", 4, 4)
    assert found["plan"]["adapter"]["rank"] == 16  # of the preset
    assert found["plan"]["data"]["images"] == str((folder / "home" / "mira").resolve())
    for drawing in found["validation"]:
        assert client.blob(drawing["blobs"][0]).startswith(b"\x89PNG")
    lora = server.data / "loras" / f"{found['name']}.safetensors"
    assert lora.read_text().startswith("[1, 2, 3, 4]")
    assert made in [t["id"] for t in get(server, "/v1/trainings")["trainings"]]
    assert made not in [j["id"] for j in client.jobs()]
    again = post(server, "/v1/trainings", asked)
    assert again.status_code == 200 and again.json()["id"] == made
    stream = requests.get(
        f"{server.ready['url']}/v1/trainings/{made}/events?after={events[-2]['id']}",
        headers={"Authorization": f"Bearer {server.ready['token']}"},
        timeout=60,
    ).text
    assert stream.count("data: ") == 1 and "job_done" in stream


def test_drawings_wait_are_told_so_and_a_killed_worker_goes_on(
    server: RunningServer, client: Client, folder: Path
) -> None:
    (folder / "gate").unlink(missing_ok=True)
    (folder / "gate.waits").unlink(missing_ok=True)
    made = post(server, "/v1/trainings", request(plan(folder, schedule__steps=8))).json()["id"]
    wait_for((folder / "gate.waits").exists, "the training did not come to its gate")
    info = client.info()
    assert info["training"]["id"] == made and "drawings wait" in info["worker"]["message"]
    drawing = client.submit(job(*unique(1)))
    first = next(e for e in client.events(drawing["id"]) if e["type"] == "waiting")
    assert first["training"] == made and info["training"]["name"] in first["message"]
    worker = server.worker_pid()
    assert worker is not None
    (folder / "gate.waits").unlink()
    os.kill(worker, getattr(signal, "SIGKILL", signal.SIGTERM))
    wait_for((folder / "gate.waits").exists, "nobody went on with the training")
    assert get(server, f"/v1/jobs/{drawing['id']}")["state"] == "queued"
    (folder / "gate").touch()
    assert wait_job(client, drawing["id"])["state"] == "done"
    found = get(server, f"/v1/trainings/{made}")
    assert (found["state"], found["saved"]) == ("done", 8)
    run = server.data / "trainings" / made
    # It went on from the save at step 4; no step is missing and none is there twice.
    assert (run / "starts.txt").read_text().split() == ["0", "4"]
    lora = (server.data / "loras" / f"{found['name']}.safetensors").read_text()
    assert lora.startswith("[1, 2, 3, 4, 5, 6, 7, 8]")
    assert client.info()["training"] is None and client.info()["worker"]["message"] == ""


def test_cancel_and_retry(server: RunningServer, client: Client, folder: Path) -> None:
    (folder / "gate").unlink(missing_ok=True)
    (folder / "gate.waits").unlink(missing_ok=True)
    made = post(server, "/v1/trainings", request(plan(folder, schedule__steps=8))).json()["id"]
    wait_for((folder / "gate.waits").exists, "the training did not come to its gate")
    path = f"/v1/trainings/{made}"
    assert post(server, f"{path}/cancel").json() == {"id": made, "cancelled": True}
    assert post(server, f"{path}/cancel").json() == {"id": made, "cancelled": False}
    assert get(server, path)["state"] == "cancelled"
    # The machine is free: a drawing is drawn.
    assert wait_job(client, client.submit(job(*unique(1)))["id"])["state"] == "done"
    (folder / "gate").touch()
    assert post(server, f"{path}/retry").json() == {"id": made, "queued": True}
    assert list(client.events(made))[-2]["type"] == "done"
    starts = (server.data / "trainings" / made / "starts.txt").read_text().split()
    assert starts == ["0", "5"]  # saved at the cancel


def test_a_training_that_always_dies_fails_with_a_sentence(
    server: RunningServer, client: Client, folder: Path
) -> None:
    (folder / "gate").touch()
    made = post(server, "/v1/trainings", request(plan(folder, data__noun="crash"))).json()["id"]
    failed = next(e for e in client.events(made) if e["type"] == "failed")
    assert "died 3 times" in failed["message"] and "memory" in failed["fix"]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"data__images": "/etc"}, "bad_folder", "outside"),
        ({"data__images": "{home}/../outside"}, "bad_folder", "whole path"),
        ({"data__images": "~/mira"}, "bad_folder", "whole path"),
        ({"data__regularisation": "{outside}"}, "bad_folder", "outside"),
        ({"validation__references": "{outside}"}, "bad_folder", "outside"),
        ({"data__images": "{home}/nobody"}, "bad_folder", "no folder"),
        ({"base__model": "{home}/mira"}, "unknown_model", "no model"),
        ({"base__model": "../rehearsal"}, "unknown_model", "no model"),
        ({"validation__maps": "{outside}"}, "bad_folder", "outside"),
        ({"base__family": "flux", "adapter__convolutions": False}, "bad_plan", "sdxl family"),
        ({"name": "../../lora"}, "bad_plan", "cannot be the name"),
        ({"name": "x" * 101}, "bad_plan", "letters"),
        ({"name": "ink"}, "lora_taken", "already"),
        ({"adapter__ranks": 4}, "bad_plan", "adapter.rank"),
        ({"adapter__rank": "4"}, "bad_plan", "whole number"),
        ({"adapter__rank": 0}, "bad_plan", "between 1"),
        ({"preset": "../plan"}, "bad_plan", "no preset"),
        ({"preset": "flux"}, "bad_plan", "base model"),
        ({"schedule__epochs": 10**400}, "invalid_request", "too large"),
        ({"data__trigger": "a\0b"}, "invalid_request", "control"),
        ({"data__trigger": {"a": {"b": 1}}}, "invalid_request", "table"),
        ({"validation__prompts": ["x"] * 1001}, "invalid_request", "too long"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_submit(
    server: RunningServer, folder: Path, changes: dict[str, Any], code: str, words: str
) -> None:
    places = {"home": folder / "home", "outside": folder / "outside"}
    changes = {k: v.format(**places) if isinstance(v, str) else v for k, v in changes.items()}
    count = len(get(server, "/v1/trainings")["trainings"])
    answer = post(server, "/v1/trainings", request(plan(folder, **changes)))
    error = answer.json()["error"]
    assert (answer.status_code in (409, 422), error["code"]) == (True, code), error
    assert words in error["message"] + error["fix"]
    assert len(get(server, "/v1/trainings")["trainings"]) == count
    # Preflight is no way around it (names are free to look at).
    if code != "lora_taken":
        answer = post(server, "/v1/trainings/preflight", {"plan": plan(folder, **changes)})
        assert answer.json()["error"]["code"] == code


def test_requests_of_another_form_are_refused(server: RunningServer, folder: Path) -> None:
    good = request(plan(folder))
    for bad in (
        {**good, "more": 1},
        {**good, "plan": "rehearsal"},
        {**good, "priority": "high"},
        {"plan": good["plan"]},
    ):
        answer = post(server, "/v1/trainings", bad)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")
    text = json.dumps(good).replace('"steps": 4', '"steps": NaN')
    assert post(server, "/v1/trainings", text).status_code == 422
    for path in ("/v1/trainings/" + "0" * 32, "/v1/trainings/" + "0" * 32 + "/events"):
        assert get(server, path)["error"]["code"] == "not_found"
    for action in ("cancel", "retry"):
        answer = post(server, f"/v1/trainings/{'0' * 32}/{action}")
        assert answer.status_code == 404


def test_a_training_is_not_a_drawing_to_the_other_addresses(
    server: RunningServer, client: Client, folder: Path
) -> None:
    (folder / "gate").touch()
    made = post(server, "/v1/trainings", request(plan(folder))).json()["id"]
    with pytest.raises(Refused) as refusal:
        client.job(made)
    assert refusal.value.code == "not_found"
    with pytest.raises(Refused):
        client.cancel(made)
    assert list(client.events(made))[-1]["type"] == "job_done"


def test_openapi_states_the_whole_plan(server: RunningServer) -> None:
    from onmodel.train import plan_file

    api = get(server, "/v1/openapi.json")
    stated = api["components"]["schemas"]["TrainingRequest"]["properties"]["plan"]
    keys = set()
    for name, part in stated["properties"].items():
        assert "$ref" not in json.dumps(part)
        keys |= {f"{name}.{sub}" for sub in part.get("properties", {})} or {name}
    assert keys == {*plan_file.all_keys(), "preset"}
    assert stated["additionalProperties"] is False
    for path in ("", "/preflight", "/{training}", "/{training}/events", "/{training}/retry"):
        assert f"/v1/trainings{path}" in api["paths"]


def test_a_killed_server_goes_on_at_its_next_start(tmp_path: Path) -> None:
    (tmp_path / "home" / "mira").mkdir(parents=True)
    arguments = ["--trainer", "tests.support.fake_trainer:FakeTrainer"]
    arguments += ["--train-root", str(tmp_path / "home")]
    knobs = {"FAKE_TRAIN_GATE": str(tmp_path / "gate"), "FAKE_TRAIN_STEP": "4"}
    with RunningServer(tmp_path, knobs, arguments) as server:
        asked = request(plan(tmp_path))
        made = post(server, "/v1/trainings", asked).json()["id"]
        wait_for((tmp_path / "gate.waits").exists, "the training did not come to its gate")
        server.kill()
        (tmp_path / "gate").touch()
        server.start()
        assert post(server, "/v1/trainings", asked).json()["id"] == made
        with server.client() as client:
            assert list(client.events(made))[-2]["type"] == "done"
    starts = (tmp_path / "data" / "trainings" / made / "starts.txt").read_text().split()
    assert starts == ["0", "2"]

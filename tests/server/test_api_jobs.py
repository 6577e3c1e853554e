# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs over HTTP with a real worker: submit, follow, cancel at every stage, retry, refuse."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import requests
from PIL import Image

from addon.core.client import Client, Refused
from tests.support import keyframes
from tests.support.keyframes import job, keyframe, unique
from tests.support.server import RunningServer, send_images, wait_for, wait_job


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("jobs")) as running:
        send_images(running.client())
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with server.client() as made:
        yield made


def post(server: RunningServer, path: str, body: Any = None) -> requests.Response:
    headers = {"Authorization": f"Bearer {server.ready['token']}"}
    return requests.post(f"{server.ready['url']}{path}", json=body, headers=headers, timeout=20)


def test_info_is_the_handshake(client: Client) -> None:
    info = client.info()
    assert (info["product"], info["api"], info["request_versions"]) == ("onmodel", 1, [1, 2])
    assert info["models"][0]["name"] == "rehearsal"
    (adapter,) = info["ip_adapters"]
    assert (adapter["name"], adapter["chosen"]) == ("plus-face", ["rehearsal"])
    wait_for(lambda: client.info()["device"] == "fake", "the device was never told")


def test_a_job_is_drawn_and_told_of_in_order(client: Client) -> None:
    made = client.submit(job(*unique(3)))
    assert [k["state"] for k in made["keyframes"]] == ["queued"] * 3
    events = list(client.events(made["id"]))
    numbers = [e["id"] for e in events]
    assert numbers == sorted(set(numbers))
    assert events[-1]["type"] == "job_done"
    for k in made["keyframes"]:
        own = [e["type"] for e in events if e["keyframe"] == k["id"]]
        assert own[0] == "queued" and own[-1] == "done" and own.count("done") == 1
    found = client.job(made["id"])
    assert found["state"] == "done"
    for k in found["keyframes"]:
        assert k["record"]["seed"] >= 1000 and k["timings"]["drawing"] > 0
        with Image.open(io.BytesIO(client.blob(k["result"]))) as picture:
            assert picture.size == (64, 36)
    assert found["id"] in [j["id"] for j in client.jobs()]


def test_a_repeated_submit_is_the_same_job(server: RunningServer, client: Client) -> None:
    asked = job(*unique(1))
    first = client.submit(asked)
    wait_job(client, first["id"])
    again = client.submit(asked)
    assert again["id"] == first["id"] and again["keyframes"][0]["state"] == "done"
    other = replace(asked, title="another")
    with pytest.raises(Refused) as refusal:
        client.submit(other)
    assert refusal.value.code == "client_key_taken"


def test_what_was_drawn_is_not_drawn_again(client: Client) -> None:
    wanted = unique(2)
    first = client.submit(job(*wanted))
    drawn = wait_job(client, first["id"])
    second = client.submit(job(*wanted))
    assert [k["state"] for k in second["keyframes"]] == ["done", "done"]
    found = client.job(second["id"])
    assert all(k["reused"] for k in found["keyframes"])
    assert [k["result"] for k in found["keyframes"]] == [k["result"] for k in drawn["keyframes"]]
    assert [e["type"] for e in client.events(second["id"])][-1] == "job_done"


def test_twins_in_the_queue_are_drawn_once(client: Client) -> None:
    (wanted,) = unique(1, sampling=keyframes.contract.Sampling(steps=10))
    first, second = client.submit(job(wanted, wanted)), client.submit(job(wanted))
    one, two = wait_job(client, first["id"]), wait_job(client, second["id"])
    reused = [k["reused"] for k in [*one["keyframes"], *two["keyframes"]]]
    assert reused == [False, True, True]


def test_events_resume_where_they_were_left(server: RunningServer, client: Client) -> None:
    made = client.submit(job(*unique(2)))
    wait_job(client, made["id"])
    whole = list(client.events(made["id"]))
    for cut in range(len(whole) - 1):
        rest = list(client.events(made["id"], after=whole[cut]["id"]))
        assert rest == whole[cut + 1 :]
    headers = {
        "Authorization": f"Bearer {server.ready['token']}",
        "Last-Event-ID": str(whole[1]["id"]),
    }
    url = f"{server.ready['url']}/v1/jobs/{made['id']}/events"
    text = requests.get(url, headers=headers, timeout=20)
    assert text.headers["Content-Type"].startswith("text/event-stream")
    assert f"id: {whole[1]['id']}\n" not in text.text
    assert f"id: {whole[2]['id']}\n" in text.text


def test_a_long_stream_comes_whole(client: Client) -> None:
    made = client.submit(job(*unique(520)))
    client.cancel(made["id"])
    events = list(client.events(made["id"]))
    assert len(events) > 1000 and events[-1]["type"] == "job_done"


@pytest.mark.parametrize("what", ["job", "keyframe"])
@pytest.mark.parametrize("stage", ["queued", "loading", "sampling", "encoding", "done"])
def test_cancel_is_exact_at_every_stage(
    tmp_path_factory: pytest.TempPathFactory, stage: str, what: str
) -> None:
    """Cancels one of three keyframes (or its job) at a stage; the others are drawn all the same."""
    slow = {
        "loading": {"FAKE_LOAD_SECONDS": "3"},
        "encoding": {"FAKE_ENCODE_SECONDS": "0.4", "FAKE_STEP_SECONDS": "0"},
        "sampling": {"FAKE_STEP_SECONDS": "0.15"},
        "queued": {"FAKE_LOAD_SECONDS": "0.5"},
    }.get(stage, {})
    environment = {"FAKE_BATCH": "1" if stage == "queued" else "2", **slow}
    with RunningServer(tmp_path_factory.mktemp("cancel"), environment) as server:
        client = server.client()
        send_images(client)
        # The victim shares a batch with a keyframe of the other job.
        ahead = client.submit(job(*unique(1))) if stage == "queued" else None
        victim_job = client.submit(job(*unique(1)))
        other = client.submit(job(*unique(2)))
        (victim,) = (k["id"] for k in victim_job["keyframes"])

        def at_stage() -> bool:
            found = client.job(victim_job["id"])["keyframes"][0]
            if stage == "encoding":
                return found["state"] == "sampling" and found["step"] == found["steps"] > 0
            return bool(found["state"] == stage)

        wait_for(at_stage, f"never {stage}")
        path = f"/v1/jobs/{victim_job['id']}/cancel"
        if what == "keyframe":
            path = f"/v1/keyframes/{victim}/cancel"
        answer = post(server, path).json()["cancelled"]
        assert answer == ([victim] if what == "job" else True) if stage != "done" else not answer
        expected = "done" if stage == "done" else "cancelled"
        # In force at once, and for good.
        assert client.job(victim_job["id"])["keyframes"][0]["state"] == expected
        assert not post(server, path).json()["cancelled"]
        for untouched in filter(None, [ahead, other]):
            assert wait_job(client, untouched["id"])["state"] == "done"
        found = client.job(victim_job["id"])
        assert (found["state"], found["keyframes"][0]["state"]) == (expected, expected)
        events = [e["type"] for e in client.events(victim_job["id"])]
        assert events.count(expected) == 1 and events[-1] == "job_done"
        assert "done" not in events or stage == "done"


def test_cancel_ends_a_drawing_within_a_step(tmp_path_factory: pytest.TempPathFactory) -> None:
    environment = {"FAKE_STEP_SECONDS": "0.2", "FAKE_STEPS": "100", "FAKE_BATCH": "1"}
    with RunningServer(tmp_path_factory.mktemp("step"), environment) as server:
        client = server.client()
        send_images(client)
        long = client.submit(job(*unique(1)))
        wait_for(lambda: client.job(long["id"])["keyframes"][0]["step"] > 0, "never began")
        one_step = keyframes.contract.Sampling(steps=1)
        after = client.submit(job(*unique(1, sampling=one_step)))
        client.cancel(long["id"])
        wait_job(client, after["id"], timeout=3)


def test_cancelled_keyframes_can_be_had_after_all(client: Client) -> None:
    made = client.submit(job(*unique(4, sampling=keyframes.contract.Sampling(steps=20))))
    client.cancel(made["id"])
    assert wait_job(client, made["id"])["state"] == "cancelled"
    client.retry(made["id"])
    assert wait_job(client, made["id"])["state"] == "done"
    types = [e["type"] for e in client.events(made["id"])]
    assert types.count("job_done") == 1 and types[-1] == "job_done"


def test_unknown_ids_are_404(server: RunningServer) -> None:
    for path in ("/v1/jobs/{}/cancel", "/v1/jobs/{}/retry", "/v1/keyframes/{}/cancel"):
        answer = post(server, path.format("0" * 32))
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert post(server, path.format("..%2fx")).status_code in (404, 422)


@pytest.mark.parametrize("word", ["fail", "bug", "silent"])
def test_a_failure_is_a_sentence_and_touches_no_other(client: Client, word: str) -> None:
    bad = unique(1, prompt=f"[{word}]")
    made = client.submit(job(*bad, *unique(3)))
    found = wait_job(client, made["id"])
    assert [k["state"] for k in found["keyframes"]] == ["failed", "done", "done", "done"]
    assert found["state"] == "failed"
    error = found["keyframes"][0]["error"]
    assert error["message"].endswith((".", "asked for")) and error["fix"].endswith(".")
    events = list(client.events(made["id"]))
    (failed,) = (e for e in events if e["type"] == "failed")
    assert failed["message"] == error["message"] and failed["fix"] == error["fix"]
    client.retry(made["id"])
    again = wait_job(client, made["id"])
    assert [k["state"] for k in again["keyframes"]] == ["failed", "done", "done", "done"]


def test_a_keyframe_that_kills_the_worker_fails_alone(client: Client) -> None:
    made = client.submit(job(*unique(1, prompt="[crash]"), *unique(3)))
    found = wait_job(client, made["id"], timeout=40)
    assert [k["state"] for k in found["keyframes"]] == ["failed", "done", "done", "done"]
    assert "died 3 times" in found["keyframes"][0]["error"]["message"]


def test_previews_come_while_it_is_drawn(client: Client) -> None:
    asked = unique(1, prompt="[preview]", sampling=keyframes.contract.Sampling(steps=15))
    made = client.submit(job(*asked))
    previews = [e for e in client.events(made["id"]) if e["type"] == "preview"]
    assert previews and previews[0]["steps"] == 15
    with Image.open(io.BytesIO(client.blob(previews[0]["blob"]))) as picture:
        assert picture.size == (32, 32)


def test_higher_priority_goes_first(client: Client) -> None:
    low = client.submit(job(*unique(6)))
    high = client.submit(job(*unique(2), priority=5))
    ended = []
    threads = [
        threading.Thread(target=lambda j=j: ended.append((list(client_of(client).events(j)), j)[1]))
        for j in (low["id"], high["id"])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [high["id"], low["id"]]


def client_of(client: Client) -> Client:
    """A client for a thread of its own."""
    return Client(client.url, client.token)


def refusal_of(client: Client, asked: keyframes.contract.JobRequest) -> Refused:
    with pytest.raises(Refused) as refusal:
        client.submit(asked)
    assert refusal.value.message.endswith(".") and refusal.value.fix.endswith(".")
    return refusal.value


def test_a_wrong_version_is_told_apart(server: RunningServer, client: Client) -> None:
    data = json.loads(keyframes.contract.dumps(job(keyframe())))
    data["keyframes"][0].update(version=3, something_new=1)
    answer = post(server, "/v1/jobs", data)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (409, "wrong_version")
    assert "Update the add-on and the server" in error["fix"]


def test_what_cannot_be_drawn_is_refused_at_submit(client: Client) -> None:
    contract = keyframes.contract
    found = refusal_of(client, job(keyframe(model="sdxl")))
    assert found.code == "unknown_model" and "rehearsal" in found.fix
    found = refusal_of(client, job(keyframe(model_hash="00" * 32)))
    assert (found.code, found.status) == ("model_changed", 409)
    found = refusal_of(client, job(keyframe(sampling=contract.Sampling("slow"))))
    assert found.code == "unknown_preset"
    found = refusal_of(client, job(keyframe(loras=[contract.Lora("ink", hash="00" * 32)])))
    assert found.code == "lora_changed"
    found = refusal_of(client, job(keyframe(maps=[contract.MapImage("depth", "00" * 32)])))
    assert found.code == "missing_blobs"
    canvas = contract.Canvas(96, 64, contract.Box(0, 0, 96, 64))
    found = refusal_of(client, job(keyframe(canvas=canvas)))
    assert found.code == "bad_image" and "64 x 64" in found.message
    canvas = contract.Canvas(65, 64, contract.Box(0, 0, 65, 64))
    assert refusal_of(client, job(keyframe(canvas=canvas))).code == "wrong_canvas"
    found = refusal_of(client, job(keyframe(seed=-1)))
    assert found.code == "invalid_request" and "keyframes[0].seed" in found.message


def test_a_lora_is_pinned_to_its_file(client: Client) -> None:
    contract = keyframes.contract
    known = unique(1, loras=[contract.Lora("ink", 0.5)])
    wait_job(client, client.submit(job(*known))["id"])
    assert client.submit(job(*known))["keyframes"][0]["state"] == "done"
    # Nobody knows what an unknown name means tomorrow, so its drawing is no one else's.
    unknown = unique(1, loras=[contract.Lora("unknown", 0.5)])
    wait_job(client, client.submit(job(*unknown))["id"])
    assert client.submit(job(*unknown))["keyframes"][0]["state"] == "queued"


def test_bodies_that_are_no_json(server: RunningServer) -> None:
    headers = {"Authorization": f"Bearer {server.ready['token']}"}
    for body in (b"{", b"\xff\xfe", b"[]", b'{"keyframes": NaN}', b"[" * 100_000):
        answer = requests.post(
            f"{server.ready['url']}/v1/jobs", data=body, headers=headers, timeout=20
        )
        assert answer.status_code in (400, 422)
        assert answer.json()["error"]["message"]

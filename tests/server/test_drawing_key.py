# SPDX-License-Identifier: GPL-3.0-or-later
"""What was drawn is handed out again only where a model's own settings are what they were."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from onmodel.api import check, schemas
from onmodel.api.errors import ApiError
from onmodel.jobs.blobs import BlobStore
from onmodel.jobs.database import Database
from onmodel.jobs.folders import DataFolder
from onmodel.jobs.leases import Leases
from onmodel.jobs.queue import Queue
from onmodel.models.errors import ModelError
from onmodel.models.registry import Registry

from addon.core import request as contract
from addon.render import requests
from tests.support import keyframes

own = {"steps": 20, "guidance": 4.0}
scheduler = {"_class_name": "EulerDiscreteScheduler", "beta_end": 0.012}


class Room:
    """A queue, and a model folder that is all configuration: nothing is loaded of it."""

    def __init__(self, root: Path) -> None:
        folder = DataFolder(root)
        folder.make()
        self.blobs = BlobStore(folder.blobs)
        self.blobs.put(keyframes.mask.data)
        database = Database(folder.database)
        self.queue = Queue(database, self.blobs)
        self.leases = Leases(database, self.blobs, "local")
        self.registry = Registry(root, extra=[], embedded=root / "none")
        self.model = root / "models" / "small"
        widths = {"block_out_channels": [8, 16, 32]}
        self.write("model_index.json", {"_class_name": "StableDiffusionXLPipeline"})
        self.write("unet/config.json", widths | {"sample_size": 16, "cross_attention_dim": 8})
        self.write("vae/config.json", widths)
        self.write("scheduler/scheduler_config.json", scheduler)
        self.write("onmodel.json", own)
        (self.model / "unet" / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")

    def write(self, name: str, data: dict[str, Any]) -> None:
        path = self.model / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data))

    def submit(self, **sampling: Any) -> str:
        """The state of a keyframe just sent, the worker having told of its models."""
        made = keyframes.keyframe(
            model="small", maps=[], sampling=contract.Sampling(**{"preset": "default"} | sampling)
        )
        job = schemas.JobRequest.model_validate(contract.to_data(keyframes.job(made)))
        told = {"models": [m.info() for m in self.registry.models()], "loras": []}
        receipt, _ = self.queue.submit(check.new_job(job, told, self.blobs))
        return str(receipt["keyframes"][0]["state"])

    def draw(self) -> dict[str, Any]:
        """Hands a drawing in; the request as the artist got it."""
        (leased,) = self.leases.claim(lambda _: "same", lambda _: 1)
        self.leases.commit(leased, self.blobs.put(keyframes.depth.data), {})
        return leased.task.request


@pytest.fixture
def room(tmp_path: Path) -> Room:
    made = Room(tmp_path)
    assert made.submit() == "queued"
    made.draw()
    assert made.submit() == "done"
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 21},
        {"guidance": 4.5},
        {"true_guidance": 2.0},
        {"guided_loras": True},
        {"default_preset": "ddim"},
        {"native_pixels": 256 * 256},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_settings_are_another_drawing(room: Room, changes: dict[str, Any]) -> None:
    room.write("onmodel.json", own | changes)
    assert room.submit() == "queued"
    room.write("onmodel.json", own | {"title": "Another name"})
    assert room.submit() == "done"


def test_another_scheduler_is_another_drawing(room: Room) -> None:
    room.write("scheduler/scheduler_config.json", scheduler | {"beta_end": 0.02})
    assert room.submit() == "queued"


def test_what_is_drawn_counts_and_not_who_chose_it(room: Room) -> None:
    assert room.submit(steps=20) == room.submit(guidance=4.0) == "done"
    assert room.submit(steps=19) == "queued"
    room.write("onmodel.json", own | {"steps": 19})
    assert room.submit(steps=20) == "done"


def test_a_request_may_be_pinned_to_the_models_settings(room: Room) -> None:
    """As the add-on does it, which compares what it has drawn by the whole request."""
    (model,) = (m.info() for m in room.registry.models())
    whole = requests.effective_sampling(contract.Sampling(), model)
    assert room.submit(**contract.to_data(whole)) == "done", "the same drawing as left to it"
    room.write("scheduler/scheduler_config.json", scheduler | {"beta_end": 0.02})
    with pytest.raises(ApiError, match="are not those the request is pinned to") as raised:
        room.submit(**contract.to_data(whole))
    assert raised.value.body["error"]["code"] == "model_changed"
    (model,) = (m.info() for m in room.registry.models())
    now = requests.effective_sampling(contract.Sampling(), model)
    assert now.method != whole.method
    assert room.submit(**contract.to_data(now)) == "queued"


def test_it_is_drawn_as_it_was_sent(room: Room) -> None:
    """Also where the model's settings change before its turn comes."""
    from onmodel.generate import sampler

    assert room.submit(steps=7) == "queued"
    room.write("onmodel.json", own | {"steps": 30, "guidance": 9.0})
    request, entry = room.draw(), room.registry.find("small")
    found = sampler.settings_of(request, entry)
    assert (found.preset, found.steps, found.guidance) == ("default", 7, 4.0)
    assert sampler.settings_of({}, entry).steps == 30
    room.write("scheduler/scheduler_config.json", scheduler | {"beta_end": 0.02})
    with pytest.raises(ModelError, match="settings have changed"):
        sampler.settings_of(request, room.registry.find("small"))

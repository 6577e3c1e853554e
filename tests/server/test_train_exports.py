# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan for other trainers: what they read of it, and nothing left out without a word."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from onmodel.train import plan_file
from onmodel.train.buckets import Order
from onmodel.train.dataset import DataSet, scan
from onmodel.train.export_configs import Exported, builders, export, write_data
from onmodel.train.export_plan import Reader, Subset
from onmodel.train.plan import TrainingPlan
from PIL import Image

from tests.server.test_train_dataset import mask, picture

changes = {
    "name": "other",
    "base.model": "another",
    "base.family": "flux",
    "base.dtype": "fp16",
    "data.trigger": "nova",
    "data.noun": "robot",
    "data.resolution": 256,
    "data.bucket_step": 32,
    "data.min_bucket": 32,
    "data.max_bucket": 512,
    "data.upscale": True,
    "data.repeats": 3,
    "data.flip": True,
    "data.masks": False,
    "data.caption_dropout": 0.3,
    "data.shuffle_caption": True,
    "data.keep_tokens": 4,
    "data.conditioning": True,
    "adapter.rank": 8,
    "adapter.alpha": 3.0,
    "adapter.unet": False,
    "adapter.text_encoders": True,
    "adapter.text_encoder_rank": 2,
    "adapter.dropout": 0.1,
    "adapter.targets": "attention",
    "adapter.convolutions": True,
    "optimizer.name": "prodigy",
    "optimizer.rate": 0.5,
    "optimizer.text_encoder_rate": 0.25,
    "optimizer.weight_decay": 0.7,
    "optimizer.betas": (0.5, 0.6),
    "optimizer.max_grad_norm": 9.0,
    "schedule.steps": 77,
    "schedule.batch": 2,
    "schedule.accumulate": 3,
    "schedule.scheduler": "cosine",
    "schedule.warm_up": 5,
    "schedule.power": 2.0,
    "schedule.ema": 0.9,
    "loss.masked": False,
    "loss.background": 0.5,
    "loss.prior_weight": 0.25,
    "loss.min_snr_gamma": 3.0,
    "loss.noise_offset": 0.05,
    "run.seed": 5,
    "run.gradient_checkpointing": True,
    "run.cache_latents": False,
    "run.cache_text": False,
    "run.save_every": 33,
    "run.keep": 2,
    "run.threads": 1,
    "validation.every": 0,
    "validation.prompts": ("{trigger} swims",),
    "validation.count": 3,
    "validation.steps": 9,
    "validation.guidance": 2.5,
    "validation.seed": 8,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of a character, one without a mask, and regularisation pictures."""
    root = tmp_path_factory.mktemp("data")
    for number in range(3):
        picture(root / "own", f"{number}.png", (64, 64))
    mask(root / "own" / "0.mask.png", (64, 64), (0, 0, 32, 64))
    mask(root / "own" / "1.mask.png", (64, 64), (0, 0, 16, 16))
    picture(root / "others", "a.png", (64, 64), "woman in a park")
    picture(root / "others", "b.png", (64, 64), "woman at sea")
    return root


def make(folder: Path, **settings: Any) -> TrainingPlan:
    """A small plan that uses most keys; settings are keys with "__" for the dot."""
    table: dict[str, Any] = {
        "name": "mira",
        "base": {"model": "nowhere"},
        "data": {
            "images": str(folder / "own"),
            "regularisation": str(folder / "others"),
            "trigger": "mira",
            "noun": "woman",
            "resolution": 64,
            "bucket_step": 64,
            "min_bucket": 64,
            "max_bucket": 256,
        },
        "adapter": {"rank": 16},
        "schedule": {"steps": 100, "scheduler": "polynomial"},
        "run": {"save_every": 25},
        "validation": {"every": 50, "prompts": ["{trigger} {noun}, portrait", "x"]},
    }
    for key, value in settings.items():
        part, _, sub = key.partition("__")
        if sub:
            table.setdefault(part, {})[sub] = value
        else:
            table[part] = value
    return plan_file.from_table(table)


def exported(plan: TrainingPlan, tool: str, out: Path) -> Exported:
    data = scan(plan.data)
    return export(plan, data, Order(data.pictures, plan), tool, out)


painted = {
    *("data.trigger", "data.noun", "data.repeats", "data.masks"),
    *("loss.background", "loss.masked"),
}
"""Keys that are in the pictures' folders, not in a config."""


def built(
    plan: TrainingPlan, tool: str, out: Path, data: DataSet, subsets: list[Subset]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """What a tool's builder makes and says of a plan."""
    reader = Reader(plan, tool)
    files = builders[tool][0](reader, subsets, Order(data.pictures, plan), out).files
    return files, reader.missing()


def content(plan: TrainingPlan, tool: str, out: Path) -> dict[str, bytes]:
    """The data as written for a tool."""
    write_data(plan, scan(plan.data), out, builders[tool][1])
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.*")}


@pytest.mark.parametrize("tool", builders)
def test_no_key_of_a_plan_is_dropped_without_a_word(
    tool: str, folder: Path, tmp_path: Path
) -> None:
    """Another value of any key is another config, other data, or another sentence."""
    apart = {*plan_file.folder_keys, "schedule.epochs"}
    assert set(changes) | apart == set(plan_file.all_keys())
    needs = {
        "data.keep_tokens": {"data__shuffle_caption": True},
        "adapter.text_encoder_rank": {"adapter__text_encoders": True},
        "optimizer.text_encoder_rate": {"adapter__text_encoders": True},
    }
    data = scan(make(folder).data)
    subsets = write_data(make(folder), data, tmp_path / "base", builders[tool][1])
    first = content(make(folder), tool, tmp_path / "first")
    for key, value in changes.items():
        more = {"run__cache_text": key == "run.cache_text", **needs.get(key, {})}
        before = built(make(folder, **more), tool, tmp_path, data, subsets)
        more[key.replace(".", "__")] = value
        plan = make(folder, **more)
        if built(plan, tool, tmp_path, data, subsets) == before:
            assert key in painted and content(plan, tool, tmp_path / key) != first, key


@pytest.mark.parametrize("tool", builders)
@pytest.mark.parametrize("preset", plan_file.preset_names())
def test_every_preset_exports(tool: str, preset: str, folder: Path, tmp_path: Path) -> None:
    plan = plan_file.with_overrides(
        plan_file.load_preset(preset),
        [
            f"data.images={json.dumps(str(folder / 'own'))}",
            *("data.trigger=mira", "data.noun=woman", "data.min_bucket=64"),
            *("data.resolution=64", "data.bucket_step=64"),
        ],
    )
    written = exported(plan, tool, tmp_path)
    for file in written.files:
        text = file.read_text("utf-8")
        if file.suffix == ".json":
            json.loads(text)
        elif file.suffix == ".toml":
            tomllib.loads(text)
        elif file.suffix == ".yaml":
            yaml.safe_load(text)
    assert str(tmp_path) in written.command
    assert (tmp_path / "MISSING.txt").read_text("utf-8").splitlines() == list(written.missing)


def test_kohya(folder: Path, tmp_path: Path) -> None:
    plan = make(folder, loss__background=0.2, adapter__alpha=8.0)
    written = exported(plan, "kohya", tmp_path)
    args = tomllib.loads((tmp_path / "config.toml").read_text("utf-8"))
    assert args["network_dim"] == 16 and args["network_alpha"] == 8.0
    assert args["lr_scheduler"] == "polynomial" and args["max_train_steps"] == 100
    assert args["network_train_unet_only"] and args["optimizer_type"] == "AdamW"
    data = tomllib.loads((tmp_path / "dataset.toml").read_text("utf-8"))
    own, other = data["datasets"][0]["subsets"]
    assert own["alpha_mask"] and "is_reg" not in own and other["is_reg"]
    with Image.open(Path(own["image_dir"]) / "0000.png") as image:
        assert image.mode == "RGBA"
        assert image.getpixel((5, 5))[3] == 255 and image.getpixel((50, 5))[3] == 51  # type: ignore[index]
    with Image.open(Path(own["image_dir"]) / "0002.png") as image:
        assert image.getchannel("A").getextrema() == (255, 255)  # no mask: all of it
    assert (Path(own["image_dir"]) / "0000.txt").read_text() == "mira woman, portrait"
    prompts = (tmp_path / "prompts.txt").read_text("utf-8")
    assert prompts.startswith("mira woman, portrait --w 64")
    assert any("small masks" in sentence for sentence in written.missing)


def test_simpletuner(folder: Path, tmp_path: Path) -> None:
    written = exported(make(folder), "simpletuner", tmp_path)
    args = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert args["--lora_rank"] == 16 and args["--max_train_steps"] == 100
    assert args["--num_train_epochs"] == 0 and args["--masked_loss_probability"] == 1.0
    rows = json.loads((tmp_path / "multidatabackend.json").read_text("utf-8"))
    by_id = {row["id"]: row for row in rows}
    own = by_id["character-1"]
    assert own["repeats"] == 0 and own["conditioning_data"] == "character-1-masks"
    masks = by_id["character-1-masks"]
    assert masks["conditioning_type"] == "mask"
    names = {p.name for p in Path(masks["instance_data_dir"]).iterdir()}
    assert names == {p.name for p in Path(own["instance_data_dir"]).glob("*.png")}
    assert by_id["regularisation-1"]["repeats"] == 1  # 3 showings from 2 pictures
    assert by_id["text"]["default"] is True
    assert any("LyCORIS" in sentence for sentence in written.missing)


def test_ai_toolkit(folder: Path, tmp_path: Path) -> None:
    plan = make(folder, loss__background=0.2, schedule__warm_up=10)
    written = exported(plan, "ai-toolkit", tmp_path)
    job = yaml.safe_load((tmp_path / "config.yaml").read_text("utf-8"))
    process = job["config"]["process"][0]
    assert process["network"]["linear"] == 16 and process["model"]["is_xl"]
    assert process["train"]["lr_scheduler"] == "linear"  # a polynomial of power 1
    assert process["train"]["lr_scheduler_params"] == {"start_factor": 1.0, "end_factor": 0.0}
    own, other = process["datasets"]
    assert own["mask_min_value"] == 0.2 and other["is_reg"] and "mask_path" not in other
    with Image.open(Path(own["mask_path"]) / "0000.png") as image:
        assert image.getextrema() == (0, 255)  # the weight is a number of its own there
    assert any("warm_up = 10" in sentence for sentence in written.missing)


def test_onetrainer(folder: Path, tmp_path: Path) -> None:
    plan = make(folder, loss__min_snr_gamma=5.0, loss__prior_weight=0.5)
    written = exported(plan, "onetrainer", tmp_path)
    args = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert args["__version"] == 10 and args["training_method"] == "LORA"
    assert args["normalize_masked_area_loss"] and args["unmasked_probability"] == 0.0
    assert args["loss_weight_fn"] == "MIN_SNR_GAMMA" and args["unet"]["train"]
    assert not args["text_encoder"]["train"] and args["learning_rate_scheduler"] == "LINEAR"
    own, other = json.loads((tmp_path / "concepts.json").read_text("utf-8"))
    assert own["loss_weight"] == 1.0 and other["loss_weight"] == 0.5
    assert other["balancing"] == 1.5  # 2 pictures, 3 showings
    assert (Path(own["path"]) / "0000-masklabel.png").is_file()
    assert any("epochs" in sentence for sentence in written.missing)


def test_flux_and_schnell_say_what_they_need(folder: Path, tmp_path: Path) -> None:
    plan = make(folder, base__family="flux", base__model="FLUX.1-schnell")
    written = exported(plan, "kohya", tmp_path / "k")
    assert "networks.lora_flux" in (tmp_path / "k" / "config.toml").read_text("utf-8")
    assert any("t5xxl" in sentence for sentence in written.missing)
    written = exported(plan, "ai-toolkit", tmp_path / "a")
    assert any("assistant_lora_path" in sentence for sentence in written.missing)

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the registry finds, how it names what is missing, and that it needs no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from onmodel.models import schedulers
from onmodel.models.errors import ModelError
from onmodel.models.probe import configs_folder, read_json
from onmodel.models.registry import Registry, sample_lora_folder

from tests.server.drawing import make_data
from tests.server.lora_files import entry, raw


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def registry(data: Path) -> Registry:
    return Registry(data, extra=[], embedded=data / "none")


def test_model_info(data):
    (info,) = [m.info() for m in registry(data).models()]
    assert info["name"] == "tiny" and info["family"] == "sdxl" and not info["embedded"]
    assert info["native_pixels"] == 128 * 128 and info["multiple"] == 32
    assert set(info["map_kinds"]) == {"pose", "depth", "normal", "lineart"}
    assert info["default_preset"] == "default" and "dpmpp-sde" in info["presets"]
    assert len(info["hash"]) == 64


def test_listing_needs_no_torch(data):
    code = (
        "import sys; from onmodel.generate.artist import Artist; a = Artist();"
        "print([m['name'] for m in a.models()], a.loras(), 'torch' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    env = os.environ | {"ONMODEL_HOME": str(data), "PYTHONPATH": str(root / "server")}
    out = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout
    assert "'tiny'" in out and out.strip().endswith("False")


def test_missing_model_names_what_is_there(data):
    with pytest.raises(ModelError) as caught:
        registry(data).find("dreamshaper")
    assert "“dreamshaper”" in caught.value.message and "“tiny”" in caught.value.message
    assert str(data / "models") in caught.value.fix


def test_changed_weights_break_a_pin(data):
    entry_now = registry(data).find("tiny")
    assert registry(data).find("tiny", entry_now.hash).name == "tiny"
    with pytest.raises(ModelError, match="weights have changed"):
        registry(data).find("tiny", "0" * 64)


def test_embedded_model_and_own_settings(data, tmp_path):
    embedded = tmp_path / "weights"
    shutil.copytree(data / "models" / "tiny", embedded)
    own = {"title": "Rehearsal", "steps": 12, "guidance": 3.5, "map_kinds": ["pose", "depth"]}
    (embedded / "onmodel.json").write_text(json.dumps(own))
    found = Registry(tmp_path / "empty", extra=[], embedded=embedded).find("rehearsal")
    assert found.embedded and (found.steps, found.guidance) == (12, 3.5)
    assert found.title == "Rehearsal" and found.map_kinds == ("pose", "depth")


def test_guided_loras_is_yes_or_no(data, tmp_path):
    embedded = tmp_path / "weights"
    shutil.copytree(data / "models" / "tiny", embedded)
    for said in (True, False):
        (embedded / "onmodel.json").write_text(json.dumps({"guided_loras": said}))
        registry = Registry(tmp_path / "empty", extra=[], embedded=embedded)
        assert registry.find("rehearsal").guided_loras is said
    (embedded / "onmodel.json").write_text(json.dumps({"guided_loras": "false"}))
    with pytest.raises(ModelError):
        Registry(tmp_path / "empty", extra=[], embedded=embedded).find("rehearsal")


def test_hub_cache_and_equal_names(data, tmp_path):
    cache = tmp_path / "hub" / "models--org--nice" / "snapshots" / "abc"
    shutil.copytree(data / "models" / "tiny", cache)
    other = tmp_path / "more" / "tiny"
    shutil.copytree(data / "models" / "tiny", other)
    found = Registry(data, extra=[tmp_path / "hub", tmp_path / "more"], embedded=data / "none")
    assert {m.name for m in found.models()} == {"tiny", "org/nice", "tiny (more)"}


def test_unusable_files_are_told_apart(tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    flux = {"double_blocks.0.img_attn.qkv.weight": entry([4], 0, 16)}
    raw(models / "flux1-dev.safetensors", flux, bytes(16))
    sd1 = {"model.diffusion_model.input_blocks.0.0.weight": entry([4], 0, 16)}
    raw(models / "v1-5.safetensors", sd1, bytes(16))
    raw(models / "cut.safetensors", sd1, bytes(12))
    found = registry(tmp_path)
    assert [m.family for m in found.models()] == ["flux"]
    assert "Stable Diffusion 1 or 2" in found.problems["v1-5"]
    assert "cut off" in found.problems["cut"]
    with pytest.raises(ModelError, match="Stable Diffusion 1 or 2"):
        found.find("v1-5")


def test_pickles_are_not_taken(data, tmp_path):
    folder = tmp_path / "models" / "old"
    shutil.copytree(data / "models" / "tiny", folder)
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    found = registry(tmp_path)
    assert found.models() == []
    assert "can run code" in found.problems["old"]


def test_lora_listing_and_sentences(data):
    folder = data / "loras"
    folder.mkdir(exist_ok=True)
    good = {
        "lora_unet_x.lora_down.weight": entry([2, 4], 0, 32),
        "lora_unet_x.lora_up.weight": entry([4, 2], 32, 64),
    }
    raw(folder / "ann.safetensors", good, bytes(64))
    raw(folder / "cut.safetensors", good, bytes(50))
    found = registry(data)
    ann = found.find_lora("ann")
    assert found.find_lora("ann", ann.hash).hash == ann.hash
    with pytest.raises(ModelError, match="its file has changed"):
        found.find_lora("ann", "f" * 64)
    with pytest.raises(ModelError, match="cut off"):
        found.find_lora("cut")
    with pytest.raises(ModelError) as caught:
        found.find_lora("bob")
    assert "“ann”" in caught.value.message and "bob.safetensors" in caught.value.fix


def test_the_samples_loras_come_with_the_embedded_model(data, tmp_path):
    good = {
        "lora_unet_x.lora_down.weight": entry([2, 4], 0, 32),
        "lora_unet_x.lora_up.weight": entry([4, 2], 32, 64),
    }
    shipped, own = tmp_path / "package" / "sample_loras", tmp_path / "data" / "loras"
    for folder in (shipped, own):
        folder.mkdir(parents=True)
    raw(shipped / "Mara.safetensors", good, bytes(64))
    embedded = tmp_path / "package" / "weights"
    found = Registry(tmp_path / "data", extra=[], embedded=embedded)
    assert found.find_lora("Mara").path == shipped / "Mara.safetensors"
    raw(own / "Mara.safetensors", good, bytes([1]) * 64)
    assert found.find_lora("Mara").path == own / "Mara.safetensors"
    assert found.find_lora("sample_loras/Mara").path == shipped / "Mara.safetensors"


def test_every_server_finds_the_loras_that_ship(tmp_path):
    shipped = {file.stem for file in sample_lora_folder.glob("*.safetensors")}
    found = {lora.name: lora for lora in Registry(tmp_path, extra=[]).loras()}
    assert set(found) == shipped
    for lora in found.values():
        assert not lora.problem and lora.family == "sdxl" and lora.trigger
        assert lora.title == lora.name
        assert not any("dirs" in key or "tag_frequency" in key for key in lora.metadata)


def test_hash_follows_the_file(data):
    folder = data / "loras"
    folder.mkdir(exist_ok=True)
    good = {
        "lora_unet_x.lora_down.weight": entry([2, 4], 0, 32),
        "lora_unet_x.lora_up.weight": entry([4, 2], 32, 64),
    }
    found = registry(data)
    raw(folder / "new.safetensors", good, bytes(64))
    before = found.find_lora("new").hash
    raw(folder / "new.safetensors", good, bytes(60) + b"\1\0\0\0")
    os.utime(folder / "new.safetensors", ns=(1, 1))
    assert found.find_lora("new").hash != before


def test_presets_respect_zero_terminal_snr():
    config = {
        "_class_name": "EulerDiscreteScheduler",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "beta_schedule": "scaled_linear",
    }
    assert "dpmpp-2m-karras" not in schedulers.fitting(config)
    for name in schedulers.fitting(config):
        made = schedulers.make(name, config)
        assert made.config.prediction_type == "v_prediction"
        assert made.config.rescale_betas_zero_snr
        assert made.config.timestep_spacing == "trailing"
    with pytest.raises(ModelError, match="does not fit"):
        schedulers.make("dpmpp-sde", config)
    with pytest.raises(ModelError, match="no scheduler preset"):
        schedulers.make("heun-9000", config)


def test_shipped_configurations_have_sdxls_sizes():
    """Parameter counts of SDXL base 1.0 and of the union ControlNet, as published."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, ControlNetUnionModel, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    base = configs_folder / "sdxl-base-1.0"
    with init_empty_weights():
        made = {
            "unet": UNet2DConditionModel.from_config(read_json(base / "unet/config.json")),
            "vae": AutoencoderKL.from_config(read_json(base / "vae/config.json")),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(base / "text_encoder")),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig.from_pretrained(base / "text_encoder_2")
            ),
            "controlnet": ControlNetUnionModel.from_config(
                read_json(configs_folder / "sdxl-controlnet-union/config.json")
            ),
        }
    counts = {k: sum(p.numel() for p in m.parameters()) for k, m in made.items()}
    assert counts == {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
        "controlnet": 1_257_287_280,
    }


def test_tokenizer_for_single_files_has_clips_numbers():
    from onmodel.models import clip_tokenizer

    ids = clip_tokenizer.make("!")("a photo of a cat", padding="max_length").input_ids
    assert ids[:8] == [49406, 320, 1125, 539, 320, 2368, 49407, 0] and len(ids) == 77


def test_lora_names_of_the_real_sdxl():
    """All attention and feed-forward modules; spot checks against names in published files."""
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel
    from onmodel.models.lora_names import sdxl_sites

    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(
            read_json(configs_folder / "sdxl-base-1.0/unet/config.json")
        )
    sites = sdxl_sites({"unet": unet})
    known = {
        "input_blocks_4_1_transformer_blocks_0_attn1_to_k": (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"
        ),
        "input_blocks_8_1_transformer_blocks_9_ff_net_0_proj": (
            "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj"
        ),
        "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
        "middle_block_2_out_layers_3": "mid_block.resnets.1.conv2",
        "output_blocks_2_1_transformer_blocks_3_attn2_to_out_0": (
            "up_blocks.0.attentions.2.transformer_blocks.3.attn2.to_out.0"
        ),
        "output_blocks_5_1_proj_out": "up_blocks.1.attentions.2.proj_out",
        "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
        "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
        "input_blocks_7_0_skip_connection": "down_blocks.2.resnets.0.conv_shortcut",
        "output_blocks_8_0_emb_layers_1": "up_blocks.2.resnets.2.time_emb_proj",
        "time_embed_0": "time_embedding.linear_1",
        "label_emb_0_2": "add_embedding.linear_2",
    }
    for name, module in known.items():
        assert sites[f"unet.{name}"].module == module
    modules = {site.module for site in sites.values()}
    originals = {site.module for n, site in sites.items() if "_blocks_" in n and "attn" in n}
    # 70 transformer blocks of 8 attention and 2 feed-forward layers; in and out of 11 stacks.
    assert sum("transformer_blocks" in m for m in modules) == 700
    assert sum(".attn" in m for m in originals) == 560


def test_a_folder_that_lacks_a_part_reaches_for_no_hub(data, tmp_path, monkeypatch):
    import socket

    from onmodel.models import families, memory

    def no_network(*_):
        raise AssertionError("a model folder must never lead to the network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    for part in ("tokenizer_2", "text_encoder", "unet"):
        folder = tmp_path / part / "models" / "tiny"
        shutil.copytree(data / "models" / "tiny", folder)
        for file in (folder / part).iterdir():
            if not (part == "unet" and file.name == "config.json"):
                file.unlink()
        found = registry(tmp_path / part).find("tiny")
        with pytest.raises(ModelError, match="“tiny” cannot be loaded") as caught:
            families.load(found, memory.Place("cpu", "float32", "cpu", 1 << 30))
        assert "Nothing is fetched from a hub" in caught.value.fix

# SPDX-License-Identifier: GPL-3.0-or-later
"""LoRA files: both layouts give the same numbers back, here and in plain diffusers."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from onmodel.lora import layouts, metadata, save
from onmodel.models import lora_file, lora_names
from onmodel.models.errors import ModelError
from safetensors import safe_open

from tests.server import tiny_models


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder, adapters with alpha unlike their rank, and what the adapted model says."""
    folder = tmp_path_factory.mktemp("lora")
    models = tiny_models.components(tiny_models.parts(folder))
    plain = tiny_models.outputs(models)
    tiny_models.adapt(models)
    return folder, layouts.collect(models), plain, tiny_models.outputs(models)


def pipeline(folder) -> StableDiffusionXLPipeline:
    found = tiny_models.parts(folder)
    return StableDiffusionXLPipeline(
        vae=found.vae,
        unet=found.unet,
        text_encoder=found.text_encoders[0],
        text_encoder_2=found.text_encoders[1],
        tokenizer=found.tokenizers[0],
        tokenizer_2=found.tokenizers[1],
        scheduler=EulerDiscreteScheduler(),
    )


def said(pipe: StableDiffusionXLPipeline) -> list[torch.Tensor]:
    names = ("unet", "text_encoder", "text_encoder_2")
    return tiny_models.outputs({n: getattr(pipe, n) for n in names})


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_plain_diffusers_loads_it_with_zero_difference(trained, tmp_path, layout):
    folder, deltas, plain, adapted = trained
    path = tmp_path / "ann.safetensors"
    save.save_lora(path, deltas, {}, layout, torch.float32)
    pipe = pipeline(folder)
    pipe.load_lora_weights(str(path))
    for without, ours, theirs in zip(plain, adapted, said(pipe), strict=True):
        assert torch.equal(ours, theirs)
        assert not torch.allclose(without, ours, atol=1e-3)


def test_convolutions_load_in_plain_diffusers(tmp_path):
    models = tiny_models.components(tiny_models.parts(tmp_path))
    tiny_models.adapt(models, convolutions=True)
    wanted = tiny_models.outputs(models)
    path = tmp_path / "conv.safetensors"
    save.save_lora(path, layouts.collect(models), {}, "diffusers", torch.float32)
    pipe = pipeline(tmp_path)
    pipe.load_lora_weights(str(path))
    for ours, theirs in zip(wanted, said(pipe), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("layout", "names"), [("diffusers", "diffusers"), ("kohya", "diffusers"), ("kohya", "original")]
)
def test_numbers_and_alpha_come_back(trained, tmp_path, layout, names):
    folder, deltas, _, _ = trained
    found = tiny_models.parts(folder)
    path = tmp_path / "ann.safetensors"
    save.save_lora(path, deltas, {}, layout, torch.float32, names, found.unet.config)
    back = layouts.read(path, lora_names.sdxl_sites(tiny_models.components(found)))
    assert set(back) == set(deltas)
    for key, delta in deltas.items():
        assert back[key].alpha == delta.alpha == 7.0
        assert back[key].rank == 3
        assert torch.equal(back[key].matrix(), delta.matrix())


def test_modules_of_different_rank_and_alpha_survive(trained, tmp_path):
    folder, deltas, _, _ = trained
    mixed = dict(deltas)
    key = next(k for k in mixed if k[0] == "unet" and k[1].endswith("to_q"))
    other = mixed[key]
    mixed[key] = layouts.Delta(other.down[:2].clone(), other.up[:, :2].clone(), 11.0)
    path = tmp_path / "mixed.safetensors"
    save.save_lora(path, mixed, {}, "diffusers", torch.float32)
    pipe = pipeline(folder)
    pipe.load_lora_weights(str(path))
    layer = pipe.unet.get_submodule(key[1])
    (name,) = layer.lora_A
    assert layer.r[name] == 2
    assert layer.scaling[name] == 5.5


def test_kohya_keys_are_the_names_kohya_reads(trained):
    _, deltas, _, _ = trained
    names = set(layouts.to_kohya(deltas))
    prefix = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    assert {f"{prefix}.alpha", f"{prefix}.lora_down.weight", f"{prefix}.lora_up.weight"} <= names
    assert "lora_te2_text_model_encoder_layers_1_mlp_fc1.alpha" in names
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v.alpha" in names


def test_flux_fuses_what_its_original_code_fuses():
    torch.manual_seed(2)
    head = "transformer_blocks.4.attn."
    deltas = {
        ("transformer", head + part): layouts.Delta(torch.randn(2, 8), torch.randn(8, 2), 1.0)
        for part in ("to_q", "to_k", "to_v")
    }
    single = "single_transformer_blocks.1.proj_out"
    deltas["transformer", single] = layouts.Delta(torch.randn(2, 8), torch.randn(8, 2), 1.0)
    tensors = layouts.to_kohya(deltas)
    assert {n.split(".")[0] for n in tensors} == {
        "lora_unet_double_blocks_4_img_attn_qkv",
        "lora_unet_single_blocks_1_linear2",
    }
    name = "lora_unet_double_blocks_4_img_attn_qkv"
    whole = layouts.Delta(
        tensors[f"{name}.lora_down.weight"],
        tensors[f"{name}.lora_up.weight"],
        float(tensors[f"{name}.alpha"]),
    ).matrix()
    parts = [deltas["transformer", head + p].matrix() for p in ("to_q", "to_k", "to_v")]
    torch.testing.assert_close(whole, torch.cat(parts))


def test_flux_file_loads_in_diffusers_converter():
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

    torch.manual_seed(2)
    head = "transformer_blocks.0.attn."
    deltas = {
        ("transformer", head + part): layouts.Delta(torch.randn(2, 8), torch.randn(8, 2), 1.0)
        for part in ("to_q", "to_k", "to_v")
    }
    back = _convert_kohya_flux_lora_to_diffusers(layouts.to_kohya(deltas))
    for (_, module), delta in deltas.items():
        up, down = (back[f"transformer.{module}.lora_{x}.weight"] for x in "BA")
        torch.testing.assert_close(up @ down, delta.matrix())


def test_half_a_fused_module_is_refused():
    delta = layouts.Delta(torch.ones(2, 8), torch.ones(8, 2), 1.0)
    with pytest.raises(ModelError, match="as one module"):
        layouts.to_kohya({("transformer", "transformer_blocks.0.attn.to_q"): delta})


def test_numbers_beyond_the_format_are_refused(tmp_path):
    deltas = {("unet", "conv_in"): layouts.Delta(torch.full((1, 2), 1e9), torch.ones(2, 1), 1.0)}
    with pytest.raises(ModelError, match="not finite in float16"):
        save.save_lora(tmp_path / "bad.safetensors", deltas, {}, "kohya", torch.float16)
    assert not list(tmp_path.iterdir())


def record(**changes) -> metadata.Record:
    values = {
        "name": "ann",
        "family": "sdxl",
        "trigger": "annzk",
        "title": "Ann",
        "model_name": "secret-model.safetensors",
        "model_hash": "ab" * 32,
        "rank": 3,
        "alpha": 7.0,
        "resolution": (1024, 1024),
        "prediction": "epsilon",
        "steps": 10,
        "max_steps": 20,
        "epochs": 4,
        "batch": 2,
        "accumulate": 1,
        "seed": 5,
        "precision": "bf16",
        "optimizer": "AdamW",
        "rate": 1e-4,
        "text_rate": None,
        "scheduler": "cosine",
        "warm_up": 2,
        "started": 1.7e9,
        "finished": 1.7e9 + 60,
        "folders": (metadata.Folder("3_private folder", 3, 7),),
        "buckets": {(1024, 1024): 5, (832, 1216): 2},
        "tags": {"3_private folder": {"her secret caption": 2}},
    }
    return metadata.Record(**(values | changes))


def test_metadata_is_what_readers_look_for(trained, tmp_path):
    _, deltas, _, _ = trained
    path = tmp_path / "ann.safetensors"
    save.save_lora(path, deltas, metadata.describe(record()), "kohya")
    checked = lora_file.check(path)
    assert (checked.title, checked.trigger, checked.family) == ("Ann", "annzk", "sdxl")
    told = checked.metadata
    assert (told["ss_network_dim"], told["ss_network_alpha"]) == ("3", "7.0")
    assert told["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert told["modelspec.resolution"] == "1024x1024"
    assert json.loads(told["ss_dataset_dirs"]) == {
        "3_private folder": {"n_repeats": 3, "img_count": 7}
    }
    raw = path.read_bytes()
    assert metadata.hashes(raw)["modelspec.hash_sha256"] == told["modelspec.hash_sha256"]


def test_public_copy_tells_nothing_private(trained, tmp_path):
    _, deltas, _, _ = trained
    path, copy = tmp_path / "ann.safetensors", tmp_path / "public.safetensors"
    about = metadata.describe(record()) | {"ss_invented_by_another_tool": "C:\\secret"}
    save.save_lora(path, deltas, about, "diffusers")
    kept = save.save_public(path, copy)
    text = copy.read_bytes()
    for word in (b"secret", b"private"):
        assert word in path.read_bytes()
        assert word not in text
    assert kept["modelspec.trigger_phrase"] == "annzk"
    assert metadata.hashes(text)["sshs_model_hash"] == kept["sshs_model_hash"]
    assert lora_file.check(copy).alphas == lora_file.check(path).alphas
    with safe_open(str(path), "pt") as a, safe_open(str(copy), "pt") as b:
        names = list(a.keys())
        assert names == list(b.keys())
        assert all(torch.equal(a.get_tensor(k), b.get_tensor(k)) for k in names)


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "ann.safetensors"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save.write_atomically(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["ann.safetensors"]
    assert path.read_bytes() == b"old"

# SPDX-License-Identifier: GPL-3.0-or-later
"""Regional attention: stock without regions, the rule with them, gradients through both ways."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from onmodel.generate.regions import (
    RegionalAttnProcessor,
    Regions,
    character_prompt,
    join_prompts,
    token_shares,
)


def attention(processor) -> Attention:
    torch.manual_seed(0)
    return Attention(query_dim=16, cross_attention_dim=12, heads=2, dim_head=8, processor=processor)


@pytest.fixture
def scene():
    """One picture, 4x6 latents; a person on columns 0-2, another on 3-4; three prompts."""
    torch.manual_seed(1)
    masks = torch.zeros(1, 2, 32, 48)
    masks[0, 0, :, :24] = 1
    masks[0, 1, :, 24:40] = 1
    shares = token_shares(masks, (4, 6))
    prompts = [torch.randn(5, 12), torch.randn(4, 12), torch.randn(3, 12)]
    keys, segments = join_prompts([prompts])
    return torch.randn(1, 24, 16), prompts, keys, Regions(shares, segments)


@pytest.mark.parametrize("plain", [True, False, None])
def test_without_regions_it_is_stock(plain):
    x, text = torch.randn(2, 24, 16), torch.randn(2, 7, 12)
    stock = attention(AttnProcessor2_0())(x, text)
    assert torch.allclose(stock, attention(RegionalAttnProcessor(plain))(x, text), atol=1e-6)


@pytest.mark.parametrize("plain", [True, False])
def test_each_token_sees_its_prompts_only(scene, plain):
    """Every token equals stock attention on just the keys that it may see."""
    x, (shot, one, two), keys, regions = scene
    got = attention(RegionalAttnProcessor(plain))(x, keys, regions=regions)
    stock = attention(AttnProcessor2_0())
    wanted = {
        "one": stock(x, torch.cat([shot, one])[None]),
        "two": stock(x, torch.cat([shot, two])[None]),
        "ground": stock(x, shot[None]),
    }
    owner = ["one", "one", "one", "two", "two", "ground"] * 4
    for token, name in enumerate(owner):
        assert torch.allclose(got[0, token], wanted[name][0, token], atol=1e-5), (token, name)


def test_tokens_a_fifth_covered_see_the_prompt():
    masks = torch.zeros(1, 1, 8, 16)
    masks[..., :2, :8] = 1  # a quarter of the first token of 8x8
    masks[..., :1, 8:] = 1  # an eighth of the second
    regions = Regions(token_shares(masks, (1, 2)), torch.zeros(1, 3, dtype=torch.int64))
    assert regions.members(2).tolist() == [[[True, False]]]


def test_levels_follow_odd_sizes():
    regions = Regions(torch.ones(1, 1, 5, 7), torch.zeros(1, 3, dtype=torch.int64))
    for tokens in (35, 12, 4, 1):
        assert regions.members(tokens).shape == (1, 1, tokens)
    with pytest.raises(ValueError, match="No level"):
        regions.members(36)


def test_padding_is_seen_by_nobody():
    prompts = [[torch.randn(5, 12), torch.randn(4, 12)], [torch.randn(6, 12)]]
    keys, segments = join_prompts(prompts)
    assert keys.shape == (2, 16, 12)
    assert segments[1].tolist() == [0] * 6 + [-1] * 10
    regions = Regions(torch.zeros(2, 1, 4, 6), segments)
    x = torch.randn(2, 24, 16)
    got = attention(RegionalAttnProcessor())(x, keys, regions=regions)
    alone = attention(AttnProcessor2_0())(x[1:], prompts[1][0][None])
    assert torch.allclose(got[1:], alone, atol=1e-6)


@pytest.mark.parametrize("plain", [True, False])
def test_gradients_flow(scene, plain):
    x, _, keys, regions = scene
    layer = attention(RegionalAttnProcessor(plain))
    layer(x, keys, regions=regions).square().mean().backward()
    assert layer.to_q.weight.grad.abs().sum() > 0
    assert torch.isfinite(layer.to_k.weight.grad).all()


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("xyz", "woman", "red coat"), "xyz woman, red coat"),
        (("", "man", ""), "man"),
        ((" ", "man", " angry, "), "man, angry"),
    ],
)
def test_character_prompt(parts, text):
    assert character_prompt(*parts) == text

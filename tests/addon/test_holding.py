# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds a character, in the artist's words."""

import pytest

from addon.core.holding import IpAdapter, adapters_of, held
from addon.core.request import Lora

plus = IpAdapter("plus-face", kind="plus", fits=["sdxl"], chosen=["sdxl"])
faceid = IpAdapter("faceid", problem="It needs InsightFace.", fits=["sdxl"], chosen=["sdxl"])
other = IpAdapter("old", kind="plus")
ada = [Lora("ada_v2")]
nothing = "Held by words alone."


@pytest.mark.parametrize(
    ("loras", "portraits", "weight", "adapters", "by", "words"),
    [
        ([], 0, None, [plus], "words", nothing),
        ([], 0, 0.7, [plus], "words", nothing),
        (ada, 3, None, [plus], "lora", "Held by its LoRA ada_v2."),
        ([*ada, Lora("coat", 0.5)], 0, None, None, "lora", "Held by its LoRAs ada_v2 and coat."),
        ([Lora("ada_v2", 0.0)], 0, None, [plus], "words", nothing),
        ([], 3, None, [other, plus], "portraits", "Held by its portraits (plus-face)."),
        ([], 3, 0.0, [plus], "words", nothing),
        (ada, 3, 0.4, [plus], "both", "Held by its LoRA ada_v2 and its portraits (plus-face)."),
        ([], 3, None, None, "portraits", "Held by its portraits, if the server can."),
        ([], 3, None, [], "words", "Held by words alone: the server has no IP-Adapter."),
        (
            [],
            3,
            None,
            [other],
            "words",
            "Held by words alone: no IP-Adapter of the server fits sdxl.",
        ),
        (
            [],
            3,
            None,
            [faceid],
            "words",
            "Held by words alone: the server cannot use faceid. It needs InsightFace.",
        ),
    ],
)
def test_what_holds_a_character(loras, portraits, weight, adapters, by, words):
    found = held(loras, portraits, weight, adapters, "sdxl")
    assert (found.by, found.words, found.refused) == (by, words, False)


@pytest.mark.parametrize("adapters", [[], [other], [faceid]])
def test_a_hold_that_the_server_would_refuse_is_said(adapters):
    found = held(ada, 1, 0.4, adapters, "sdxl")
    assert found.refused and found.words.startswith("Its portraits cannot hold it: ")
    assert found.words.endswith("Switch its Hold off to draw (Cast > Portraits).")


def test_a_server_of_another_version_may_say_more_or_nothing():
    assert adapters_of({}) is None
    one = {"name": "plus", "chosen": ["sdxl"], "speed": 3}
    assert adapters_of({"ip_adapters": [one]}) == [IpAdapter("plus", chosen=["sdxl"])]

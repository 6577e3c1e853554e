# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGKILL at random moments: nothing finished is lost, nothing finished is drawn again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.killing import kill_at_random


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_kills_lose_nothing_and_draw_nothing_twice(tmp_path: Path) -> None:
    outcome = kill_at_random(tmp_path, moments=4, seed=3)
    assert 0 < outcome.finished_at_kills[-1] < outcome.keyframes, "the kills fell beside the work"
    assert (outcome.lost, outcome.drawn_twice, outcome.unfinished) == (0, 0, 0), outcome

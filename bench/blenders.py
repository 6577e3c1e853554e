# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole Blender tier in every Blender that the add-on is held to."""

from bench.harness import Figure
from tools.blenders import BlenderMissing, blenders


def run() -> list[Figure]:
    """Failed tests in each Blender (bar 0), with how many passed."""
    figures = []
    for blender in blenders:
        name = f"Blender tier, failures in {blender.name}"
        try:
            blender.prepare()
            result = blender.run_tier(["tests/blender"])
        except BlenderMissing as error:
            figures.append(Figure(name, None, bar=0, op="==", note=str(error)))
            continue
        note = f"{result.passed} passed, {result.skipped} skipped"
        figures.append(Figure(name, result.failed, bar=0, op="==", note=note))
    return figures

# SPDX-License-Identifier: GPL-3.0-or-later
"""Preflight in a process of its own, for the server: its API decodes no picture, loads no torch.

    python -m onmodel.train.look < {"plan": {…}, "out": "FOLDER"} > the report as JSON

Nothing is measured: the device may be drawing. Exit code 1 with {"message", "fix"} where the plan
names a model that is not there or cannot be read.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from onmodel.models.errors import ModelError
from onmodel.train import plan_file
from onmodel.train.plan import PlanError
from onmodel.train.preflight import preflight


def main() -> int:
    """Reads the question from the standard input; returns the exit code."""
    asked = json.load(sys.stdin)
    try:
        answer = preflight(plan_file.from_table(asked["plan"]), out=Path(asked["out"])).json()
    except (PlanError, ModelError) as error:
        json.dump({"message": error.message, "fix": error.fix}, sys.stdout)
        return 1
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

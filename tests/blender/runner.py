# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs pytest inside a real Blender: blender -b --factory-startup --python THIS -- [pytest args].

Ends the process with pytest's own exit code, which Blender would otherwise hide.
"""

import os
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(root))
args = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []

import pytest  # noqa: E402

code = pytest.main(["-p", "no:cacheprovider", "--rootdir", str(root), *(args or ["tests/blender"])])
sys.stdout.flush()
sys.stderr.flush()
os._exit(int(code))

# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the add-on of this checkout in a real Blender: blender -b --python THIS -- COMMAND ...

The extension as installed has the same commands: blender -b FILE --command onmodel COMMAND ...
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from addon import commands, register

register()
code = commands.main(sys.argv[sys.argv.index("--") + 1 :], open_file=True)
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)

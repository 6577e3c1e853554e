# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs one bench in a process of its own: python -m bench.one NAME RESULT.json

Blender as a module may crash or hang while an interpreter ends, and keeps its scene between
benches; a process each keeps them apart.
"""

import importlib
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench.harness import write_figures


def main() -> None:
    """Runs it, writes its figures as JSON, and leaves at once."""
    os.environ.setdefault("BLENDER_USER_RESOURCES", tempfile.mkdtemp(prefix="onmodel-bench-"))
    figures = importlib.import_module(f"bench.{sys.argv[1]}").run()
    write_figures(Path(sys.argv[2]), [asdict(f) for f in figures])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the server keeps its data, and what lies where in it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path


def default_data_folder() -> Path:
    """$ONMODEL_HOME, or the platform's folder for a user's application data."""
    home = os.environ.get("ONMODEL_HOME")
    if home:
        return Path(home).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "Onmodel"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "Onmodel"
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "onmodel"


@dataclass(frozen=True)
class DataFolder:
    """The data folder's rooms. Everything in it is the user's alone (mode 0700)."""

    root: Path

    @property
    def database(self) -> Path:
        return self.root / "queue.db"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def trainings(self) -> Path:
        """A folder for each training, named by its id: plan, state, checkpoints, drawings."""
        return self.root / "trainings"

    @property
    def loras(self) -> Path:
        """LoRA files that the artist finds; a finished training adds its own."""
        return self.root / "loras"

    @property
    def server_lock(self) -> Path:
        return self.root / "server.lock"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def worker_lock(self, name: str) -> Path:
        """The lock that keeps two workers of one name apart."""
        return self.root / f"worker-{name}.lock"

    def make(self) -> None:
        """Makes the folders. Raises OSError."""
        for folder in (self.root, self.blobs, self.logs, self.trainings):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if os.name == "posix":
                folder.chmod(0o700)

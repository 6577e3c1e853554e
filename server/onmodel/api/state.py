# SPDX-License-Identifier: GPL-3.0-or-later
"""What the routes share: queue, blobs, supervisor, and when somebody last called."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from onmodel.jobs.blobs import BlobStore
from onmodel.jobs.folders import DataFolder
from onmodel.jobs.queue import Queue
from onmodel.jobs.roots import Roots
from onmodel.jobs.supervisor import Supervisor
from onmodel.jobs.trainings import Trainings


@dataclass
class ServerState:
    """One server. supervisor: None where nobody draws (tests of the API alone).

    roots: folders that training plans may name folders in; none by default.
    stopping: set when the server shuts down, so that endless streams end.
    """

    queue: Queue
    blobs: BlobStore
    supervisor: Supervisor | None = None
    roots: Roots = field(default_factory=lambda: Roots([]))
    stopping: threading.Event = field(default_factory=threading.Event)
    last_call: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.trainings = Trainings(self.queue.database)
        self.folder = DataFolder(self.queue.database.path.parent)
        self.preflights = threading.Lock()

    def unfinished(self) -> int:
        """How many keyframes and trainings are queued or under way."""
        return self.queue.unfinished() + self.trainings.unfinished()

    def touch(self) -> None:
        """Somebody is there."""
        self.last_call = time.monotonic()

    def wake(self) -> None:
        """There is something new in the queue."""
        if self.supervisor is not None:
            self.supervisor.wake()

# SPDX-License-Identifier: GPL-3.0-or-later
"""Thresholds that were measured on a cast itself, kept where the server keeps its data."""

from __future__ import annotations

from pathlib import Path


class Calibrations:
    """The shelf of calibrations. folder: where they are kept; None: none are kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

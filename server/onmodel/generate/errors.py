# SPDX-License-Identifier: GPL-3.0-or-later
"""Failures inside drawing."""

from __future__ import annotations


class RequestProblem(Exception):
    """One keyframe's request cannot be drawn as it is. message, fix: sentences for a person."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

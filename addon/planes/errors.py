# SPDX-License-Identifier: GPL-3.0-or-later
"""The error of this room: a result that cannot be put into the scene."""

from __future__ import annotations


class PlaneError(ValueError):
    """message: one sentence that says what is wrong; fix: what the artist can do about it."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(f"{message} {fix}".strip())
        self.message = message
        self.fix = fix

# SPDX-License-Identifier: GPL-3.0-or-later
"""The error of this room: something in the scene that only the artist can put right."""

from __future__ import annotations


class SceneError(ValueError):
    """The scene does not say what is needed.

    message: one sentence that says what is wrong; fix: what the artist can do about it.
    """

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(f"{message} {fix}".strip())
        self.message = message
        self.fix = fix

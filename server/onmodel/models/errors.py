# SPDX-License-Identifier: GPL-3.0-or-later
"""The one error of this package that people see."""

from __future__ import annotations


class ModelError(Exception):
    """A model or LoRA cannot be used.

    message: a sentence that says what is wrong. fix: a sentence that says what to do.
    """

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

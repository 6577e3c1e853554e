# SPDX-License-Identifier: GPL-3.0-or-later
"""Panels, operators and preferences. Nothing of bpy is imported before register()."""

from __future__ import annotations


def register() -> None:
    """Register all classes of the interface."""
    from . import parts

    parts.register()


def unregister() -> None:
    """Unregister them, the last first."""
    from . import parts

    parts.unregister()

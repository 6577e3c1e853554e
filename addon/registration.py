# SPDX-License-Identifier: GPL-3.0-or-later
"""The order in which the add-on registers; unregister goes through it backwards.

Each part has a `register()` and an `unregister()` of its own.
"""

from __future__ import annotations

import importlib
import logging
from types import ModuleType

log = logging.getLogger(__name__)

_order = (
    ".scene.properties",
    ".ui",
    ".commands",
)
"""Modules, by name relative to the add-on. A later one may need the earlier ones."""

_registered: list[ModuleType] = []


def register() -> None:
    """Register all parts; when one fails, unregister those before it and let the error go on."""
    if _registered:
        raise RuntimeError("Onmodel is already registered.")
    try:
        for name in _order:
            part = importlib.import_module(name, __package__)
            part.register()
            _registered.append(part)
    except Exception:
        unregister()
        raise


def unregister() -> None:
    """Unregister all that was registered, the last first."""
    while _registered:
        part = _registered.pop()
        try:
            part.unregister()
        except (RuntimeError, AttributeError, ValueError):
            # One part that is already gone must not keep the others registered.
            log.exception("Could not unregister %s", part.__name__)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole add-on, registered for one test."""

import contextlib

import bpy

import addon


@contextlib.contextmanager
def registered():
    """Registers all of it, and takes it off afterwards.

    Other tests of the same process register the scene's settings alone, and leave them.
    """
    from addon.scene import properties

    if hasattr(bpy.types.Scene, "onmodel"):
        properties.unregister()
    addon.register()
    try:
        yield
    finally:
        addon.unregister()

# SPDX-License-Identifier: GPL-3.0-or-later
"""Onmodel, the Blender extension: register and unregister, nothing else.

Nothing of bpy is imported before register(), so that plain Python can import `core`.
"""


def register() -> None:
    from . import registration

    registration.register()


def unregister() -> None:
    from . import registration

    registration.unregister()

# SPDX-License-Identifier: GPL-3.0-or-later
"""What all operators share: errors of ours become Blender's reports, one sentence each."""

from __future__ import annotations

from typing import Any

import bpy

from ..core.client import ClientError
from ..planes.errors import PlaneError
from ..scene.errors import SceneError


class Reporting:
    """Mixin of operators that do one thing in `apply`, which may raise our errors."""

    def apply(self, context: bpy.types.Context) -> None:
        """Do it. Raises SceneError, ClientError or PlaneError."""

    def execute(self: Any, context: bpy.types.Context) -> set[str]:
        try:
            self.apply(context)
        except (SceneError, ClientError, PlaneError) as error:
            self.report({"ERROR"}, f"{error.message} {error.fix}".strip())
            return {"CANCELLED"}
        return {"FINISHED"}

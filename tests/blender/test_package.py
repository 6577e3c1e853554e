# SPDX-License-Identifier: GPL-3.0-or-later
"""The extension as a zip, installed by Blender's own operator."""

import shutil
import sys

import pytest

bpy = pytest.importorskip("bpy")

from addon.scene import properties  # noqa: E402
from tools.package import stage  # noqa: E402

module = "bl_ext.user_default.onmodel"


@pytest.fixture
def installed(tmp_path, empty_scene):
    """The extension, installed and enabled from a zip; gone again afterwards."""
    had_settings = hasattr(bpy.types.Scene, "onmodel")
    if had_settings:
        # Other tests of this process leave the checkout's own settings registered.
        properties.unregister()
    stage(tmp_path / "staged")
    archive = shutil.make_archive(str(tmp_path / "onmodel"), "zip", tmp_path / "staged")
    if not any(r.module == "user_default" for r in bpy.context.preferences.extensions.repos):
        bpy.context.preferences.extensions.repos.new(name="User", module="user_default")
    bpy.ops.extensions.package_install_files(
        filepath=archive, repo="user_default", enable_on_install=True
    )
    yield
    bpy.ops.preferences.addon_disable(module=module)
    if had_settings:
        properties.register()


def test_the_zip_installs_and_registers(installed):
    assert module in bpy.context.preferences.addons
    assert module in sys.modules
    scene = bpy.context.scene
    assert len(scene.onmodel.shots) == 0
    assert scene.onmodel.bl_rna.identifier.startswith("Onmodel")
    loaded = [n for n in sys.modules if n.startswith((module, "addon."))]
    assert any(n.startswith(f"{module}.core") for n in loaded)
    # Nothing of the installed extension comes from the checkout's own package.
    mine = [sys.modules[n] for n in loaded if n.startswith(module)]
    assert not [m for m in mine if (m.__package__ or "").startswith("addon")]


def test_disabling_leaves_nothing_behind(installed):
    bpy.ops.preferences.addon_disable(module=module)
    assert not hasattr(bpy.types.Scene, "onmodel")
    assert not [n for n in dir(bpy.types) if n.startswith("ONMODEL_")]
    bpy.ops.preferences.addon_enable(module=module)
    assert hasattr(bpy.types.Scene, "onmodel")

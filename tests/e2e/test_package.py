# SPDX-License-Identifier: GPL-3.0-or-later
"""The extension builds and passes Blender's own validator."""

import zipfile

import pytest

pytest.importorskip("bpy")

from tools import package


def test_the_zip_is_valid_and_holds_the_add_on_alone(tmp_path):
    path = package.build(tmp_path)
    names = zipfile.ZipFile(path).namelist()
    assert "blender_manifest.toml" in names and "LICENSE" in names
    assert "__init__.py" in names and "core/request.py" in names
    assert not [n for n in names if "__pycache__" in n or n.endswith((".whl", ".pyc"))]
    assert path.stat().st_size < 2_000_000


def test_what_the_validator_says_is_passed_on(tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    monkeypatch.setattr(package, "stage", lambda folder: None)
    with pytest.raises(package.PackageError, match="blender_manifest"):
        package.build(tmp_path / "out")

# SPDX-License-Identifier: GPL-3.0-or-later
from tests.addon.golden import projection_cases


def test_projection_agrees_with_this_blender(empty_scene):
    errors = [
        projection_cases.error(case, projection_cases.blender_answer(case))
        for case in projection_cases.cases()
    ]
    assert max(matrix for matrix, _ in errors) < 1e-3
    assert max(view for _, view in errors) < 0.02

# SPDX-License-Identifier: GPL-3.0-or-later
"""The rig tables against the rigs that this Blender makes itself."""

import importlib

import numpy as np
import pytest

from addon.core import rigs


@pytest.fixture(scope="module")
def rigify():
    import bpy

    # Its folder is on the path only once bpy is there.
    addon_utils = importlib.import_module("addon_utils")

    bpy.ops.wm.read_factory_settings(use_empty=True)
    was_on = addon_utils.check("rigify")[1]
    addon_utils.enable("rigify", default_set=True)
    yield bpy
    if not was_on:
        addon_utils.disable("rigify", default_set=True)


def mapped(armature):
    parents = {b.name: b.parent.name if b.parent else None for b in armature.data.bones}
    return rigs.map_bones(parents, parents)


def test_the_human_metarig_is_found_whole(rigify):
    rigify.ops.object.armature_human_metarig_add()
    found = mapped(rigify.context.object)
    assert found.family == "Rigify metarig"
    assert found.unmapped == [] and found.guessed == []


def test_the_basic_metarig_lacks_fingers_only(rigify):
    rigify.ops.object.armature_basic_human_metarig_add()
    found = mapped(rigify.context.object)
    assert found.family == "Rigify metarig" and found.head == "spine.006"
    assert found.guessed == list(rigs.face_joints)
    assert len(found.unmapped) == 40


def test_a_generated_rig_is_found_whole_by_its_deforming_bones(rigify):
    rigify.ops.object.armature_human_metarig_add()
    metarig = rigify.context.object
    before = set(rigify.data.objects)
    rigify.ops.pose.rigify_generate()
    (generated,) = [o for o in set(rigify.data.objects) - before if o.type == "ARMATURE"]
    found = mapped(generated)
    assert found.family == "Rigify"
    assert found.unmapped == [] and found.guessed == []
    # Each joint lies where the metarig has it.
    source = mapped(metarig)
    for joint, (bone, end) in found.joints.items():
        there, its_end = source.joints[joint]
        ours = np.array(getattr(generated.data.bones[bone], f"{end}_local"))
        theirs = np.array(getattr(metarig.data.bones[there], f"{its_end}_local"))
        assert np.linalg.norm(ours - theirs) < 1e-3, joint


def test_a_face_without_bones_is_placed_where_the_bones_would_be(rigify):
    rigify.ops.object.armature_human_metarig_add()
    bones = rigify.context.object.data.bones
    found = mapped(rigify.context.object)
    rest = {
        joint: np.array(getattr(bones[bone], f"{end}_local"))
        for joint, (bone, end) in found.joints.items()
    }
    placed = rigs.face_at_rest(rest, np.array(bones[found.head].head_local))
    for joint in rigs.face_joints:
        assert np.linalg.norm(placed[joint] - rest[joint]) < 0.045, joint

# SPDX-License-Identifier: GPL-3.0-or-later
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest

from addon.core import rigs
from addon.core.rigs import map_bones

# Bone -> parent. Of the CC0 rigs of MPFB2 and of a human that the Rigify of Blender 5.0 generated.
bones = json.loads((Path(__file__).parent / "golden" / "bones.json").read_text())

limb_bones = {
    "mixamo": ["LeftArm", "LeftForeArm", "LeftHand", "LeftUpLeg", "LeftLeg", "LeftFoot"],
    "makehuman": [
        "upperarm01.L",
        "lowerarm01.L",
        "wrist.L",
        "upperleg01.L",
        "lowerleg01.L",
        "foot.L",
    ],
    "unreal": ["upperarm_l", "lowerarm_l", "hand_l", "thigh_l", "calf_l", "foot_l"],
    "rigify": [f"DEF-{b}.L" for b in ("upper_arm", "forearm", "hand", "thigh", "shin", "foot")],
}
families = {
    "mixamo": "Mixamo",
    "makehuman": "MakeHuman",
    "unreal": "Unreal mannequin",
    "rigify": "Rigify",
}


@pytest.mark.parametrize("rig", families)
def test_the_rigs_of_the_trade_are_found_whole(rig):
    found = map_bones(bones[rig], bones[rig])
    assert found.family == families[rig] and not found.problem
    assert found.unmapped == []
    limbs = [found.joints[f"left_{limb}"] for limb in rigs.rig_tables.limbs]
    prefix = "mixamorig:" if rig == "mixamo" else ""
    assert limbs == [(prefix + bone, "head") for bone in limb_bones[rig]]
    # Every joint once, on bones that exist, each side on its own.
    assert len(set(found.joints.values())) == len(found.joints)
    assert {bone for bone, _ in found.joints.values()} <= set(bones[rig])
    assert set(found.joints) | set(found.guessed) == set(rigs.joint_names)
    assert found.head in bones[rig]
    for joint, (bone, _) in found.joints.items():
        for word in ("left", "right"):
            if bone.casefold().replace("mixamorig:", "").startswith(word):
                assert joint.startswith(word)


def test_the_finger_ends_at_the_tail_of_its_last_bone():
    found = map_bones(bones["rigify"], bones["rigify"])
    assert [found.joints[j] for j in rigs.hand_joints("right")[4:9]] == [
        ("DEF-thumb.03.R", "tail"),
        ("DEF-f_index.01.R", "head"),
        ("DEF-f_index.02.R", "head"),
        ("DEF-f_index.03.R", "head"),
        ("DEF-f_index.03.R", "tail"),
    ]


def test_eyes_and_ears_that_have_bones_are_bound_and_the_rest_is_placed():
    rigify = map_bones(bones["rigify"], bones["rigify"])
    assert rigify.guessed == []
    assert rigify.joints["left_eye"] == ("ORG-eye.L", "head")  # not the handle "eye.L"
    makehuman = map_bones(bones["makehuman"], bones["makehuman"])
    assert makehuman.joints["right_eye"] == ("eye.R", "head")
    assert makehuman.guessed == ["nose", "right_ear", "left_ear"]
    mixamo = map_bones(bones["mixamo"], bones["mixamo"])
    assert mixamo.guessed == list(rigs.face_joints)


@pytest.mark.parametrize("prefix", ["", "mixamorig1:", "mixamorig_", "Ada:mixamorig:", "char_01_"])
def test_mixamo_with_any_prefix(prefix):
    def renamed(name):
        return name and name.replace("mixamorig:", prefix)

    parents = {renamed(n): renamed(p) for n, p in bones["mixamo"].items()}
    found = map_bones(parents, parents)
    assert found.family == "Mixamo" and found.unmapped == []
    assert found.head == prefix + "Head"


def test_mixamo_with_bones_for_finger_tips():
    parents = dict(bones["mixamo"])
    parents["mixamorig:LeftHandIndex4"] = "mixamorig:LeftHandIndex3"
    found = map_bones(parents, parents)
    assert found.joints["left_index_4"] == ("mixamorig:LeftHandIndex4", "head")
    assert found.joints["left_ring_4"] == ("mixamorig:LeftHandRing3", "tail")


def metarig(lower=""):
    names = {"spine.006": "spine.005"}
    for side in "LR":
        chain = ["shoulder", "upper_arm", "forearm", "hand"]
        names |= {f"{b}.{side}": f"{a}.{side}" for a, b in itertools.pairwise(chain)}
        names |= {f"thigh.{side}": "spine", f"shin.{side}": f"thigh.{side}"}
        names |= {f"foot.{side}": f"shin.{side}"}
    return names


def test_the_basic_metarig_has_no_fingers_and_says_so_in_words():
    found = map_bones(metarig(), metarig())
    assert found.family == "Rigify metarig" and found.head == "spine.006"
    assert rigs.in_words(found.unmapped) == [
        "fingers of the left hand",
        "fingers of the right hand",
    ]


def test_vrm_in_its_three_spellings():
    fingers = ("Thumb", "Index", "Middle", "Ring", "Little")
    parts = ("UpperArm", "LowerArm", "Hand", "UpperLeg", "LowerLeg", "Foot")
    vroid = ["J_Bip_C_Head", *(f"J_Bip_{s}_{p}" for s in "LR" for p in parts)]
    vroid += [f"J_Bip_{s}_{f}{n}" for s in "LR" for f in fingers for n in (1, 2, 3)]
    vroid += ["J_Adj_L_FaceEye", "J_Adj_R_FaceEye"]
    found = map_bones(vroid, {})
    assert found.family == "VRoid" and found.unmapped == []
    assert found.joints["left_pinky_1"] == ("J_Bip_L_Little1", "head")
    assert found.joints["left_eye"] == ("J_Adj_L_FaceEye", "head")

    joints = ("Proximal", "Intermediate", "Distal")
    for thumb in (joints, ("Metacarpal", "Proximal", "Distal")):
        humanoid = ["head", "leftEye", "rightEye", *(f"{s}{p}" for s in rigs.sides for p in parts)]
        humanoid += [f"{s}{f}{j}" for s in rigs.sides for f in fingers[1:] for j in joints]
        humanoid += [f"{s}Thumb{j}" for s in rigs.sides for j in thumb]
        found = map_bones(humanoid, {})
        assert found.family == "VRM" and found.unmapped == []
        assert found.joints["right_thumb_1"] == (f"rightThumb{thumb[0]}", "head")
        assert found.joints["right_thumb_4"] == ("rightThumbDistal", "tail")

    blender = ["head", *(f"{p}.{s}" for s in "LR" for p in ("upper_arm", "lower_arm", "hand"))]
    blender += [f"{p}.{s}" for s in "LR" for p in ("upper_leg", "lower_leg", "foot")]
    assert map_bones(blender, {}).family == "VRM for Blender"


def test_names_in_another_case_are_found():
    unreal = {n.title(): p and p.title() for n, p in bones["unreal"].items()}
    found = map_bones(unreal, unreal)
    assert found.family == "Unreal mannequin"
    assert found.joints["left_elbow"] == ("Lowerarm_L", "head")


def test_a_missing_joint_is_named():
    parents = {n: p for n, p in bones["mixamo"].items() if "LeftForeArm" not in n}
    found = map_bones(parents, parents)
    assert found.family == "Mixamo" and found.unmapped == ["left_elbow"]
    parents = {n: p for n, p in bones["mixamo"].items() if "LeftHandRing2" not in n}
    assert rigs.in_words(map_bones(parents, parents).unmapped) == ["left ring"]


@pytest.mark.parametrize("rig", bones)
def test_whatever_is_missing_each_joint_is_bound_placed_or_named(rig):
    draw = random.Random(rig)
    for share in (0.1, 0.5, 0.9, 0.97):
        some = [name for name in bones[rig] if draw.random() < share]
        found = map_bones(some, bones[rig])
        parts = [*found.joints, *found.guessed, *found.unmapped]
        assert sorted(parts) == sorted(rigs.joint_names)
        assert {bone for bone, _ in found.joints.values()} <= set(some)
        assert bool(found.problem) == (not found.joints)


def test_an_unknown_rig_says_what_is_missing():
    found = map_bones(["Bone", "Bone.001"], {"Bone.001": "Bone"})
    assert found.family == "" and not found.joints and found.head is None
    assert "not known" in found.problem and "by hand" in found.problem
    assert set(found.unmapped) == set(rigs.joint_names)
    legs = ["mixamorig:LeftUpLeg", "mixamorig:LeftLeg", "mixamorig:LeftFoot"]
    found = map_bones(legs, {})
    assert "Mixamo" in found.problem and "left shoulder" in found.problem
    assert "left knee" not in found.problem


def test_two_rigs_in_one_armature_are_refused():
    double = {
        n.replace("mixamorig:", p): (m or "").replace("mixamorig:", p)
        for p in ("ada:", "ben:")
        for n, m in bones["mixamo"].items()
    }
    found = map_bones(double, double)
    assert not found.joints
    assert "two rigs" in found.problem and "ada" in found.problem and "ben" in found.problem


def test_the_deforming_bones_of_rigify_win_over_its_controls():
    both = {**bones["rigify"], **{n: None for n in metarig() if "arm" in n}}
    assert map_bones(both, both).family == "Rigify"


def test_corrections_by_hand():
    found = map_bones(metarig(), metarig())
    corrected = found.with_override("left_index_4", "finger_tip", "tail")
    corrected = corrected.with_override("nose", "nose_bone")
    assert corrected.joints["left_index_4"] == ("finger_tip", "tail")
    assert "left_index_4" not in corrected.unmapped and "left_index_4" in found.unmapped
    assert "nose" not in corrected.guessed and corrected.joints["nose"] == ("nose_bone", "head")
    with pytest.raises(rigs.RigError, match="not a joint"):
        found.with_override("neck", "spine")
    with pytest.raises(rigs.RigError, match="head"):
        found.with_override("nose", "a", "middle")


def test_every_joint_has_its_place_among_the_openpose_points():
    assert len(rigs.body_joints) == 18 and len(rigs.hand_joints("left")) == 21
    assert len(rigs.joint_names) == len(set(rigs.joint_names)) == 17 + 40
    assert rigs.hand_joints("left")[0] == "left_wrist"


def test_the_face_is_placed_in_front_of_the_head_whichever_way_the_rig_was_built():
    rest = {
        "left_shoulder": np.array([0.2, 0.0, 1.5]),
        "right_shoulder": np.array([-0.2, 0.0, 1.5]),
        "left_hip": np.array([0.1, 0.0, 1.0]),
        "right_hip": np.array([-0.1, 0.0, 1.0]),
    }
    head = np.array([0.0, 0.0, 1.62])
    face = rigs.face_at_rest(rest, head)
    assert set(face) == set(rigs.face_joints)
    assert face["nose"][1] < -0.1  # Blender's people look along -y
    assert face["left_ear"][0] > 0.05 and face["right_ear"][0] < -0.05
    assert face["left_eye"][2] > face["nose"][2] > head[2]
    # The same rig, y up and looking along +z, ten times as large.
    turn = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]) * 10
    turned = rigs.face_at_rest({n: turn @ p for n, p in rest.items()}, turn @ head, ["nose"])
    assert list(turned) == ["nose"]
    assert np.allclose(turned["nose"], turn @ face["nose"])
    assert rigs.face_at_rest({}, head) == {}

# SPDX-License-Identifier: GPL-3.0-or-later
"""Poses: bones keep their lengths, hands and feet go where they are told."""

import numpy as np
import pytest

from world.posing import Arm, Foot, Pose, fingers, palm_normal, solve


def rest_joints():
    """A plain person in an A-pose, metres."""
    j = {"hips": (0, 0, 0.95), "spine1": (0, 0, 1.05), "spine2": (0, 0, 1.17)}
    j |= {"chest": (0, 0, 1.28), "neck": (0, 0.01, 1.45), "head": (0, 0, 1.53)}
    for side, s in (("L", 1), ("R", -1)):
        limbs = {"clavicle": (0.03, 0, 1.40), "shoulder": (0.17, 0, 1.38)}
        limbs |= {"elbow": (0.37, 0.01, 1.19), "wrist": (0.50, -0.14, 1.04)}
        limbs |= {"hip": (0.10, 0, 0.90), "knee": (0.11, -0.01, 0.48)}
        limbs |= {"ankle": (0.12, 0.01, 0.08), "ball": (0.13, -0.12, 0.02)}
        for k, (x, y, z) in limbs.items():
            j[f"{k}.{side}"] = (s * x, y, z)
        for n, finger in enumerate(fingers):
            for i in (1, 2, 3):
                step = 0.06 + 0.03 * i
                x, y, z = 0.50 + step * 0.55, -0.14 - step * 0.5 + 0.015 * n, 1.04 - step * 0.6
                j[f"{finger}{i}.{side}"] = (s * x, y, z)
    return {k: np.array(v, float) for k, v in j.items()}


rest = rest_joints()


def at(done, part, joint=None):
    m = done[part]
    return m[:3, :3] @ rest[joint or part] + m[:3, 3]


walking = Pose(
    at=(3.0, 1.0, 0.0),
    facing=70,
    pelvis=(3, 2, -7),
    trunk=(12, -3, 20),
    head=(10, 5, 30),
    left_foot=Foot((0.07, 0.30, 0.0), pitch=-16),
    right_foot=Foot((0.07, -0.30, 0.0), pitch=32),
    left_arm=Arm(anchor="chest", offset=(-0.2, 0.4, -0.4)),
    right_arm=Arm(offset=(0.4, 0.2, 0.4), palm=(0, 1, 0), curl=0.0),
)


@pytest.mark.parametrize("pose", [Pose(), walking, walking.but(drop=0.4)])
def test_every_part_moves_rigidly_and_hangs_together(pose):
    done = solve(pose, rest)
    for m in done.values():
        np.testing.assert_allclose(m[:3, :3] @ m[:3, :3].T, np.eye(3), atol=1e-9)
        assert np.linalg.det(m[:3, :3]) > 0.99
    chains = [("hips", "spine1"), ("spine2", "chest"), ("neck", "head"), ("chest", "clavicle.L")]
    for s in "LR":
        chains += [(f"shoulder.{s}", f"elbow.{s}"), (f"elbow.{s}", f"wrist.{s}")]
        chains += [(f"hip.{s}", f"knee.{s}"), (f"knee.{s}", f"ankle.{s}"), ("hips", f"hip.{s}")]
        chains += [(f"wrist.{s}", f"index1.{s}"), (f"index1.{s}", f"index2.{s}")]
    for parent, child in chains:
        np.testing.assert_allclose(at(done, parent, child), at(done, child), atol=1e-9)


def test_feet_stand_where_they_are_put():
    done = solve(walking.but(left_foot=Foot((0.2, 0.1, 0.0), turn=0)), rest)
    np.testing.assert_allclose(at(done, "ankle.L"), (0.2, -0.1, 0.08), atol=2e-3)
    # The heel is up: the ball stays at its height on the floor.
    assert at(done, "ball.R")[2] == pytest.approx(0.02, abs=0.012)
    assert at(done, "ankle.R")[2] > 0.13


def test_a_hand_reaches_a_point_of_the_world_and_its_palm_looks_there():
    target = (2.9, 0.62, 1.5)
    pose = Pose(
        at=(3.0, 1.0, 0.0),
        facing=10,
        right_arm=Arm(anchor="world", offset=target, elbow=(1, 0, -1), palm=(0, 1, 0)),
    )
    done = solve(pose, rest)
    reached = pose.root() @ np.append(at(done, "wrist.R"), 1)
    np.testing.assert_allclose(reached[:3], target, atol=2e-3)
    palm = done["wrist.R"][:3, :3] @ palm_normal("R", rest)
    fore = at(done, "wrist.R") - at(done, "elbow.R")
    ahead = np.array([0, -1.0, 0])
    ahead -= fore * (ahead @ fore) / (fore @ fore)
    assert palm @ ahead / np.linalg.norm(ahead) > 0.9


def test_out_of_reach_stretches_no_arm():
    done = solve(Pose(left_arm=Arm(anchor="world", offset=(9, 0, 1))), rest)
    upper = np.linalg.norm(at(done, "elbow.L") - at(done, "shoulder.L"))
    assert upper == pytest.approx(np.linalg.norm(rest["elbow.L"] - rest["shoulder.L"]))


def test_knees_bend_forwards_and_the_gaze_finds_its_point():
    pose = Pose(at=(1.0, 2.0, 0.0), facing=30, drop=0.35, look=(2.5, 0.5, 1.2))
    done = solve(pose, rest)
    for s in "LR":
        middle = (at(done, f"hip.{s}") + at(done, f"ankle.{s}")) / 2
        assert at(done, f"knee.{s}")[1] < middle[1] - 0.1
    eyes = pose.root() @ done["head"] @ np.append(rest["head"] + [0, -0.08, 0.09], 1)
    forward = (pose.root() @ done["head"])[:3, :3] @ [0, -1, 0]
    wanted = np.array(pose.look) - eyes[:3]
    assert forward @ wanted / np.linalg.norm(wanted) > 0.98


def test_palms_look_down_in_an_a_pose():
    for side in "LR":
        assert palm_normal(side, rest)[2] < 0


def test_an_unknown_anchor_is_named():
    with pytest.raises(ValueError, match="anchor 'knee'"):
        solve(Pose(left_arm=Arm(anchor="knee")), rest)

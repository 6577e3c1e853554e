# SPDX-License-Identifier: GPL-3.0-or-later

import numpy as np
import pytest

from addon.core import openpose, png
from addon.core.openpose import apply_facing, draw_pose
from addon.core.request import Keypoint, Pose
from tests.addon.golden import openpose_oracle as oracle


def compare(ours, theirs):
    """Intersection over union of what is drawn, and the largest difference of a colour in it."""
    a, b = ours.any(axis=2), theirs.any(axis=2)
    apart = np.abs(ours.astype(int) - theirs)[a & b]
    return (a & b).sum() / (a | b).sum(), apart.max()


@pytest.mark.parametrize("number", range(5))
def test_drawing_is_that_of_controlnet_aux(number):
    case = oracle.kept_cases()[number]
    theirs = png.decode(oracle.picture_file(number).read_bytes())
    assert theirs.shape == (case.height, case.width, 3)
    assert theirs.any(axis=2).mean() > 0.01
    ours = draw_pose(case.people, case.width, case.height)
    iou, apart = compare(ours, theirs)
    assert iou >= 0.99 and apart <= 1
    # The bar is above; in fact not one pixel differs.
    assert (ours == theirs).all()


@pytest.mark.skipif(not oracle.available(), reason="controlnet-aux or OpenCV 4 is not installed")
def test_drawing_is_that_of_controlnet_aux_live():
    sizes = [(256, 256), (512, 512), (832, 1216), (1920, 1080), (301, 707)]
    for seed in range(25):
        case = oracle.random_case(100 + seed, *sizes[seed % 5], 1 + seed % 3)
        ours = draw_pose(case.people, case.width, case.height)
        iou, apart = compare(ours, oracle.draw(case))
        assert iou >= 0.99 and apart <= 1


def point(x, y, state="visible"):
    return Keypoint(x, y, 2.0, state)


def body(**points):
    order = ["nose", "neck", "rsho", "relb", "rwri"]
    return Pose(body=[points.get(name) for name in order] + [None] * 13)


def test_a_limb_has_the_dimmed_colour_and_joints_lie_on_top():
    pose = body(neck=point(20.5, 50.5), rsho=point(80.5, 50.5))
    picture = draw_pose([pose], 100, 100)
    assert picture[50, 50].tolist() == [153, 0, 0]
    assert picture[50, 20].tolist() == [255, 85, 0]
    assert picture[50, 80].tolist() == [255, 170, 0]
    # 4 px to each side of the middle, and the half of a joint beyond the end.
    assert picture[46:55, 50].any(axis=1).all() and not picture[[45, 55], 50].any()
    assert picture[50, 16].any() and not picture[50, 15].any()


@pytest.mark.parametrize("state", ["hidden", "outside", "behind"])
def test_points_that_are_not_seen_and_their_limbs_are_left_out(state):
    pose = body(neck=point(20, 50), rsho=point(80, 50, state))
    only = draw_pose([body(neck=point(20, 50))], 100, 100)
    assert (draw_pose([pose], 100, 100) == only).all()
    assert not draw_pose([body(neck=point(20, 50, state))], 100, 100).any()


def test_the_nearer_person_covers_the_farther_one():
    far, near = body(neck=point(50, 50)), body(rsho=point(20, 50), relb=point(80, 50))
    assert draw_pose([far, near], 100, 100)[50, 50].tolist() == [153, 102, 0]
    assert draw_pose([near, far], 100, 100)[50, 50].tolist() == [255, 85, 0]


def test_sticks_are_scaled_as_xinsir_does():
    longest = [499, 500, 999, 1024, 1999, 2000, 3000, 4000, 5000, 9000]
    assert [openpose.stick_ratio(n, 10) for n in longest] == [1, 2, 2, 3, 3, 4, 5, 6, 7, 7]
    assert openpose.stick_ratio(10, 1024) == 3


def test_the_ratio_scales_sticks_and_joints_of_the_body():
    picture = draw_pose([body(neck=point(50, 50))], 100, 100, ratio=3)
    assert picture.any(axis=2)[50].sum() == 25
    assert draw_pose([body(neck=point(512, 512))], 1024, 1024).any(axis=2)[512].sum() == 25


def test_hands_and_faces_can_be_left_out():
    case = oracle.kept_cases()[1]
    everything = draw_pose(case.people, case.width, case.height)
    bodies = draw_pose(case.people, case.width, case.height, hands=False, face=False)
    bare = [Pose(body=p.body) for p in case.people]
    assert (bodies == draw_pose(bare, case.width, case.height)).all()
    white = [255, 255, 255]
    assert (everything == white).all(axis=2).any() and not (bodies == white).all(axis=2).any()


def test_nothing_to_draw_is_a_black_picture_and_borders_are_safe():
    assert draw_pose([], 64, 48).shape == (48, 64, 3)
    assert not draw_pose([Pose(), Pose(body=[None] * 18)], 64, 48).any()
    corners = [point(0, 0), point(64, 0), point(0, 48), point(64, 48), point(63.9, 47.9)]
    picture = draw_pose([Pose(body=corners + [None] * 13, left_hand=corners, face=corners)], 64, 48)
    assert picture.any()


def test_indexed_drawing_is_the_same_picture():
    case = oracle.kept_cases()[0]
    entries = openpose.draw_pose_indexed(case.people, case.width, case.height)
    picture = draw_pose(case.people, case.width, case.height)
    assert (openpose.palette()[entries] == picture).all()
    assert (png.decode(png.encode(entries, 1, openpose.palette())) == picture).all()


nose, right_eye, left_eye, right_ear, left_ear = 0, 14, 15, 16, 17


def facing(yaw, pitch=0.0):
    pose = Pose(body=[point(i, i) for i in range(18)], face=[point(1, 1), None])
    turned = apply_facing(pose, yaw, pitch)
    assert [(p.x, p.y, p.z) for p in turned.body] == [(p.x, p.y, p.z) for p in pose.body]
    gone = {i for i, p in enumerate(turned.body) if p.state == "hidden"}
    return gone, turned.face


def test_a_front_view_shows_everything():
    for yaw in (0, 30, -44, 360):
        gone, face = facing(yaw)
        assert gone == set() and face[0].state == "visible"


@pytest.mark.parametrize("yaw", [180, -180, 150, -150])
def test_a_back_view_hides_nose_eyes_and_face_and_keeps_the_ears(yaw):
    gone, face = facing(yaw)
    assert gone == {nose, right_eye, left_eye}
    assert face[0].state == "hidden" and face[1] is None


def test_a_profile_hides_the_far_eye_and_ear():
    # It looks to the picture's right: its right side is seen.
    assert facing(90)[0] == {left_eye, left_ear}
    assert facing(-90)[0] == {right_eye, right_ear}
    assert facing(60)[0] == {left_ear}


def test_points_that_are_gone_already_stay_what_they_were():
    pose = Pose(body=[point(1, 1, "outside"), *[None] * 17])
    assert apply_facing(pose, 180).body[0].state == "outside"

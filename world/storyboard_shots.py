# SPDX-License-Identifier: GPL-3.0-or-later
"""The story of the sample: who stands where, when, before which camera. Plain data.

Two friends meet in a park. Mara comes along the path, Jonas waits on the bench; they greet, clap
hands and walk off together. The cameras stay on one side of the line between them until the two
turn their backs on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from world.posing import Arm, Foot, Pose
from world.storyboard_set import bench_at, bench_seat

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class CameraKey:
    """A camera at one frame: it stands `at` and looks to `to` (world, metres). lens in mm."""

    frame: int
    at: Triple
    to: Triple
    lens: float | None = None


@dataclass(frozen=True)
class ShotPlan:
    """A shot: inclusive frames, its camera, the poses of both at given frames, what is drawn.

    settings: fields of the camera data (lens, shift_x, sensor_fit, …). size: delivery size if it
    is not the film's. marked: keyframes besides the first and the last.
    """

    name: str
    title: str
    start: int
    end: int
    prompt: str
    camera: list[CameraKey]
    settings: dict[str, Any]
    mara: list[tuple[int, Pose]] = field(default_factory=list)
    jonas: list[tuple[int, Pose]] = field(default_factory=list)
    size: tuple[int, int] | None = None
    marked: tuple[int, ...] = ()


# --- arms ----------------------------------------------------------------------------------------

hang = Arm()
swing_front = Arm(offset=(0.06, 0.34, -0.84), elbow=(0.4, -1, -0.2), curl=0.35)
swing_back = Arm(offset=(0.18, -0.30, -0.86), elbow=(0.4, -1, 0.2), curl=0.35)
wave = Arm(offset=(0.42, 0.18, 0.42), elbow=(1, 0.1, -0.8), palm=(0, 1, 0), bend=-12, curl=0.03)
wave_out = Arm(offset=(0.62, 0.16, 0.36), elbow=(1, 0.1, -0.9), palm=(0, 1, 0), bend=6, curl=0.03)
hail = Arm(offset=(0.16, 0.52, 0.46), elbow=(1, 0.3, -1), palm=(0, 1, 0), bend=-20, curl=0.03)
on_hip = Arm(
    anchor="hip", offset=(0.22, 0.09, 0.26), elbow=(1, -0.5, 0), palm=(-1, -0.2, 0), curl=0.4
)
on_knee = Arm(
    anchor="hip", offset=(0.16, 0.66, 0.16), elbow=(0.8, -0.7, -0.2), palm=(0, 0, -1), curl=0.3
)
crossed_low = Arm(
    anchor="chest", offset=(-0.22, 0.36, -0.44), elbow=(1, 0.2, -0.8), palm=(0, -1, 0), curl=0.35
)
crossed_high = Arm(
    anchor="chest", offset=(-0.20, 0.42, -0.37), elbow=(1, 0.2, -0.8), palm=(0, -1, 0), curl=0.35
)
offer = Arm(offset=(0.34, 0.62, -0.40), elbow=(0.7, -1, -0.4), palm=(0, 0.2, 1), curl=0.12)

# --- bodies --------------------------------------------------------------------------------------

stand = Pose(
    shift=(0.03, 0.0),
    pelvis=(0, 2, 0),
    trunk=(-2, -3, 0),
    left_foot=Foot((0.10, 0.0, 0.0), turn=10),
    right_foot=Foot((0.13, 0.05, 0.0), turn=22),
)
step_left = Pose(
    drop=0.03,
    pelvis=(3, 0, -7),
    trunk=(3, 0, 12),
    left_foot=Foot((0.07, 0.30, 0.0), turn=4, pitch=-16),
    right_foot=Foot((0.07, -0.30, 0.0), turn=6, pitch=32),
    left_arm=swing_back,
    right_arm=swing_front,
)
step_right = Pose(
    drop=0.03,
    pelvis=(3, 0, 7),
    trunk=(3, 0, -12),
    left_foot=Foot((0.07, -0.30, 0.0), turn=6, pitch=32),
    right_foot=Foot((0.07, 0.30, 0.0), turn=4, pitch=-16),
    left_arm=swing_front,
    right_arm=swing_back,
)
passing = Pose(
    drop=0.015,
    pelvis=(3, 0, 0),
    trunk=(3, 0, 0),
    left_foot=Foot((0.07, 0.02, 0.0), turn=4),
    right_foot=Foot((0.07, -0.12, 0.06), turn=4, pitch=26),
    left_arm=Arm(offset=(0.09, -0.05, -0.92)),
    right_arm=Arm(offset=(0.09, 0.12, -0.92)),
)


def sit(drop: float) -> Pose:
    """On the bench. drop: how far (m) this person's pelvis sinks to the seat."""
    return Pose(
        at=(bench_at[0], bench_at[1] - 0.02, 0.0),
        drop=drop,
        shift=(0.0, 0.02),
        pelvis=(-8, 0, 0),
        trunk=(14, 0, 0),
        left_foot=Foot((0.15, 0.46, 0.0), turn=12),
        right_foot=Foot((0.17, 0.40, 0.0), turn=14),
        left_arm=on_knee,
        right_arm=on_knee,
    )


def plans(jonas_drop: float) -> list[ShotPlan]:
    """All shots in order of time. jonas_drop: see `sit`."""
    sitting = sit(jonas_drop)
    path = -1.15
    face_mara: Triple = (-0.45, path, 1.52)
    face_jonas: Triple = (0.75, path, 1.66)
    away = -1.15
    return [
        ShotPlan(
            "010",
            "Arrival",
            1,
            48,
            "two people, full body shot, park",
            [CameraKey(1, (-0.85, -8.6, 1.75), (-0.75, 0.0, 1.2))],
            {"lens": 46.0},
            mara=[
                (1, step_left.but(at=(-3.1, path, 0), facing=84)),
                (13, passing.but(at=(-2.75, path, 0), facing=84)),
                (25, step_right.but(at=(-2.35, path, 0), facing=84, look=(1.3, 0.2, 1.2))),
                (37, passing.but(at=(-1.95, path, 0), facing=84, look=(1.3, 0.2, 1.2))),
                (
                    48,
                    step_left.but(
                        at=(-1.55, path, 0), facing=80, look=(1.3, 0.2, 1.2), right_arm=hail
                    ),
                ),
            ],
            jonas=[
                (1, sitting.but(head=(-22, 0, -30))),
                (25, sitting.but(head=(-14, 0, -6))),
                (48, sitting.but(look=(-1.85, path, 1.5), trunk=(6, 0, -8))),
            ],
            marked=(25,),
        ),
        ShotPlan(
            "020",
            "Wave",
            49,
            84,
            "full body shot, park",
            [
                CameraKey(49, (1.65, path - 0.25, 1.25), (-2.4, path, 0.87)),
                CameraKey(84, (2.35, path - 0.25, 1.25), (-1.4, path, 0.87)),
            ],
            {"lens": 46.0, "sensor_fit": "VERTICAL"},
            mara=[
                (49, step_right.but(at=(-2.4, path, 0), facing=88)),
                (61, passing.but(at=(-2.0, path, 0), facing=88)),
                (72, step_left.but(at=(-1.6, path, 0), facing=88, right_arm=wave)),
                (84, stand.but(at=(-1.4, path, 0), facing=86, right_arm=wave_out, head=(2, 5, 0))),
            ],
            jonas=[(49, sitting.but(look=face_mara))],
            size=(1080, 1920),
            marked=(72,),
        ),
        ShotPlan(
            "030",
            "He looks up",
            85,
            108,
            "close-up, park",
            [
                CameraKey(85, (0.77, -1.22, 1.30), (1.30, 0.10, 1.20), lens=80.0),
                CameraKey(108, (0.77, -1.22, 1.30), (1.26, 0.10, 1.24), lens=92.0),
            ],
            {},
            mara=[(85, stand.but(at=(-1.2, path, 0), facing=86, right_arm=wave_out))],
            jonas=[
                (85, sitting.but(head=(-20, 0, -8))),
                (108, sitting.but(head=(2, 5, -34), trunk=(4, 0, -6))),
            ],
        ),
        ShotPlan(
            "040",
            "Over his shoulder",
            109,
            140,
            "two people, medium shot, park",
            [CameraKey(109, (2.2, path - 0.32, 1.64), (-0.4, path + 0.04, 1.36))],
            {"lens": 42.0},
            mara=[
                (109, passing.but(at=(-0.8, path, 0), facing=92, look=face_jonas)),
                (
                    140,
                    stand.but(
                        at=(-0.45, path - 0.05, 0), facing=94, look=face_jonas, left_arm=offer
                    ),
                ),
            ],
            jonas=[
                (109, stand.but(at=(0.75, path + 0.16, 0), facing=-88, look=face_mara)),
                (
                    140,
                    stand.but(
                        at=(0.75, path + 0.14, 0), facing=-92, look=face_mara, right_arm=offer
                    ),
                ),
            ],
        ),
        ShotPlan(
            "050",
            "Talk",
            141,
            172,
            "two people, three-quarter shot, park",
            [CameraKey(141, (0.12, -4.15, 0.86), (0.12, 0.0, 0.86))],
            {"lens": 48.0, "shift_y": 0.14, "shift_x": -0.03},
            mara=[
                (
                    141,
                    stand.but(
                        at=(-0.38, path, 0),
                        facing=32,
                        look=face_jonas,
                        left_arm=crossed_low,
                        right_arm=crossed_high,
                    ),
                ),
                (172, stand.but(at=(-0.38, path, 0), facing=26, head=(4, -7, 14), left_arm=on_hip)),
            ],
            jonas=[
                (
                    141,
                    stand.but(at=(0.62, path, 0), facing=-30, look=face_mara, right_arm=on_hip),
                ),
                (
                    172,
                    stand.but(
                        at=(0.62, path, 0),
                        facing=-30,
                        look=face_mara,
                        right_arm=offer,
                        left_arm=on_hip,
                        trunk=(-4, 3, -6),
                    ),
                ),
            ],
        ),
        ShotPlan(
            "060",
            "High five",
            173,
            196,
            "two people, full body shot, park",
            [CameraKey(173, (1.2, -7.0, 1.55), (1.2, path, 0.97))],
            {"type": "ORTHO", "ortho_scale": 3.7},
            mara=[
                (173, stand.but(at=(0.55, path, 0), facing=88, look=(1.75, path, 1.62))),
                (
                    196,
                    stand.but(
                        at=(0.71, path, 0),
                        facing=84,
                        look=(1.75, path, 1.62),
                        trunk=(-2, 0, 16),
                        right_arm=Arm(
                            anchor="world",
                            offset=(1.17, path - 0.10, 1.55),
                            elbow=(1, 0.3, -1),
                            palm=(0, 1, 0),
                            bend=-40,
                            curl=0.03,
                        ),
                        right_foot=Foot((0.12, -0.20, 0.0), turn=20, pitch=18),
                    ),
                ),
            ],
            jonas=[
                (173, stand.but(at=(1.85, path, 0), facing=-88, look=(0.65, path, 1.5))),
                (
                    196,
                    stand.but(
                        at=(1.73, path, 0),
                        facing=-84,
                        look=(0.65, path, 1.5),
                        trunk=(2, 0, -16),
                        left_arm=Arm(
                            anchor="world",
                            offset=(1.27, path - 0.10, 1.55),
                            elbow=(1, 0.3, -1),
                            palm=(0, 1, 0),
                            bend=-40,
                            curl=0.03,
                        ),
                        left_foot=Foot((0.12, -0.16, 0.0), turn=14, pitch=14),
                    ),
                ),
            ],
        ),
        ShotPlan(
            "070",
            "Off together",
            197,
            236,
            "two people, full body shot, park",
            [CameraKey(197, (away + 0.1, -5.6, 1.45), (away, 2.0, 0.86))],
            {"lens": 40.0},
            mara=[
                (197, step_left.but(at=(away - 0.38, -1.1, 0), facing=180)),
                (217, passing.but(at=(away - 0.38, -0.4, 0), facing=180)),
                (
                    236,
                    step_right.but(
                        at=(away - 0.38, 0.3, 0), facing=180, look=(away + 0.38, 0.3, 1.7)
                    ),
                ),
            ],
            jonas=[
                (197, step_right.but(at=(away + 0.42, -0.9, 0), facing=180)),
                (217, passing.but(at=(away + 0.42, -0.2, 0), facing=180)),
                (
                    236,
                    step_left.but(
                        at=(away + 0.42, 0.5, 0), facing=180, look=(away - 0.38, 0.3, 1.6)
                    ),
                ),
            ],
        ),
    ]


seat_height = bench_seat

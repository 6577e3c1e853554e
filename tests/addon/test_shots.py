# SPDX-License-Identifier: GPL-3.0-or-later
from pathlib import Path, PureWindowsPath

import pytest

from addon.core import shots
from addon.core.request import Size
from addon.core.shots import Marker, Overrides, ShotError, shots_from_markers, unique_names


def ranges(found):
    return [(s.name, s.camera, s.start, s.end) for s in found]


def test_a_shot_lasts_until_the_frame_before_the_next_camera_marker():
    markers = [(40, "020", "cam_b"), (1, "010", "cam_a"), (60, "beat", None), (80, "030", "cam_a")]
    assert ranges(shots_from_markers(markers, 1, 100)) == [
        ("010", "cam_a", 1, 39),
        ("020", "cam_b", 40, 79),
        ("030", "cam_a", 80, 100),
    ]


def test_frames_before_the_first_camera_marker_belong_to_no_shot():
    (only,) = shots_from_markers([(24, "010", "cam")], 1, 48)
    assert (only.start, only.end, only.length) == (24, 48, 25)


def test_shots_are_cut_to_the_film_and_those_outside_of_it_left_out():
    markers = [(-30, "a", "cam"), (-10, "b", "cam"), (50, "c", "cam"), (200, "d", "cam")]
    assert ranges(shots_from_markers(markers, 1, 100)) == [
        ("b", "cam", 1, 49),
        ("c", "cam", 50, 100),
    ]


def test_a_shot_of_one_frame_is_one_keyframe():
    first, second = shots_from_markers([(1, "010", "a"), (2, "020", "b")], 1, 2)
    assert first.keyframes == [1] and second.keyframes == [2]
    assert first.length == 1


def test_two_cameras_at_one_frame_the_first_counts_as_in_blender():
    assert ranges(shots_from_markers([(1, "x", "a"), (1, "y", "b")], 1, 9)) == [("x", "a", 1, 9)]


def test_no_camera_markers_are_no_shots_and_the_sentence_says_what_to_do():
    assert shots_from_markers([(1, "beat", None)], 1, 100) == []
    with pytest.raises(ShotError, match="Bind a camera to a timeline marker: "):
        shots.pick_shots([], "all")


def test_keyframes_are_first_last_and_marked_within_the_shot():
    own = Overrides(marked=frozenset([5, 20, 40, 1]))
    (shot, _) = shots_from_markers([(1, "a", "c"), (40, "b", "c")], 1, 60, {"a": own})
    assert shot.keyframes == [1, 5, 20, 39]
    assert shots.keyframes_of(1, 9, False, True) == [9]
    assert shots.keyframes_of(1, 9, True, False, [3, 12]) == [1, 3]
    assert shots.keyframes_of(1, 9, False, False) == []


def test_overrides_go_by_uid_and_survive_a_change_of_name():
    own = Overrides(
        name="opening",
        enabled=False,
        prompt="rain",
        negative_prompt="sun",
        seed=7,
        frame_size=Size(1080, 1920),
        handles=10,
        takes=3,
    )
    markers = [Marker(1, "F_01", "cam", "u1"), Marker(20, "F_20", "cam", "u2")]
    first, second = shots_from_markers(markers, 1, 40, {"u1": own})
    assert (first.name, first.uid, first.enabled, first.seed) == ("opening", "u1", False, 7)
    assert (first.prompt, first.negative_prompt, first.takes) == ("rain", "sun", 3)
    assert first.frame_size == Size(1080, 1920)
    assert first.with_handles == (-9, 29) and second.with_handles == (20, 40)
    assert (second.name, second.seed, second.frame_size) == ("010", None, None)


def test_shots_without_a_name_of_their_own_are_numbered_by_tens():
    assert unique_names(["F_01", "Marker", "", "F_-3.001"]) == ["010", "020", "030", "040"]
    assert unique_names(["010", "F_24", "020"]) == ["010", "015", "020"]
    assert unique_names(["", "010", "015", "", "020"]) == ["005", "010", "015", "017", "020"]
    assert unique_names(["opening", "", "010"]) == ["opening", "005", "010"]
    assert unique_names(["010", "", "011"]) == ["010", "020", "011"]


def test_no_name_is_given_twice():
    assert unique_names(["010", "010", "10"]) == ["010", "020", "030"]
    assert unique_names(["Rain", "rain", "RAIN "]) == ["Rain", "010", "020"]
    names = unique_names(["010", "", "", "", "", "", "", "", "", "", "020", "", "010"])
    assert len(names) == len({int(n) for n in names}) == 13


def test_numbers_go_on_past_999():
    assert shots.next_name("990", "", ["990"]) == "1000"
    assert shots.next_name("", "", []) == "010"
    assert shots.next_name("", "", ["010", "20"]) == "030"


def film():
    markers = [(1, "010", "a"), (10, "020", "b"), (20, "Rain", "c")]
    return shots_from_markers(markers, 1, 30, {"020": Overrides(enabled=False)})


def test_shots_are_picked_by_name_in_film_order():
    def names(text):
        return [s.name for s in shots.pick_shots(film(), text)]

    assert names("all") == ["010", "Rain"]
    assert names("rain, 10") == ["010", "Rain"]
    assert names("020,020") == ["020"]  # named, so drawn although disabled
    with pytest.raises(ShotError, match=r"no shot named 040.*010, 020, Rain"):
        names("010,040")
    with pytest.raises(ShotError, match="No shot was named"):
        names(" ,")
    with pytest.raises(ShotError, match="disabled"):
        shots.pick_shots([s for s in film() if not s.enabled])


def test_seeds_are_the_same_everywhere_and_different_for_takes():
    assert shots.seed_for(42, 10, 1) == 42
    assert shots.seed_for(42, 10, 2) == 933319243558722976
    many = {shots.seed_for(s, f, t) for s in (0, 1) for f in range(20) for t in range(2, 6)}
    assert len(many) == 2 * 20 * 4 and all(0 <= seed < 2**63 for seed in many)


def test_paths_follow_the_convention():
    path = shots.output_path(Path("out"), "The Pier", "010", 2, 24)
    assert path == Path("out/The_Pier/010/take_02/The_Pier_010_0024.png")
    assert shots.output_path(Path(), "f", "s", 12, 12345).name == "f_s_12345.png"


hostile = [
    "../../etc",
    "..",
    "a/b",
    "a\\b",
    "C:",
    "con",
    "NUL.txt",
    "a\0b",
    "",
    " ",
    "*?",
    "~",
    ".",
]


@pytest.mark.parametrize("name", hostile)
def test_no_name_leads_out_of_the_folder(name):
    clean = shots.file_name(name)
    assert clean and clean not in (".", "..")
    assert not set(clean) & set('/\\:*?"<>|\0') and not clean.endswith((".", " "))
    assert not PureWindowsPath(clean).is_reserved()
    path = shots.output_path(Path("/out"), name, name, 1, 1)
    assert Path("/out") in path.resolve().parents
    assert len(path.parts) == 6


def test_names_that_differ_become_files_that_differ():
    names = ["a/b", "a\\b", "a:b", "a_b", "Ünder", "x" * 80, "x" * 90, "nul", "_nul"]
    clean = [shots.file_name(n) for n in names]
    assert len(set(clean)) == len(names)
    assert shots.file_name("Ünder") == "Ünder" and max(map(len, clean)) < 70


def test_takes_on_disk_are_counted(tmp_path):
    assert shots.takes_on_disk(tmp_path, "film", "010") == []
    for name in ("take_02", "take_01", "take_100", "notes", "take_x"):
        (tmp_path / "film" / "010" / name).mkdir(parents=True)
    assert shots.takes_on_disk(tmp_path, "film", "010") == [1, 2, 100]

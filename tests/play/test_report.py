"""Explorers whose movement is known in closed form, through a real dataset on disk, to tables and images."""

import csv
import json
import math
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from tap_ray.dataset.encode import encode_episode
from tap_ray.dataset.lerobot import DatasetHeader, DatasetWriter
from tap_ray.errors import DataError, StorageError
from tap_ray.play import report
from tap_ray.specs import EE_DELTA_ACTION, EE_POSE_STATE, RobotSpec, slots
from tap_ray.types import PLAY_TASK, Trajectory
from tests.carried_square import BLUE, RED, write

T, HZ = 41, 5.0


def trajectory(explorer: str, index: int) -> Trajectory:
    """ "still" never moves; "reach" makes one minimum-jerk reach of 30 cm along x and shoves object 0 by 3 cm, once
    there and back; "shake" adds 1 cm up and down to it. Contact on every fourth step of a reach."""
    tau = np.linspace(0, 1, T)
    state = np.zeros((T, 7), np.float32)
    state[:, :4] = [0.2, 0.01, 0.12, 1.0]
    pose = np.zeros((T, 2, 7), np.float32)
    pose[:, :, 3] = 1.0
    contact = np.zeros(T, bool)
    if explorer != "still":
        state[:, 0] += 0.3 * (10 * tau**3 - 15 * tau**4 + 6 * tau**5)
        contact[::4] = True
    if explorer == "reach":
        pose[10:20, 0, 0] = 0.03
    if explorer == "shake":
        state[:, 2] += 0.01 * (-1.0) ** np.arange(T)
        pose[10:, 1, 1] = 0.019
    rgb = np.full((T, 32, 32, 3), 40 + 20 * index, np.uint8)
    rgb[np.arange(T), :, np.arange(T) % 32] = 255
    return Trajectory(
        rgb=rgb,
        state=state,
        action=np.zeros((T, 7), np.float32),
        contact=contact,
        object_pose=pose,
        robot_mask=None,
        partial=contact,
        entire=contact,
        object_name=("spoon", "cloth"),
        instruction="",
        num_clipped=0,
    )


def make_data(path: Path, explorers: list[str], *, state=EE_POSE_STATE) -> Path:
    header = DatasetHeader(
        spec=RobotSpec(robot="widowx", action=EE_DELTA_ACTION, state=state),
        plan={},
        image_size=(32, 32),
        num_objects=2,
        episodes_per_file=4,
    )
    with DatasetWriter(path, header) as writer:
        for index, explorer in enumerate(explorers):
            meta = {"seed": index, "explorer": explorer, "embodiment": "widowx"}
            writer.append(encode_episode(trajectory(explorer, index), index=index, task=PLAY_TASK, meta=meta))
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("play")
    data = make_data(root / "data", ["reach", "shake", "still", "reach"])
    return report.write(data, root / "report").parent


def test_the_numbers_by_hand(written):
    rows = {row["explorer"]: row for row in json.loads((written / "play.json").read_text())}
    assert list(rows) == ["reach", "shake", "still"]
    reach, shake, still = rows.values()
    assert (reach["episodes"], reach["steps"], reach["equal_steps"]) == (2, 2 * T, T)
    # x from 0.2 to 0.5 m crosses 6 voxels of 5 cm and ends on the edge of (or, in float32, inside) a seventh.
    assert reach["voxels"] in (6, 7)
    assert 1.5 < reach["entropy_bits"] < math.log2(7)
    assert reach["contact_rate"] == pytest.approx(11 / 41)
    # It shoved one of two objects by 3 cm; that it brought it back does not matter. 1.9 cm does not count.
    assert (reach["episodes_moving"], reach["objects_moved"]) == (1.0, 1.0)
    assert (shake["episodes_moving"], shake["objects_moved"]) == (0.0, 0.0)
    # A minimum-jerk reach: SPARC near its limit, jerk near -ln 204.8 (sampled at 41 points).
    assert reach["sparc"] == pytest.approx(-1.41, abs=0.06)
    assert reach["log_dimensionless_jerk"] == pytest.approx(-math.log(204.8), abs=0.25)
    assert shake["sparc"] < reach["sparc"] - 0.5
    assert shake["log_dimensionless_jerk"] < reach["log_dimensionless_jerk"] - 3
    assert (still["sparc"], still["voxels"], still["entropy_bits"], still["contact_rate"]) == (None, 1, 0.0, 0.0)


def test_two_arms_share_their_episodes():
    still, contact = np.zeros((T, 3)), np.zeros(T, bool)
    played = [
        report.Played(index=index, explorer="two", position=still, contact=contact, displacement=np.array([0.03, 0.0]))
        for index in (0, 0, 1, 1)
    ]
    [row] = report.summarize(played, HZ)
    assert (row["episodes"], row["steps"], row["equal_steps"], row["objects_moved"]) == (2, 2 * T, 4 * T, 1.0)


def test_table_csv_and_words_agree(written):
    text = (written / "report.md").read_text()
    with open(written / "play.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["explorer"] for row in rows] == ["reach", "shake", "still"]
    header = next(line for line in text.splitlines() if line.startswith("| explorer"))
    assert [cell.strip() for cell in header.strip("|").split("|")] == list(rows[0])
    assert "4 episodes, 164 steps at 5 Hz" in text
    for column in list(rows[0])[3:]:
        assert f"- `{column}`: " in text
    assert "| still " in text
    assert " - " in text  # an undefined mean


def test_images_show_what_they_should(written):
    for name in ("play.png", "workspace.png"):
        pixels = np.asarray(Image.open(written / name).convert("RGB"))
        assert pixels.std() > 10
    sheet = np.asarray(Image.open(written / "contact_sheet.png"))
    assert sheet.shape == (3 * (24 + 192), 8 * 192, 3)  # enlarged six times
    # Row 1, image 0 is the first frame of the first "reach": gray 40 with a white column at 0.
    assert sheet[80, 12:180].mean() == pytest.approx(40, abs=12)
    assert sheet[80, 2].mean() > 200


def test_the_video_is_what_browsers_play(written):
    path = str(written / "play.mp4")
    assert imageio_ffmpeg.count_frames_and_secs(path) == (T, pytest.approx(T / HZ, abs=0.1))
    stderr = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", path], capture_output=True, text=True).stderr
    for word in ("h264", "yuv420p", "5 fps", f"{3 * 288}x{24 + 288}"):
        assert word in stderr


def test_growth_of_the_visited_space():
    path = np.array([[0.0, 0, 0], [0.01, 0, 0], [0.06, 0, 0], [0.0, 0, 0], [0.11, 0, 0]])
    steps, voxels = report.visited_growth(path)
    assert steps.tolist() == [1, 3, 5, 5]
    assert voxels.tolist() == [1, 2, 3, 3]


def test_a_robot_without_an_end_effector_is_refused(tmp_path):
    data = make_data(tmp_path / "data", ["still"], state=slots("rad", -4, 4, *(f"joint{i}" for i in range(7))))
    with pytest.raises(DataError, match=r"lacks ee_x, ee_y, ee_z \(it has joint0, .*cannot be evaluated"):
        report.write(data, tmp_path / "out")


def test_a_place_that_cannot_be_written(tmp_path):
    data = make_data(tmp_path / "data", ["still"])
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"Cannot write .*file: File exists"):
        report.write(data, tmp_path / "file")


def test_no_data_set_is_told():
    with pytest.raises(DataError, match="There is no dataset at /nowhere"):
        report.write("/nowhere", "/tmp/never")


def test_the_sheet_of_crops(tmp_path):
    """Episodes 0 .. 2 have a bout each. A row is 192 high under a title of 24; crops of 24 px are enlarged by 8."""
    sheet = report.crop_sheet(write(tmp_path / "carried", 3))
    assert sheet is not None
    image = np.asarray(sheet).astype(int)
    assert image.shape == (24 + 3 * 192, 6 * 192, 3)
    assert (np.abs(image[24 + 96, 96] - RED) < 30).all()  # the middle of the first thing, a JPEG's red
    assert (np.abs(image[24 + 96, 192 + 96] - BLUE) < 30).all()  # the plate where it comes to rest


def test_no_masks_no_sheet_of_crops(tmp_path, written):
    assert report.crop_sheet(write(tmp_path / "carried", 1, mask=False)) is None
    assert not (written / "crops.png").exists()

"""Foreign datasets as they are: what lerobot's and ManiSkill's own writers wrote, see make_foreign.py."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tap_ray.errors import DataError
from tap_ray.importing.lerobot import LeRobotSource
from tests.importing.make_foreign import TASKS, frames_of

DATA = Path(__file__).parent / "data"
CAMERA = "observation.images.front"
KINDS = ("v30_image", "v30_video", "v21_video")


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_images_and_sentences(kind: str) -> None:
    source = LeRobotSource(DATA / kind)
    assert (source.fps, source.num_episodes, source.cameras) == (30.0, 3, {CAMERA: (48, 64)})
    assert source.columns["action"].names[5] == "gripper.pos"
    for episode in range(3):
        frames = frames_of(episode)
        numbers = source.numbers(episode, ["action", "observation.state"])
        for column in ("action", "observation.state"):
            np.testing.assert_allclose(numbers[column], [frame[column] for frame in frames], atol=1e-6)
        np.testing.assert_allclose(numbers["timestamp"], np.arange(len(frames)) / 30, atol=1e-4)
        assert source.instruction(episode, source.default_instruction) == TASKS[episode % 2]
        frame_indices = [0, 7, 13, len(frames) - 1]
        for frame, rgb in zip(frame_indices, source.images(episode, CAMERA, frame_indices), strict=True):
            slack = 1 if kind == "v30_image" else 12  # of a lossy codec; a neighbor's green is 3 off, so 12 is 4 frames
            corner = rgb[2:6, 4:12].reshape(-1, 3).mean(axis=0)
            np.testing.assert_allclose(corner, [60 * episode, 3 * frame, 0], atol=slack)


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a LeRobot dataset: it has no meta/info\.json"):
        LeRobotSource(tmp_path)
    old = shutil.copytree(DATA / "v21_video", tmp_path / "old")
    info = json.loads((old / "meta/info.json").read_text())
    (old / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v1.6"}))
    with pytest.raises(DataError, match=r"is a LeRobot dataset of version v1\.6; only v2\.1 and v3\.0 can be imported"):
        LeRobotSource(old)


def test_what_is_damaged_is_named(tmp_path: Path) -> None:
    cut = shutil.copytree(DATA / "v30_video", tmp_path / "cut")
    [video] = (cut / "videos").glob("**/*.mp4")
    video.write_bytes(video.read_bytes()[:500])
    with pytest.raises(DataError, match=r"file-000\.mp4 cannot be decoded.*Download or record"):
        LeRobotSource(cut).images(0, CAMERA, [0])
    [table] = (cut / "data").glob("**/*.parquet")
    table.write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"file-000\.parquet cannot be read.*Download or record"):
        LeRobotSource(cut).numbers(0, ["action"])
    info = json.loads((cut / "meta/info.json").read_text())
    (cut / "meta/info.json").write_text(json.dumps(info | {"total_episodes": 4}))
    with pytest.raises(DataError, match=r"has 3 episodes, but info\.json says 4: the dataset is incomplete"):
        LeRobotSource(cut).numbers(0, ["action"])


def test_a_video_that_ends_too_early(tmp_path: Path) -> None:
    short = shutil.copytree(DATA / "v21_video", tmp_path / "short")
    videos = sorted((short / "videos").glob("**/*.mp4"))
    shutil.copy(videos[0], videos[2])  # 42 frames where 66 should be
    with pytest.raises(DataError, match=r"has no frame at 2\.000 s: the video is shorter than the data"):
        LeRobotSource(short).images(2, CAMERA, [0, 60])


@pytest.mark.parametrize("name", ["/etc/hostname", "../../secret.png", "a/../../secret.png"])
@pytest.mark.parametrize("where", ["data", "video", "image"])
def test_a_name_that_leads_out_of_the_dataset_is_refused(where: str, name: str, tmp_path: Path) -> None:
    kind = "v30_image" if where == "image" else "v21_video"
    evil = shutil.copytree(DATA / kind, tmp_path / "evil" / kind)
    (tmp_path / "secret.png").write_bytes(b"secret")
    if where == "image":
        [file] = (evil / "data").glob("**/*.parquet")
        table = pq.read_table(file)
        cells = pa.array([{"bytes": None, "path": name}] * len(table), pa.struct({"bytes": "binary", "path": "string"}))
        pq.write_table(table.set_column(table.column_names.index(CAMERA), CAMERA, cells), file)
    else:
        info = json.loads((evil / "meta/info.json").read_text())
        (evil / "meta/info.json").write_text(json.dumps(info | {f"{where}_path": name}))
    source = LeRobotSource(evil)
    with pytest.raises(DataError, match=r"names the file .*, which lies outside the dataset"):
        source.numbers(0, ["action"]) if where == "data" else source.images(0, CAMERA, [0])

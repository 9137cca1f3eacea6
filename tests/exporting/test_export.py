"""jobs.export_dataset: LeRobot v3.0 with video and v2.1, whole however often it was stopped, and back again."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from jobs import export_dataset
from tap_ray.dataset.layout import ACTION, CONTACT, IMAGE, STATE
from tap_ray.dataset.reader import open_dataset, read_episode
from tap_ray.errors import ConfigError, DataError
from tap_ray.exporting.settings import ExportConfig
from tap_ray.importing.convert import motion, sentence_of
from tap_ray.importing.lerobot import LeRobotSource
from tap_ray.importing.settings import read_mapping
from tap_ray.media.image import decode_frames
from tests.digests import digests
from tests.inspect.flawed import NUM, SENTENCES, T, write

FORMATS = [("lerobot-v3.0", True), ("lerobot-v2.1", True), ("lerobot-v2.1", False)]
REPOSITORY = Path(__file__).parents[2]
JOB_FILES = ("config.json", "manifest.json", ".job.lock")
CODEC_ERROR = 2.5
"""Mean of an image's differences, of 255, at the default quality."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """12 episodes of 40 steps in three files, two instructions in turn."""
    return write(tmp_path_factory.mktemp("data") / "demos")


@pytest.fixture(scope="module", params=FORMATS, ids=lambda given: f"{given[0]}{'' if given[1] else '-images'}")
def exported(request, data, tmp_path_factory) -> Path:
    kind, video = request.param
    return export_dataset.main(config(data, tmp_path_factory.mktemp("out") / "export", format=kind, video=video))


def config(data: Path, out: Path, **changed) -> ExportConfig:
    return ExportConfig(data=data, out=out, threads=2, **changed)


def files(out: Path) -> dict[str, str]:
    """What an export consists of, without what says when it was made."""
    return {name: digest for name, digest in digests(out).items() if name not in JOB_FILES}


def test_what_lies_where_in_v3(data, tmp_path):
    out = export_dataset.main(config(data, tmp_path / "e"))
    info = json.loads((out / "meta/info.json").read_text())
    assert (info["codebase_version"], info["total_episodes"], info["total_frames"]) == ("v3.0", NUM, NUM * T)
    assert info["features"][IMAGE]["dtype"] == "video"
    assert info["features"][IMAGE]["info"]["video.codec"] == "h264"
    assert "privileged.object_pose" not in info["features"]
    assert pq.read_schema(out / "data/chunk-000/file-000.parquet").names == [
        STATE, ACTION, CONTACT, "timestamp", "frame_index", "episode_index", "index", "task_index",
    ]  # fmt: skip
    # Files of 5, 5 and 2 episodes of 8 s: episode 6 is the second in file 1.
    row = pd.read_parquet(out / "meta/episodes/chunk-000/file-001.parquet").iloc[1]
    where = [row[f"videos/{IMAGE}/{name}"] for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp")]
    assert where == [0, 1, 8.0, 16.0]
    with av.open(str(out / f"videos/{IMAGE}/chunk-000/file-001.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.codec.canonical_name, stream.pix_fmt, float(stream.average_rate or 0)) == ("h264", "yuv444p", 5)
        shown = [float(frame.time or 0) for frame in video.decode(stream)]
    assert shown == pytest.approx(np.arange(5 * T) / 5, abs=1e-6)


def test_what_lies_where_in_v21(data, tmp_path):
    out = export_dataset.main(config(data, tmp_path / "e", format="lerobot-v2.1"))
    info = json.loads((out / "meta/info.json").read_text())
    assert [info[name] for name in ("codebase_version", "total_videos", "total_chunks")] == ["v2.1", NUM, 1]
    assert (out / f"videos/chunk-000/{IMAGE}/episode_000011.mp4").exists()
    tasks = [json.loads(line) for line in (out / "meta/tasks.jsonl").read_text().splitlines()]
    assert tasks == [{"task_index": 0, "task": SENTENCES[0]}, {"task_index": 1, "task": SENTENCES[1]}]
    episodes = [json.loads(line) for line in (out / "meta/episodes.jsonl").read_text().splitlines()]
    assert episodes[5] == {"episode_index": 5, "tasks": [SENTENCES[1]], "length": T}
    stats = json.loads((out / "meta/episodes_stats.jsonl").read_text().splitlines()[5])
    assert stats["episode_index"] == 5
    state = read_episode(open_dataset(data), 5).state
    np.testing.assert_allclose(stats["stats"][STATE]["mean"], state.mean(0), atol=1e-6)
    assert stats["stats"][STATE]["count"] == [T]


def test_back_again_gives_the_same_numbers(exported, data):
    """By our own importer and the mapping that lies in the export."""
    source, mapping, ours = LeRobotSource(exported), read_mapping(exported / "mapping.yaml"), open_dataset(data)
    for index in (0, 6, NUM - 1):
        state, action, frames = motion(mapping, source, index)
        episode = read_episode(ours, index)
        np.testing.assert_array_equal(state, episode.state)
        np.testing.assert_allclose(action, episode.action, atol=1e-6)
        assert sentence_of(mapping, source, index) == episode.task
        images = np.stack(source.images(index, mapping.camera, list(frames[:-1])))
        error = np.abs(images.astype(float) - decode_frames(episode.image_jpeg)).mean(axis=(1, 2, 3))
        assert error.max() < (CODEC_ERROR if list(exported.rglob("*.mp4")) else 1e-9)


def test_stopped_and_run_again_is_the_same(exported, data, tmp_path, capsys):
    """As a kill leaves it: the commit of one unit missing, temporary files, no word that it is done."""
    options = json.loads((exported / "config.json").read_text())
    again = tmp_path / "again"
    shutil.copytree(exported, again)
    pattern = "meta/episodes/*/*" if options["format"] == "lerobot-v3.0" else "data/*/*"
    last = sorted(again.glob(pattern))[-1]
    last.unlink()
    kept = sorted(again.glob("data/*/*"))[0]
    before = kept.stat().st_mtime_ns
    (again / "meta/info.json").unlink()
    (last.parent / f".{last.name}.tmp").write_bytes(b"half")
    (again / "data/.episode_000011.mp4.a1b2c3.tmp").mkdir()
    (again / "data/.episode_000011.mp4.a1b2c3.tmp/episode_000011.mp4").write_bytes(b"half")
    manifest = json.loads((again / "manifest.json").read_text())
    (again / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    command = config(data, again, format=options["format"], video=options["video"])
    export_dataset.main(command)
    assert files(again) == files(exported)
    assert kept.stat().st_mtime_ns == before
    capsys.readouterr()
    export_dataset.main(command)
    assert f"{again} has already been exported." in capsys.readouterr().out


def test_a_foreign_folder_and_another_export_are_refused(data, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"full exists and is not a run folder\. Name another folder with --out"):
        export_dataset.main(config(data, tmp_path / "full"))
    with pytest.raises(ConfigError, match="not a run folder"):
        export_dataset.main(config(data, data))
    assert sorted(path.name for path in data.iterdir()) == [".lock", "data", "meta"]
    export_dataset.main(config(data, tmp_path / "e", format="lerobot-v2.1", video=False))
    with pytest.raises(
        ConfigError, match=r"holds another run[\s\S]*format: 'lerobot-v2\.1' before, 'lerobot-v3\.0' now"
    ):
        export_dataset.main(config(data, tmp_path / "e"))


def test_v3_with_images_is_what_we_have(data, tmp_path):
    with pytest.raises(ConfigError, match=r"already is a LeRobot v3\.0 dataset with images"):
        export_dataset.main(config(data, tmp_path / "e", video=False))
    with pytest.raises(DataError, match="There is no dataset at"):
        export_dataset.main(config(tmp_path / "none", tmp_path / "e"))
    assert not (tmp_path / "e").exists()


def python_of(exported: Path) -> str:
    """Of an environment whose lerobot reads this version."""
    version = json.loads((exported / "meta/info.json").read_text())["codebase_version"]
    name, lerobot = {"v3.0": ("LEROBOT_PYTHON", "0.4.4"), "v2.1": ("LEROBOT21_PYTHON", "0.3.3")}[version]
    if name not in os.environ:
        pytest.skip(f"no lerobot {lerobot}: python3 -m venv /tmp/lr && /tmp/lr/bin/pip install lerobot=={lerobot}, "
                    f"with torchcodec and FFmpeg's libraries for videos, then {name}=/tmp/lr/bin/python")  # fmt: skip
    return os.environ[name]


def test_lerobot_and_openpis_loader_read_it(exported, data):
    command = [python_of(exported), REPOSITORY / "tests/exporting/lerobot_export.py", data, exported]
    completed = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    lines = completed.stdout.splitlines()
    assert lines[0] == f"{NUM} episodes, {NUM * T} frames: every number equals ours"
    assert float(lines[1].split()[-3].rstrip(",")) < CODEC_ERROR
    assert lines[2:] == [f"openpi's batch: (5, 4, 7), prompt {SENTENCES[0]!r}", "lerobot_export: ok"]

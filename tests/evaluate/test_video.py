from dataclasses import replace

import imageio.v3 as iio
import numpy as np
import pytest

from tap_ray.evaluate.episodes import Clip, crashed
from tap_ray.evaluate.video import GREEN, RED, keep, outcome_of, write_videos
from tap_ray.media.image import BAR_PX
from tap_ray.media.video import side_by_side
from tap_ray.types import Cell


def clip(state, entire, *, length=6, scenario="standard", value=100):
    cell = Cell(task="carrot", scenario=scenario, initial_state=state, seed=state)
    result = replace(crashed(cell, ""), entire_once=entire, entire_end=entire, partial_once=entire)
    return Clip(result=result, rgb=np.full((length, 96, 96, 3), value, np.uint8), instruction="put carrot on plate")


def test_the_first_cell_of_each_outcome_is_kept_in_any_order(tmp_path):
    for state in (5, 2, 9, 2):
        keep(tmp_path, clip(state, True))
    keep(tmp_path, clip(7, False))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "carrot.standard.False.000007.npz",
        "carrot.standard.True.000002.npz",
    ]


@pytest.mark.filterwarnings("ignore:Exception ignored in")  # imageio's reader leaves its pipes to the collector
def test_a_success_and_a_failure_side_by_side(tmp_path):
    keep(tmp_path / "clips", clip(1, True, value=200))
    keep(tmp_path / "clips", clip(0, False, length=4, value=50))
    keep(tmp_path / "clips", clip(3, False, scenario="texture"))
    written = write_videos(tmp_path / "clips", tmp_path / "videos", fps=5)
    assert [p.name for p in written] == ["carrot.mp4", "carrot-texture.mp4"]
    meta = iio.immeta(written[0], plugin="FFMPEG")
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    assert meta["fps"] == 5
    frames = np.asarray(iio.imread(written[0], plugin="FFMPEG"))
    assert frames.shape == (6, 2 * BAR_PX + 384, 768, 3)
    left, right = frames[3, 2 * BAR_PX + 100 :, 50:300], frames[5, 2 * BAR_PX + 100 :, 450:700]
    assert abs(left.mean() - 200) < 4
    assert abs(right.mean() - 50) < 4
    bars = frames[0, : 2 * BAR_PX].astype(int)
    for color, half in ((GREEN, bars[:, :384]), (RED, bars[:, 384:])):
        assert np.abs(half - color).sum(-1).min() < 100
    assert iio.imread(written[1], plugin="FFMPEG").shape[2] == 384


def test_a_failure_is_named():
    result = clip(3, False).result
    assert outcome_of(replace(result, failure="never_reached")) == "failure: never reached (initial state 3)"
    assert outcome_of(replace(result, failure="")) == "failure: not even partial (initial state 3)"
    assert outcome_of(clip(3, True).result).startswith("success (")


def test_a_shorter_clip_holds_its_last_image():
    short, long = np.arange(2).reshape(2, 1, 1, 1), np.arange(10, 14).reshape(4, 1, 1, 1)
    assert side_by_side([short, long])[:, 0, :, 0].tolist() == [[0, 10], [1, 11], [1, 12], [1, 13]]


def test_no_clips_no_videos(tmp_path):
    assert write_videos(tmp_path / "clips", tmp_path / "videos", fps=5) == []

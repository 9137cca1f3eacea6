"""What a user reads who starts training with the wrong things; Ray is never started for it."""

from pathlib import Path

import pytest

from jobs import align, pretrain
from tap_ray.dataset.windows import WindowConfig
from tap_ray.distributed.settings import AlignJobConfig, PretrainConfig
from tap_ray.errors import CheckpointError, ConfigError, DataError
from tests.distributed import toy_player


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up demonstrations of three tasks."""
    return toy_player.robots().write_dataset(tmp_path_factory.mktemp("jobs") / "demos", 24)


def test_neither_data_nor_live_play():
    with pytest.raises(ConfigError, match="--data PATH, or --live-play, and not both"):
        pretrain.main(PretrainConfig())


def test_no_such_data(tmp_path: Path):
    with pytest.raises(DataError, match=r"No data set at .*nowhere: it does not exist"):
        pretrain.main(PretrainConfig(data=tmp_path / "nowhere"))


def test_nothing_held_out(demos: Path):
    with pytest.raises(DataError, match="no episode is held out"):
        pretrain.main(PretrainConfig(data=demos, windows=WindowConfig(num_episodes=6)))


def test_a_checkpoint_that_is_missing(demos: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        align.main(AlignJobConfig(demos=demos, init=str(tmp_path / "nowhere")))


def test_a_data_set_is_no_checkpoint(demos: Path):
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        align.main(AlignJobConfig(demos=demos, init=str(demos)))

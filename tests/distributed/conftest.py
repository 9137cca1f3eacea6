"""A dataset of the made-up robots of tests/dataset/conftest.py, for streams and training."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # toy_training.py, toy_player.py


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 episodes of 8 to 12 steps, 32 px. Read only."""
    import toy_player

    return toy_player.robots().write_dataset(tmp_path_factory.mktemp("toy") / "play", 24)

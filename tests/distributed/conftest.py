"""A data set of the made-up robots of tests/dataset/conftest.py, for streams and training."""

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # toy_training.py


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 episodes of 8 to 12 steps, 32 px. Read only."""
    spec = importlib.util.spec_from_file_location("made_up_robots", HERE.parent / "dataset" / "conftest.py")
    assert spec
    assert spec.loader
    robots = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(robots)
    return robots.write_dataset(tmp_path_factory.mktemp("toy") / "play", 24)

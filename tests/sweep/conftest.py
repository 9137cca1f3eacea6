from pathlib import Path

import pytest

from tests.distributed import toy_player


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 episodes of 8 to 12 steps, 32 px. Read only."""
    return toy_player.robots().write_dataset(tmp_path_factory.mktemp("toy") / "play", 24)

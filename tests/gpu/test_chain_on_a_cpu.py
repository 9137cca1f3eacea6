"""The chain of `make gpu` on processors: that it can be run at all, where there is no GPU."""

from pathlib import Path

import pytest

from tap_ray.settings import WorkersConfig
from tests.gpu.chain import KINDS, collected, require_chain

# Ray Data in the test's own process warns of itself.
pytestmark = [pytest.mark.cluster, pytest.mark.long_proof, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return collected(tmp_path_factory.mktemp("chain"))


@pytest.mark.parametrize("kind", KINDS)
def test_stage_1_stage_2_evaluation(kind: str, data: dict[str, Path], tmp_path: Path):
    require_chain(kind, data, tmp_path, workers=WorkersConfig(gpu="off"), gpus_per_fleet=0.0)

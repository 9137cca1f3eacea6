"""The chain and the measurements of `make gpu` on processors: that they can be run at all, where there is no GPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tap_ray.distributed.connect import connect
from tap_ray.settings import WorkersConfig
from tests.gpu.chain import KINDS, collected, require_chain

# Ray Data in the test's own process warns of itself.
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    with connect(dashboard=False):
        yield collected(tmp_path_factory.mktemp("chain"))


@pytest.mark.long_proof
@pytest.mark.parametrize("kind", KINDS)
def test_stage_1_stage_2_evaluation_and_a_served_action(kind: str, data: dict[str, Path], tmp_path: Path):
    require_chain(KINDS[kind], data, tmp_path, workers=WorkersConfig(gpu="off"), gpus=0.0)

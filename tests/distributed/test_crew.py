"""The pool of fleets alone, on processes that do nothing."""

import os
import sys
from pathlib import Path

import psutil
import pytest
import ray
import ray.cloudpickle

from tap_ray.distributed.connect import connect
from tap_ray.distributed.crew import LIVES, Crew
from tap_ray.distributed.placement import Needs

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]


@pytest.fixture(scope="module", autouse=True)
def _local_ray():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers need not find our tests
    with connect(num_cpus=1):
        yield


class Worker:
    """Says in which process it is; "deadly" ends as many as an item may before it is given up, but for one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ready(self) -> None:
        pass

    def run(self, item: str) -> int:
        if item == "deadly" and len(list(self.folder.iterdir())) < LIVES - 1:
            (self.folder / str(os.getpid())).touch()
            os._exit(1)
        return os.getpid()


def test_a_process_that_died_idle_is_not_held_against_what_comes_next(tmp_path: Path):
    actor = ray.remote(num_cpus=0)(Worker)
    needs = Needs(cpus=0, labels={})
    crew = Crew(start=lambda: actor.remote(tmp_path), num_fleets=1, split=lambda item: [], needs=needs)
    done = {}
    for item, result in crew.work(["first", "deadly"]):
        done[item] = result
        if item == "first":
            process = psutil.Process(result)
            process.kill()
            process.wait(timeout=60)
    assert list(done) == ["first", "deadly"]
    assert isinstance(done["deadly"], int), done["deadly"]
    assert len(list(tmp_path.iterdir())) == LIVES - 1

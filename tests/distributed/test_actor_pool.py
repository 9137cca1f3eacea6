"""The pool of fleets alone, on processes that do nothing."""

import os
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray
import ray.cloudpickle

from tap_ray.distributed.actor_pool import MAX_ITEM_DEATHS, ActorPool
from tap_ray.distributed.faults import Timeouts
from tap_ray.distributed.placement import Needs

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.local_ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]


@pytest.fixture(scope="module", autouse=True)
def _pickled() -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers need not find our tests


class Worker:
    """Says in which process it is; "deadly" ends as many as an item may before it is given up, but for one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ready(self) -> None:
        pass

    def run(self, item: str) -> int:
        if item == "deadly" and len(list(self.folder.iterdir())) < MAX_ITEM_DEATHS - 1:
            (self.folder / str(os.getpid())).touch()
            os._exit(1)
        return os.getpid()


def test_a_process_that_died_idle_is_not_held_against_what_comes_next(tmp_path: Path):
    actor = ray.remote(num_cpus=0)(Worker)
    needs = Needs(cpus=0, labels={})
    pool = ActorPool(start=lambda: actor.remote(tmp_path), num_fleets=1, split=lambda item: [], needs=needs)
    done = {}
    for item, result in pool.map_unordered(["first", "deadly"]):
        done[item] = result
        if item == "first":
            process = psutil.Process(result)
            process.kill()
            process.wait(timeout=60)
    assert list(done) == ["first", "deadly"]
    assert isinstance(done["deadly"], int), done["deadly"]
    assert len(list(tmp_path.iterdir())) == MAX_ITEM_DEATHS - 1


@pytest.mark.long_proof
def test_a_fleet_that_waits_for_resources_does_not_count_as_hung(tmp_path: Path):
    """It waits several times as long as a fleet may take to get ready, and starts once."""
    other = ray.remote(num_cpus=1)(Worker).remote(tmp_path)
    ray.get(other.ready.remote())
    started, began_s = [], time.monotonic()

    def start():
        started.append(ray.remote(num_cpus=1)(Worker).remote(tmp_path))
        return started[-1]

    class Room:
        """Makes room after a while."""

        def futures(self) -> list:
            return []

        def poll(self) -> list:
            if time.monotonic() - began_s > 25.0:
                ray.kill(other)
            return []

    timeouts = Timeouts(first_s=8.0)  # a worker process starts within 8 s
    pool = ActorPool(
        start=start, num_fleets=1, split=lambda item: [], needs=Needs(cpus=1, labels={}), timeouts=timeouts
    )
    [(item, result)] = pool.map_unordered(["only"], side_task=Room())
    assert item == "only"
    assert isinstance(result, int)
    assert time.monotonic() - began_s > 3 * timeouts.first_s
    assert len(started) == 1

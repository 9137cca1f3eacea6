"""How much of a cluster's CPUs a job reserves: half of each node at most, so that two jobs fit at once."""

import sys
from collections.abc import Sequence

import pytest
import ray
import ray.cloudpickle
from ray.util import placement_group

import envs
from tap_ray.distributed import placement
from tap_ray.distributed.collect import run_attempts
from tap_ray.distributed.connect import connect
from tap_ray.distributed.live import play_of, require_gpus
from tap_ray.distributed.placement import JOBS_AT_ONCE, Pool, share_of
from tap_ray.errors import ConfigError
from tap_ray.play.collect import AttemptResult, CollectPlan
from tap_ray.play.settings import PlayJobConfig
from tap_ray.settings import WorkersConfig
from tap_ray.types import EnvConfig
from tests.distributed.nodes import wait_for


@pytest.mark.parametrize(
    ("cpus", "places", "processes", "size"),
    [
        ([2.0], 1, 2, 1.0),
        ([2.0], 2, 1, 0.5),
        ([2.0], 3, 1, 0.333),
        ([16.0], 1, 2, 2.0),
        ([16.0, 16.0], 1, 2, 2.0),
        ([1.0] * 8, 1, 4, 0.5),  # trainer and decoders stay together: never more than half of a node
        ([2.0, 2.0], 1, 2, 1.0),
        ([4.0, 2.0], 3, 1, 1.0),
        ([4.0], 64, 1, 0.031),
    ],
)
def test_two_jobs_fit_at_once(cpus: list[float], places: int, processes: int, size: float):
    assert share_of(cpus, places, processes) == size
    assert sum(int(node_cpus / JOBS_AT_ONCE / size + 1e-9) for node_cpus in cpus) >= places


SPEC = envs.spec(EnvConfig())


class Reserving:
    """A player whose outcomes are the GPUs that its process has reserved."""

    def __init__(self, memory: object) -> None:
        pass

    def run(self, attempts: Sequence[int]) -> list[AttemptResult]:
        gpus = ray.get_runtime_context().get_assigned_resources()["GPU"]
        return [AttemptResult(attempt=attempt, episode=None, reason=f"{gpus:g}") for attempt in attempts]


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_there_are_as_many_fleets_as_the_gpus_suffice_for():
    """Ray takes the user's word for the number of GPUs: none is needed here."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False)
    try:
        assert [placement.num_fleets({}, gpus) for gpus in (0.0, 0.1, 0.5, 0.75, 1.0, 2.0)] == [4, 4, 4, 2, 2, 1]
        outcomes = list(run_attempts(Reserving, [[0], [1], [2]], Pool(gpus=1.0)))
        assert [outcome.reason for outcome in outcomes] == ["1"] * 3

        play = play_of(PlayJobConfig(), CollectPlan(), lambda: Reserving(None), SPEC, gpu=True)
        assert play.pool.gpus == 1
        require_gpus(play, WorkersConfig())
        for fits in (
            WorkersConfig(num_workers=2, gpu="off"),
            WorkersConfig(num_workers=2, gpus=2),  # two GPUs are too few for it: it trains on CPUs
        ):
            require_gpus(play, fits)
        with pytest.raises(ConfigError, match=r"^Live play needs 4 GPUs, 1 for each of 2 trainers and 1 "):
            require_gpus(play, WorkersConfig(num_workers=2, min_workers=1))
        shared = play_of(
            PlayJobConfig(gpus_per_fleet=0.5, fleets=1), CollectPlan(), lambda: Reserving(None), SPEC, gpu=True
        )
        require_gpus(shared, WorkersConfig(num_workers=2, gpus=0.5))
    finally:
        ray.shutdown()


class Owner:
    """An actor that reserves a CPU."""

    def reserve(self) -> None:
        ray.get(placement_group([{"CPU": 1}]).ready())


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.long_proof
def test_what_a_dead_actor_had_reserved_is_given_back():
    """What the living and the driver have reserved stays."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with connect(num_cpus=3):
        ray.get(placement_group([{"CPU": 1}]).ready())
        living, dead = (ray.remote(num_cpus=0)(Owner).remote() for _ in range(2))
        ray.get([owner.reserve.remote() for owner in (living, dead)])
        assert placement.release_orphans() == 0
        ray.kill(dead)
        wait_for(placement.release_orphans)
        wait_for(lambda: ray.available_resources().get("CPU") == 1)
        assert placement.release_orphans() == 0

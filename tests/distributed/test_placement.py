"""How much of a cluster's CPUs a job reserves: half of each node at most, so that two jobs fit at once."""

import pytest

from tap_ray.distributed.placement import JOBS_AT_ONCE, split


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
    assert split(cpus, places, processes) == size
    assert sum(int(own / JOBS_AT_ONCE / size + 1e-9) for own in cpus) >= places

"""Publishes the state of a job as Ray metrics: each node exports them to Prometheus, `clusters/grafana.json` shows
them.

    ray_tap_frames               counter  control steps that were collected or evaluated ray_tap_episodes
    counter  episodes that were kept or evaluated ray_tap_episodes_dropped     counter  attempts that gave no episode
    ray_tap_processes_lost       counter  lost fleets, by kind (`faults.Kind`) ray_tap_writer_lag_episodes  gauge
    episodes that are collected and not yet written ray_tap_samples_per_second   gauge    windows per second of a
    training ray_tap_data_wait_percent    gauge    share of a training step spent waiting for windows ray_tap_trials
    gauge    trials of a sweep, by state

The tag `run` is the absolute path of the folder that the job writes; lost processes are counted for the whole cluster.
"""

import functools
from typing import Mapping

from ray.util import metrics

from tap_ray import storage

COUNTERS = {
    "tap_frames": ("Control steps played or evaluated.", ("run",)),
    "tap_episodes": ("Episodes kept or evaluated.", ("run",)),
    "tap_episodes_dropped": ("Attempts that yielded no episode.", ("run",)),
    "tap_processes_lost": ("Processes of robots that were lost, by kind.", ("kind",)),
}
GAUGES = {
    "tap_writer_lag_episodes": ("Collected episodes that are waiting to be written.", ("run",)),
    "tap_samples_per_second": ("Windows per second of a training, summed over its workers.", ("run",)),
    "tap_data_wait_percent": ("Share of a step in which the first worker waits for its batch, %.", ("run",)),
    "tap_trials": ("Trials of a sweep, by state.", ("run", "state")),
}


def count(name: str, value: float = 1.0, **tags: str) -> None:
    """Add to one of COUNTERS. Ray must be connected."""
    if value > 0:
        _counter(name).inc(value, absolute_tags(tags))


def show(name: str, value: float, **tags: str) -> None:
    """Set one of GAUGES. Ray must be connected."""
    _gauge(name).set(value, absolute_tags(tags))


def absolute_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags with the run as an absolute path, so that it does not depend on the working directory."""
    return {key: _resolved(value) if key == "run" else value for key, value in tags.items()}


@functools.lru_cache(maxsize=256)
def _resolved(run: str) -> str:
    return str(storage.to_path(run).resolve())


@functools.cache
def _counter(name: str) -> metrics.Counter:
    return metrics.Counter(name, *COUNTERS[name])


@functools.cache
def _gauge(name: str) -> metrics.Gauge:
    return metrics.Gauge(name, *GAUGES[name])

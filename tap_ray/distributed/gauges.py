"""What a job does now, as metrics of Ray: each node exports them to Prometheus, `clusters/grafana.json` draws them.

    ray_tap_frames               counter  control steps played or judged
    ray_tap_episodes             counter  episodes kept or judged
    ray_tap_episodes_dropped     counter  by reason
    ray_tap_processes_lost       counter  robots' processes, by kind: machine, process, memory, hang
    ray_tap_writer_lag_episodes  gauge    played, and waiting for their turn to be written
    ray_tap_samples              counter  windows that a training has seen
    ray_tap_data_wait_seconds    counter  ... and how long its workers waited for them
    ray_tap_trials               gauge    of a sweep, by state

Every metric has the tag `run`: the result's folder, or the data set's. They cost nothing where nobody asks for them.
"""

import functools
from collections.abc import Mapping
from pathlib import Path

from ray.util import metrics

COUNTERS = {
    "tap_frames": ("Control steps played or judged.", ()),
    "tap_episodes": ("Episodes kept or judged.", ()),
    "tap_episodes_dropped": ("Attempts that gave no episode, by reason.", ("reason",)),
    "tap_processes_lost": ("Robots' processes that were lost, by kind.", ("kind",)),
    "tap_samples": ("Windows that a training has seen.", ()),
    "tap_data_wait_seconds": ("Time that training workers waited for batches, s.", ()),
}
GAUGES = {
    "tap_writer_lag_episodes": ("Episodes played that wait for their turn to be written.", ()),
    "tap_trials": ("Trials of a sweep, by state.", ("state",)),
}


class Gauges:
    """Metrics of one run."""

    def __init__(self, run: Path | str) -> None:
        """`run`: the folder that the job writes."""
        self._run = str(run)

    def count(self, name: str, value: float = 1.0, **tags: str) -> None:
        """Add to a counter; `value` 0 does nothing."""
        if value > 0:
            _counter(name).inc(value, {"run": self._run, **tags})

    def show(self, name: str, value: float, **tags: str) -> None:
        """Set a gauge."""
        _gauge(name).set(value, {"run": self._run, **tags})

    def show_each(self, name: str, values: Mapping[str, float], tag: str) -> None:
        """Set a gauge for each value of a tag."""
        for key, value in values.items():
            self.show(name, value, **{tag: key})


@functools.cache
def _counter(name: str) -> metrics.Counter:
    description, tags = COUNTERS[name]
    return metrics.Counter(name, description, ("run", *tags))


@functools.cache
def _gauge(name: str) -> metrics.Gauge:
    description, tags = GAUGES[name]
    return metrics.Gauge(name, description, ("run", *tags))

"""Measures the cost of a collection for its driver: CPU time and bytes per episode, with the driver as the writer and
with separate writers.

    python -m bench.bench_writers [--writers 0 1] [--episodes 120] [--repeated 2000]

Twice for each number of writers: robots that really play (two fleets, `contact`, 96 px), and fleets that hand over the
same played episodes again and again, as fast as they can. The first says what a small machine sees; the second how much
an episode costs the driver when its fixed costs (Ray's threads, a tick) are shared by many, which says at how many
fleets it is the limit. Processor time hardly depends on what else the machine does; what is written a second does.
"""

import contextlib
import pickle
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import tyro

import envs
from bench.bench_play import PLAN
from jobs.collect_play import fleet
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.distributed.collect import Collection, Pool
from tap_ray.distributed.connect import connect
from tap_ray.play.collect import AttemptResult
from tap_ray.play.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the benchmark."""

    writers: tuple[int, ...] = (0, 1)
    """Processes that write; 0: the driver does."""
    episodes: int = 120
    """Number of collected episodes, 60 frames each."""
    repeated: int = 2000
    """Number of episodes that are handed over repeatedly."""
    fleets: int = 2


class Repeats:
    """A fleet that collects eight episodes once, and then returns them repeatedly."""

    def __init__(self, memory: Any) -> None:
        self._episodes = [outcome.episode for n in range(8) for outcome in fleet(PLAN, 1, memory).run([n])]

    def run(self, attempts: Sequence[int]) -> list[AttemptResult]:
        """One for each attempt."""
        return [AttemptResult(attempt=a, episode=self._episodes[a % len(self._episodes)]) for a in attempts]


class Watch:
    """Processor time of the writers' processes, looked at now and then: they are gone at the end."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._done.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "ray::Writer" in " ".join(process.cmdline()):
                        times = process.cpu_times()
                        first = self.seconds.setdefault(-process.pid, times.user + times.system)
                        self.seconds[process.pid] = times.user + times.system - first

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def total_s(self) -> float:
        """CPU time of all of them since each was first seen, s."""
        return sum(seconds for pid, seconds in self.seconds.items() if pid > 0)


def measure(make_player: Any, episodes: int, config: Config, writers: int) -> str:
    """Collect so many, and say what it took."""
    size = PLAN.env.image_size
    header = DatasetHeader(
        spec=envs.spec(PLAN.env), plan=PLAN.to_json(), image_size=(size, size), num_objects=envs.NUM_SLOTS
    )
    pool = Pool(fleets=config.fleets)
    driver = psutil.Process()
    with tempfile.TemporaryDirectory() as folder, DatasetWriter(Path(folder), header) as writer:
        collection = Collection(writer, Schedule(num_tasks=1, episodes=episodes))
        watch = Watch()
        before, start_s = driver.cpu_times(), time.perf_counter()
        with watch if writers else contextlib.nullcontext():
            stats = collection.run(make_player, replace(pool, writers=writers) if writers else pool, progress=False)
        after, wall_s = driver.cpu_times(), time.perf_counter() - start_s
        rows = sum(pq.read_table(file).nbytes for file in Path(folder).glob("meta/episodes/*/*.parquet"))
        data = sum(file.stat().st_size for file in Path(folder).glob("data/*/*.parquet"))
    cpu_ms = 1e3 * (after.user + after.system - before.user - before.system) / stats.episodes
    through = data if not writers else rows
    return (
        f"{stats.episodes} episodes in {wall_s:.1f} s: driver {cpu_ms:.2f} ms of processor time an episode, "
        f"{through / stats.episodes / 1e3:.1f} kB an episode through it, {stats.frames_s:.0f} frames/s; "
        f"writers {1e3 * watch.total_s / stats.episodes:.2f} ms an episode"
    )


def main(config: Config) -> None:
    """Print a line for each."""
    frame = len(pickle.dumps(fleet(PLAN, 1, None).run([0])[0].episode)) / PLAN.env.max_steps
    print(f"{config.fleets} fleets, frames of {frame:.0f} bytes")
    for writers in config.writers:
        with connect(num_cpus=2):
            for name, player, episodes in (
                ("played", partial(fleet, PLAN, 1), config.episodes),
                ("repeated", Repeats, config.repeated),
            ):
                print(f"{writers} writers, {name}: {measure(player, episodes, config, writers)}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

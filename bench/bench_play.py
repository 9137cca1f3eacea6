"""What Ray costs in collection: frames/s of the pipeline against the same robots in bare processes, same episodes.

    python bench/bench_play.py [--episodes 40] [--fleets 2] [--robots 1]

Both sides play the same attempts with as many processes and no more than one core each. The bare side is rollout +
encoding in `multiprocessing` workers whose episodes are thrown away; the Ray side is everything that
`jobs.collect_play` does: pool, order, data set on disk. Start-up (processes, imports, first episode) is left out on
both: time counts from the first outcome to the last, and the first one of each process does not count.
"""

import multiprocessing
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any

import psutil
import tyro

import envs
from envs.tasks import NUM_SLOTS
from jobs.collect_play import fleet
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.distributed.collect import Collection, Pool
from tap_ray.distributed.connect import connect
from tap_ray.play.collect import CollectPlan, Outcome, in_batches
from tap_ray.play.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is measured."""

    episodes: int = 40
    """Episodes on each side, 60 frames each."""
    fleets: int = 2
    """Processes on each side."""
    robots: int = 1
    """Robots in each process."""
    rounds: int = 1
    """Repetitions, the two sides in turn: other load on the machine then hits both."""


PLAN = CollectPlan(explorer="contact")


def worker(todo: Any, done: Any, num_robots: int) -> None:
    """A bare process of robots: play and encode what is in the queue."""
    player = fleet(PLAN, num_robots, None)
    while (attempts := todo.get()) is not None:
        done.put(sum(len(o.episode) for o in player.run(attempts) if o.episode))


def bare(config: Config) -> float:
    """Frames/s of `multiprocessing` workers."""
    context = multiprocessing.get_context("spawn")
    todo, done = context.Queue(), context.Queue()
    batches = in_batches(range(config.episodes), config.robots)
    for batch in [*batches, *[None] * config.fleets]:
        todo.put(batch)
    workers = [context.Process(target=worker, args=(todo, done, config.robots)) for _ in range(config.fleets)]
    for process in workers:
        process.start()
    arrivals = []
    while len(arrivals) < len(batches):
        try:
            arrivals.append((done.get(timeout=60), time.monotonic()))
        except Empty:
            raise RuntimeError("a worker has died") from None
    for process in workers:
        process.join()
    return rate(arrivals, config.fleets)


def rate(arrivals: list[tuple[int, float]], num_first: int) -> float:
    """Frames/s after the first `num_first` arrivals (frames, time)."""
    counted = arrivals[num_first:]
    return sum(frames for frames, _ in counted) / (counted[-1][1] - arrivals[num_first - 1][1])


class Timed(Collection):
    """Notes when each outcome was written, and near the end how large the fleets have become."""

    def __init__(self, writer: DatasetWriter, config: Config) -> None:
        super().__init__(writer, Schedule(num_tasks=1, episodes=config.episodes))
        self._last = config.episodes - 1 - config.fleets * config.robots
        self.arrivals: list[tuple[int, float]] = []
        self.rss_mb: list[float] = []

    def _take(self, outcome: Outcome, notebook: Any) -> None:
        super()._take(outcome, notebook)
        self.arrivals.append((len(outcome.episode) if outcome.episode else 0, time.monotonic()))
        if outcome.attempt == self._last:
            found = [p for p in psutil.process_iter(["cmdline"]) if "MapWorker" in " ".join(p.info["cmdline"] or [])]
            self.rss_mb = [process.memory_info().rss / 1e6 for process in found]


def piped(config: Config) -> tuple[float, list[float]]:
    """Frames/s of the Ray pipeline, and the memory of its fleets (RSS, MB)."""
    spec, size = envs.spec(PLAN.env), PLAN.env.image_size
    header = DatasetHeader(spec=spec, plan=PLAN.to_json(), image_size=(size, size), num_objects=NUM_SLOTS)
    with tempfile.TemporaryDirectory() as folder, DatasetWriter(Path(folder), header) as writer:
        collection = Timed(writer, config)
        pool = Pool(fleets=config.fleets, robots=config.robots)
        collection.run(partial(fleet, PLAN, config.robots), pool, progress=False)
        return rate(collection.arrivals, config.fleets * config.robots), collection.rss_mb


def main(config: Config) -> None:
    """Print both rates, their ratio and the memory of a fleet."""
    print(f"{config.fleets} processes x {config.robots} robots, {config.episodes} episodes, {PLAN.env.image_size} px")
    for _ in range(config.rounds):
        alone = bare(config)
        with connect(num_cpus=max(config.fleets, 1)):
            together, rss_mb = piped(config)
        memory = ", ".join(f"{mb:.0f}" for mb in rss_mb)
        print(
            f"bare {alone:.0f} frames/s ({alone / config.fleets:.0f} a core), Ray {together:.0f} frames/s: "
            f"{together / alone:.1%}; fleets {memory} MB"
        )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

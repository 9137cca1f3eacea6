"""What Ray costs in collection: frames/s of the pipeline against the same robots in bare processes, same episodes.

    python bench/bench_play.py [--episodes 40] [--fleets 2] [--robots 1]

Both sides play the same attempts with as many processes and no more than one core each. The bare side is rollout +
encoding in `multiprocessing` workers whose episodes are thrown away; the Ray side is everything that
`jobs.collect_play` does: pool, order, data set on disk. Every process stamps what it finishes; what counts is the
time in which all of them were at work, so start-up and the last stragglers are left out on both sides.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
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


class Stamped:
    """Robots that note in each outcome which process finished it, and when."""

    def __init__(self, num_robots: int, memory: Any) -> None:
        self._player = fleet(PLAN, num_robots, memory)

    def run(self, attempts: Sequence[int]) -> list[Outcome]:
        """Play and encode; the stamp travels as the reason, which nobody reads of an episode that is kept."""
        outcomes = self._player.run(attempts)
        return [replace(outcome, reason=f"{os.getpid()} {time.monotonic()}") for outcome in outcomes]


def worker(todo: Any, done: Any, num_robots: int) -> None:
    """A bare process of robots: play and encode what is in the queue."""
    player = Stamped(num_robots, None)
    while (attempts := todo.get()) is not None:
        done.put([outcome.reason for outcome in player.run(attempts)])


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
    stamps = [stamp for _ in batches for stamp in done.get(timeout=120)]
    for process in workers:
        process.join()
    return rate(stamps)


def rate(stamps: Sequence[str]) -> float:
    """Frames/s while every process was at work: after the slowest one's first batch, up to the first one's last."""
    times: dict[str, list[float]] = {}
    for process, moment in (stamp.split() for stamp in stamps):
        times.setdefault(process, []).append(float(moment))
    begin, end = max(min(t) for t in times.values()), min(max(t) for t in times.values())
    num = sum(begin < t <= end for moments in times.values() for t in moments)
    return num * PLAN.env.max_steps / (end - begin) if end > begin else float("nan")


class Timed(Collection):
    """Keeps the stamps, and near the end notes how large the fleets have become."""

    def __init__(self, writer: DatasetWriter, config: Config) -> None:
        super().__init__(writer, Schedule(num_tasks=1, episodes=config.episodes))
        self._last = config.episodes - 1 - config.fleets * config.robots
        self.stamps: list[str] = []
        self.rss_mb: list[float] = []

    def _take(self, outcome: Outcome, notebook: Any) -> None:
        super()._take(outcome, notebook)
        self.stamps.append(outcome.reason)
        if outcome.attempt == self._last:
            mine = {int(stamp.split()[0]) for stamp in self.stamps}
            self.rss_mb = [psutil.Process(pid).memory_info().rss / 1e6 for pid in mine]


def piped(config: Config) -> tuple[float, list[float]]:
    """Frames/s of the Ray pipeline, and the memory of its fleets (RSS, MB)."""
    spec, size = envs.spec(PLAN.env), PLAN.env.image_size
    header = DatasetHeader(spec=spec, plan=PLAN.to_json(), image_size=(size, size), num_objects=NUM_SLOTS)
    with tempfile.TemporaryDirectory() as folder, DatasetWriter(Path(folder), header) as writer:
        collection = Timed(writer, config)
        collection.run(
            partial(Stamped, config.robots), Pool(fleets=config.fleets, robots=config.robots), progress=False
        )
        return rate(collection.stamps), collection.rss_mb


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

"""Measures the overhead of Ray in collection: frames/s of the pipeline against the same robots in plain processes, with
the same episodes.

    python -m bench.bench_play [--episodes 40] [--fleets 2] [--robots 1] [--scaling]

Both sides play the same attempts with as many processes and no more than one core each. The bare side is rollout +
encoding in `multiprocessing` workers whose episodes are thrown away; the Ray side is everything that
`jobs.collect_play` does: pool, order, dataset on disk. Every process stamps what it finishes; what counts is the
time in which all of them were at work, so start-up and the last stragglers are left out on both sides.
"""

import multiprocessing
import os
import statistics
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
from jobs.collect_play import fleet
from tap_ray.dataset.layout import DatasetHeader
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.distributed.collect import Collection, Pool
from tap_ray.distributed.connect import connect
from tap_ray.distributed.sink import Played
from tap_ray.play.collect import AttemptResult, CollectPlan, in_batches
from tap_ray.play.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the benchmark."""

    episodes: int = 40
    """Episodes on each side, 60 frames each."""
    fleets: int = 2
    """Processes on each side."""
    robots: int = 1
    """Robots in each process."""
    rounds: int = 1
    """Repetitions, the two sides in turn: other load on the machine then hits both."""
    scaling: bool = False
    """Instead: both sides with one process and with `fleets` of them, and how much faster the latter is."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The speed of one side, and whether it had the machine for itself."""

    frames_s: float
    cpu_ms: float
    """Processor time of the robots' processes for a frame, ms; hardly depends on what else runs."""
    share: float
    """Part of a core that each process really got."""


MIN_SHARE = 0.9
"""A bare loop waits for nothing but a core. Where it gets less than this, others use the machine, and the ratio of
wall-clock speeds says who was scheduled, not what Ray costs."""

LOOKS = 5
"""The memory of the fleets is looked at after 1/5, 2/5, 3/5 and 4/5 of the episodes."""

PLAN = CollectPlan(explorer="contact")


class Stamped:
    """Robots that note in each outcome which process finished it, and when."""

    def __init__(self, num_robots: int, memory: Any) -> None:
        self._player = fleet(PLAN, num_robots, memory)

    def run(self, attempts: Sequence[int]) -> list[AttemptResult]:
        """Play and encode; the stamp travels as the reason, which nobody reads of an episode that is kept."""
        outcomes = self._player.run(attempts)
        return [
            replace(outcome, reason=f"{os.getpid()} {time.monotonic()} {time.process_time()}") for outcome in outcomes
        ]


def worker(todo: Any, done: Any, num_robots: int) -> None:
    """A bare process of robots: play and encode what is in the queue."""
    player = Stamped(num_robots, None)
    while (attempts := todo.get()) is not None:
        done.put([outcome.reason for outcome in player.run(attempts)])


def bare(config: Config) -> Speed:
    """Speed of `multiprocessing` workers."""
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


def rate(stamps: Sequence[str]) -> Speed:
    """Speed while every process was at work: after the slowest one's first batch, up to the first one's last."""
    times: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    for process, moment, used in (stamp.split() for stamp in stamps):
        times.setdefault(process, []).append(float(moment))
        cpu.setdefault(process, []).append(float(used))
    begin, end = max(min(t) for t in times.values()), min(max(t) for t in times.values())
    num = sum(begin < t <= end for moments in times.values() for t in moments)
    frames = PLAN.env.max_steps * sum(t > min(moments) for moments in times.values() for t in moments)
    if end <= begin or not frames:
        return Speed(frames_s=float("nan"), cpu_ms=float("nan"), share=float("nan"))
    wall_s = sum(max(t) - min(t) for t in times.values())
    cpu_s = sum(max(c) - min(c) for c in cpu.values())
    frames_s = num * PLAN.env.max_steps / (end - begin)
    return Speed(frames_s=frames_s, cpu_ms=1e3 * cpu_s / frames, share=cpu_s / wall_s)


class Timed(Collection):
    """Keeps the stamps, and looks now and then how large the fleets are."""

    def __init__(self, writer: DatasetWriter, config: Config) -> None:
        super().__init__(writer, Schedule(num_tasks=1, episodes=config.episodes))
        self._looks = {config.episodes * part // LOOKS for part in range(1, LOOKS)}
        self.stamps: list[str] = []
        self.rss_mb: list[float] = []
        """The largest fleet's resident memory at each look, MB."""

    def take(self, played: Played) -> None:
        super().take(played)
        self.stamps.append(played.reason)
        if played.attempt in self._looks:
            fleets = {int(stamp.split()[0]) for stamp in self.stamps}
            self.rss_mb.append(max(psutil.Process(pid).memory_info().rss / 1e6 for pid in fleets))


def piped(config: Config) -> tuple[Speed, list[float]]:
    """Speed of the Ray pipeline, and its largest fleet on the way (RSS, MB)."""
    spec, size = envs.spec(PLAN.env), PLAN.env.image_size
    header = DatasetHeader(spec=spec, plan=PLAN.to_json(), image_size=(size, size), num_objects=envs.NUM_SLOTS)
    with tempfile.TemporaryDirectory() as folder, DatasetWriter(Path(folder), header) as writer:
        collection = Timed(writer, config)
        collection.run(
            partial(Stamped, config.robots), Pool(fleets=config.fleets, robots=config.robots), progress=False
        )
        return rate(collection.stamps), collection.rss_mb


def scaling(config: Config) -> None:
    """Print how much faster `fleets` processes are than one, under Ray and bare, each with as much to do."""
    gains: dict[str, list[float]] = {"Ray": [], "bare": []}
    for _ in range(config.rounds):
        for name, gain in gains.items():
            speeds = []
            for fleets in (1, config.fleets):
                size = replace(config, fleets=fleets, episodes=config.episodes * fleets // config.fleets)
                if name == "Ray":
                    with connect(num_cpus=fleets):
                        speeds.append(piped(size)[0])
                else:
                    speeds.append(bare(size))
                last = speeds[-1]
                print(f"{name}, {fleets} fleets: {last.frames_s:.0f} frames/s, {last.share:.0%} of a core each")
            gain.append(speeds[1].frames_s / speeds[0].frames_s)
    ray_x, bare_x = (statistics.median(gain) for gain in gains.values())
    print(f"1 -> {config.fleets} fleets: Ray {ray_x:.2f}x, bare {bare_x:.2f}x, Ray / bare {ray_x / bare_x:.1%}")


def main(config: Config) -> None:
    """Print both rates, their ratio and the memory of a fleet."""
    print(f"{config.fleets} processes x {config.robots} robots, {config.episodes} episodes, {PLAN.env.image_size} px")
    ratios = []
    for _ in range(config.rounds):
        alone = bare(config)
        with connect(num_cpus=max(config.fleets, 1)):
            together, rss_mb = piped(config)
        memory = ", ".join(f"{mb:.0f}" for mb in rss_mb)
        for name, speed in (("bare", alone), ("Ray", together)):
            print(
                f"{name}: {speed.frames_s:.0f} frames/s, {speed.cpu_ms:.2f} ms CPU a frame, {speed.share:.0%} of a core"
            )
        print(f"largest fleet on the way: {memory} MB")
        if alone.share >= MIN_SHARE:
            ratios.append(together.frames_s / alone.frames_s)
            print(f"ratio: {ratios[-1]:.1%}")
        else:
            print(f"ratio: NOT VALID, the bare loop got {alone.share:.0%} of its cores. Run again on an idle machine.")
    if ratios:
        print(f"median ratio of {len(ratios)} rounds: {statistics.median(ratios):.1%}")


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    scaling(config) if config.scaling else main(config)

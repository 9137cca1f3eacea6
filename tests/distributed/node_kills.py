"""Random kills of nodes under play, training and evaluation, by hand: what each costs, and that nothing is lost.

    python -m tests.distributed.node_kills [--kills 5] [--jobs play training evaluation]

Each job runs on two nodes of two CPUs, once undisturbed and once with nodes killed at random moments; a killed node is
replaced, as an autoscaler would do it. Both times the result must be the same to the byte.
"""

import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray.cloudpickle
import tyro

from jobs.collect_play import fleet
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.distributed.collect import Pool
from tap_ray.distributed.connect import connect
from tap_ray.distributed.evaluate import FleetConfig, evaluate
from tap_ray.distributed.train import train
from tap_ray.evaluate.protocol import Protocol
from tap_ray.settings import WorkersConfig
from tap_ray.training import session
from tests import line_world
from tests.distributed import collect_child as child
from tests.distributed import toy_player
from tests.distributed import toy_training as toy
from tests.distributed.nodes import Nodes, meanwhile, nodes

LABELS = ("role=work",)
Results = list[Hashable]
"""What a job has made, in order; a lost one is missing, a doubled one there twice."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """How often."""

    kills: int = 5
    """Nodes killed in each job."""
    jobs: tuple[str, ...] = ("play", "training", "evaluation")
    seed: int = 0
    """Of the moments of the kills."""
    pause_s: tuple[float, float] = (2.0, 8.0)
    """Shortest and longest time from one node's replacement to the next kill, s."""
    size: int = 1
    """Times as much work in each job: 1 is half a minute on idle cores."""


def play(folder: Path, size: int) -> Results:
    """Episodes' bytes."""
    with DatasetWriter(folder, child.HEADER) as writer:
        run = child.collection(writer, 400 * size)
        run.run(partial(fleet, child.PLAN, 1), Pool(labels=LABELS), progress=False)
    assert not run.schedule.dropped
    return [file.read_bytes() for file in sorted(folder.glob("data/*/*.parquet"))]


def training(folder: Path, size: int, data: Path) -> Results:
    """Steps with their loss."""
    task = toy.toy_task(folder, data, ray=True, steps=400 * size, every=10, pause_s=0.03)
    train(task, WorkersConfig(node_labels=LABELS, max_failures=-1), progress=False)
    lines = session.read_metrics(folder / "metrics.jsonl")
    return [(line["step"], line["toy/loss"]) for line in lines if "toy/loss" in line]


def slow_robots(scene, num):
    """A third of a second to be killed in."""
    time.sleep(0.3)
    return line_world.line_robots(num, scene)


def forward(scene, num):
    """The policy."""
    return line_world.Forward()


def evaluation(folder: Path, size: int) -> Results:
    """Cells with their outcome."""
    protocol = Protocol(tasks=("line",), env_version="1", episodes=200 * size, max_steps=5)
    make = {"make_vector": slow_robots, "make_policy": forward, "make_failure_inputs": line_world.line_failure_inputs}
    folder.mkdir()
    results = evaluate(protocol, **make, folder=folder, config=FleetConfig(robots=2, labels=LABELS), progress=False)
    assert len((folder / "episodes.jsonl").read_text().splitlines()) == len(results)
    return [(result.cell, result.entire_once, result.num_steps, result.error) for result in results]


def under_kills(cluster: Nodes, config: Config, job: Callable[[], Results]) -> tuple[Results, float, int]:
    """What a job makes while nodes die under it, how long it takes, s, and how many died."""
    rng, done, killed = random.Random(config.seed), threading.Event(), 0

    def kill_some() -> None:
        nonlocal killed
        while killed < config.kills and not done.wait(rng.uniform(*config.pause_s)):
            cluster.kill(rng.choice(cluster.live))
            killed += 1
            cluster.add("work")

    with meanwhile(kill_some):
        start = time.monotonic()
        try:
            results = job()
        finally:
            done.set()
        seconds = time.monotonic() - start
    return results, seconds, killed


def main(config: Config) -> None:
    """Print a row for each job."""
    for module in (toy, line_world, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)
    with tempfile.TemporaryDirectory() as temp, nodes() as cluster:
        data = toy_player.robots().write_dataset(Path(temp) / "toy", 24)
        jobs = {"play": play, "training": partial(training, data=data), "evaluation": evaluation}
        for _ in range(2):
            cluster.add("work")
        print("job         kills  undisturbed  with kills  cost a kill  lost  doubled  same")
        with connect(cluster.address):
            for name in config.jobs:
                start = time.monotonic()
                expected = jobs[name](Path(temp) / f"{name}-undisturbed", config.size)
                alone_s = time.monotonic() - start
                job = partial(jobs[name], Path(temp) / name, config.size)
                results, seconds, killed = under_kills(cluster, config, job)
                lost, doubled = len(set(expected) - set(results)), len(results) - len(set(results))
                cost_s = (seconds - alone_s) / max(killed, 1)
                print(
                    f"{name:<10}  {killed:>5}  {alone_s:>9.0f} s  {seconds:>8.0f} s  {cost_s:>9.1f} s  {lost:>4}  "
                    f"{doubled:>7}  {'yes' if results == expected else 'NO'}",
                    flush=True,
                )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

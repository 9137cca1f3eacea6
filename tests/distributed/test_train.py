"""Ray Train around the loop: the same curve as without Ray, whatever is killed; and what a user reads when it fails."""

import dataclasses
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray
import toy_training as toy
from toy_training import toy_task

from tap_ray.distributed import train as ray_train
from tap_ray.distributed.connect import connect
from tap_ray.distributed.stream import share
from tap_ray.distributed.train import WorkersConfig, train
from tap_ray.errors import CheckpointError, ConfigError, DataError, TapRayError
from tap_ray.training import session
from tap_ray.training.progress import train_here

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(400)]
KILLS = 10


@pytest.fixture(scope="module", autouse=True)
def _local_ray():
    ray.cloudpickle.register_pickle_by_value(toy)  # the workers need not find our tests
    with connect(num_cpus=2):
        yield


def curve(run: Path, name: str = "toy/loss") -> list[tuple[float, float]]:
    return [(line["step"], line[name]) for line in session.read_metrics(run / "metrics.jsonl") if name in line]


@pytest.fixture(scope="module")
def undisturbed(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory):
    """The curve of one process without Ray, by number of steps."""

    @functools.cache
    def run(steps: int) -> list[tuple[float, float]]:
        folder = tmp_path_factory.mktemp("undisturbed") / "run"
        train_here(toy_task(folder, toy_dataset, ray=False, steps=steps), progress=False)
        return curve(folder)

    return run


def test_one_worker_learns_what_one_process_learns(tmp_path: Path, toy_dataset: Path, undisturbed):
    logged = []
    task = toy_task(tmp_path / "run", toy_dataset, ray=True)
    last = train(task, WorkersConfig(), log=lambda metrics, step: logged.append((step, metrics)), progress=False)

    assert curve(task.run) == undisturbed(20)
    assert last["step"] == 20 and last["toy/loss"] == undisturbed(20)[-1][1]
    assert [step for step, metrics in logged if "toy/loss" in metrics] == list(range(1, 21))
    assert json.loads((task.run / "exported.json").read_text())
    names = sorted(path.name for path in (task.run / "checkpoints").iterdir())
    assert names == ["step-00000015", "step-00000020"]


def test_two_workers_average_their_gradients(tmp_path: Path, toy_dataset: Path):
    """Worker w's batches are those of `iterate(worker=w)`, and each step is the mean of both."""
    import torch

    task = toy_task(tmp_path / "run", toy_dataset, ray=True, steps=3)
    train(task, WorkersConfig(workers=2), progress=False)

    local = toy_task(tmp_path / "x", toy_dataset, ray=False)
    streams = [local.batches(start_batch=0, worker=w, num_workers=2) for w in range(2)]
    model, optimizer = toy.by_hand(task.config)
    losses = []
    for step in range(3):
        both = [toy.squared_error(model, next(stream)) for stream in streams]
        losses.append(float(both[0].detach()))
        toy.step_by_hand(optimizer, torch.stack(both).mean(), step, task.config)
    assert [loss for _, loss in curve(task.run)] == pytest.approx(losses, rel=1e-5)


def training_workers() -> list[psutil.Process]:
    """Ray names a worker process after what it runs."""
    mine = psutil.Process().children(recursive=True)
    return [process for process in mine if "RayTrainWorker" in " ".join(process.cmdline())]


@pytest.mark.parametrize("workers", [1])
def test_killed_workers_leave_no_trace_in_the_curve(tmp_path: Path, toy_dataset: Path, undisturbed, workers: int):
    """Ten kills at random moments of a run whose undisturbed curve is known."""
    import threading

    steps, rng, killed = 600, random.Random(0), []
    task = toy_task(tmp_path / "run", toy_dataset, ray=True, steps=steps, every=10, pause_s=0.03)
    done = threading.Event()

    def killer() -> None:
        while len(killed) < KILLS and not done.wait(rng.uniform(0.05, 1.5)):
            victims = [process for process in training_workers() if process.pid not in killed]
            if victims and (not killed or rng.random() < 0.3 or session.newest_step(task.run) > progress[-1]):
                progress.append(session.newest_step(task.run))
                victims[0].kill()
                killed.append(victims[0].pid)

    progress = [-1]
    thread = threading.Thread(target=killer)
    thread.start()
    try:
        train(task, WorkersConfig(workers=workers, max_failures=-1), progress=False)
    finally:
        done.set()
        thread.join()
    assert len(killed) == KILLS
    assert curve(task.run) == undisturbed(steps)

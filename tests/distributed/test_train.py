"""Ray Train around the loop: the same curve as without Ray, whatever is killed; and what a user reads when it fails."""

import contextlib
import dataclasses
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

import psutil
import pytest
import ray.cloudpickle
import torch
import toy_training as toy
from toy_training import toy_task

from tap_ray.distributed.train import train
from tap_ray.errors import CheckpointError, ConfigError, DataError, TapRayError
from tap_ray.runs import read_json
from tap_ray.settings import WorkersConfig
from tap_ray.training import session
from tap_ray.training.progress import train_here
from tap_ray.types import Shard
from tests.distributed.kills import KILLS
from tests.distributed.nodes import meanwhile, wait_for

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.local_ray,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),  # Ray Train's own, about its future
]


STEPS = 40 * KILLS
"""Of 0.03 s at least: a life that is killed within a second of its first line makes most of its share."""


@pytest.fixture(scope="module", autouse=True)
def _pickled() -> None:
    ray.cloudpickle.register_pickle_by_value(toy)  # the workers need not find our tests


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


@pytest.mark.long_proof
def test_one_worker_learns_what_one_process_learns(tmp_path: Path, toy_dataset: Path, undisturbed):
    logged = []
    task = toy_task(tmp_path / "run", toy_dataset, ray=True)
    last = train(task, WorkersConfig(), log=lambda metrics, step: logged.append((step, metrics)), progress=False)

    assert curve(task.run) == undisturbed(20)
    assert last["step"] == 20
    assert last["toy/loss"] == undisturbed(20)[-1][1]
    assert [step for step, metrics in logged if "toy/loss" in metrics] == list(range(1, 21))
    assert json.loads((task.run / "exported.json").read_text())
    names = sorted(path.name for path in (task.run / "checkpoints").iterdir())
    assert names == ["step-00000015", "step-00000020"]


@pytest.mark.long_proof  # tests/training/test_sharding.py has the like without Ray
def test_a_model_cut_among_workers_that_die(tmp_path: Path, toy_dataset: Path):
    """FSDP learns what DDP learns, killed behind its first checkpoint, too."""
    from tests.training import sharded  # what imports it takes its time

    ray.cloudpickle.register_pickle_by_value(sharded)
    whole, cut = (sharded.job(tmp_path / name, toy_dataset) for name in ("ddp", "fsdp"))
    train(whole, WorkersConfig(num_workers=2), progress=False)

    def kill_one() -> None:
        wait_for(lambda: session.newest_step(cut.run) > 0)
        training_workers()[0].kill()

    cut = dataclasses.replace(cut, build=functools.partial(sharded.slow, 0.3))
    with meanwhile(kill_one):
        train(cut, WorkersConfig(num_workers=2, parallel="fsdp"), progress=False)
    have, want = (dict(curve(each.run)) for each in (cut, whole))
    assert have == pytest.approx(want, rel=1e-4)
    assert (cut.run / "final.safetensors").is_file()


def training_workers(spared: Collection[int] = ()) -> list[psutil.Process]:
    """Those whose ids are not in `spared`. Ray names a worker's process after what it runs."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.pid not in spared and "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def lines(run: Path) -> list[int]:
    return [int(line["step"]) for line in session.read_metrics(run / "metrics.jsonl")]


def kill_a_worker(spared: set[int]) -> set[int]:
    """Kill a training worker, with which the others end; the ids of all of them, none if none was there."""
    workers = training_workers(spared)
    if not workers:
        return set()
    try:
        workers[0].kill()
    except psutil.NoSuchProcess:
        return set()
    return {process.pid for process in workers}


def kill_some(run: Path, rng: random.Random) -> None:
    """KILLS of training workers at random moments: most while they train, some while they start."""
    spared = {process.pid for process in training_workers()}  # of the test before, about to end
    for number in range(KILLS):
        wait_for(lambda: training_workers(spared))
        if number % 3 < 2:
            before = lines(run)
            wait_for(lambda old=before: len(lines(run)) > len(old))
        time.sleep(rng.uniform(0, 1.0))
        spared.update(wait_for(lambda: kill_a_worker(spared)))


def test_two_workers_that_are_killed_average_their_gradients(tmp_path: Path, toy_dataset: Path):
    """Worker w's batches are those of `iterate(shard=Shard(worker=w, ...))`; a step is the mean of two of each."""
    task = toy_task(tmp_path / "run", toy_dataset, ray=True, steps=STEPS, every=10)
    config = dataclasses.replace(task.config, gradient_accumulation_steps=2)
    task = dataclasses.replace(task, config=config, build=functools.partial(toy.stage_with_settings, 0.03))
    with meanwhile(lambda: kill_some(task.run, random.Random(0))):
        train(task, WorkersConfig(num_workers=2, deterministic=True, max_failures=-1), progress=False)
    state = read_json(task.run / "checkpoints" / f"step-{STEPS:08}" / "state.json")
    assert state["facts"] == {"kind": toy.DETERMINISTIC}

    local = toy_task(tmp_path / "x", toy_dataset, ray=False)
    streams = [local.batches(shard=Shard(worker=w, num_workers=2)) for w in range(2)]
    model, optimizer = toy.by_hand(task.config)
    losses = []
    for step in range(STEPS):
        errors = [toy.squared_error(model, next(stream)) for _ in range(2) for stream in streams]
        losses.append(float((errors[0] + errors[2]).detach()) / 2)  # those of the first worker
        toy.step_by_hand(model, optimizer, torch.stack(errors).mean(), step, task.config)
    assert [step for step, _ in curve(task.run)] == list(range(1, STEPS + 1))
    assert [loss for _, loss in curve(task.run)] == pytest.approx(losses, rel=1e-5)


@pytest.mark.long_proof
@pytest.mark.parametrize("uploads", ["sync", "async"])
def test_a_killed_worker_leaves_no_trace_in_the_curve(tmp_path: Path, toy_dataset: Path, undisturbed, uploads: str):
    task = toy_task(tmp_path / "run", toy_dataset, ray=True, steps=STEPS, every=10, pause_s=0.03)
    task = dataclasses.replace(task, async_checkpoints=uploads == "async")
    with meanwhile(lambda: kill_some(task.run, random.Random(0))):
        train(task, WorkersConfig(max_failures=-1), progress=False)
    assert curve(task.run) == undisturbed(STEPS)


@pytest.mark.long_proof
def test_a_worker_that_dies_while_its_function_is_sent_is_replaced(tmp_path: Path, toy_dataset: Path, undisturbed):
    """Ray Train takes that for an error of its own, and leaves the reservation behind."""
    task = toy_task(tmp_path / "run", toy_dataset, ray=True, steps=20, every=10)

    def kill_one() -> None:
        victim = wait_for(lambda: [p for p in training_workers() if "run_train_fn" in " ".join(p.cmdline())])[0]
        victim.kill()

    with meanwhile(kill_one):
        train(task, WorkersConfig(max_failures=1), progress=False)
    assert curve(task.run) == undisturbed(20)


@pytest.mark.long_proof
def test_killed_drivers_leave_no_trace_in_the_curve(tmp_path: Path, toy_dataset: Path, undisturbed):
    """KILLS times the same command, killed at random moments, then once to the end."""
    steps, rng, run = STEPS, random.Random(1), tmp_path / "run"
    command = [sys.executable, str(Path(__file__).with_name("toy_driver.py")), str(run), str(toy_dataset), str(steps)]
    env = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    for number in range(KILLS):
        with open(tmp_path / "output", "w") as output:
            driver = subprocess.Popen(command, stdout=output, stderr=output, env=env)
        if number % 3:
            before = lines(run)
            wait_for(lambda old=before, driver=driver: lines(run) != old or driver.poll() is not None)
            assert driver.poll() is None, (tmp_path / "output").read_text()
        time.sleep(rng.uniform(0, 1.0))
        driver.kill()
        driver.wait()
    subprocess.run(command, check=True, capture_output=True, env=env)

    assert curve(run) == undisturbed(steps)


@pytest.mark.long_proof
def test_a_users_mistake_ends_the_run_at_once(tmp_path: Path, toy_dataset: Path):
    """No worker is replaced for a loss that is not a number."""
    task = toy_task(tmp_path / "run", toy_dataset, ray=True, bad_step=4)
    with pytest.raises(TapRayError, match=r"The loss is nan after 4 steps\. Lower --lr"):
        train(task, WorkersConfig(max_failures=-1), progress=False)
    assert lines(task.run)[-1] == 3


@pytest.mark.long_proof
def test_damaged_data_are_named(tmp_path: Path, toy_dataset: Path):
    data = tmp_path / "play"
    shutil.copytree(toy_dataset, data)
    task = toy_task(tmp_path / "run", data, ray=True)
    for file in (data / "data/chunk-000").iterdir():
        file.write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"not parquet|damaged|cannot be read|truncated"):
        train(task, WorkersConfig(), progress=False)


@pytest.mark.long_proof
def test_a_worker_that_keeps_dying(tmp_path: Path, toy_dataset: Path):
    task = dataclasses.replace(toy_task(tmp_path / "run", toy_dataset, ray=True), build=toy.deadly)
    message = r"workers died too often without a new checkpoint in between \(--max-failures\)[\s\S]*The same command "
    with pytest.raises(TapRayError, match=message):
        train(task, WorkersConfig(max_failures=0), progress=False)


@pytest.mark.long_proof  # test_failures.py has the rule
def test_failures_with_a_checkpoint_in_between_do_not_add_up(tmp_path: Path, toy_dataset: Path, undisturbed):
    """Three kills, each after a new checkpoint, where two without one would end the job."""
    task = toy_task(tmp_path / "run", toy_dataset, ray=True, steps=STEPS, every=5, pause_s=0.05)

    def kill_three() -> None:
        seen = 0
        for _ in range(3):
            seen = wait_for(
                lambda old=seen: max(session.newest_step(task.run), old) > old and session.newest_step(task.run)
            )
            for worker in training_workers():
                worker.kill()

    with meanwhile(kill_three):
        train(task, WorkersConfig(max_failures=1), progress=False)
    assert curve(task.run) == undisturbed(STEPS)


def test_two_at_once_in_one_folder(tmp_path: Path, toy_dataset: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "LOCK_WAIT_S", 0.2)
    task = toy_task(tmp_path / "run", toy_dataset, ray=True)
    with session.lock(task.run), pytest.raises(CheckpointError, match=r"Another process is training in .*--out"):
        train(task, WorkersConfig(), progress=False)


def test_gpus_that_never_come(tmp_path: Path, toy_dataset: Path):
    task = toy_task(tmp_path / "run", toy_dataset, ray=True)
    message = r"--gpu on --gpus 1: 2 processes with that many GPUs cannot be placed: the Ray cluster has 0 GPUs"
    with pytest.raises(ConfigError, match=message):
        train(task, WorkersConfig(num_workers=2, gpu="on"), progress=False)


def test_settings_that_cannot_work(tmp_path: Path, toy_dataset: Path):
    task = toy_task(tmp_path / "run", toy_dataset, ray=True)
    with pytest.raises(ConfigError, match="at least 1 worker; got --num-workers 0"):
        train(task, WorkersConfig(num_workers=0), progress=False)
    with pytest.raises(ConfigError, match="--min-workers must be at most --num-workers; got 3 and 2"):
        train(task, WorkersConfig(num_workers=2, min_workers=3), progress=False)
    with pytest.raises(ConfigError, match=r"--min-workers 999: there are .* CPUs, and each training process needs one"):
        train(task, WorkersConfig(num_workers=1000, min_workers=999), progress=False)
    with pytest.raises(ConfigError, match="--checkpoint-every must be a multiple of --log-every 3; got 5"):
        dataclasses.replace(task.config, log_every=3)

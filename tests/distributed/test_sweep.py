"""Sweeps under real Tune, Train, fleets and MLflow: what a killed driver leaves is taken up, nothing is done twice."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tap_ray import runs, tracking
from tap_ray.compare.sweep_tables import TrialRow, read_row, write_row
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.windows import iterate
from tap_ray.distributed.settings import WorkersConfig
from tap_ray.distributed.sweep import _scheduler, finalists, trials_at_once
from tap_ray.distributed.sweep_plan import AshaConfig
from tap_ray.distributed.sweep_trial import result_of
from tap_ray.errors import ConfigError
from tap_ray.evaluate.episodes import Robots
from tap_ray.evaluate.protocol import cells
from tap_ray.evaluate.results import summarise
from tap_ray.training.loop import TrainConfig
from tap_ray.training.progress import train_here
from tap_ray.training.session import Task
from tests.distributed import toy_training
from tests.distributed.toy_stages import PROTOCOL, make_policy, make_vector
from tests.line_world import line_facts

REPOSITORY = Path(__file__).parents[2]
SWEEP: dict[str, Any] = {
    "budget": 20,
    "seed": {"grid": [0, 1]},
    "pretrain": {"train": {"steps": 40}},
    "align": {"train": {"steps": 60}},
}
TRAIN: dict[str, Any] = {
    "batch_size": 4,
    "lr": 0.1,
    "log_every": 1,
    "checkpoint_every": 5,
    "validate_every": 20,
    "bf16": "off",
}


def driver(file: Path, store: Path) -> list[str]:
    return [sys.executable, "-m", "tests.distributed.toy_stages", str(file), str(store)]


def steps_of(store: Path, job: str) -> int:
    """Lines that the runs of a job have logged."""
    return sum(len(file.read_text().splitlines()) for file in store.glob(f"{job}-*/metrics.jsonl"))


@pytest.fixture
def sweep_file(tmp_path: Path, toy_dataset: Path) -> Path:
    values: dict = {"data": str(toy_dataset), "demos": str(toy_dataset), **SWEEP}
    for stage in ("pretrain", "align"):
        values[stage] = {"train": {**TRAIN, **values[stage]["train"]}}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def alone(folder: Path, data: Path, seed: int) -> tuple[dict, dict]:
    """What a trial must find: its alignment and judgement in this process, without Ray and undisturbed."""
    config = TrainConfig(**TRAIN, steps=SWEEP["align"]["train"]["steps"], seed=seed)
    batches = partial(iterate, open_dataset(data), toy_training.WINDOWS, seed=seed)
    learner = partial(toy_training.learner, 0.0, 0)
    metrics = train_here(Task(run=folder, learner=learner, batches=batches, config=config), progress=False)
    robots = Robots(PROTOCOL, make_vector, partial(make_policy, str(folder)), line_facts)
    judged = [result for cell in cells(PROTOCOL) for result in robots.run([cell]).results]
    return metrics, result_of(summarise(judged, PROTOCOL, policy="toy"))


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_sweep_ends_with_the_table_of_an_undisturbed_one(sweep_file: Path, tmp_path: Path, toy_dataset: Path):
    """Killed while the first trial aligns; both trials stand on one Stage 1."""
    env = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    store = tmp_path / "store"
    with open(tmp_path / "killed.log", "w") as log:
        killed = subprocess.Popen(driver(sweep_file, store), cwd=REPOSITORY, env=env, stdout=log, stderr=log)
    until = time.monotonic() + 400
    while steps_of(store, "align") < 20:
        assert killed.poll() is None, (tmp_path / "killed.log").read_text()
        assert time.monotonic() < until
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    done = subprocess.run(
        driver(sweep_file, store), cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr

    folder = next(store.glob("sweep-*"))
    table = runs.read_json(folder / "table.json")
    for seed, row in enumerate(table):
        metrics, result = alone(tmp_path / str(seed), toy_dataset, seed)
        learnt = {name: value for name, value in metrics.items() if not name.endswith(("_s", "_pct"))}
        assert (row["state"], row["validation"], row["result"]) == ("done", learnt, result)
    assert table[0]["validation"]["toy/loss"] != table[1]["validation"]["toy/loss"]

    rows = [read_row(folder, f"{number:03d}", {}) for number in range(2)]
    assert rows[0].runs["pretrain"] == rows[1].runs["pretrain"]
    calls = [line.split(" from step ") for line in (store / "calls.txt").read_text().splitlines()]
    assert len([name for name, _ in calls if name.startswith("pretrain")]) == 1, "Stage 1 is trained once"
    first, again = [int(step) for name, step in calls if name == Path(rows[0].runs["align"]).name]
    assert first == 0
    assert again > 0, "it went on from a checkpoint"

    assert 'http-equiv="refresh"' not in (folder / "sweep.html").read_text()
    assert list((folder / "tune").glob("00*/events.out.tfevents*"))
    client = tracking.client_of(env["MLFLOW_TRACKING_URI"])
    parent = tracking.run_id_of(folder)
    assert parent
    experiment = client.get_run(parent).info.experiment_id
    children = client.search_runs(
        [experiment], f"tags.mlflow.parentRunId = '{parent}' and tags.`tap_ray.job` = 'trial'"
    )
    assert [child.info.status for child in children] == ["FINISHED", "FINISHED"]
    [version] = client.search_model_versions("name = 'tap'")
    assert version.tags["pretrain"] == runs.hash_of(rows[0].runs["pretrain"])
    assert version.tags["play"] == runs.hash_of(toy_dataset)


def test_successive_halving_goes_on_from_what_earlier_lives_have_shown(tmp_path: Path):
    """Two trials of an earlier life reached 0.9 and 0.8 at step 10: one at 0.1 is stopped there, one at 1.0 goes on."""
    asha = AshaConfig(metric="bc/r2_mean", grace_steps=10, reduction=2)
    trial: Any = SimpleNamespace(values={}, align=SimpleNamespace(train=SimpleNamespace(steps=40)))
    trials = {f"{n:03d}": SimpleNamespace(**vars(trial), id=f"{n:03d}") for n in range(2)}
    for (id, _), value in zip(trials.items(), (0.9, 0.8), strict=True):
        (tmp_path / id).mkdir()
        (tmp_path / id / "metrics.jsonl").write_text(f'{{"step": 10, "bc/r2_mean": {value}}}\n')
        (tmp_path / "trials").mkdir(exist_ok=True)
        write_row(tmp_path, TrialRow(id=id, values={}, state="stopped", runs={"align": str(tmp_path / id)}))
    work: Any = SimpleNamespace(folder=tmp_path, trials=trials)

    def decision(value: float) -> str:
        scheduler, new = _scheduler(work, asha), SimpleNamespace(trial_id="new")
        nobody: Any = None
        scheduler.on_trial_add(nobody, new)  # type: ignore[arg-type]
        return scheduler.on_trial_result(nobody, new, {"step": 10, "bc/r2_mean": value})  # type: ignore[arg-type]

    assert (decision(0.1), decision(1.0)) == ("STOP", "CONTINUE")


def test_finalists_are_the_best_on_held_out_demonstrations():
    rows = [
        TrialRow(id=id, values={}, state=state, validation={"bc/r2_mean": value})
        for id, state, value in (
            ("000", "trained", 0.2), ("001", "stopped", 0.9), ("002", "done", 0.5), ("003", "trained", 0.4),
        )
    ]  # fmt: skip
    assert [row.id for row in finalists(rows, AshaConfig(finalists=2))] == ["002", "003"]
    assert [row.id for row in finalists(rows, AshaConfig(finalists=2, mode="min"))] == ["000", "003"]


def small(**workers) -> Any:
    """A trial, as far as its size goes."""
    stage = SimpleNamespace(workers=WorkersConfig(**workers))
    return SimpleNamespace(pretrain=None, prior=None, align=stage, evaluate=SimpleNamespace(gpus_per_fleet=0.0))


@pytest.mark.parametrize(
    ("workers", "resources", "most"),
    [
        ({}, {"CPU": 1}, 2),
        ({}, {"CPU": 2}, 2),  # a job reserves half of the CPUs, so that two fit
        ({}, {"CPU": 16}, 8),
        ({"workers": 2, "decoders": 2}, {"CPU": 16}, 2),
        ({"gpus": 0.25}, {"CPU": 16, "GPU": 1}, 4),
        ({}, {"CPU": 16, "GPU": 1}, 1),
    ],
)
def test_no_more_trials_at_once_than_fit_together(workers, resources, most: int):
    assert trials_at_once([small(**workers)], resources) == most
    assert trials_at_once([small(**workers)], resources, asked=1) == 1
    with pytest.raises(ConfigError, match=rf"--trials-at-once {most + 1}: .* hold {most}; more would wait for each"):
        trials_at_once([small(**workers)], resources, asked=most + 1)


def test_a_trial_that_does_not_fit():
    trial = small()
    trial.evaluate.gpus_per_fleet = 1.0
    with pytest.raises(ConfigError, match=r"Not one trial fits into the cluster's 2 CPUs and 0 GPUs"):
        trials_at_once([trial], {"CPU": 2})

"""Sweeps under real Tune, Train, fleets and MLflow: what a killed driver leaves is taken up, nothing is done twice."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest
from ray._private import worker
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig  # pyright: ignore[reportAttributeAccessIssue]

from tap_ray import logs, runs, storage, tracking
from tap_ray.distributed.connect import connect
from tap_ray.distributed.placement import capacity
from tap_ray.distributed.sweep import ResumableASHA, TrialQueue, finalists, max_concurrent_trials, progress_of
from tap_ray.distributed.sweep_job import run_sweep
from tap_ray.errors import ConfigError
from tap_ray.evaluate.settings import EvaluateConfig, InferenceConfig
from tap_ray.settings import WorkersConfig
from tap_ray.sweep import plan as sweep_plan
from tap_ray.sweep.plan import AshaConfig
from tap_ray.sweep.settings import SweepJobConfig
from tap_ray.sweep.tables import TrialRow, read_row, write_row
from tap_ray.sweep.trial import Trial
from tests.distributed.nodes import nodes, wait_for
from tests.distributed.toy_stages import PROTOCOL, STAGES, alone, write_file

REPOSITORY = Path(__file__).parents[2]


def lines_of(store: Path, pattern: str) -> int:
    """Lines that some runs have logged."""
    return sum(len(file.read_text().splitlines()) for file in store.glob(f"{pattern}/metrics.jsonl"))


@pytest.fixture
def env(mlflow_uri: str) -> dict[str, str]:
    return dict(os.environ)


def killed_and_done(file: Path, store: Path, env: dict[str, str], *, hold: Path, when: Callable[[], bool]) -> Path:
    """A sweep of one trial at a time, and the same command again; its run folder.

    Its driver is killed as soon as `when` says so, while the file `hold` of toy_stages.py holds it.
    """
    hold.parent.mkdir()
    hold.touch()
    command = [sys.executable, "-m", "tests.distributed.toy_stages", str(file), str(store), "1"]
    log = file.with_suffix(".log")
    with log.open("w") as out:
        driver = subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=out, stderr=out)
    while not when():
        assert driver.poll() is None, log.read_text()
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    hold.unlink()
    completed = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    return next(store.glob("sweep-*"))


def rows(store: Path) -> list[TrialRow]:
    """The ledger of the one sweep in a store."""
    files = sorted(store.glob("sweep-*/trials/*.json"))
    return [read_row(file.parent.parent, file.stem, {}) for file in files]


def calls(store: Path) -> list[tuple[str, int]]:
    """Run folder and first step of every training that was begun."""
    lines = (line.split(" from step ") for line in (store / "calls.txt").read_text().splitlines())
    return [(name, int(step)) for name, step in lines]


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.long_proof
def test_a_killed_sweep_ends_as_an_undisturbed_one(tmp_path: Path, toy_dataset: Path, env: dict[str, str]):
    """One trial after the other, on one Stage 1: 001 hardly learns and is stopped; the driver dies while 002 aligns."""
    rates = (0.1, 1e-6, 0.2)
    axis = {"train": {"steps": 60, "lr": {"grid": list(rates)}}}
    asha = {"metric": "toy/held_out", "mode": "min", "grace_steps": 20, "reduction_factor": 2, "finalists": 1}
    file, store = tmp_path / "sweep.yaml", tmp_path / "store"
    write_file(file, toy_dataset, seed=0, align=axis, asha=asha)

    def third_aligns() -> bool:
        found = rows(store)
        return len(found) == 3 and lines_of(store, Path(found[2].runs.get("align", "-")).name) > 5

    folder = killed_and_done(file, store, env, hold=store / f"hold-{rates[2]}", when=third_aligns)
    table, trials = runs.read_json(folder / "table.json"), rows(store)
    expected = {number: alone(tmp_path / str(number), toy_dataset, lr=rates[number]) for number in (0, 2)}
    best = min(expected, key=lambda number: expected[number][0]["toy/held_out"])
    states = {best: "done", 2 - best: "trained", 1: "stopped"}
    assert [row["state"] for row in table] == [states[number] for number in range(3)]
    assert [table[number]["validation"] for number in (0, 2)] == [learned for learned, _ in expected.values()]
    assert table[best]["result"] == expected[best][1]
    assert trials[1].logged_step == 20

    assert len({trial.runs["pretrain"] for trial in trials}) == 1
    begun = [[step for name, step in calls(store) if name == Path(trial.runs["align"]).name] for trial in trials]
    assert begun[:2] == [[0], [0]], "neither was begun again"
    assert begun[2][0] == 0
    assert begun[2][1] > 0, "it continued from a checkpoint"
    assert len([name for name, _ in calls(store) if name.startswith("pretrain")]) == 1, "Stage 1 is trained once"

    assert 'http-equiv="refresh"' not in (folder / "sweep.html").read_text()
    assert list((folder / "tune").glob("00*/events.out.tfevents*"))
    client = tracking.client_of(env["MLFLOW_TRACKING_URI"])
    ended = [client.get_run(trial.mlflow_run_id).info.status for trial in trials if trial.mlflow_run_id]
    assert ended == ["FINISHED", "KILLED", "FINISHED"]
    parent = tracking.run_id_of(folder)
    tags = [client.get_run(trial.mlflow_run_id).data.tags for trial in trials if trial.mlflow_run_id]
    assert [of["mlflow.parentRunId"] for of in tags] == 3 * [parent]
    [version] = client.search_model_versions("name = 'tap'")
    assert version.tags["pretrain"] == runs.hash_of(trials[0].runs["pretrain"])
    assert version.tags["play"] == runs.hash_of(toy_dataset)


@pytest.mark.parametrize(
    ("logged_step", "value", "step", "decision"),
    [
        (-1, 0.1, 10, "STOP"),
        (-1, 1.0, 10, "CONTINUE"),
        (10, 0.1, 10, "CONTINUE"),  # an earlier life let it pass
        (-1, 0.1, 40, "CONTINUE"),  # at its end there is nothing left to stop
    ],
)
def test_successive_halving_goes_on_from_what_earlier_lives_have_shown(
    tmp_path: Path, logged_step: int, value: float, step: int, decision: str
):
    """Of an earlier life: one trial at 0.9 throughout, one stopped at step 10 with 0.8; its 9.0 came after that."""
    asha = AshaConfig(metric="bc/r2_mean", grace_steps=10, reduction_factor=2)
    align: Any = SimpleNamespace(train=SimpleNamespace(steps=40))
    trials = {id: SimpleNamespace(id=id, values={}, align=align) for id in ("000", "001", "002")}
    for id, curve in (("000", {10: 0.9, 20: 0.9, 40: 0.9}), ("001", {10: 0.8, 20: 9.0})):
        (tmp_path / id).mkdir()
        lines = [f'{{"step": {at}, "bc/r2_mean": {of}}}\n' for at, of in curve.items()]
        (tmp_path / id / "metrics.jsonl").write_text("".join(lines))
    (tmp_path / "trials").mkdir()
    trained, cut = ({"values": {}, "runs": {"align": str(tmp_path / id)}} for id in ("000", "001"))
    write_row(tmp_path, TrialRow(id="000", state="running", validation={"bc/r2_mean": 0.9}, **trained))  # in evaluation
    write_row(tmp_path, TrialRow(id="001", state="stopped", logged_step=10, **cut))
    write_row(tmp_path, TrialRow(id="002", state="running", values={}, logged_step=logged_step))
    context: Any = SimpleNamespace(folder=tmp_path, trials=trials)

    scheduler, nobody = ResumableASHA(context, asha), None
    trial: Any = SimpleNamespace(trial_id="new", config={"trial": "002"})
    scheduler.on_trial_add(nobody, trial)  # type: ignore[arg-type]
    assert scheduler.on_trial_result(nobody, trial, {"step": step, "bc/r2_mean": value}) == decision
    if step == 10 and value == 1.0:
        assert scheduler.on_trial_result(nobody, trial, {"step": 20, "bc/r2_mean": value}) == "CONTINUE"


def test_finalists_are_the_best_on_held_out_demonstrations():
    rows = [
        TrialRow(id=id, values={}, state=state, validation={"bc/r2_mean": value})
        for id, state, value in (
            ("000", "trained", 0.2), ("002", "done", 0.5), ("003", "trained", 0.4),
        )
    ]  # fmt: skip
    rows.append(TrialRow(id="001", values={}, state="stopped"))
    rows.append(TrialRow(id="004", values={}, state="failed", validation={"bc/r2_mean": 0.3}))  # in evaluation
    assert [row.id for row in finalists(rows, AshaConfig(finalists=3))] == ["002", "003", "004"]
    assert [row.id for row in finalists(rows, AshaConfig(finalists=2, mode="min"))] == ["000", "004"]
    with pytest.raises(ConfigError, match=r"No trial logged asha.metric 'bc/r2_dx'. Did you mean 'bc/r2_mean'\?"):
        finalists(rows, AshaConfig(metric="bc/r2_dx"))


def test_the_bar_counts_finalists_twice():
    asha, held_out = AshaConfig(finalists=2), {"bc/r2_mean": 0.5}

    def counted(*states: str, halving: AshaConfig | None = asha) -> tuple[int, int]:
        seen = ("trained", "done", "evaluating")
        rows = [
            TrialRow(
                id=str(number), values={}, state="running" if state == "evaluating" else state,  # type: ignore[arg-type]
                validation=held_out if state in seen else {},
            )
            for number, state in enumerate(states)
        ]  # fmt: skip
        return progress_of(rows, halving)

    assert counted("done", "running", "waiting", halving=None) == (1, 3)
    assert counted("waiting", "running", "stopped") == (1, 5)
    assert counted("trained", "evaluating", "stopped") == (3, 5)
    assert counted("trained", "done", "done") == (5, 5)
    assert counted("done", "stopped", "failed") == (4, 4)


def small(**workers: Any) -> Trial:
    """A trial, as far as its size goes."""
    stage: Any = SimpleNamespace(workers=WorkersConfig(**workers))
    return Trial(id="0", values={}, pretrain=None, prior=None, align=stage, evaluate=EvaluateConfig(policy=""))


@pytest.mark.parametrize(
    ("workers", "resources", "most"),
    [
        ({}, {"CPU": 1}, 2),
        ({}, {"CPU": 2}, 2),  # a job reserves half of the CPUs, so that two fit
        ({}, {"CPU": 16}, 8),
        ({"num_workers": 2, "num_data_workers": 2}, {"CPU": 16}, 2),
        ({"gpus": 0.25}, {"CPU": 16, "GPU": 1}, 4),
        ({}, {"CPU": 16, "GPU": 1}, 1),
    ],
)
def test_no_more_trials_at_once_than_fit_together(workers, resources, most: int):
    assert max_concurrent_trials([small(**workers)], resources) == most
    assert max_concurrent_trials([small(**workers)], resources, limit=1) == 1
    with pytest.raises(
        ConfigError, match=rf"--max-concurrent-trials {most + 1}: .* have room for {most}; more would wait for each"
    ):
        max_concurrent_trials([small(**workers)], resources, limit=most + 1)


def test_a_trial_that_does_not_fit():
    trial = replace(small(), evaluate=EvaluateConfig(policy="", inference=InferenceConfig(actors=2, gpus=0.5)))
    with pytest.raises(ConfigError, match=r"2 CPUs and 0 GPUs\. .* or evaluate\.inference\.gpus\.$"):
        max_concurrent_trials([trial], {"CPU": 2})
    with pytest.raises(
        ConfigError, match=r"gpus, or choose a simulator that needs no GPU \(evaluate\.sim: maniskill\)\.$"
    ):
        max_concurrent_trials([replace(small(), gpu_scenes=True)], {"CPU": 2})


def test_a_simulator_that_needs_a_gpu_takes_it_from_other_trials():
    """Robots and the processes that compute for them reserve their GPUs at the same time."""
    trial = replace(small(gpu="off"), gpu_scenes=True)
    assert max_concurrent_trials([trial], {"CPU": 16, "GPU": 2}) == 2
    for evaluate, most in (
        (EvaluateConfig(policy="", gpus_per_fleet=0.5), 4),
        (EvaluateConfig(policy="", inference=InferenceConfig(actors=1, gpus=0.5)), 1),
    ):
        assert max_concurrent_trials([replace(trial, evaluate=evaluate)], {"CPU": 16, "GPU": 2}) == most


@pytest.mark.cluster
@pytest.mark.long_proof
def test_more_trials_as_the_cluster_grows_up_to_its_autoscalers_limits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tap_ray.distributed.sweep.ROOM_S", 0.0)
    with nodes() as cluster, connect(cluster.address):
        cluster.add("play")
        room, two = TrialQueue([small()], 0), TrialQueue([small()], 2)
        wait_for(lambda: room.max_concurrent == 2)  # a trial takes half of a machine of 2 CPUs
        second = cluster.add("play", cpus=4)
        wait_for(lambda: room.max_concurrent == 3)
        assert two.max_concurrent == 2
        cluster.kill(second)
        wait_for(lambda: room.max_concurrent == 2)
        limits = ClusterConfig(node_group_configs=[NodeGroupConfig(resources={"CPU": 8}, max_count=4)])
        worker.global_worker.gcs_client.report_cluster_config(limits.SerializeToString())
        wait_for(lambda: capacity()["CPU"] == 32)
        assert room.max_concurrent == 16


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.long_proof
def test_at_a_uri_trials_live_on_any_node_and_are_those_of_a_local_folder(
    bucket: str, tmp_path: Path, toy_dataset: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    """On a head without CPUs or memory and one node with both; the same folder again finds everything done."""
    store = storage.to_path(bucket) / "runs"
    file = write_file(tmp_path / "sweep.yaml", toy_dataset)
    config = SweepJobConfig(sweep=file, store=store, max_concurrent_trials=1, trials_on="any")
    plan = sweep_plan.read(file)
    with nodes() as cluster, connect(cluster.address):
        play = cluster.add("play")

        def run() -> Path:
            return run_sweep(config, plan, sweep_plan.trials(plan, file), stages=STAGES, protocol=PROTOCOL)

        out = run()
        begun = logs.read(store / "calls.txt").decode()
        assert run() == out
        lived_on = {storage.read(path).decode() for path in store.glob("node-*")}
    assert logs.read(store / "calls.txt").decode() == begun
    assert len(begun.splitlines()) == 3  # one Stage 1, two alignments
    assert lived_on == {play.node_id}
    for id, seed in (("000", 0), ("001", 1)):
        row = read_row(out, id, {})
        learned, evaluated = alone(tmp_path / id, toy_dataset, seed=seed)
        assert (row.state, row.result) == ("done", evaluated)
        assert {name: row.validation[name] for name in learned} == pytest.approx(learned)
    assert (out / "sweep.html").is_file()
    assert (out / "results" / "sweep.md").is_file()
    assert runs.read_json(out / "manifest.json")["registered"].startswith("trial 00")
    assert "models:/tap/1" in runs.read_json(out / "manifest.json")["registered"]
    assert not [lock for lock in store.glob("**/*.lock") if lock.is_file()]

"""`python -m jobs.sweep` as far as it goes without starting anything."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from jobs import sweep
from tap_ray import runs, storage
from tap_ray.distributed.sweep_job import command_of
from tap_ray.errors import ConfigError, DataError
from tap_ray.sweep.settings import SweepJobConfig
from tests.distributed import toy_player
from tests.slider import write_adapter

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_player.robots().write_dataset(tmp_path_factory.mktemp("jobs") / "play", 24)


@pytest.fixture
def config(tmp_path: Path, play: Path) -> SweepJobConfig:
    values = {
        "budget": {"grid": [0, 20]},
        "seed": {"grid": [0, 1]},
        "pretrain": {"train": {"steps": 100, "batch_size": 64}},
        "align": {"train": {"steps": 100, "batch_size": 32}},
        "evaluate": {"episodes": 2},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values))
    return SweepJobConfig(
        sweep=tmp_path / "sweep.yaml", data=(str(play),), demos=play, store=tmp_path / "runs", dry_run=True
    )


def measured(folder: Path, kind: str, samples_per_s: float) -> None:
    """A finished training run that had this rate."""
    run = runs.open_run(folder, job="align", config={"kind": kind})
    (folder / "metrics.jsonl").write_text(f'{{"step": 50, "{kind}/samples_per_s": {samples_per_s}}}\n')
    runs.finish(run)


def test_a_dry_run_without_measured_rates_says_so(config: SweepJobConfig, capsys: pytest.CaptureFixture[str]):
    assert sweep.main(config) == config.sweep
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1].strip() for line in lines[2:6]] == [
        "budget 0, seed 0",
        "budget 0, seed 1",
        "budget 20, seed 0",
        "budget 20, seed 1",
    ]
    assert "pretrain new" in lines[4]
    assert "pretrain shared" in lines[5]
    assert "no measured rate yet for pretrain, align, evaluate: these are not counted" in lines[6]
    assert not config.store.exists()


def test_a_dry_run_reckons_with_measured_rates(config: SweepJobConfig, capsys: pytest.CaptureFixture[str]):
    """100 x 32 windows at 4 /s are 13.3 min for each of 4 trials, 100 x 64 at 10 /s 10.7 min for the one Stage 1."""
    measured(config.store / "align-1", "bc", 4.0)
    measured(config.store / "pretrain-1", "play", 10.0)
    sweep.main(config)
    lines = capsys.readouterr().out.splitlines()
    assert "13.3 min" in lines[2]
    assert "about 64.0 min if run one after another" in lines[6]
    assert "rates of 2 finished runs" in lines[6]


def test_mistakes_are_said_before_anything_starts(config: SweepJobConfig, tmp_path: Path):
    values = yaml.safe_load(config.sweep.read_text())

    def changed(**more) -> SweepJobConfig:
        (tmp_path / "changed.yaml").write_text(yaml.safe_dump(values | more))
        return SweepJobConfig(sweep=tmp_path / "changed.yaml", data=config.data, demos=config.demos, store=config.store)

    with pytest.raises(ConfigError, match=r"budget 8000 is larger than the dataset: .* has 24 episodes"):
        sweep.main(changed(budget={"grid": [0, 8000]}))
    with pytest.raises(ConfigError, match="Unknown suite 'tabletopp'"):
        sweep.main(changed(evaluate={"suite": "tabletopp"}))
    with pytest.raises(ConfigError, match=r"align.*--checkpoint-every must be a multiple of --log-every 50; got 60"):
        sweep.main(changed(align={"train": {"checkpoint_every": 60}}))
    with pytest.raises(DataError, match=r"There is no dataset at .*nowhere"):
        sweep.main(SweepJobConfig(sweep=config.sweep, data=(str(tmp_path / "nowhere"),), demos=config.demos))
    assert not config.store.exists()


@pytest.mark.parametrize(
    ("file", "trials", "collected"),
    [
        ("smoke", 4, ["40 episodes of play (contact)", "8 demonstrations of each task"]),
        ("study", 18, ["8000 episodes of play (contact)", "50 demonstrations of each task"]),
        ("study_demos", 8, ["3200 episodes of play (contact)", "50 demonstrations of each task"]),
        ("study_small", 8, ["600 episodes of play (contact)", "10 demonstrations of each task"]),
        ("data_budget", 15, ["20000 episodes of play (contact)", "50 demonstrations of each task"]),
        ("data_budget_small", 6, ["2000 episodes of play (contact)", "50 demonstrations of each task"]),
        ("alignment_grid", 18, ["2000 episodes of play (contact)", "50 demonstrations of each task"]),
        ("alignment_search", 24, ["2000 episodes of play (contact)", "50 demonstrations of each task"]),
    ],
)
def test_a_dry_run_of_what_we_ship_needs_no_data(
    file: str, trials: int, collected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = Path(__file__).parents[2] / "tune_configs" / f"{file}.yaml"
    play, demos = tmp_path / "play", tmp_path / "demos"
    sweep.main(SweepJobConfig(sweep=path, data=(str(play),), demos=demos, store=tmp_path / "runs", dry_run=True))
    lines = capsys.readouterr().out.splitlines()
    assert f"{trials} trials, " in lines[2 + trials]
    assert lines[3 + trials :] == [
        f"to be collected first, not counted above: {folder}: {what}; 0 episodes already exist"
        for folder, what in zip((play, demos), collected, strict=True)
    ]
    assert not any(folder.exists() for folder in (play, demos))


def foreign(folder: Path, **evaluate: object) -> SweepJobConfig:
    """A sweep whose data and evaluation are those of an environment behind an adapter."""
    env, train = write_adapter(folder), {"steps": 20, "batch_size": 16, "log_every": 10, "validate_every": 20}
    common = {"env": env, "image_size": 32, "max_steps": 20, "fleets": 1}
    data = {name: str(folder / name) for name in ("data", "demos")}
    values = data | {
        "budget": {"grid": [0, 6]},
        "demos_per_task": 6,
        "collect": {data["data"]: {**common, "explorer": "waypoint"}, data["demos"]: common},
        "pretrain": {
            "train": train | {"checkpoint_every": 20},
            "objective": {"next_object": 0, "inverse_dynamics": 1},
            "windows": {"holdout_every": 3},
        },
        "align": {"train": train | {"checkpoint_every": 20}, "windows": {"holdout_every": 3}},
        "evaluate": {"episodes": 2, "max_steps": 20, "robots_per_fleet": 2, "env": env} | evaluate,
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(values))
    return SweepJobConfig(sweep=folder / "sweep.yaml", store=folder / "runs", dry_run=True)


def test_a_sweep_in_an_environment_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = foreign(tmp_path)
    sweep.main(config)
    lines = capsys.readouterr().out.splitlines()
    assert "evaluate 2 cells" in lines[0]
    assert lines[-2].startswith(
        f"to be collected first, not counted above: {tmp_path}/data: 6 episodes of play (waypoint)"
    )
    (tmp_path / "other").mkdir()
    other = write_adapter(tmp_path / "other", robot="robot: lifter")
    with pytest.raises(ConfigError, match=r"demonstrations of 'slider', and evaluate has the robot 'lifter'\."):
        sweep.main(foreign(tmp_path, env=other))


@pytest.mark.cluster
@pytest.mark.long_proof
@pytest.mark.timeout(900)
def test_it_collects_trains_and_evaluates_there(tmp_path: Path):
    config = foreign(tmp_path)
    command = [sys.executable, "-m", "jobs.sweep", str(config.sweep), "--store", str(config.store)]
    variables = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "PYTHONPATH": str(ROOT)}
    completed = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=800)
    assert completed.returncode == 0, completed.stdout[-3000:] + completed.stderr[-3000:]
    assert "registered" in completed.stdout or "models:/" in completed.stdout
    [result, *others] = [runs.read_json(path) for path in config.store.glob("evaluate-*/results.json")]
    assert len(others) == 1, "one for each budget"
    assert [*result["tasks"]] == ["slide"]


def test_the_command_that_gives_a_config(config: SweepJobConfig, tmp_path: Path):
    again = replace(config, data=("a", "b:2"), demos=None, store=runs.STORE, results=tmp_path, max_concurrent_trials=2)
    expected = f"python -m jobs.sweep {config.sweep} --data a b:2 --results {tmp_path} --dry-run "
    expected += "--max-concurrent-trials 2"
    assert command_of(again) == expected


def test_results_are_also_a_local_folder(config: SweepJobConfig):
    with pytest.raises(ConfigError, match=r"--results s3:.*: results are files for a repository"):
        sweep.main(replace(config, results=storage.to_path("s3://bucket/results")))

"""Stages of a sweep that real Ray Train, fleets and MLflow run in seconds: the toy task and the line world.

As a program: a driver of a sweep, to be killed.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import ray
import yaml

from tap_ray import logs, runs, storage, tracking
from tap_ray.dataset.reader import open_dataset
from tap_ray.dataset.schedule import iterate
from tap_ray.distributed import evaluate as fleets
from tap_ray.distributed import stream
from tap_ray.distributed.connect import connect
from tap_ray.distributed.sweep_job import run_sweep
from tap_ray.distributed.sweep_trial import Stages, result_of
from tap_ray.distributed.train import run_stage
from tap_ray.evaluate import results
from tap_ray.evaluate.episodes import EpisodeRunner
from tap_ray.evaluate.protocol import Protocol, cells
from tap_ray.evaluate.settings import EvaluateConfig, made_by
from tap_ray.settings import AlignJobConfig, PretrainConfig, PriorJobConfig
from tap_ray.sweep import plan as sweep_plan
from tap_ray.sweep.settings import SweepJobConfig
from tap_ray.training import session
from tap_ray.training.loop import TrainConfig
from tap_ray.training.progress import train_here
from tap_ray.training.session import TrainJob
from tap_ray.types import EnvConfig
from tests.distributed import toy_training
from tests.line_world import Forward, line_failure_inputs, line_robots

PROTOCOL = Protocol(tasks=("line", "other"), env_version="1", episodes=2, max_steps=5)
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


def pretrain(config: PretrainConfig) -> Path:
    [data], _ = config.sources()
    return _train("pretrain", config, data, config.parents())


def prior(config: PriorJobConfig) -> Path:
    raise NotImplementedError


def align(config: AlignJobConfig) -> Path:
    parents = {"demos": config.demos, **({"init": storage.to_path(config.init)} if config.init != "scratch" else {})}
    return _train("align", config, config.demos, parents)


def _train(job: str, config: Any, data: Path, parents: dict[str, Path]) -> Path:
    """With a file `hold-<lr>` in the store, training at this rate waits after its first checkpoint until it is gone."""
    logs.append(config.out.parent / "calls.txt", f"{config.out.name} from step {session.newest_step(config.out)}\n")
    storage.write(config.out.parent / f"node-{config.out.name}", ray.get_runtime_context().get_node_id().encode())
    hold = toy_training.Hold(config.out.parent / f"hold-{config.train.lr}", config.train.checkpoint_every + 2)
    return run_stage(
        job,
        config,
        build=partial(toy_training.stage, 0.0, 0, hold),
        batches=partial(stream.batches, data, toy_training.WINDOWS, seed=config.train.seed),
        parents=parents,
        metadata={},
    )


def evaluate(config: EvaluateConfig) -> Path:
    run = runs.open_run(config.out, job="evaluate", config=made_by(config, PROTOCOL), parents={"policy": config.policy})
    with tracking.start("evaluate", run.path, run.config):
        episodes = fleets.evaluate(
            PROTOCOL,
            make_vector=make_vector,
            make_policy=partial(make_policy, config.policy),
            make_failure_inputs=line_failure_inputs,
            folder=run.path,
            config=fleets.FleetConfig(fleets=config.fleets, robots=4),
            progress=False,
        )
        results.write(run.path, episodes, PROTOCOL, policy="toy", run=config.policy)
    runs.finish(run)
    return run.path


def make_vector(scene: EnvConfig, num: int) -> Any:
    return line_robots(num, scene)


def make_policy(run: str, scene: EnvConfig, num: int) -> Forward:
    """How far it goes follows from what was learned; every policy succeeds in part."""
    bias = json.loads((storage.to_path(run) / "exported.json").read_text())
    return Forward(0.1 + 0.15 * (1e4 * bias[0] % 1.0))


STAGES = Stages(pretrain=pretrain, prior=prior, align=align, evaluate=evaluate)


def write_file(file: Path, data: Path, **other: Any) -> Path:
    """The sweep's YAML: unless it says otherwise, two trials on one Stage 1."""
    values = {"data": str(data), "demos": str(data), **SWEEP, **other}
    for stage in ("pretrain", "align"):
        values[stage] = {"train": {**TRAIN, **values[stage]["train"]}}
    file.write_text(yaml.safe_dump(values))
    return file


def alone(folder: Path, data: Path, **settings: Any) -> tuple[dict, dict]:
    """What a trial must find: its alignment and evaluation in this process, without Ray and undisturbed."""
    config = TrainConfig(**{**TRAIN, **SWEEP["align"]["train"], **settings})
    batches = partial(iterate, open_dataset(data), toy_training.WINDOWS, seed=config.seed)
    build = partial(toy_training.stage, 0.0, 0)
    metrics = train_here(TrainJob(run=folder, build=build, batches=batches, config=config), progress=False)
    robots = EpisodeRunner(PROTOCOL, make_vector, partial(make_policy, str(folder)), line_failure_inputs)
    evaluated = [result for cell in cells(PROTOCOL) for result in robots.run([cell]).results]
    learned = {name: value for name, value in metrics.items() if not name.endswith(("_s", "_pct"))}
    return learned, result_of(results.summarize(evaluated, PROTOCOL, policy="toy"))


def main(file: Path, store: Path, max_concurrent_trials: int = 0) -> Path:
    plan = sweep_plan.read(file)
    config = SweepJobConfig(sweep=file, store=store, max_concurrent_trials=max_concurrent_trials)
    with connect(num_cpus=2):
        return run_sweep(config, plan, sweep_plan.trials(plan, file), stages=STAGES, protocol=PROTOCOL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))

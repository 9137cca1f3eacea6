"""Stages of a sweep that real Ray Train, fleets and MLflow run in seconds: the toy task and the line world.

As a program: a driver of a sweep, to be killed.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from tap_ray import runs, tracking
from tap_ray.distributed import evaluate as fleets
from tap_ray.distributed import stream, sweep_plan
from tap_ray.distributed.connect import connect
from tap_ray.distributed.settings import AlignJobConfig, PretrainConfig, PriorJobConfig
from tap_ray.distributed.sweep_job import SweepJobConfig, run_sweep
from tap_ray.distributed.sweep_trial import Stages
from tap_ray.distributed.train import run_stage
from tap_ray.evaluate import results
from tap_ray.evaluate.protocol import Protocol
from tap_ray.evaluate.settings import EvaluateConfig, what
from tap_ray.training import session
from tap_ray.types import EnvConfig
from tests.distributed import toy_training
from tests.line_world import Forward, line_facts, line_robots

PROTOCOL = Protocol(tasks=("line", "other"), env_version="1", episodes=2, max_steps=5)
PAUSE_S = 0.03
"""A training step: a killer needs time to aim."""


def pretrain(config: PretrainConfig) -> Path:
    assert config.data
    return _train("pretrain", config, config.data, {"data": config.data})


def prior(config: PriorJobConfig) -> Path:
    raise NotImplementedError


def align(config: AlignJobConfig) -> Path:
    parents = {"demos": config.demos, **({"init": Path(config.init)} if config.init != "scratch" else {})}
    return _train("align", config, config.demos, parents)


def _train(job: str, config: Any, data: Path, parents: dict[str, Path]) -> Path:
    with open(config.out.parent / "calls.txt", "a") as file:
        file.write(f"{config.out.name} from step {session.newest_step(config.out)}\n")
    return run_stage(
        job,
        config,
        learner=partial(toy_training.learner, PAUSE_S, 0),
        batches=partial(stream.batches, data, toy_training.WINDOWS, seed=config.train.seed),
        parents=parents,
    )


def evaluate(config: EvaluateConfig) -> Path:
    run = runs.open_run(config.out, job="evaluate", config=what(config, PROTOCOL), parents={"policy": config.policy})
    with tracking.start("evaluate", run.path, run.config):
        episodes = fleets.evaluate(
            PROTOCOL,
            make_vector=make_vector,
            make_policy=partial(make_policy, config.policy),
            make_facts=line_facts,
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
    """How far it goes follows from what was learnt; every policy succeeds in part."""
    bias = json.loads((Path(run) / "exported.json").read_text())
    return Forward(0.1 + 0.15 * (1e4 * bias[0] % 1.0))


STAGES = Stages(pretrain=pretrain, prior=prior, align=align, evaluate=evaluate)


def main(file: Path, store: Path) -> Path:
    plan = sweep_plan.read(file)
    config = SweepJobConfig(sweep=file, store=store)
    with connect(num_cpus=2):
        return run_sweep(config, plan, sweep_plan.trials(plan, file), stages=STAGES, protocol=PROTOCOL)


if __name__ == "__main__":
    print(json.dumps(str(main(Path(sys.argv[1]), Path(sys.argv[2])))))

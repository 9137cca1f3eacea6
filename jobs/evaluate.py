"""Judge a policy: success rates with intervals on the cells of a protocol, one row an episode, a video a task."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import envs
from envs.worlds import FOREIGN, World, world_of
from tap_ray import registry
from tap_ray.distributed.evaluate_job import Scenes, run_evaluation
from tap_ray.evaluate.failures import FailureInputs, failure_inputs_of
from tap_ray.evaluate.protocol import Protocol, check
from tap_ray.evaluate.settings import EvaluateConfig, protocol_of, simulator
from tap_ray.job import run_job
from tap_ray.types import EnvConfig


def main(config: EvaluateConfig) -> Path:
    """Run the cells that have no result yet, sum them up, print the tables; returns the run folder."""
    config = replace(config, policy=str(registry.local(config.policy)))
    protocol, world = checked_protocol(config), _world(config)
    scenes = Scenes(
        make_vector=world.make_ee_control if config.policy == "expert" else world.make_vector,
        make_failure_inputs=partial(_facts, world),
        built_in={"expert": world.make_expert, "random": world.random_policy},
        spec=world.spec,
    )
    return run_evaluation(config, protocol, scenes)


def checked_protocol(config: EvaluateConfig) -> Protocol:
    """What a config judges on, if that can be done."""
    world = _world(config)
    world.require_goal((config.policy,))
    if config.env:
        sim, known, scenarios = FOREIGN, world.tasks, ("standard",)
        config = replace(config, suite=FOREIGN, robot=world.spec(EnvConfig()).robot)
    else:
        sim, known, scenarios = _sim(config), envs.tasks_of(_sim(config)), envs.SCENARIOS.built_in
    facts = {"suite_tasks": world.tasks, "env_version": world.version, "known_scenarios": scenarios}
    check(protocol := protocol_of(config, sim=sim, **facts), known_tasks=known, check_scene=world.scene)
    return protocol


def _sim(config: EvaluateConfig) -> str:
    return simulator(config.suite, envs.sims_of(config.suite), config.sim)


def _world(config: EvaluateConfig) -> World:
    sim = config.sim if config.env else _sim(config)
    return world_of(config.env, config.robot, sim, config.tasks, config.scenario)


def _facts(world: World, scene: EnvConfig) -> FailureInputs:
    if scene.sim == FOREIGN:
        return replace(failure_inputs_of(world.spec(scene)), told=world.failures_told)
    return failure_inputs_of(world.spec(scene), push_m=envs.push_goal_m(scene.task), mover=envs.movers(scene))


if __name__ == "__main__":
    run_job(main, EvaluateConfig)

"""Evaluate a policy on the cells of a protocol: success rates with intervals, a row per episode, a video per task."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import envs
from envs.worlds import World, world_of
from tap_ray import registry
from tap_ray.distributed.evaluate_job import Scenes, run_evaluation
from tap_ray.evaluate.failures import FailureInputs, failure_inputs_of
from tap_ray.evaluate.protocol import Protocol, check
from tap_ray.evaluate.settings import EvaluateConfig, protocol_of, simulator
from tap_ray.job import run_job
from tap_ray.types import EnvConfig


def main(config: EvaluateConfig) -> Path:
    """Run the cells that have no result yet, summarize, print the tables; returns the run folder."""
    config = replace(config, policy=str(registry.local(config.policy)))
    world = chosen_world(config)
    protocol = checked_protocol(config, world)
    scenes = Scenes(
        make_vector=world.make_ee_control if config.policy == "expert" else world.make_vector,
        make_failure_inputs=partial(_failure_inputs, world),
        built_in={"expert": world.make_expert, "random": world.random_policy},
        spec=world.spec,
        gpu=world.gpu,
    )
    return run_evaluation(config, protocol, scenes)


def checked_protocol(config: EvaluateConfig, world: World | None = None) -> Protocol:
    """The protocol of a config, after checking that it can be run."""
    world = world or chosen_world(config)
    world.require_goal((config.policy,))
    if config.env:  # which the adapter describes, not the suite
        spec = world.spec(EnvConfig(cameras=config.cameras))
        config = replace(config, suite=world.sim, robot=spec.robot, cameras=spec.cameras)
    scope = {"suite_tasks": world.tasks, "env_version": world.version, "known_scenarios": world.scenarios}
    check(
        protocol := protocol_of(config, sim=world.sim, **scope), known_tasks=world.known_tasks, check_scene=world.scene
    )
    return protocol


def chosen_world(config: EvaluateConfig) -> World:
    """The simulator of a config, or the world of its adapter."""
    sim = config.sim if config.env else simulator(config.suite, envs.sims_of(config.suite, config.sim), config.sim)
    return world_of(config.env, config.robot, sim, config.tasks, config.scenario)


def _failure_inputs(world: World, scene: EnvConfig) -> FailureInputs:
    inputs = failure_inputs_of(world.spec(scene), push_m=world.push_goal_m(scene.task), mover=world.movers(scene))
    return replace(inputs, labeled=world.labels_failures)


if __name__ == "__main__":
    run_job(main, EvaluateConfig)

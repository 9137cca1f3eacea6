"""Judge a policy: success rates with intervals on the cells of a protocol, one row an episode, a video a task."""

from dataclasses import replace
from pathlib import Path

import envs
from tap_ray import registry
from tap_ray.distributed.evaluate_job import Scenes, run_evaluation
from tap_ray.evaluate.failures import FailureInputs, failure_inputs_of
from tap_ray.evaluate.protocol import Protocol, check
from tap_ray.evaluate.settings import EvaluateConfig, protocol_of, simulator
from tap_ray.job import run_job
from tap_ray.types import EnvConfig, Policy


def main(config: EvaluateConfig) -> Path:
    """Run the cells that have no result yet, sum them up, print the tables; returns the run folder."""
    config = replace(config, policy=str(registry.local(config.policy)))
    scenes = Scenes(
        make_vector=envs.make_ee_control if config.policy == "expert" else envs.make_vector,
        make_failure_inputs=_facts,
        built_in={"expert": envs.make_expert, "random": _random},
        spec=envs.spec,
    )
    return run_evaluation(config, checked_protocol(config), scenes)


def checked_protocol(config: EvaluateConfig) -> Protocol:
    """What a config judges on, if that can be done."""
    sim = simulator(config.suite, envs.sims_of(config.suite), config.sim)
    tasks, version = envs.suite_tasks(sim), envs.version_of(sim, config.robot, config.tasks)
    protocol = protocol_of(config, sim=sim, suite_tasks=tasks, env_version=version, known_scenarios=envs.SCENARIOS)
    check(protocol, known_tasks=envs.tasks_of(sim), check_scene=envs.check)
    return protocol


def _facts(scene: EnvConfig) -> FailureInputs:
    return failure_inputs_of(envs.spec(scene), push_m=envs.push_goal_m(scene.task), mover=envs.movers(scene))


def _random(scene: EnvConfig, num_robots: int) -> Policy:
    return envs.random_policy(envs.spec(scene))


if __name__ == "__main__":
    run_job(main, EvaluateConfig)

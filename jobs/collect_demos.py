"""Experts demonstrate tasks: a dataset of successful episodes with instructions. Resumes where it was interrupted."""

from functools import partial
from pathlib import Path
from typing import Any

import envs
from tap_ray.config import to_dict
from tap_ray.distributed.record import Recording, default_folder, header_of, pool_of, record
from tap_ray.evaluate.protocol import SUITES
from tap_ray.evaluate.settings import simulator
from tap_ray.job import run_job
from tap_ray.play.demos import DemoFleet, DemoPlan
from tap_ray.play.settings import DemosJobConfig, demo_plan_of


def main(config: DemosJobConfig) -> Path:
    """Collect what is missing, say what was dropped and why; returns the dataset's folder."""
    simulator(config.suite, envs.sims_of(config.suite))  # known?
    plan = demo_plan_of(config, envs.suite_tasks(config.sim), SUITES[config.suite].pairs)
    for scene in plan.scenes:
        envs.check(scene)
        envs.make_expert(scene, 1)
    values = {**plan.to_json(), "env_version": envs.version_of(config.sim, config.robot, plan.tasks)}
    recording = Recording(
        job="collect_demos",
        header=header_of(plan.env, envs.spec(plan.env), num_objects=envs.NUM_SLOTS, plan=values),
        out=config.out or default_folder("demos", values),
        tasks=tuple(f"{s.task} beside {s.partner}" if s.partner else s.task for s in plan.scenes),
        episodes=config.episodes,
        make_player=partial(fleet, plan, config.robots_per_fleet),
    )
    return record(recording, to_dict(config), pool=pool_of(config), ray_address=config.ray_address)


def fleet(plan: DemoPlan, num_robots: int, memory: Any) -> DemoFleet:
    """A fleet's robots, built in its own process; experts need no novelty memory."""
    return DemoFleet(plan, envs.make_ee_control, envs.make_expert, num_robots=num_robots)


if __name__ == "__main__":
    run_job(main, DemosJobConfig)

"""Experts demonstrate tasks: a data set of successful episodes with instructions. Goes on where it was cut off."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import envs
from envs.tasks import NUM_SLOTS
from tap_ray.config import run_job, to_dict
from tap_ray.distributed.record import Recording, default_folder, pool_of, record
from tap_ray.play.demos import DemoFleet, DemoPlan
from tap_ray.play.settings import DemosJobConfig, demo_plan_of


def main(config: DemosJobConfig) -> Path:
    """Collect what is missing, say what was dropped and why; returns the data set's folder."""
    plan = demo_plan_of(config, envs.tasks_of(config.sim))
    for task in plan.tasks:
        envs.check(replace(plan.env, task=task))
        envs.make_expert(replace(plan.env, task=task), 1)
    values = {**plan.to_json(), "env_version": envs.version_of(config.sim)}
    recording = Recording(
        job="collect_demos",
        env=plan.env,
        spec=envs.spec(plan.env),
        num_objects=NUM_SLOTS,
        plan=values,
        out=config.out or default_folder("demos", values),
        tasks=plan.tasks,
        episodes=config.episodes,
        make_player=partial(fleet, plan, config.robots_per_fleet),
    )
    return record(recording, to_dict(config), pool=pool_of(config), ray_address=config.ray_address)


def fleet(plan: DemoPlan, num_robots: int, memory: Any) -> DemoFleet:
    """A fleet's robots, built in its own process; experts need no novelty memory."""
    return DemoFleet(plan, envs.make_teleoperated, envs.make_expert, num_robots=num_robots)


if __name__ == "__main__":
    run_job(main, DemosJobConfig)

"""Experts demonstrate tasks: a dataset of successful episodes with instructions. Resumes where it was interrupted."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import envs
from envs.worlds import World, world_of
from tap_ray.config import to_dict
from tap_ray.distributed.record import Recording, default_folder, header_of, pool_of, record
from tap_ray.evaluate.protocol import SUITES
from tap_ray.evaluate.settings import simulator
from tap_ray.job import run_job
from tap_ray.play.demos import DemoFleet, DemoPlan
from tap_ray.play.settings import DemosJobConfig, demo_plan_of


def main(config: DemosJobConfig) -> Path:
    """Collect what is missing, say what was dropped and why; returns the dataset's folder."""
    plan, world = planned(config)
    for scene in plan.scenes:
        world.make_expert(world.scene(scene), 1)
    header = header_of(plan, world.spec(plan.env), entries=world.plan_entries, **world.header_fields)
    recording = Recording(
        job="collect_demos",
        header=header,
        out=config.out or default_folder("demos", header.plan),
        tasks=tuple(f"{s.task} beside {s.partner}" if s.partner else s.task for s in plan.scenes),
        episodes=config.episodes,
        make_player=partial(fleet, plan, config.robots_per_fleet, world=world),
    )
    return record(recording, to_dict(config), pool=pool_of(config, gpu=world.gpu), ray_address=config.ray_address)


def planned(config: DemosJobConfig) -> tuple[DemoPlan, World]:
    """What will be demonstrated, and where.

    Raises:
        ConfigError: the suite, simulator, robot or a task is unknown, or the world has no task or no expert.
    """
    simulator(config.suite, envs.sims_of(config.suite))  # raises an error for an unknown name
    world = world_of(config.env, config.robot, config.sim, config.tasks)
    world.require_goal(("expert",))
    plan = demo_plan_of(config, world.tasks, SUITES[config.suite].pairs)
    return replace(plan, env=replace(world.scene(plan.scenes[0]), task=plan.env.task, partner="")), world


def fleet(plan: DemoPlan, num_robots: int, memory: object, world: World | None = None) -> DemoFleet:
    """A fleet's robots, built in its own process; experts need no novelty memory."""
    world = world or world_of("", plan.env.robot, plan.env.sim)
    return DemoFleet(plan, world.make_ee_control, world.make_expert, num_robots=num_robots)


if __name__ == "__main__":
    run_job(main, DemosJobConfig)

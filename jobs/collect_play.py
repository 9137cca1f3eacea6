"""Robots play: a dataset of unlabeled interaction. Resumes where it was interrupted; more --episodes make it longer."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from envs.worlds import World, world_of
from tap_ray.config import to_dict
from tap_ray.distributed.record import Recording, default_folder, header_of, pool_of, record
from tap_ray.job import run_job
from tap_ray.play import report
from tap_ray.play.collect import CollectPlan, CountsBefore, PlayFleet, check_robots, visits_of
from tap_ray.play.explorers import choices
from tap_ray.play.novelty import RoundVisitCounts
from tap_ray.play.settings import PlayJobConfig, plan_of


def main(config: PlayJobConfig) -> Path:
    """Collect what is missing; returns the dataset's folder."""
    plan, world = planned(config)
    print("".join(f"The adapter has no {line}.\n" for line in world.missing_features), end="")
    check_robots(plan, config.robots_per_fleet)
    header = header_of(plan, world.spec(plan.env), entries=world.plan_entries, **world.header_fields)
    recording = Recording(
        job="collect_play",
        header=header,
        out=config.out or default_folder("play", header.plan),
        tasks=("play",),
        episodes=config.episodes,
        make_player=partial(fleet, plan, config.robots_per_fleet, world=world),
        memory=RoundVisitCounts(plan.round_episodes) if plan.needs_memory else None,
        visits_of=partial(visits_of, plan, arms=world.spec(plan.env).arms),
    )
    scene = None if world.gpu else partial(world.make_ee_control, plan.env, 1)
    pool, reported = pool_of(config, gpu=world.gpu), partial(report.write, make_scene=scene)
    return record(recording, to_dict(config), pool=pool, ray_address=config.ray_address, report=reported)


def planned(config: PlayJobConfig) -> tuple[CollectPlan, World]:
    """The plan of a config, and the world in which it is carried out."""
    world = world_of(config.env, config.robot, config.sim)
    plan = plan_of(config, control_lag=world.control_lag)
    world.require_explorers(choices(plan.explorer, plan.explorers))
    return replace(plan, env=world.scene(plan.env)), world


def fleet(plan: CollectPlan, num_robots: int, memory: CountsBefore | None, world: World | None = None) -> PlayFleet:
    """A fleet's robots, built in its own process."""
    world = world or world_of("", plan.env.robot, plan.env.sim)
    make, arms = world.make_ee_control, world.spec(plan.env).arms
    return PlayFleet(plan, make, world.sample_poses, num_robots=num_robots, arms=arms, memory=memory)


if __name__ == "__main__":
    run_job(main, PlayJobConfig)

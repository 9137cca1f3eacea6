"""Robots play: a dataset of unlabeled interaction. Resumes where it was interrupted; more --episodes make it longer."""

from functools import partial
from pathlib import Path
from typing import Any

import envs
from envs.kinematics.reachable import sample_poses
from tap_ray.config import to_dict
from tap_ray.distributed.record import Recording, default_folder, header_of, pool_of, record
from tap_ray.job import run_job
from tap_ray.play import report
from tap_ray.play.collect import CollectPlan, PlayFleet, check_robots, visits_of
from tap_ray.play.novelty import RoundVisitCounts
from tap_ray.play.settings import PlayJobConfig, plan_of


def main(config: PlayJobConfig) -> Path:
    """Collect what is missing; returns the dataset's folder."""
    plan = plan_of(config, control_lag=envs.control_lag_of(config.sim))
    envs.check(plan.env)
    check_robots(plan, config.robots_per_fleet)
    values = {**plan.to_json(), "env_version": envs.version_of(config.sim, config.robot)}
    recording = Recording(
        job="collect_play",
        header=header_of(plan.env, envs.spec(plan.env), num_objects=envs.NUM_SLOTS, plan=values),
        out=config.out or default_folder("play", values),
        tasks=("play",),
        episodes=config.episodes,
        make_player=partial(fleet, plan, config.robots_per_fleet),
        memory=RoundVisitCounts(plan.round_episodes) if plan.needs_memory else None,
        visits_of=partial(visits_of, plan, arms=envs.spec(plan.env).arms),
    )
    return record(recording, to_dict(config), pool=pool_of(config), ray_address=config.ray_address, report=write_report)


def fleet(plan: CollectPlan, num_robots: int, memory: Any) -> PlayFleet:
    """A fleet's robots, built in its own process."""
    return PlayFleet(
        plan,
        envs.make_ee_control,
        sample_poses,
        num_robots=num_robots,
        arms=envs.spec(plan.env).arms,
        memory=memory,
    )


def write_report(data: Path) -> Path:
    """The play report, beside the data."""
    return report.write(data, data / "report")


if __name__ == "__main__":
    run_job(main, PlayJobConfig)

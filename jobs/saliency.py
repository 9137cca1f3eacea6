"""Grad-CAM over episodes: where a policy looks, and how much of it lies on gripper and objects.

A Stage 1 run has no instruction: its input is the frame and the episode's crops (the object that is touched next, and
the place where it is released), or the frame and the second image of inverse dynamics. A Stage 2 run gets the
instruction.
"""

from dataclasses import replace
from pathlib import Path

import envs
from envs.worlds import USUAL, world_of
from tap_ray import registry, runs
from tap_ray.evaluate.protocol import check
from tap_ray.evaluate.settings import simulator
from tap_ray.inspect import saliency_report
from tap_ray.inspect.clips import record_clips
from tap_ray.inspect.settings import SaliencyConfig
from tap_ray.job import job_run, run_job


def main(config: SaliencyConfig) -> Path:
    """Record the episodes, compute the maps, print the table; returns the run folder."""
    config = replace(config, policy=tuple(registry.local(policy) for policy in config.policy))
    found = saliency_report.load_policies(config)
    sim = "" if config.env else simulator(config.suite, envs.sims_of(config.suite))
    world = world_of(config.env, USUAL.robot, sim, config.tasks if config.env else ())
    saliency_report.require_crops(found, there=world.can_cut_crops)
    scope = {"sim": world.sim, "suite_tasks": world.tasks, "env_version": world.version}
    protocol = saliency_report.protocol_for(config, found, **scope)
    check(protocol, known_tasks=world.known_tasks, check_scene=world.scene)
    spec = world.spec(protocol.env_config(protocol.tasks[0], "standard"))
    saliency_report.require_robot(found, spec)
    policy_drives = saliency_report.policy_drives(config, found)
    if not policy_drives:
        world.require_goal(("expert",))
    parents: dict[str, Path | str] = {
        f"policy_{number}" if number else "policy": path for number, path in enumerate(config.policy)
    }
    made_by = saliency_report.made_by(config, protocol)
    with job_run("saliency", config, made_by=made_by, parents=parents) as run:
        if not run.done:
            drive = (world.make_ee_control, world.make_expert)
            if policy_drives:
                drive = (world.make_vector, saliency_report.driver_of(found[0]))
            shown = record_clips(protocol, *drive, ahead=config.goal_offset, scene_options=world.scene_options)
            total = len(protocol.tasks) * config.episodes
            report = saliency_report.inspect_clips(
                config, found, shown, total=total, folder=run.path, fps=spec.control_hz
            )
            runs.write_json(run.path / saliency_report.REPORT, report)
            run.log(saliency_report.metrics(report))
            run.artifact(saliency_report.REPORT, "strips", "videos")
            run.metadata["protocol"] = protocol.hash
    print(saliency_report.text(runs.read_json(run.path / saliency_report.REPORT)))
    return run.path


if __name__ == "__main__":
    run_job(main, SaliencyConfig)

"""Looking inside: where does a policy look? Grad-CAM over episodes, and how much of it lies on gripper and objects.

Stage 1 runs look without words: at the frame with crops of what is touched next and of where it is left, cut out of the
film, or at the frame and the second image of inverse dynamics. Stage 2 runs look with the episode's instruction.
"""

from dataclasses import replace
from pathlib import Path

import envs
from tap_ray import registry, runs
from tap_ray.config import to_dict
from tap_ray.evaluate.protocol import check
from tap_ray.evaluate.settings import simulator
from tap_ray.inspect import look
from tap_ray.inspect.look import LookConfig
from tap_ray.job import job_run, run_job


def main(config: LookConfig) -> Path:
    """Film the episodes, look at them, print the table; returns the run folder."""
    config = replace(config, policy=tuple(registry.local(policy) for policy in config.policy))
    found = look.watchers(config)
    sim = simulator(config.suite, envs.sims_of(config.suite))
    tasks = envs.tasks_of(sim)
    protocol = look.protocol_for(config, found, sim=sim, suite_tasks=tasks, env_version=envs.version_of(sim))
    check(protocol, known_tasks=tasks, check_scene=envs.check)
    spec = envs.spec(protocol.env_config(protocol.tasks[0], "standard"))
    look.require_robot(found, spec)
    parents: dict[str, Path | str] = {
        f"policy_{number}" if number else "policy": path for number, path in enumerate(config.policy)
    }
    made_by = {**to_dict(config), "protocol": protocol.hash}
    with job_run("saliency", config, made_by=made_by, parents=parents) as run:
        if not run.done:
            drive = (envs.make_ee_control, envs.make_expert)
            if look.by_itself(config, found):
                drive = (envs.make_vector, look.driver_of(found[0]))
            films = look.films(protocol, *drive, ahead=config.goal_offset)
            total = len(protocol.tasks) * config.episodes
            report = look.look(config, found, films, total=total, folder=run.path, fps=spec.control_hz)
            runs.write_json(run.path / look.REPORT, report)
            run.log(look.metrics(report))
            run.artifact(look.REPORT, "strips", "videos")
            run.facts["protocol"] = protocol.hash
    print(look.text(runs.read_json(run.path / look.REPORT)))
    return run.path


if __name__ == "__main__":
    run_job(main, LookConfig)

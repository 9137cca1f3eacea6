"""Judge a policy: success rates with intervals on the cells of a protocol, one row an episode, a video a task."""

from dataclasses import replace
from pathlib import Path

import envs
from tap_ray import registry, runs, storage, tracking
from tap_ray.compare.failures import failure_table
from tap_ray.compare.reading import read_result
from tap_ray.compare.sentences import sentence_table
from tap_ray.compare.tables import text_table
from tap_ray.distributed.connect import connect
from tap_ray.distributed.evaluate import FleetConfig, evaluate, require_sensible
from tap_ray.evaluate import results, trained, video
from tap_ray.evaluate.episodes import MakePolicy
from tap_ray.evaluate.failures import FailureInputs, failure_inputs_of
from tap_ray.evaluate.protocol import Protocol, check
from tap_ray.evaluate.settings import EvaluateConfig, protocol_of, simulator, what
from tap_ray.job import run_job
from tap_ray.types import EnvConfig, Policy


def main(config: EvaluateConfig) -> Path:
    """Run the cells that have no result yet, sum them up, print the table; returns the run folder."""
    config = replace(config, policy=str(registry.local(config.policy)))
    protocol = checked_protocol(config)
    fleets = FleetConfig(
        fleets=config.fleets, robots=config.robots_per_fleet, gpus=config.gpus_per_fleet, labels=config.node_labels
    )
    require_sensible(fleets)
    make_policy, parents = _policy(config, protocol)
    made_by = what(config, protocol)
    with runs.entered(config.out, job="evaluate", config=made_by, parents=parents, asked=config) as run:
        if not run.done:
            _judge(run, config, protocol, fleets, make_policy, parents)
            runs.finish(run, protocol=protocol.hash)
    result = read_result(run.path)
    print(text_table([result], with_paper=False) + "\n\n" + failure_table(result) + sentence_table(result))
    if "policy" in parents:
        took = trained.latency(parents["policy"], device="cuda" if config.gpus_per_fleet else "cpu")
        print("one look of one robot: " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in took.items()))
    return run.path


def _judge(
    run: runs.Run,
    config: EvaluateConfig,
    protocol: Protocol,
    fleets: FleetConfig,
    make_policy: MakePolicy,
    parents: dict[str, str],
) -> None:
    """Run the cells that are missing, write results, episodes and videos."""
    make_vector = envs.make_ee_control if config.policy == "expert" else envs.make_vector
    make = {"make_vector": make_vector, "make_policy": make_policy, "make_failure_inputs": _facts}
    with tracking.tracked("evaluate", run, parents) as tracked:
        with connect(config.ray_address):
            episodes = evaluate(protocol, folder=run.path, config=fleets, **make)
        name = config.name or storage.at(config.policy).name
        summary = results.write(run.path, episodes, protocol, policy=name, run=parents.get("policy"))
        video.write_videos(run.path / "clips", run.path / "videos", fps=envs.spec(EnvConfig()).control_hz)
        tracked.log(results.metrics(summary), step=0)
        for part in ("results.json", "episodes.parquet", "videos"):
            tracked.artifact(run.path / part)
        print("".join(f"{line}\n" for line in results.crashes(episodes)), end="")


def checked_protocol(config: EvaluateConfig) -> Protocol:
    """What a config judges on, if that can be done."""
    sim = simulator(config.suite, envs.sims_of(config.suite), config.sim)
    tasks, version = envs.tasks_of(sim), envs.version_of(sim)
    protocol = protocol_of(config, sim=sim, suite_tasks=tasks, env_version=version, known_scenarios=envs.SCENARIOS)
    check(protocol, known_tasks=tasks, check_scene=envs.check)
    return protocol


def _policy(config: EvaluateConfig, protocol: Protocol) -> tuple[MakePolicy, dict[str, str]]:
    """How a fleet makes the policy, and the run it comes from."""
    if config.policy in trained.BUILT_IN:
        return {"expert": envs.make_expert, "random": _random}[config.policy], {}
    scene = protocol.env_config(protocol.tasks[0], protocol.scenarios[0])
    trained.require_fit(config.policy, spec=envs.spec(scene), image_size=protocol.image_size)
    device = "cuda" if config.gpus_per_fleet else "cpu"
    run = str(storage.at(config.policy).resolve())
    trained.load(run, scene, 1)  # weights that are broken are said before Ray starts
    return trained.carried(run, device=device), {"policy": run}


def _facts(scene: EnvConfig) -> FailureInputs:
    return failure_inputs_of(envs.spec(scene), push_m=envs.push_goal_m(scene.task), mover=envs.movers(scene))


def _random(scene: EnvConfig, num_robots: int) -> Policy:
    return envs.random_policy(envs.spec(scene))


if __name__ == "__main__":
    run_job(main, EvaluateConfig)

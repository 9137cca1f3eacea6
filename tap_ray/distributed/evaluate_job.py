"""Runs an evaluation from start to end: run folder, MLflow run, the cells on Ray, results, videos, tables."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Mapping

from tap_ray import storage
from tap_ray.compare.failures import failure_table
from tap_ray.compare.reading import read_result
from tap_ray.compare.sentences import sentence_table
from tap_ray.compare.tables import text_table
from tap_ray.distributed.connect import connect
from tap_ray.distributed.evaluate import FleetConfig, evaluate, validate_settings
from tap_ray.errors import ConfigError
from tap_ray.evaluate import results, trained, video
from tap_ray.evaluate.episodes import MakeFailureInputs, MakePolicy, MakeVector
from tap_ray.evaluate.own import POLICIES, OwnPolicy, installed_policy, is_reference, own_policy
from tap_ray.evaluate.protocol import Protocol
from tap_ray.evaluate.settings import EvaluateConfig, made_by
from tap_ray.job import JobRun, job_run
from tap_ray.specs import RobotSpec
from tap_ray.types import EnvConfig


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """How a simulator's scenes are made; the functions pickle."""

    make_vector: MakeVector
    make_failure_inputs: MakeFailureInputs
    built_in: Mapping[str, MakePolicy]
    """Name -> built-in policy, which needs no run folder."""
    spec: Callable[[EnvConfig], RobotSpec]
    gpu: bool = False
    """Whether each process of robots needs a GPU."""


def run_evaluation(config: EvaluateConfig, protocol: Protocol, scenes: Scenes) -> Path:
    """Run the cells that have no result yet, summarize, print the tables; returns the run folder."""
    fleets = FleetConfig(
        fleets=config.fleets,
        robots=config.robots_per_fleet,
        gpus=config.gpus_of_fleet(scenes.gpu),
        gpu_scenes=scenes.gpu,
        inference=config.inference,
        labels=config.node_labels,
    )
    validate_settings(fleets)
    make_policy, parents = _policy(config, protocol, scenes)
    if config.inference.actors and not isinstance(make_policy, trained.Carried):
        raise ConfigError(
            f"--inference.actors {config.inference.actors} is for trained policies, and --policy {config.policy} is "
            "none: it computes in each fleet. Omit --inference.actors."
        )
    settings = made_by(config, protocol)
    if isinstance(make_policy, OwnPolicy):  # results of other code belong to another run
        settings = replace(settings, identity={**settings.identity, "code": make_policy.code})
    with job_run("evaluate", config, made_by=settings, parents=parents) as run:
        if not run.done:
            with connect(config.ray_address):
                episodes = evaluate(
                    protocol,
                    folder=run.path,
                    config=fleets,
                    make_vector=scenes.make_vector,
                    make_policy=make_policy,
                    make_failure_inputs=scenes.make_failure_inputs,
                )
            name = config.name or storage.to_path(config.policy).name
            summary = results.write(run.path, episodes, protocol, policy=name, run=parents.get("policy"))
            video.write_videos(run.path / "clips", run.path / "videos", fps=scenes.spec(EnvConfig()).control_hz)
            run.log(results.metrics(summary))
            run.artifact("results.json", "episodes.parquet", "videos")
            print("".join(f"{line}\n" for line in results.crashes(episodes)), end="")
            run.metadata["protocol"] = protocol.hash
    _print_tables(run, parents.get("policy"), device=_device(config))
    return run.path


def _policy(config: EvaluateConfig, protocol: Protocol, scenes: Scenes) -> tuple[MakePolicy, dict[str, str]]:
    """How a fleet makes the policy, and the training run it comes from."""
    if config.policy in scenes.built_in:
        return scenes.built_in[config.policy], {}
    if config.policy in POLICIES:
        return installed_policy(config.policy), {}
    if is_reference(config.policy):
        return own_policy(config.policy), {}
    scene = protocol.env_config(protocol.tasks[0], protocol.scenarios[0])
    trained.require_fit(config.policy, spec=scenes.spec(scene), image_size=protocol.image_size)
    run = str(storage.to_path(config.policy).resolve())
    trained.load(run, scene, 1)  # damaged weights are reported before Ray starts
    return trained.carried(run, device=_device(config)), {"policy": run}


def _device(config: EvaluateConfig) -> str:
    return "cuda" if config.gpus_per_fleet or config.inference.gpus else "cpu"


def _print_tables(run: JobRun, policy: str | None, *, device: str) -> None:
    result = read_result(run.path)
    print(text_table([result], with_paper=False) + "\n\n" + failure_table(result) + sentence_table(result))
    if policy is not None:
        took = trained.latency(policy, device=device)
        each = ", ".join(f"{name} {ms:.1f} ms" for name, ms in took.items())
        print(f"time of one inference for one robot: {each or 'not measured, no GPU on this machine'}")

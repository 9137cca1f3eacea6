"""The options of `python -m jobs.evaluate`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Sequence

from tap_ray.config import NodesConfig, to_dict
from tap_ray.errors import ConfigError, nearest
from tap_ray.evaluate.protocol import SUITES, Protocol
from tap_ray.runs import MadeBy
from tap_ray.specs import ONE_CAMERA

ALL = "all"
"""Value of --scenario that means all scenarios."""
RUNTIME = ("fleets", "robots_per_fleet", "gpus_per_fleet", "inference", "ray_address", "node_labels")
"""Fields that determine where and by how many processes cells are run. No result depends on them, except that
`robots_per_fleet` and `inference`, which set who shares a batch, can change the last bits."""


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Where a trained policy is computed: in each fleet, or in a few processes for all fleets."""

    actors: int = 0
    """Number of processes that hold the policy and compute it for all fleets, e.g. one for each GPU. The fleets then
    hold no copy of the policy and do not load torch. 0: each fleet holds its own copy."""
    gpus: float = 0.0
    """Number of GPUs, or a share of one, for each of these processes; 0: they compute on CPUs."""
    batch: int = 64
    """Largest number of robots whose inputs share one forward pass; the robots of one fleet are never split."""
    window_ms: float = 2.0
    """How long the first request of a forward pass waits for requests of other fleets, ms. 0: each fleet has its own
    forward pass, which gives the same bits as a copy in each fleet."""
    node_labels: tuple[str, ...] = ()
    """These processes run only on nodes of the cluster with these Ray labels; none: on any node that has the GPUs."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(NodesConfig):
    """Settings of jobs.evaluate: the policy, the cells, and the number of simulated robots."""

    policy: str
    """Run folder of a trained policy, or models:/tap/VERSION from the registry; or "expert" or "random", the upper and
    the lower bound; or an installed package's policy by name; or module:Class, one of your own with
    reset(obs, info, seeds) and act(obs, info)."""
    suite: str = "tabletop"
    """Suite of tasks: "tabletop" (PyBullet), "tabletop_mixed" (two tasks' objects in every scene, each scene evaluated
    under both sentences) or "simpler" (ManiSkill's digital twins, SIMPLER's 24 initial states)."""
    tasks: tuple[str, ...] = ()
    """Tasks to evaluate; if none is given, all tasks of the suite."""
    scenario: tuple[str, ...] = ("standard",)
    """Scenarios that each task is evaluated in; "standard" changes nothing, "all" means all scenarios."""
    episodes: int = 24
    """Cells of each task in each scenario. SIMPLER has 24; further ones are random, with other instructions."""
    max_steps: int = 60
    """Control steps of an episode (5 per second); SIMPLER's eggplant is given twice as many."""
    image_size: int = 96
    """Side of the camera images, px; a trained policy needs its own."""
    cameras: tuple[str, ...] = ONE_CAMERA
    """The robot's cameras, as in jobs.collect_play; a trained policy needs its own. With --env the adapter names
    them."""
    robot: str = "widowx"
    """Robot to evaluate on."""
    sim: str = ""
    """Simulator; empty: the suite's own."""
    env: str = ""
    """A foreign environment instead of suite, robot and simulator: its adapter's YAML file, module:name of an Adapter,
    or a Gymnasium id whose adapter is shipped (docs/how-to/environment.md)."""
    seed: int = 0
    """Root of the cells' seeds: another seed is another protocol."""
    name: str = ""
    """Name of the policy in tables; empty: that of its folder."""
    fleets: int = 0
    """Processes that run cells; 0: one for each CPU, or with GPUs as many as they suffice for."""
    robots_per_fleet: int = 8
    """Robots in a process, stepped in lockstep; the policy sees them as one batch. Fewer robots per process keep more
    processes busy."""
    gpus_per_fleet: float = 0.0
    """GPUs, or a share of one, for each fleet's own copy of the policy; 0: none. With a simulator that needs a GPU
    (maniskill_gpu) also for its physics: 0 then reserves one for it, and computes the policy on a CPU."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    """Processes that compute the policy for all fleets."""
    out: Path | None = None
    """Run folder; without it runs/evaluate-<hash>."""

    def gpus_of_fleet(self, gpu_scenes: bool) -> float:
        """GPUs that each process of robots reserves; `gpu_scenes`: whether the simulator needs one."""
        return self.gpus_per_fleet or float(gpu_scenes)


def simulator(suite: str, sims: Sequence[str], sim: str = "") -> str:
    """The simulator `sim`, or if that is empty, the suite's usual one.

    Args:
        suite: a key of SUITES.
        sims: `envs.sims_of(suite)`, the usual one first.
        sim: the requested simulator; empty for the usual one.

    Raises:
        ConfigError: there is no such suite, or it does not run in `sim`.
    """
    if suite not in SUITES:
        raise ConfigError(f"Unknown suite {suite!r}. {nearest(suite, SUITES)}")
    if not sims:
        raise ConfigError(f"The suite {suite!r} needs --env.")
    if sim and sim not in sims:
        raise ConfigError(f"The suite {suite!r} needs the simulator {' or '.join(sims)}; got --sim {sim}.")
    return sim or sims[0]


def protocol_of(
    config: EvaluateConfig,
    *,
    sim: str,
    suite_tasks: Iterable[str],
    env_version: str,
    known_scenarios: Iterable[str] = ("standard",),
) -> Protocol:
    """The evaluation protocol of a config.

    Args:
        config: the options.
        sim: from `simulator`.
        suite_tasks: tasks of the suite, evaluated if none is named.
        env_version: of the scenes.
        known_scenarios: what `--scenario all` stands for, the standard one first.

    Raises:
        ConfigError: "all" stands beside other scenarios.
    """
    scenarios = config.scenario
    if ALL in scenarios:
        if scenarios != (ALL,):
            raise ConfigError(f"--scenario {ALL} cannot be combined with other scenarios; got {' '.join(scenarios)}.")
        scenarios = tuple(known_scenarios)
    return Protocol(
        suite=config.suite,
        tasks=config.tasks or tuple(suite_tasks),
        scenarios=scenarios,
        episodes=config.episodes,
        max_steps=config.max_steps,
        image_size=config.image_size,
        cameras=config.cameras,
        robot=config.robot,
        sim=sim,
        seed=config.seed,
        env_version=env_version,
    )


def made_by(config: EvaluateConfig, protocol: Protocol) -> MadeBy:
    """Split a config into the part that determines the results of a run and the runtime part."""
    values = to_dict(config)
    identity = {**{key: values[key] for key in ("policy", "name", "out")}, "protocol": protocol.to_json()}
    return MadeBy(identity=identity, runtime={key: values[key] for key in RUNTIME})

"""Gives jobs one interface to the world that robots are in: our simulators, or a foreign environment behind its
adapter."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable, Mapping, Sequence

import gymnasium as gym
import numpy as np

import envs
from envs.foreign.adapter import read_adapter
from envs.foreign.world import FOREIGN, Foreign
from envs.kinematics.reachable import sample_poses
from tap_ray.errors import ConfigError
from tap_ray.specs import RobotSpec
from tap_ray.types import EnvConfig, Policy

USUAL = EnvConfig()
"""Config whose robot and simulator are the defaults."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Functions as in `envs`; they pickle."""

    scene: Callable[[EnvConfig], EnvConfig]
    """Converts a scene to this world, and checks it."""
    spec: Callable[[EnvConfig], RobotSpec]
    make_vector: Callable[[EnvConfig, int], gym.vector.VectorEnv]
    make_ee_control: Callable[[EnvConfig, int], gym.vector.VectorEnv]
    make_expert: Callable[[EnvConfig, int], Policy]
    random_policy: Callable[[EnvConfig, int], Policy]
    sample_poses: Callable[..., np.ndarray]
    version_of: Callable[[], str]
    sim: str
    tasks: tuple[str, ...]
    """Default tasks."""
    known_tasks: tuple[str, ...]
    scenarios: tuple[str, ...]
    """Scenarios that "all" means, the standard one first."""
    push_goal_m: Callable[[str], tuple[float, float] | None]
    movers: Callable[[EnvConfig], dict[str, int]]
    require_explorers: Callable[[Sequence[str]], None]
    """Raises an error unless these explorers can be used there."""
    require_goal: Callable[[Sequence[str]], None]
    """Raises an error unless success is known, and an expert exists if "expert" is among the names."""
    control_lag: float = 1.0
    gpu: bool = False
    """Whether each process of robots needs a GPU."""
    header_fields: Mapping[str, Any] = field(default_factory=lambda: {"num_objects": envs.NUM_SLOTS})
    """Fields of a dataset's header: number of object slots, and whether contact is known."""
    scene_options: tuple[str, ...] = ("segmentation", "robot_mask")
    """Options of a scene that add a segmentation or a mask."""
    labels_failures: bool = True
    """Whether objects and grippers are known, so that failures get labels."""
    missing_features: tuple[str, ...] = ()
    """Features that the adapter lacks, one line each."""
    plan_fields: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of a dataset's plan besides the version."""

    @property
    def can_cut_crops(self) -> bool:
        """Whether crops of objects can be cut from its episodes: contact and the robot's mask are known."""
        return bool(self.header_fields.get("contact", True)) and "robot_mask" in self.scene_options

    @property
    def plan_entries(self) -> dict[str, Any]:
        """Entries of a dataset's plan that name this world."""
        return {"env_version": self.version, **self.plan_fields}

    @property
    def version(self) -> str:
        """Version of its scenes; used once they are known to exist."""
        return self.version_of()


def world_of(env: str, robot: str, sim: str, tasks: tuple[str, ...] = (), scenarios: tuple[str, ...] = ()) -> World:
    """The world that a job's options name.

    Args:
        env: --env; empty: our own simulators.
        robot: --robot, likewise sim; with --env both follow from the adapter.
        sim: --sim. tasks, scenarios: the ones that the user names.

    Raises:
        ConfigError: there is no such adapter or simulator, or --env is given together with --robot or --sim.
    """
    if not env:
        return World(
            scene=_ours,
            spec=envs.spec,
            make_vector=envs.make_vector,
            make_ee_control=envs.make_ee_control,
            make_expert=envs.make_expert,
            random_policy=_random,
            sample_poses=sample_poses,
            version_of=partial(envs.version_of, sim, robot, tasks, scenarios),
            sim=sim,
            tasks=envs.suite_tasks(sim),
            known_tasks=envs.tasks_of(sim),
            scenarios=tuple(envs.SCENARIOS.built_in),
            push_goal_m=envs.push_goal_m,
            movers=envs.movers,
            require_explorers=_anything,
            require_goal=_anything,
            control_lag=envs.control_lag_of(sim),
            gpu=envs.needs_gpu(sim),
        )
    if robot != USUAL.robot or sim not in (USUAL.sim, ""):
        raise ConfigError(f"--env {env} already determines the robot and the simulator. Omit --robot and --sim.")
    foreign = Foreign(read_adapter(env))
    if tasks not in ((), (foreign.adapter.task,)):
        raise ConfigError(f"{env} has only the task {foreign.adapter.task!r}; got --tasks {' '.join(tasks)}.")
    return World(
        scene=foreign.scene,
        spec=foreign.spec,
        make_vector=foreign.make_vector,
        make_ee_control=foreign.make_ee_control,
        make_expert=foreign.make_expert,
        random_policy=foreign.random_policy,
        sample_poses=foreign.sample_poses,
        version_of=foreign.version,
        sim=FOREIGN,
        tasks=(foreign.adapter.task,),
        known_tasks=(foreign.adapter.task,),
        scenarios=("standard",),
        push_goal_m=_nowhere,
        movers=envs.movers,
        control_lag=2.0,  # its end effector is unknown
        require_explorers=foreign.require_explorers,
        require_goal=foreign.require_goal,
        header_fields={"num_objects": envs.NUM_SLOTS, "contact": bool(foreign.adapter.contact)},
        scene_options=("robot_mask",) if foreign.adapter.robot_mask else (),
        labels_failures=foreign.labels_failures,
        missing_features=tuple(foreign.adapter.missing),
        plan_fields={"adapter": foreign.adapter.to_json()},
    )


def _ours(config: EnvConfig) -> EnvConfig:
    envs.check(config)
    return config


def _anything(names: Sequence[str]) -> None:
    """Does nothing: our simulators lack nothing."""


def _nowhere(task: str) -> None:
    """Returns None, because how far objects are pushed is unknown."""


def _random(scene: EnvConfig, num_robots: int) -> Policy:
    return envs.random_policy(envs.spec(scene))


__all__ = ["World", "world_of"]

"""Defines the interface of a simulator, and lists all simulators.

One of ours is a package beside envs/bullet and an entry here; one of another package is an object with this interface
that its entry point names (docs/how-to/robot.md).
"""

from typing import Mapping, Protocol, runtime_checkable

import gymnasium as gym

from envs.bullet.simulator import PyBullet
from envs.experts import ExpertScene
from envs.maniskill.simulator import ManiSkill
from tap_ray.plugins import Registry
from tap_ray.types import EnvConfig


@runtime_checkable
class Simulator(Protocol):
    """What the rest of the project may use of a simulator. Its engine is loaded only when a robot is made.

    One whose processes each need a GPU has another attribute, `gpu = True`: by default they reserve one.
    """

    @property
    def tasks(self) -> tuple[str, ...]:
        """Its tasks, without "play", which every simulator has."""
        ...

    @property
    def robots(self) -> tuple[str, ...]:
        """Its embodiments."""
        ...

    def cameras(self, name: str) -> tuple[str, ...]:
        """Cameras that the robot called `name` may have there; the first is the one of "rgb"."""
        ...

    @property
    def suites(self) -> tuple[str, ...]:
        """Evaluation suites that run in it (tap_ray/evaluate/protocol.py)."""
        ...

    @property
    def control_lag(self) -> float:
        """How far the end effector lags behind its command without obstacles, as a multiple of PyBullet's."""
        ...

    def version(self) -> str:
        """Version of its scenes; evaluations in different versions are never compared.

        Raises:
            ConfigError: it cannot run here, so that its files are unknown.
        """
        ...

    def check(self, config: EnvConfig) -> None:
        """Raise ConfigError unless it has the scene of `config` and can run here; names are known to exist."""
        ...

    def make(self, config: EnvConfig, *, ee_control: bool = False, render_size: int | None = None) -> gym.Env:
        """See `envs.make`; `ee_control`: as in `envs.make_vector`."""
        ...

    def make_vector(self, config: EnvConfig, num_robots: int, *, ee_control: bool = False) -> gym.vector.VectorEnv:
        """See `envs.make_vector`."""
        ...

    def expert_scene(self, task: str) -> ExpertScene:
        """What an expert of `task` needs to know: sizes of objects, heights, and the lag of the end effector."""
        ...


BUILT_IN: Mapping[str, Simulator] = {
    "pybullet": PyBullet(),
    "maniskill": ManiSkill(),
    "maniskill_gpu": ManiSkill(gpu=True),
}

SIMULATORS: Registry[Simulator] = Registry("simulator", BUILT_IN, expected=Simulator)
"""All simulators, those of installed packages included."""


def simulator(name: str) -> Simulator:
    """The simulator called `name`.

    Raises:
        ConfigError: there is no such simulator (the message names the nearest), or the package that provides it is
            broken.
    """
    return SIMULATORS[name]

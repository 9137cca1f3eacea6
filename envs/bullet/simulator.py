"""PyBullet as one of the simulators of envs/simulator.py."""

from dataclasses import dataclass

import gymnasium as gym

from envs.experts import ExpertScene
from envs.robots import ROBOTS, robot, wrist_cameras
from envs.scene import VERSION
from envs.scene.tasks import TASKS
from tap_ray.specs import ONE_CAMERA
from tap_ray.types import EnvConfig


@dataclass(frozen=True, kw_only=True)
class PyBullet:
    """The simulator of every robot and task, on a CPU. A fleet consists of several environments in one process."""

    suites: tuple[str, ...] = ("tabletop", "tabletop_mixed")
    control_lag: float = 1.0

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks, those of installed packages included."""
        return tuple(TASKS)

    @property
    def robots(self) -> tuple[str, ...]:
        """All robots, those of installed packages included."""
        return tuple(ROBOTS)

    def cameras(self, name: str) -> tuple[str, ...]:
        """The camera that views the table, and one on each gripper."""
        return (*ONE_CAMERA, *wrist_cameras(robot(name)))

    def version(self) -> str:
        """Version of the scenes; the engine is pinned."""
        return VERSION

    def check(self, config: EnvConfig) -> None:
        """Does nothing: every known scene can be made."""

    def make(self, config: EnvConfig, *, ee_control: bool = False, render_size: int | None = None) -> gym.Env:
        """See `envs.simulator.Simulator`."""
        from envs.bullet.env import TabletopEnv  # the engine is loaded only where a robot is simulated

        return TabletopEnv(config, ee_control=ee_control, render_size=render_size)

    def make_vector(self, config: EnvConfig, num_robots: int, *, ee_control: bool = False) -> gym.vector.VectorEnv:
        """See `envs.simulator.Simulator`."""
        return gym.vector.SyncVectorEnv(
            [lambda: self.make(config, ee_control=ee_control)] * num_robots,
            autoreset_mode=gym.vector.AutoresetMode.DISABLED,
        )

    def expert_scene(self, task: str) -> ExpertScene:
        """Objects and heights of our own table."""
        return ExpertScene()

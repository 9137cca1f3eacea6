"""ManiSkill as two of the simulators of envs/simulator.py: its physics on a CPU or on a GPU."""

from dataclasses import dataclass

import gymnasium as gym

from envs.experts import ExpertScene
from envs.maniskill.tasks import MANISKILL_TASKS, THINGS
from envs.robots import robot, wrist_cameras
from envs.scene import VERSION
from tap_ray.errors import ConfigError
from tap_ray.specs import ONE_CAMERA
from tap_ray.types import EnvConfig

MAX_IMAGE_PX = 480


@dataclass(frozen=True, kw_only=True)
class ManiSkill:
    """The simulator of SIMPLER's WidowX tasks. A fleet is one simulation with several scenes on a GPU, or several
    simulations on a CPU."""

    gpu: bool = False
    """Whether the physics runs on a GPU: results differ from those of the CPU in the last bits."""
    suites: tuple[str, ...] = ("simpler",)
    tasks: tuple[str, ...] = tuple(MANISKILL_TASKS)
    robots: tuple[str, ...] = ("widowx",)
    control_lag: float = 2.0
    """Its controller reaches 62 % of a motion within its control step; at full speed its end effector lags 3 cm behind
    without obstacles (measured), and explorers must not mistake that for an obstacle."""

    def cameras(self, name: str) -> tuple[str, ...]:
        """SIMPLER's camera, and one on the gripper."""
        return (*ONE_CAMERA, *wrist_cameras(robot(name)))

    def version(self) -> str:
        """Version of the scenes, which ManiSkill's files are part of."""
        from envs.maniskill.backend import assets_digest, require

        require(gpu=self.gpu)
        return f"{VERSION}+{assets_digest()}"

    def check(self, config: EnvConfig) -> None:
        """See `envs.simulator.Simulator`."""
        if config.partner:
            raise ConfigError(f"sim {config.sim!r} has no mixed scenes; got partner {config.partner!r}. Omit it.")
        if config.image_size > MAX_IMAGE_PX:
            raise ConfigError(
                f"SIMPLER's camera has {MAX_IMAGE_PX} rows, so image_size must be at most {MAX_IMAGE_PX}; got "
                f"{config.image_size}."
            )
        from envs.maniskill.backend import require

        require(gpu=self.gpu)

    def make(self, config: EnvConfig, *, ee_control: bool = False, render_size: int | None = None) -> gym.Env:
        """See `envs.simulator.Simulator`; the actions of its only robot move the end effector anyway."""
        from envs.maniskill.env import SimplerEnv

        return SimplerEnv(config, render_size=render_size, gpu=self.gpu)

    def make_vector(self, config: EnvConfig, num_robots: int, *, ee_control: bool = False) -> gym.vector.VectorEnv:
        """See `envs.simulator.Simulator`."""
        if self.gpu:
            from envs.maniskill.env import SimplerVectorEnv

            return SimplerVectorEnv(config, num_robots, gpu=True)
        return gym.vector.SyncVectorEnv(
            [lambda: self.make(config)] * num_robots, autoreset_mode=gym.vector.AutoresetMode.DISABLED
        )

    def expert_scene(self, task: str) -> ExpertScene:
        """Its objects, the height of its sink, and the lag of its end effector."""
        if task not in MANISKILL_TASKS:
            return ExpertScene()  # of play, which has no expert
        return ExpertScene(object=THINGS, carry_z_m=MANISKILL_TASKS[task].carry_z_m, drop_in_m=0.02, lags=True)

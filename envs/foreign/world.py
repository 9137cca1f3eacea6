"""Gives a foreign environment the functions that `envs` has for our own robots. All can be pickled."""

from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any, Sequence

import gymnasium as gym
import numpy as np

from envs.experts import RandomPolicy
from envs.foreign.adapter import Adapter
from envs.foreign.env import ForeignEnv
from envs.kinematics.rotations import axis_angle_matrix, matrix_quaternion
from envs.kinematics.solver import DOWN
from tap_ray.errors import ConfigError
from tap_ray.plugins import load_reference
from tap_ray.specs import ONE_CAMERA, RobotSpec, missing_slots
from tap_ray.types import EnvConfig, Policy

FOREIGN = "foreign"
"""Name of the simulator and of the suite for foreign environments."""
YAW_RAD = 1.2
"""Largest yaw of the end effector in safe poses."""


@dataclass(frozen=True)
class Foreign:
    """One environment behind its adapter."""

    adapter: Adapter

    def scene(self, config: EnvConfig) -> EnvConfig:
        """`config` with this robot; a mask only where the adapter states one.

        Raises:
            ConfigError: it uses features that only our simulators have.
        """
        for name in ("randomize", "partner", "segmentation"):
            if getattr(config, name):
                raise ConfigError(f"{self.adapter.env} does not support {name}. Omit it.")
        if config.scenario != "standard":
            raise ConfigError(f"{self.adapter.env} has the scenario 'standard' only; got {config.scenario!r}.")
        cameras = tuple(self.adapter.camera_of)
        if config.cameras not in (ONE_CAMERA, cameras):
            raise ConfigError(
                f"The adapter of {self.adapter.env} already names the cameras {', '.join(cameras)}; got --cameras "
                f"{' '.join(config.cameras)}. Omit --cameras."
            )
        mask = config.robot_mask and bool(self.adapter.robot_mask)
        scene = replace(config, robot=self.adapter.robot, sim=FOREIGN, robot_mask=mask, cameras=cameras)
        self.check(scene)
        return scene

    def require(self, *needed: str) -> None:
        """Raise ConfigError unless the adapter states these of its fields; names what they would be for."""
        off = [line for line in self.adapter.missing if line.partition(" ")[0] in needed]
        if off:
            raise ConfigError(f"The adapter of {self.adapter.env} has no " + "; ".join(off) + ".")

    def require_explorers(self, names: Sequence[str]) -> None:
        """Raise ConfigError unless these explorers can move this robot's end effector."""
        spec = self.spec(EnvConfig())
        lacks = missing_slots(spec, "ee_pos", "ee_quat", "delta_pos")
        if lacks:
            raise ConfigError(
                f"Explorers move the end effector of {spec.robot!r} and read its pose, but its adapter has no slot "
                f"{', '.join(lacks)}."
            )
        if {"contact", "curious"} & set(names):
            self.require("objects")
        if "visual" in names:
            self.require("projection", "robot_mask")

    def require_goal(self, names: Sequence[str]) -> None:
        """Raise ConfigError unless success is stated, and an expert if "expert" is among `names`."""
        self.require("success", *(["expert"] if "expert" in names else []))

    @property
    def labels_failures(self) -> bool:
        """Whether objects, grippers and their openings are known."""
        arms = self.adapter.spec.arms
        return bool(self.adapter.objects and arms) and not missing_slots(
            self.adapter.spec, "ee_pos", "gripper", "opening"
        )

    def check(self, config: EnvConfig) -> None:
        """Make it once and take a step, so that errors are reported before a worker starts."""
        env = ForeignEnv(self.adapter, replace(config, max_steps=1))
        try:
            env.reset(seed=0)
            env.step(np.zeros(len(self.adapter.spec.action), np.float32))
        finally:
            env.close()

    def version(self) -> str:
        """Version of the package and of the adapter; evaluations in different versions are never compared."""
        package = self.adapter.env.partition(":")[0].partition(".")[0]
        try:
            name = (packages_distributions().get(package) or [package])[0]
            release = f"{name}-{version(name)}"
        except PackageNotFoundError:
            release = package
        return f"{release}+{self.adapter.digest}"

    def spec(self, config: EnvConfig) -> RobotSpec:
        """The interface of its robot."""
        return self.adapter.spec

    def make_vector(self, config: EnvConfig, num_robots: int, *, ee_control: bool = False) -> gym.vector.VectorEnv:
        """See `envs.make_vector`."""
        return gym.vector.SyncVectorEnv(
            [lambda: ForeignEnv(self.adapter, config, ee_control=ee_control)] * num_robots,
            autoreset_mode=gym.vector.AutoresetMode.DISABLED,
        )

    def make_ee_control(self, config: EnvConfig, num_robots: int) -> gym.vector.VectorEnv:
        """See `envs.make_ee_control`."""
        return self.make_vector(config, num_robots, ee_control=True)

    def make_expert(self, config: EnvConfig, num_robots: int) -> Policy:
        """The adapter's expert; it moves the end effector."""
        self.require("expert")
        try:
            return load_reference(self.adapter.expert)(config, num_robots)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"The expert {self.adapter.expert!r} of {self.adapter.env}: {error}.") from None

    def random_policy(self, config: EnvConfig, num_robots: int) -> Policy:
        """Uniform noise over the action's range."""
        return RandomPolicy(self.adapter.spec)

    def sample_poses(self, config: EnvConfig, rng: np.random.Generator, num: int, arm: int = 0) -> np.ndarray:
        """(num, 7) poses in the adapter's whole workspace with the tool down; with random yaw if its actions can rotate
        it."""
        position_m = rng.uniform(self.adapter.workspace_low_m, self.adapter.workspace_high_m, (num, 3))
        turns = any("drz" in part.slots for part in self.adapter.action)
        yaw = rng.uniform(-YAW_RAD, YAW_RAD, num) if turns else np.zeros(num)
        quat: list[Any] = [matrix_quaternion(axis_angle_matrix(np.array([0, 0, angle])) @ DOWN) for angle in yaw]
        return np.concatenate([position_m, np.stack(quat)], axis=1)

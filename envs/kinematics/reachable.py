"""Samples tool poses that a robot can reach, from its own kinematics: the input of the safe-pose library."""

import numpy as np

from envs.kinematics.rotations import axis_angle_matrix, matrix_quaternion
from envs.kinematics.solver import DOWN, kinematics
from envs.robots import robot
from tap_ray.errors import ConfigError
from tap_ray.types import EnvConfig

YAW_RAD = 1.2
"""Largest yaw of the end effector, so that the wrist stays away from its joint limits."""


def sample_poses(config: EnvConfig, rng: np.random.Generator, num: int, arm: int = 0) -> np.ndarray:
    """Sample random poses in the whole workspace that the robot of `config` can reach.

    Args:
        config: the robot.
        rng: random generator.
        num: number of poses.
        arm: index of the arm.

    Returns:
        (num, 7) float64: x y z (m, table frame), quaternion wxyz; the tool within 80 % of the allowed tilt.

    Raises:
        ConfigError: the robot is unknown, or it can hardly reach its workspace.
    """
    model = robot(config.robot).arm[arm]
    solver, base_m = kinematics(model), np.array(model.base_m)
    poses: list[np.ndarray] = []
    for _ in range(20 * num):
        if len(poses) == num:
            return np.stack(poses)
        position_m = rng.uniform(model.workspace_low_m, model.workspace_high_m)
        heading, tilt = rng.uniform(-np.pi, np.pi), rng.uniform(0.0, 0.8 * model.max_tilt_rad)
        lean = axis_angle_matrix(tilt * np.array([np.cos(heading), np.sin(heading), 0.0]))
        matrix = lean @ axis_angle_matrix(np.array([0.0, 0.0, rng.uniform(-YAW_RAD, YAW_RAD)])) @ DOWN
        if solver.inverse(position_m - base_m, matrix, None) is not None:
            poses.append(np.concatenate([position_m, matrix_quaternion(matrix)]))
    raise ConfigError(
        f"Only {len(poses)} of {20 * num} sampled poses were reachable for {config.robot!r}. Check its workspace box."
    )

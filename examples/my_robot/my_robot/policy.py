"""Defines a policy to be evaluated, and the expert of the task. Both act for N robots at once."""

from typing import Any, Sequence

import numpy as np

import envs
from tap_ray.types import EnvConfig

STEP_M = 0.035


class Hover:
    """Holds the end effector over the center of the table; reads only the robot's own state."""

    def __init__(self, scene: EnvConfig, num_robots: int) -> None:
        self._tool = list(envs.spec(scene).arms[0].ee_pos)

    def reset(self, obs: Any, info: Any, seeds: Sequence[int]) -> None:
        """Begin an episode of all robots."""

    def act(self, obs: Any, info: Any) -> np.ndarray:
        """(N, 7) float32 actions."""
        return towards(np.array([0.3, 0.0, 0.15]) - obs["state"][:, self._tool])


class KnockOver:
    """Goes down to the right of the bottle and moves to the left; reads the bottle's pose from `info` (privileged)."""

    def __init__(self, scene: EnvConfig, num_robots: int) -> None:
        self._tool = list(envs.spec(scene).arms[0].ee_pos)
        self._pushes = np.zeros(num_robots, bool)

    def reset(self, obs: Any, info: Any, seeds: Sequence[int]) -> None:
        """Begin an episode of all robots."""
        self._pushes[:] = False

    def act(self, obs: Any, info: Any) -> np.ndarray:
        """(N, 7) float32 actions."""
        tool_N3, bottle_N3 = obs["state"][:, self._tool], np.asarray(info["object_pose"])[:, 0, :3]
        beside_N3 = bottle_N3 * (1, 1, 0) + (0, -0.08, 0.09)
        self._pushes |= np.linalg.norm(beside_N3 - tool_N3, axis=1) < 0.02
        return towards(np.where(self._pushes[:, None], (0.0, STEP_M, 0.0), beside_N3 - tool_N3))


def towards(away_N3: np.ndarray) -> np.ndarray:
    """(N, 7) float32 actions along `away_N3`, limited to the largest step, with the gripper closed."""
    length_N1 = np.linalg.norm(away_N3, axis=1, keepdims=True)
    step_N3 = away_N3 * np.minimum(1.0, STEP_M / np.maximum(length_N1, 1e-9))
    still_N3, closed_N1 = np.zeros_like(step_N3), -np.ones_like(length_N1)
    return np.concatenate([step_N3, still_N3, closed_N1], axis=1).astype(np.float32)

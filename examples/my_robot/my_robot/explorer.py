"""Defines an explorer: the end effector circles over the table, at another position, height and speed in each
episode."""

from typing import Any

import numpy as np

from tap_ray.play.explorers import Commanded, ExplorerInputs

RADIUS_M = 0.05


class Circles:
    """An explorer of one arm. It draws only from the given generator, so that an episode follows from its seed."""

    def __init__(self, to: ExplorerInputs) -> None:
        self._to = to

    def reset(self, obs: Any, info: Any, rng: np.random.Generator) -> None:
        """Begin an episode."""
        motion = self._to.config.motion
        self._commanded = Commanded(motion, self._to.arm, obs)
        self._quat = self._commanded.quat
        low_m, high_m = np.array(motion.bounds_low_m), np.array(motion.bounds_high_m)
        room_m = np.array([RADIUS_M, RADIUS_M, 0.0])
        self._center_m = rng.uniform(low_m + room_m, high_m - room_m)
        self._angle, self._pace = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.6)

    def act(self, obs: Any, info: Any) -> np.ndarray:
        """The action (7,) float32 to the next point of the circle: change of the end effector's pose, gripper open."""
        self._commanded.follow(obs, info)
        self._angle += self._pace
        around_m = RADIUS_M * np.array([np.cos(self._angle), np.sin(self._angle), 0.0])
        return self._commanded.action_to(self._center_m + around_m, self._quat, 1.0)


def circles(to: ExplorerInputs) -> Circles:
    """Make the explorer; the entry point names this function."""
    return Circles(to)

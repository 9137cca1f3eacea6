"""Provides an expert for any adapter whose first object is a block and whose second object is the place to push it
to."""

from typing import Any, Sequence

import numpy as np

from tap_ray.types import EnvConfig

STEP_M, HIGH_M = 0.03, 0.12
BEHIND_M = 0.075
"""Distance from the block's center at which the tool comes down, m; it pushes from a little nearer."""
NEAR_M, DONE_M = 0.015, 0.015


class Pusher:
    """Comes down behind the block, seen from the target, and pushes. It reads privileged poses and moves end
    effectors."""

    def __init__(self, scene: EnvConfig, num_robots: int) -> None:
        self._phase = ["above"] * num_robots

    def reset(self, obs: Any, info: Any, seeds: Sequence[int]) -> None:
        """A new episode of all robots."""
        self._phase = ["above"] * len(self._phase)

    def act(self, obs: Any, info: Any) -> np.ndarray:
        """(N, 7) float32: change of the end effector's position; no turn, gripper closed."""
        ee_pos_N3 = self._ee_pos(obs)
        rows = [self._one(robot, ee_pos_N3[robot], info["object_pose"][robot]) for robot in range(len(ee_pos_N3))]
        return np.stack(rows).astype(np.float32)

    def _ee_pos(self, obs: Any) -> np.ndarray:
        """(N, 3) positions of the tools: the adapter's state begins with ee_x ee_y ee_z."""
        return np.asarray(obs["state"], np.float64)[:, :3]

    def _one(self, robot: int, ee_pos_m: np.ndarray, poses_M7: np.ndarray) -> np.ndarray:
        block_m, mark_m = np.asarray(poses_M7[0, :3], float), np.asarray(poses_M7[1, :3], float)
        way = (mark_m - block_m)[:2]
        left_m = float(np.linalg.norm(way))
        ahead = np.append(way / max(left_m, 1e-6), 0.0)
        behind_m = block_m - BEHIND_M * ahead
        off = (ee_pos_m - block_m)[:2]
        sideways_m = abs(float(off[0] * ahead[1] - off[1] * ahead[0]))
        if self._phase[robot] == "push" and (sideways_m > 0.03 or off @ ahead[:2] > 0):
            self._phase[robot] = "above"
        goal_m = behind_m
        if left_m < DONE_M:
            goal_m = ee_pos_m
        elif self._phase[robot] == "above":
            goal_m = np.append(behind_m[:2], HIGH_M)
            if np.linalg.norm(ee_pos_m - goal_m) < NEAR_M:
                self._phase[robot] = "down"
        elif self._phase[robot] == "down" and np.linalg.norm(ee_pos_m - behind_m) < NEAR_M:
            self._phase[robot] = "push"
        if self._phase[robot] == "push" and left_m >= DONE_M:
            goal_m = ee_pos_m + min(STEP_M, left_m) * ahead - np.append(0.5 * self._drift(off, ahead), 0.0)
        move_m = goal_m - ee_pos_m
        length = float(np.linalg.norm(move_m))
        return np.array([*(move_m * min(1.0, STEP_M / max(length, 1e-9))), 0, 0, 0, -1.0])

    @staticmethod
    def _drift(off: np.ndarray, ahead: np.ndarray) -> np.ndarray:
        """(2,) displacement of the tool from the line through block and target."""
        return off - (off @ ahead[:2]) * ahead[:2]

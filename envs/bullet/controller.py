"""Controls one arm: how an action changes its commanded pose, and the joint targets that reach it."""

import numpy as np

from envs.bullet.arm import Arm
from envs.bullet.world import NUM_SUBSTEPS
from envs.kinematics.rotations import axis_angle_matrix, turn_between
from envs.kinematics.solver import kinematics, limit_tilt
from envs.robots import ArmModel

MAX_TRACKING_ERROR_M, MAX_TRACKING_ERROR_RAD = 0.03, 0.3
"""How far the commanded pose may be ahead of the measured one when the arm is blocked."""


class CartesianController:
    """Integrates the actions of one arm during an episode. J joints."""

    def __init__(self, model: ArmModel, control_hz: float) -> None:
        self.model = model
        self._arm, self._base_m = kinematics(model), np.array(model.base_m)
        self._most_rad = model.joint_speed_rad_s / control_hz / NUM_SUBSTEPS

    def reset(self, arm: Arm, joint_rad: np.ndarray) -> None:
        """Begin an episode with the joints (J,) at `joint_rad`."""
        self._measured = arm
        self._position_m, self._matrix = arm.tool_pose()
        self._joint_rad = joint_rad

    def plan(self, action: np.ndarray, *, ee_control: bool, control: str) -> tuple[list[np.ndarray], np.ndarray]:
        """Apply an action.

        Args:
            action: (7,) motion of the end effector, or (J + 1,) of the joints; the gripper last.
            ee_control: which of the two it is.
            control: what the robot's own actions move, "end_effector" or "joints".

        Returns:
            The joint targets (NUM_SUBSTEPS of (J,), rad) that lead there, and the action as the robot's own.
        """
        if control == "end_effector":
            return self._plan_ee(action), action
        before = self._held_joints()
        path = self._plan_ee(action) if ee_control else self._plan_joints(before, action)
        return path, np.append(path[-1] - before, action[-1]).astype(np.float32)

    def _held_joints(self) -> np.ndarray:
        """(J,) commanded joints, rad, limited to the largest distance from the measured ones."""
        measured, _ = self._measured.joints()
        return measured + np.clip(self._joint_rad - measured, -MAX_TRACKING_ERROR_RAD, MAX_TRACKING_ERROR_RAD)

    def _plan_joints(self, start_rad: np.ndarray, action: np.ndarray) -> list[np.ndarray]:
        """Turn the commanded joints by `action`, as far as the tool stays in the workspace; returns the targets."""
        for part in (1.0, 0.5, 0.25):
            goal = start_rad + part * action[:-1]
            position_m, matrix = self._arm.forward(goal)
            inside = _within(position_m + self._base_m, self.model.workspace_low_m, self.model.workspace_high_m)
            bent = _within(goal, self.model.joint_low_rad, self.model.joint_high_rad)
            if inside and bent and matrix[2, 0] <= -np.cos(self.model.max_tilt_rad):
                break
        else:
            goal = start_rad
        self._joint_rad = goal
        self._position_m, self._matrix = self._measured.tool_pose()
        return [start_rad + substep / NUM_SUBSTEPS * (goal - start_rad) for substep in range(1, NUM_SUBSTEPS + 1)]

    def _plan_ee(self, action: np.ndarray) -> list[np.ndarray]:
        """Move the commanded pose by `action` and return the NUM_SUBSTEPS joint targets (J,), rad, that lead there."""
        measured_m, measured = self._measured.tool_pose()
        ahead = self._position_m - measured_m
        start_m = measured_m + ahead * min(1.0, MAX_TRACKING_ERROR_M / max(float(np.linalg.norm(ahead)), 1e-9))
        lag = turn_between(measured, self._matrix)
        start = (
            axis_angle_matrix(lag * min(1.0, MAX_TRACKING_ERROR_RAD / max(float(np.linalg.norm(lag)), 1e-9))) @ measured
        )
        goal_m = np.clip(start_m + action[:3], self.model.workspace_low_m, self.model.workspace_high_m)
        goal = limit_tilt(axis_angle_matrix(action[3:6]) @ start, self.model.max_tilt_rad)
        away_m, turn = goal_m - start_m, turn_between(start, goal)
        joints = self._arm.inverse(start_m - self._base_m, start, self._joint_rad)
        self._joint_rad = self._joint_rad if joints is None else joints
        for move_part, turn_part in ((1.0, 1.0), (0.5, 0.5), (1.0, 0.0), (0.0, 1.0)):
            path = self._path((start_m, start), move_part * away_m, turn_part * turn)
            if path is not None:
                self._position_m = start_m + move_part * away_m
                self._matrix = axis_angle_matrix(turn_part * turn) @ start
                self._joint_rad = path[-1]
                return path
        self._position_m, self._matrix = start_m, start
        return [self._joint_rad] * NUM_SUBSTEPS

    def _path(
        self, start: tuple[np.ndarray, np.ndarray], away_m: np.ndarray, turn_rad: np.ndarray
    ) -> list[np.ndarray] | None:
        """Joint targets along a straight line with a constant rotation; None if the arm cannot follow."""
        path, last = [], self._joint_rad
        for substep in range(1, NUM_SUBSTEPS + 1):
            part = substep / NUM_SUBSTEPS
            goal_m, goal = start[0] + part * away_m, axis_angle_matrix(part * turn_rad) @ start[1]
            joints = self._arm.inverse(goal_m - self._base_m, goal, last)
            if joints is None or np.abs(joints - last).max() > self._most_rad:
                return None
            path.append(joints)
            last = joints
        return path


def _within(value: np.ndarray, low: tuple[float, ...], high: tuple[float, ...]) -> bool:
    return bool((value >= low).all() and (value <= high).all())

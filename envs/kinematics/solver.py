"""Provides the kinematics of an arm: `kinematics(model)`.

The WidowX has a closed form, the other arms are solved numerically (chain.py). Either way the same pose gives the same
joints whatever happened before: drift would make an action's effect depend on history.
"""

from functools import lru_cache
from math import acos, atan2, cos, hypot, pi, sin
from typing import Protocol

import numpy as np

from envs.kinematics.chain import Chain
from envs.kinematics.rotations import axis_angle_matrix, rot_x, rot_y, rot_z
from envs.kinematics.urdf import urdf_of
from envs.robots import ArmLengths, ArmModel

MIN_WRIST_RAD = 0.1
"""Smallest bend of the wrist: below it the two roll axes are nearly parallel and small motions need fast joints."""

MAX_STRETCH = 0.98
"""Largest extension of the arm as a share of its length: beyond it small motions need a fast elbow."""

DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
"""Orientation with the tool straight down and the left finger to the left."""


class Kinematics(Protocol):
    """Kinematics of one arm with J joints, in its base frame."""

    def forward(self, joint_rad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tool position (3,), m, and orientation (3, 3), of joints (J,), rad."""
        ...

    def inverse(self, position_m: np.ndarray, matrix: np.ndarray, q_init: np.ndarray | None) -> np.ndarray | None:
        """Joints (J,), rad, that put the tool at `position_m` (3,) with orientation `matrix` (3, 3).

        `q_init`: joints (J,) near the answer, if known; they only save time.

        Returns:
            The joints, or None if the pose is out of reach or violates a limit.
        """
        ...


@lru_cache(maxsize=8)
def kinematics(model: ArmModel) -> Kinematics:
    """The kinematics of `model`."""
    if model.lengths is not None:
        return SphericalWrist(model, model.lengths)
    return NumericalIK(model)


class NumericalIK:
    """Numerical inverse kinematics of a chain within its joint limits."""

    def __init__(self, model: ArmModel) -> None:
        self._low_rad, self._high_rad = np.array(model.joint_low_rad), np.array(model.joint_high_rad)
        self._chain = Chain(urdf_of(model), model.joint, model.tool_link, model.home_rad)
        self.forward = self._chain.forward

    def inverse(self, position_m: np.ndarray, matrix: np.ndarray, q_init: np.ndarray | None) -> np.ndarray | None:
        """See `Kinematics`."""
        joint_rad = self._chain.inverse(position_m, matrix, q_init)
        if joint_rad is None or (joint_rad < self._low_rad).any() or (joint_rad > self._high_rad).any():
            return None
        return joint_rad


def limit_tilt(matrix: np.ndarray, max_tilt_rad: float) -> np.ndarray:
    """Rotate a tool orientation (3, 3) back until its x axis is within `max_tilt_rad` of straight down."""
    axis = matrix[:, 0]
    tilt = acos(min(1.0, max(-1.0, -axis[2])))
    if tilt <= max_tilt_rad:
        return matrix
    towards = np.array([-axis[1], axis[0], 0.0])  # axis x (-z): turning about it brings the tool down
    return axis_angle_matrix(towards / np.linalg.norm(towards) * (tilt - max_tilt_rad)) @ matrix


class SphericalWrist:
    """Closed-form kinematics of an arm with waist z, shoulder y, elbow y and a wrist x, y, x whose axes intersect."""

    def __init__(self, model: ArmModel, lengths: ArmLengths) -> None:
        self._model, self._lengths = model, lengths

    def forward(self, joint_rad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Kinematics`."""
        lengths = self._lengths
        q1, q2, q3, q4, q5, q6 = joint_rad
        shoulder = rot_z(q1) @ rot_y(q2)
        forearm = shoulder @ rot_y(q3)
        tool = forearm @ rot_x(q4) @ rot_y(q5) @ rot_x(q6)
        wrist = np.array([0, 0, lengths.shoulder_z_m]) + shoulder @ [lengths.elbow_x_m, 0, lengths.elbow_z_m]
        return wrist + forearm[:, 0] * lengths.wrist_x_m + tool[:, 0] * lengths.tool_x_m, tool

    def inverse(self, position_m: np.ndarray, matrix: np.ndarray, q_init: np.ndarray | None) -> np.ndarray | None:
        """See `Kinematics`. Elbow up and wrist bent forward, the only branch that keeps the arm above a table."""
        model, lengths = self._model, self._lengths
        wrist = position_m - lengths.tool_x_m * matrix[:, 0]
        q1 = atan2(wrist[1], wrist[0])
        reach, height = hypot(wrist[0], wrist[1]), wrist[2] - lengths.shoulder_z_m
        upper = hypot(lengths.elbow_x_m, lengths.elbow_z_m)
        distance = hypot(reach, height)
        cosine = (upper**2 + distance**2 - lengths.wrist_x_m**2) / (2 * upper * distance)
        if abs(cosine) >= 1.0 or distance > MAX_STRETCH * (upper + lengths.wrist_x_m):
            return None
        elevation = atan2(height, reach) + acos(cosine)
        q2 = pi / 2 - elevation - atan2(lengths.elbow_x_m, lengths.elbow_z_m)
        pitch = -atan2(height - upper * sin(elevation), reach - upper * cos(elevation))
        turn = (rot_z(q1) @ rot_y(pitch)).T @ matrix
        q5 = atan2(hypot(turn[1, 0], turn[2, 0]), turn[0, 0])
        if q5 < MIN_WRIST_RAD:
            return None
        q4, q6 = atan2(turn[1, 0], -turn[2, 0]), atan2(turn[0, 1], turn[0, 2])
        joints = (q1, q2, pitch - q2, q4, q5, q6)
        limits = zip(model.joint_low_rad, joints, model.joint_high_rad, strict=True)
        return np.array(joints) if all(low <= joint <= high for low, joint, high in limits) else None

"""Closed-form kinematics of an arm with a spherical wrist (waist z, shoulder y, elbow y; wrist x, y, x).

A closed form has one answer, so the same pose gives the same joints whatever happened before: a numerical solver's
drift would make an action's effect depend on history.
"""

from math import acos, atan2, cos, hypot, pi, sin

import numpy as np

from envs.robots import ArmLengths, RobotModel

MIN_WRIST_RAD = 0.1
"""Below this bend of the wrist its two roll axes are nearly parallel and small motions need fast joints."""

MAX_STRETCH = 0.98
"""Part of its length that the arm may stretch to: beyond it small motions need a fast elbow."""

DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
"""Tool straight down, left finger to the left."""


def axis_angle_matrix(rotation_rad: np.ndarray) -> np.ndarray:
    """(3, 3) rotation matrix exp([r]) of an axis-angle vector (3,), rad (Rodrigues)."""
    x, y, z = (float(value) for value in rotation_rad)
    angle = (x * x + y * y + z * z) ** 0.5
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = x / angle, y / angle, z / angle
    c, s = cos(angle), sin(angle)
    k = 1.0 - c
    return np.array(
        [
            [c + x * x * k, x * y * k - z * s, x * z * k + y * s],
            [y * x * k + z * s, c + y * y * k, y * z * k - x * s],
            [z * x * k - y * s, z * y * k + x * s, c + z * z * k],
        ]
    )


def matrix_axis_angle(matrix: np.ndarray) -> np.ndarray:
    """(3,) axis-angle vector of a rotation matrix, rad; inverse of `axis_angle_matrix` for angles below pi."""
    w, x, y, z = matrix_quaternion(matrix)
    norm = (x * x + y * y + z * z) ** 0.5
    if norm < 1e-12:
        return np.zeros(3)
    return np.array([x, y, z]) * (2.0 * atan2(norm, w) / norm)


def quaternion_matrix(quat_wxyz: np.ndarray) -> np.ndarray:
    """(3, 3) rotation matrix of a unit quaternion (w, x, y, z)."""
    w, x, y, z = (float(value) for value in quat_wxyz)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def matrix_quaternion(matrix: np.ndarray) -> np.ndarray:
    """(4,) quaternion (w, x, y, z) of a rotation matrix, w >= 0 (Shepperd's method: divide by the largest part)."""
    (a, b, c), (d, e, f), (g, h, i) = matrix.tolist()
    squares = (1 + a + e + i, 1 + a - e - i, 1 - a + e - i, 1 - a - e + i)
    largest = max(range(4), key=squares.__getitem__)
    rows = (
        (squares[0], h - f, c - g, d - b),
        (h - f, squares[1], b + d, c + g),
        (c - g, b + d, squares[2], f + h),
        (d - b, c + g, f + h, squares[3]),
    )
    quat = np.array(rows[largest])
    return quat / (np.linalg.norm(quat) * (1.0 if quat[0] >= 0 else -1.0))


def turn_between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(3,) axis-angle r, rad, base frame, with exp([r]) start = end, both (3, 3)."""
    return matrix_axis_angle(end @ start.T)


def limit_tilt(matrix: np.ndarray, max_tilt_rad: float) -> np.ndarray:
    """Turn a tool orientation (3, 3) back until its x axis is within `max_tilt_rad` of straight down."""
    axis = matrix[:, 0]
    tilt = acos(min(1.0, max(-1.0, -axis[2])))
    if tilt <= max_tilt_rad:
        return matrix
    towards = np.array([-axis[1], axis[0], 0.0])  # axis x (-z): turning about it brings the tool down
    return axis_angle_matrix(towards / np.linalg.norm(towards) * (tilt - max_tilt_rad)) @ matrix


def forward(lengths: ArmLengths, joint_rad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tool position (3,), m, and orientation (3, 3) in the base frame, of joints (6,), rad."""
    q1, q2, q3, q4, q5, q6 = joint_rad
    shoulder = _rot_z(q1) @ _rot_y(q2)
    forearm = shoulder @ _rot_y(q3)
    tool = forearm @ _rot_x(q4) @ _rot_y(q5) @ _rot_x(q6)
    wrist = np.array([0, 0, lengths.shoulder_z_m]) + shoulder @ [lengths.elbow_x_m, 0, lengths.elbow_z_m]
    return wrist + forearm[:, 0] * lengths.wrist_x_m + tool[:, 0] * lengths.tool_x_m, tool


def inverse(model: RobotModel, position_m: np.ndarray, matrix: np.ndarray) -> np.ndarray | None:
    """Joints (6,), rad, that put the tool at `position_m` (3,) with orientation `matrix` (3, 3), base frame.

    Elbow up and wrist bent forward: the one branch that holds everything above a table in front of the robot.

    Returns:
        The joints, or None where the arm does not reach or a limit forbids it.
    """
    lengths = model.lengths
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
    turn = (_rot_z(q1) @ _rot_y(pitch)).T @ matrix
    q5 = atan2(hypot(turn[1, 0], turn[2, 0]), turn[0, 0])
    if q5 < MIN_WRIST_RAD:
        return None
    q4, q6 = atan2(turn[1, 0], -turn[2, 0]), atan2(turn[0, 1], turn[0, 2])
    joints = (q1, q2, pitch - q2, q4, q5, q6)
    limits = zip(model.joint_low_rad, joints, model.joint_high_rad, strict=True)
    return np.array(joints) if all(low <= joint <= high for low, joint, high in limits) else None


def _rot_x(angle: float) -> np.ndarray:
    c, s = cos(angle), sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _rot_y(angle: float) -> np.ndarray:
    c, s = cos(angle), sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _rot_z(angle: float) -> np.ndarray:
    c, s = cos(angle), sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])

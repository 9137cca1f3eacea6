"""Converts rotation matrices, axis-angle vectors and quaternions (wxyz). Angles are in rad."""

from math import atan2, cos, sin

import numpy as np


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


def rot_x(angle: float) -> np.ndarray:
    """(3, 3) turn about x."""
    c, s = cos(angle), sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def rot_y(angle: float) -> np.ndarray:
    """(3, 3) turn about y."""
    c, s = cos(angle), sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def rot_z(angle: float) -> np.ndarray:
    """(3, 3) turn about z."""
    c, s = cos(angle), sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])

"""Computes kinematics numerically for any chain of revolute joints, read from its URDF. J joints."""

import xml.etree.ElementTree as ElementTree
from math import atan2, cos, pi, sin
from pathlib import Path

import numpy as np

from envs.kinematics.rotations import axis_angle_matrix, matrix_axis_angle, rot_x, rot_y, rot_z

DAMPING = 0.01
"""Damping of the least squares, so that steps stay finite near singularities."""
MAX_ITERATIONS = 30
NEAR_M, NEAR_RAD = 1e-5, 1e-4
"""Largest error of a pose that counts as reached: 10 micrometers, 6 thousandths of a degree."""
STILL_RAD = 1e-3
"""A posture counts as converged if no joint moves farther than this in an iteration."""
MAX_STEP_RAD = 0.3
"""Longest move of a joint in an iteration."""


class Chain:
    """The joints of one arm from its base to its tool."""

    def __init__(self, urdf: Path, joint: tuple[str, ...], tool_link: str, rest_rad: tuple[float, ...]) -> None:
        """Read a URDF.

        Args:
            urdf: the file.
            joint: names of those joints, from the base.
            tool_link: link whose frame is the tool center point.
            rest_rad: (J,) preferred posture of an arm with redundant joints.
        """
        *before, self._tip_44 = _fixed_frames(urdf, joint, tool_link)
        self._before_J44 = np.stack(before)
        self._rest_rad = np.array(rest_rad)

    def forward(self, joint_rad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tool position (3,), m, and orientation (3, 3), in the base frame."""
        _, tool_44 = self._frames(joint_rad)
        return tool_44[:3, 3], tool_44[:3, :3]

    def inverse(self, position_m: np.ndarray, matrix: np.ndarray, q_init: np.ndarray | None) -> np.ndarray | None:
        """Joints (J,), rad, for a tool pose in the base frame; None if none are found.

        Damped least squares (Wampler, IEEE Trans. SMC 16, 1986). If a redundant arm has many solutions, the one nearest
        to its rest posture is returned, so that the answer does not depend on where the search began.

        Args:
            position_m: (3,).
            matrix: (3, 3).
            q_init: (J,) where to begin, on the wanted branch; None for the rest posture.
        """
        joint_rad = self._rest_rad if q_init is None else q_init
        spare = len(joint_rad) > 6
        for _ in range(MAX_ITERATIONS):
            joints_J44, tool_44 = self._frames(joint_rad)
            away = np.concatenate([position_m - tool_44[:3, 3], matrix_axis_angle(matrix @ tool_44[:3, :3].T)])
            there = np.abs(away[:3]).max() < NEAR_M and np.abs(away[3:]).max() < NEAR_RAD
            if there and not spare:
                return joint_rad
            axis_J3 = joints_J44[:, :3, 2]
            jacobian_6J = np.concatenate([_cross(axis_J3, tool_44[:3, 3] - joints_J44[:, :3, 3]), axis_J3], axis=1).T
            gram_66 = jacobian_6J @ jacobian_6J.T
            damped_66 = gram_66 + DAMPING**2 * np.eye(6)
            move = jacobian_6J.T @ np.linalg.solve(damped_66, away)
            if spare:
                home = self._rest_rad - joint_rad
                move += home - jacobian_6J.T @ np.linalg.lstsq(gram_66, jacobian_6J @ home)[0]
            largest = float(np.abs(move).max())
            if there and largest < STILL_RAD:
                return joint_rad
            joint_rad = joint_rad + move * min(1.0, MAX_STEP_RAD / max(largest, MAX_STEP_RAD))
        return None

    def _frames(self, joint_rad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The joints' frames (J, 4, 4), and the tool's (4, 4), in the base frame."""
        frames_J44 = np.empty_like(self._before_J44)
        now_44 = np.eye(4)
        turn_44 = np.eye(4)
        for number, angle in enumerate(joint_rad.tolist()):
            c, s = cos(angle), sin(angle)
            turn_44[0, 0], turn_44[0, 1], turn_44[1, 0], turn_44[1, 1] = c, -s, s, c
            now_44 = now_44 @ self._before_J44[number] @ turn_44
            frames_J44[number] = now_44
        return frames_J44, now_44 @ self._tip_44


def _cross(a_J3: np.ndarray, b_J3: np.ndarray) -> np.ndarray:
    """`np.cross`, several times as fast for so few rows."""
    (ax, ay, az), (bx, by, bz) = a_J3.T, b_J3.T
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=1)


def _fixed_frames(urdf: Path, joint: tuple[str, ...], tool_link: str) -> list[np.ndarray]:
    """The fixed transforms before each joint and after the last one: J + 1 of (4, 4)."""
    elements = ElementTree.parse(urdf).getroot().findall("joint")
    by_child = {_link(element, "child"): element for element in elements}
    frames, link = [np.eye(4)], tool_link
    while link in by_child:
        element = by_child[link]
        if element.get("name") in joint:
            axis = element.find("axis")
            assert axis is not None
            turn_44 = _from_z(np.array([float(word) for word in axis.get("xyz", "1 0 0").split()]))
            frames[0] = turn_44.T @ frames[0]
            frames.insert(0, turn_44)
        frames[0] = origin(element) @ frames[0]
        link = _link(element, "parent")
    assert len(frames) == len(joint) + 1, f"{tool_link} hangs on {joint}"
    return frames


def _from_z(axis: np.ndarray) -> np.ndarray:
    """(4, 4) of the shortest turn of the z axis to `axis` (3,)."""
    x, y, z = axis / np.linalg.norm(axis)
    sideways = float(np.hypot(x, y))
    frame = np.eye(4)
    if sideways > 0:
        frame[:3, :3] = axis_angle_matrix(np.array([-y, x, 0.0]) / sideways * atan2(sideways, z))
    elif z < 0:
        frame[:3, :3] = rot_x(pi)
    return frame


def _link(joint: ElementTree.Element, end: str) -> str:
    element = joint.find(end)
    assert element is not None
    return element.get("link", "")


def origin(element: ElementTree.Element) -> np.ndarray:
    """(4, 4) of a URDF element's <origin>: fixed-axis roll, pitch, yaw, then the shift."""
    frame = np.eye(4)
    found = element.find("origin")
    if found is not None:
        roll, pitch, yaw = (float(word) for word in found.get("rpy", "0 0 0").split())
        frame[:3, :3] = rot_z(yaw) @ rot_y(pitch) @ rot_x(roll)
        frame[:3, 3] = [float(word) for word in found.get("xyz", "0 0 0").split()]
    return frame

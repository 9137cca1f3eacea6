"""Simulates one arm with its gripper: its proprioception, and how its motors follow joint targets."""

from math import atan2

import numpy as np
import pybullet as p

from envs.kinematics.rotations import quaternion_matrix
from envs.kinematics.urdf import urdf_of
from envs.robots import ArmModel
from envs.scene.objects import Color, Vector

STALLED_M_S, SQUEEZE_M_S = 0.01, 0.02
"""A closing finger that is slower than the first speed is blocked and continues at the second."""
CENTER_HZ = 10.0
"""Rate at which the fingers are centered, 1/s."""
GRIP = {"lateralFriction": 1.5, "spinningFriction": 0.02}
"""Friction of the finger pads."""
PATCH_M = (0.018, 0.055, 0.0008)
"""Half sizes of the gripper's shadow, m."""


class Arm:
    """An arm in a PyBullet simulation, from `ArmModel`. J joints."""

    def __init__(
        self, model: ArmModel, client: int, joint_rad: np.ndarray, *, substep_s: float, table_rgb: Color
    ) -> None:
        """Load the arm with its joints at `joint_rad` (J,) and its fingers open.

        Args:
            model: the arm.
            client: the simulation.
            joint_rad: (J,) initial joints, rad.
            substep_s: length of a simulation step, s.
            table_rgb: color of the table on which its shadow falls.
        """
        self.model, self._client, self._substep_s = model, client, substep_s
        self.body: int = p.loadURDF(
            str(urdf_of(model)), basePosition=model.base_m, useFixedBase=True, physicsClientId=client
        )
        number = {}
        above: list[int] = []
        for joint in range(p.getNumJoints(self.body, physicsClientId=client)):
            about = p.getJointInfo(self.body, joint, physicsClientId=client)
            number[about[1].decode()], number[about[12].decode()] = joint, joint
            above.append(about[16])
        self._joint = tuple(number[name] for name in model.joint)
        self._finger = (number[model.finger[0]], number[model.finger[1]])
        self._tool = number[model.tool_link]
        self.gripper_links = _hanging_on(self._joint[-1], above)
        """Link indices of the last joint's link and of all links attached to it."""
        self.shadow = self._add_shadow(table_rgb)
        self._place(joint_rad)

    def joints(self) -> tuple[np.ndarray, float]:
        """Measured joints (J,), rad, and finger opening, 0 closed .. 1 open."""
        numbers = (*self._joint, *self._finger)
        states = p.getJointStates(self.body, numbers, physicsClientId=self._client)
        values = np.array([state[0] for state in states])
        return values[:-2], float(values[-2:].mean() / self.model.finger_open_m)

    def tool_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Measured tool position (3,), m, and orientation (3, 3), table frame."""
        state = p.getLinkState(self.body, self._tool, computeForwardKinematics=1, physicsClientId=self._client)
        x, y, z, w = state[5]
        return np.array(state[4]), quaternion_matrix(np.array([w, x, y, z]))

    def touching(self, side: int) -> set[int]:
        """Numbers of the bodies that the left (0) or right (1) finger touches now."""
        points = p.getContactPoints(bodyA=self.body, linkIndexA=self._finger[side], physicsClientId=self._client)
        return {point[2] for point in points}

    def cast_shadow(self, light: Vector) -> None:
        """Lay the dark patch where parallel light from direction `light` casts the gripper's shadow on the table."""
        position_m, matrix = self.tool_pose()
        x, y = position_m[:2] - position_m[2] / light[2] * np.array(light[:2])
        yaw = atan2(-matrix[0, 1], matrix[1, 1])
        turn = p.getQuaternionFromEuler((0, 0, yaw))
        p.resetBasePositionAndOrientation(self.shadow, (x, y, 0), turn, physicsClientId=self._client)

    def drive(self, target_rad: np.ndarray) -> None:
        """Move every joint at the constant speed that brings it to its target (J,), rad, at the end of the substep.

        The engine's own position control jumps ahead at the start of each substep and shakes the object in the gripper.
        """
        states = p.getJointStates(self.body, self._joint, physicsClientId=self._client)
        most = self.model.joint_speed_rad_s
        speed = [
            min(max((target - state[0]) / self._substep_s, -most), most)
            for target, state in zip(target_rad.tolist(), states, strict=True)
        ]
        p.setJointMotorControlArray(
            self.body,
            self._joint,
            p.VELOCITY_CONTROL,
            targetVelocities=speed,
            forces=self.model.joint_effort_nm,
            physicsClientId=self._client,
        )

    def drive_fingers(self, opening: float) -> None:
        """Move both fingers together, like the real gripper's single motor: they meet at the gripper's center.

        Once something stops them, they only creep inwards (with the full force): a fast motor would push the pads into
        the object, and the engine's answer to that turns and drops it.
        """
        states = p.getJointStates(self.body, self._finger, physicsClientId=self._client)
        left, right = states[0][0], states[1][0]
        middle, speed = (left + right) / 2, (states[0][1] + states[1][1]) / 2
        most = self.model.finger_speed_m_s
        wish = (opening * self.model.finger_open_m - middle) / self._substep_s
        wish = min(max(wish, -most), most)
        if wish < 0 and self._closing and speed > -STALLED_M_S:
            wish = max(wish, -SQUEEZE_M_S)
        self._closing = wish < 0
        p.setJointMotorControlArray(
            self.body,
            self._finger,
            p.VELOCITY_CONTROL,
            targetVelocities=[wish + CENTER_HZ * (middle - place) for place in (left, right)],
            forces=[self.model.finger_force_n] * 2,
            physicsClientId=self._client,
        )

    def _add_shadow(self, table_rgb: Color) -> int:
        """Add the gripper's shadow, which is visible but has no mass and no contact; it is below the table until it is
        cast."""
        rgba = (*(0.62 * value for value in table_rgb), 1)
        seen = p.createVisualShape(p.GEOM_BOX, halfExtents=PATCH_M, rgbaColor=rgba, physicsClientId=self._client)
        return p.createMultiBody(0, -1, seen, basePosition=(0, 0, -1), physicsClientId=self._client)

    def _place(self, joint_rad: np.ndarray) -> None:
        for joint, angle in zip(self._joint, joint_rad, strict=True):
            p.resetJointState(self.body, joint, float(angle), physicsClientId=self._client)
        for finger in self._finger:
            p.resetJointState(self.body, finger, self.model.finger_open_m, physicsClientId=self._client)
            p.changeDynamics(self.body, finger, **GRIP, physicsClientId=self._client)
        self._closing = False


def _hanging_on(link: int, above: list[int]) -> frozenset[int]:
    """`link` and the links below it; `above` has each link's parent, which comes before it."""
    found = {link}
    for other, parent in enumerate(above):
        if parent in found:
            found.add(other)
    return frozenset(found)

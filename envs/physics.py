"""One PyBullet simulation: table, robot, objects. The only place that talks to the physics engine."""

from dataclasses import dataclass
from math import atan2, hypot

import numpy as np
import pybullet as p

from envs.objects import Colour, ObjectModel, Part, Vector
from envs.robots import RobotModel
from envs.rotations import quaternion_matrix
from envs.tasks import Scene, Touch
from envs.urdf import urdf_of

PHYSICS_HZ = 120
TICKS = 8
"""Joint targets a control step: inverse kinematics runs at 40 Hz."""
STALLED_M_S, SQUEEZE_M_S = 0.01, 0.02
"""A closing finger slower than the first is held up by something and goes on at the second."""
CENTRE_HZ = 10.0
"""How fast the fingers even out between them, 1/s."""
MAX_OBJECT_M_S, MAX_OBJECT_RAD_S = 0.6, 15.0
"""No object moves faster, sideways or up; the hand itself reaches 0.43 m/s."""
PATCH_M = (0.018, 0.055, 0.0008)
"""Half sizes of the hand's shadow."""
_KIND = {"box": p.GEOM_BOX, "cylinder": p.GEOM_CYLINDER, "sphere": p.GEOM_SPHERE}
_LYING = p.getQuaternionFromEuler((0, np.pi / 2, 0))


@dataclass(frozen=True, kw_only=True)
class Bodies:
    """PyBullet's numbers for what is in the simulation."""

    robot: int
    joint: tuple[int, ...]
    finger: tuple[int, int]
    tool: int
    object: tuple[int, ...]


class World:
    """A simulation that is built afresh for every episode, so nothing of the last one can leak into the next."""

    def __init__(self, model: RobotModel, control_hz: float) -> None:
        self.model = model
        self.client: int = p.connect(p.DIRECT)
        self._substeps = round(PHYSICS_HZ / control_hz / TICKS)
        self._tick_s = self._substeps / PHYSICS_HZ
        self._closing = False
        self._bodies: Bodies | None = None

    @property
    def bodies(self) -> Bodies:
        """Numbers of the bodies of the present episode."""
        assert self._bodies is not None, "build() comes first"
        return self._bodies

    @property
    def robot_and_shadow(self) -> tuple[int, int]:
        """Numbers of what moves because the robot does: it, and the hand's shadow."""
        return self.bodies.robot, self._patch

    def close(self) -> None:
        """End the simulation; a second call does nothing."""
        if self.client >= 0:
            p.disconnect(self.client)
            self.client = -1

    def build(self, scene: Scene, joint_rad: np.ndarray, table_rgb: Colour) -> None:
        """Empty the simulation and put table, robot (at `joint_rad`, fingers open) and the scene's objects into it."""
        p.resetSimulation(physicsClientId=self.client)
        p.setGravity(0, 0, -9.81, physicsClientId=self.client)
        p.setPhysicsEngineParameter(
            fixedTimeStep=self._tick_s,
            numSubSteps=self._substeps,
            numSolverIterations=30,
            contactERP=0.9,  # the default, 0.2, leaves the pads millimetres deep in what they hold
            deterministicOverlappingPairs=1,
            physicsClientId=self.client,
        )
        self._add_table(table_rgb)
        robot = p.loadURDF(
            str(urdf_of(self.model)), basePosition=self.model.base_m, useFixedBase=True, physicsClientId=self.client
        )
        poses = zip(scene.object, scene.position_m, scene.yaw_rad, strict=True)
        objects = tuple(self._add_object(*pose) for pose in poses)
        number = {}
        for joint in range(p.getNumJoints(robot, physicsClientId=self.client)):
            about = p.getJointInfo(robot, joint, physicsClientId=self.client)
            number[about[1].decode()], number[about[12].decode()] = joint, joint
        self._bodies = Bodies(
            robot=robot,
            joint=tuple(number[name] for name in self.model.joint),
            finger=(number[self.model.finger[0]], number[self.model.finger[1]]),
            tool=number[self.model.tool_link],
            object=objects,
        )
        self._patch = self._add_patch(table_rgb)
        self._slot = {body: slot for slot, body in enumerate(objects)}
        self._place_robot(joint_rad)

    def move(self, path_rad: list[np.ndarray], opening: float) -> None:
        """Simulate one control step.

        Args:
            path_rad: TICKS joint targets (J,), rad, one a tick.
            opening: wanted finger opening, 0 closed .. 1 open.
        """
        self._touched: frozenset[int] = frozenset()
        for target in path_rad:
            self._drive_arm(target)
            self._drive_fingers(opening)
            p.stepSimulation(physicsClientId=self.client)
            self._touched |= self._touching(0) | self._touching(1)
            self._calm_objects()

    def settle(self, joint_rad: np.ndarray) -> None:
        """Let the objects come to rest for one control step while the arm holds `joint_rad` (J,)."""
        self.move([joint_rad] * TICKS, 1.0)

    def joints(self) -> tuple[np.ndarray, float]:
        """Measured joints (J,), rad, and finger opening, 0 closed .. 1 open."""
        numbers = (*self.bodies.joint, *self.bodies.finger)
        states = p.getJointStates(self.bodies.robot, numbers, physicsClientId=self.client)
        values = np.array([state[0] for state in states])
        return values[:-2], float(values[-2:].mean() / self.model.finger_open_m)

    def tool_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Measured tool position (3,), m, and orientation (3, 3), table frame."""
        state = p.getLinkState(
            self.bodies.robot, self.bodies.tool, computeForwardKinematics=1, physicsClientId=self.client
        )
        x, y, z, w = state[5]
        return np.array(state[4]), quaternion_matrix(np.array([w, x, y, z]))

    def object_poses(self, num_slots: int) -> np.ndarray:
        """(num_slots, 7) float32, x y z (m) and quaternion wxyz of each object; unused slots are zero."""
        poses = np.zeros((num_slots, 7), np.float32)
        for slot, body in enumerate(self.bodies.object):
            position, (x, y, z, w) = p.getBasePositionAndOrientation(body, physicsClientId=self.client)
            poses[slot] = (*position, w, x, y, z)
        return poses

    def cast_hand_shadow(self, light: Vector) -> None:
        """Lay the dark patch where parallel light from direction `light` casts the hand's shadow on the table."""
        position_m, matrix = self.tool_pose()
        x, y = position_m[:2] - position_m[2] / light[2] * np.array(light[:2])
        yaw = atan2(-matrix[0, 1], matrix[1, 1])
        turn = p.getQuaternionFromEuler((0, 0, yaw))
        p.resetBasePositionAndOrientation(self._patch, (x, y, 0), turn, physicsClientId=self.client)

    def touch(self) -> Touch:
        """Contacts now, and of the fingers during the last control step."""
        pairs = set()
        for i, first in enumerate(self.bodies.object):
            for j in range(i + 1, len(self.bodies.object)):
                if p.getContactPoints(first, self.bodies.object[j], physicsClientId=self.client):
                    pairs.add((i, j))
        now = (self._touching(0), self._touching(1))
        return Touch(finger=now, finger_during=self._touched, pair=frozenset(pairs))

    def _touching(self, side: int) -> frozenset[int]:
        """Slots of the objects that the left (0) or right (1) finger touches now."""
        robot, finger = self.bodies.robot, self.bodies.finger[side]
        points = p.getContactPoints(bodyA=robot, linkIndexA=finger, physicsClientId=self.client)
        return frozenset(self._slot[point[2]] for point in points if point[2] in self._slot)

    def _calm_objects(self) -> None:
        """Slow down what was squeezed out between hand and table: a stiff arm shoots it off, a real one gives way."""
        for body in self.bodies.object:
            (x, y, z), angular = p.getBaseVelocity(body, physicsClientId=self.client)
            fast = max(hypot(x, y, max(z, 0.0)) / MAX_OBJECT_M_S, hypot(*angular) / MAX_OBJECT_RAD_S)
            if fast > 1.0:
                linear = (x / fast, y / fast, min(z, z / fast))  # falling is left alone
                turning = [value / fast for value in angular]
                p.resetBaseVelocity(body, linear, turning, physicsClientId=self.client)

    def _drive_arm(self, target_rad: np.ndarray) -> None:
        """Turn every joint at the steady speed that brings it to its target at the end of the tick.

        The engine's own position control jumps ahead at the start of each tick and shakes what the hand holds.
        """
        states = p.getJointStates(self.bodies.robot, self.bodies.joint, physicsClientId=self.client)
        most = self.model.joint_speed_rad_s
        speed = [
            min(max((target - state[0]) / self._tick_s, -most), most)
            for target, state in zip(target_rad.tolist(), states, strict=True)
        ]
        p.setJointMotorControlArray(
            self.bodies.robot,
            self.bodies.joint,
            p.VELOCITY_CONTROL,
            targetVelocities=speed,
            forces=self.model.joint_effort_nm,
            physicsClientId=self.client,
        )

    def _drive_fingers(self, opening: float) -> None:
        """Move both fingers as one, as the real gripper's single motor does: they meet around the hand's middle.

        Once something stops them, they only creep inwards (with the full force): a fast motor would push the pads into
        the object, and the engine's answer to that turns and drops it.
        """
        states = p.getJointStates(self.bodies.robot, self.bodies.finger, physicsClientId=self.client)
        left, right = states[0][0], states[1][0]
        middle, speed = (left + right) / 2, (states[0][1] + states[1][1]) / 2
        most = self.model.finger_speed_m_s
        wish = (opening * self.model.finger_open_m - middle) / self._tick_s
        wish = min(max(wish, -most), most)
        if wish < 0 and self._closing and speed > -STALLED_M_S:
            wish = max(wish, -SQUEEZE_M_S)
        self._closing = wish < 0
        p.setJointMotorControlArray(
            self.bodies.robot,
            self.bodies.finger,
            p.VELOCITY_CONTROL,
            targetVelocities=[wish + CENTRE_HZ * (middle - place) for place in (left, right)],
            forces=[self.model.finger_force_n] * 2,
            physicsClientId=self.client,
        )

    def _add_table(self, rgb: Colour) -> None:
        half = (1.0, 1.0, 0.02)
        solid = p.createCollisionShape(p.GEOM_BOX, halfExtents=half, physicsClientId=self.client)
        seen = p.createVisualShape(p.GEOM_BOX, halfExtents=half, rgbaColor=(*rgb, 1), physicsClientId=self.client)
        table = p.createMultiBody(0, solid, seen, basePosition=(0.4, 0, -half[2]), physicsClientId=self.client)
        p.changeDynamics(table, -1, lateralFriction=0.8, physicsClientId=self.client)

    def _add_patch(self, table_rgb: Colour) -> int:
        """The hand's shadow: seen, without weight or contact; under the table until it is cast."""
        rgba = (*(0.62 * value for value in table_rgb), 1)
        seen = p.createVisualShape(p.GEOM_BOX, halfExtents=PATCH_M, rgbaColor=rgba, physicsClientId=self.client)
        return p.createMultiBody(0, -1, seen, basePosition=(0, 0, -1), physicsClientId=self.client)

    def _place_robot(self, joint_rad: np.ndarray) -> None:
        robot = self.bodies.robot
        for joint, angle in zip(self.bodies.joint, joint_rad, strict=True):
            p.resetJointState(robot, joint, float(angle), physicsClientId=self.client)
        for finger in self.bodies.finger:
            p.resetJointState(robot, finger, self.model.finger_open_m, physicsClientId=self.client)
            p.changeDynamics(robot, finger, lateralFriction=1.5, spinningFriction=0.02, physicsClientId=self.client)
        self._closing = False

    def _add_object(self, model: ObjectModel, position_m: tuple[float, float], yaw_rad: float) -> int:
        seen = [part for part in model.part if part.rgb is not None]
        solid = [part for part in model.part if part.solid]
        visual = p.createVisualShapeArray(
            rgbaColors=[(*(part.rgb or (0, 0, 0)), 1) for part in seen],
            **_shapes(seen, model, "visual"),
            physicsClientId=self.client,
        )
        collision = p.createCollisionShapeArray(**_shapes(solid, model, "collision"), physicsClientId=self.client)
        body = p.createMultiBody(
            model.mass_kg,
            collision,
            visual,
            basePosition=(*position_m, model.half_size_m[2] + 0.0005),
            baseOrientation=p.getQuaternionFromEuler((0, 0, yaw_rad)),
            physicsClientId=self.client,
        )
        p.changeDynamics(
            body,
            -1,
            lateralFriction=model.friction,
            spinningFriction=0.003,
            rollingFriction=0.0005,
            physicsClientId=self.client,
        )
        return body


def _shapes(parts: list[Part], model: ObjectModel, kind: str) -> dict[str, list]:
    """Arguments of PyBullet's create...ShapeArray for `parts`, placed from the object's centre."""
    lift = -model.half_size_m[2]
    return {
        "shapeTypes": [_KIND[part.shape] for part in parts],
        "halfExtents": [[side / 2 for side in part.size_m] for part in parts],
        "radii": [part.size_m[0] for part in parts],
        "lengths": [part.size_m[2] for part in parts],
        f"{kind}FramePositions": [(part.at_m[0], part.at_m[1], part.at_m[2] + lift) for part in parts],
        f"{kind}FrameOrientations": [_LYING if part.lying else (0, 0, 0, 1) for part in parts],
    }

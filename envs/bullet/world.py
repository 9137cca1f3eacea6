"""Runs one PyBullet simulation: table, arms, objects."""

import tempfile
from math import hypot
from typing import Sequence

import numpy as np
import pybullet as p
from PIL import Image

from envs.bullet.arm import Arm
from envs.bullet.camera import RenderConfig
from envs.robots import RobotModel
from envs.scene.objects import ObjectModel, Part
from envs.scene.scenarios import Distractor
from envs.scene.tasks import Scene, Touch
from envs.scene.textures import Cloth, texture
from tap_ray.types import ARM, ELSEWHERE, FIRST_OBJECT, GRIPPER

PHYSICS_HZ = 120
NUM_SUBSTEPS = 8
"""Number of joint targets per control step: inverse kinematics runs at 40 Hz."""
MAX_OBJECT_M_S, MAX_OBJECT_RAD_S = 0.6, 15.0
"""Largest speeds of an object; the end effector itself reaches 0.43 m/s."""
TABLE_HALF_M = (1.0, 1.0, 0.02)
_KIND = {"box": p.GEOM_BOX, "cylinder": p.GEOM_CYLINDER, "sphere": p.GEOM_SPHERE}
_LYING = p.getQuaternionFromEuler((0, np.pi / 2, 0))


class World:
    """A simulation that is rebuilt for every episode, so that no state of one episode can leak into the next."""

    def __init__(self, model: RobotModel, control_hz: float) -> None:
        self.model = model
        self.client: int = p.connect(p.DIRECT)
        self._engine_steps = round(PHYSICS_HZ / control_hz / NUM_SUBSTEPS)
        self._substep_s = self._engine_steps / PHYSICS_HZ
        self.arms: list[Arm] = []
        """Arms of the current episode."""
        self.object_bodies: tuple[int, ...] = ()
        """PyBullet's number of each slot's object."""

    @property
    def robot_and_shadow(self) -> list[int]:
        """Body ids of the robot's arms and of the grippers' shadows."""
        return [body for arm in self.arms for body in (arm.body, arm.shadow)]

    def segmentation(self, body_YX: np.ndarray, link_YX: np.ndarray) -> np.ndarray:
        """(Y, X) uint8, which body the pixel shows (tap_ray/types.py), from PyBullet's numbers."""
        whose_YX = np.full(body_YX.shape, ELSEWHERE, np.uint8)
        for arm in self.arms:
            arm_YX = body_YX == arm.body
            whose_YX[arm_YX] = ARM
            whose_YX[arm_YX & np.isin(link_YX, list(arm.gripper_links))] = GRIPPER
        for slot, body in enumerate(self.object_bodies):
            whose_YX[body_YX == body] = FIRST_OBJECT + slot
        return whose_YX

    def close(self) -> None:
        """End the simulation; a second call does nothing."""
        if self.client >= 0:
            p.disconnect(self.client)
            self.client = -1

    def build(
        self,
        scene: Scene,
        joint_rad: list[np.ndarray],
        render_config: RenderConfig,
        distractors: Sequence[Distractor] = (),
    ) -> None:
        """Empty the simulation and put table, arms (each at its `joint_rad`, fingers open) and objects into it.

        Distractors are bodies like the objects, but they have no pose in `object_poses` and make no contact in `touch`.
        """
        p.resetSimulation(physicsClientId=self.client)
        p.setGravity(0, 0, -9.81, physicsClientId=self.client)
        p.setPhysicsEngineParameter(
            fixedTimeStep=self._substep_s,
            numSubSteps=self._engine_steps,
            numSolverIterations=30,
            contactERP=0.9,  # the default, 0.2, leaves the pads millimeters deep in what they hold
            deterministicOverlappingPairs=1,
            physicsClientId=self.client,
        )
        self._add_table(render_config)
        self.arms = [
            Arm(model, self.client, joints, substep_s=self._substep_s, table_rgb=render_config.table_rgb)
            for model, joints in zip(self.model.arm, joint_rad, strict=True)
        ]
        poses = zip(scene.object, scene.position_m, scene.yaw_rad, strict=True)
        bodies = [self._add_object(*pose) for pose in poses]
        self.object_bodies = tuple(bodies[number] for number in scene.shown)
        self._slot = {body: slot for slot, body in enumerate(self.object_bodies)}
        # Last, so that the body ids of everything else do not depend on distractors.
        self.movable_bodies = self.object_bodies + tuple(
            self._add_object(one.object, one.position_m, one.yaw_rad) for one in distractors
        )

    def move(self, path_rad: list[list[np.ndarray]], opening: list[float]) -> None:
        """Simulate one control step.

        Args:
            path_rad: for each arm NUM_SUBSTEPS joint targets (J,), rad, one per substep.
            opening: for each arm the commanded finger opening, 0 closed .. 1 open.
        """
        self._touched: frozenset[int] = frozenset()
        for targets in zip(*path_rad, strict=True):
            for arm, target, commanded in zip(self.arms, targets, opening, strict=True):
                arm.drive(target)
                arm.drive_fingers(commanded)
            p.stepSimulation(physicsClientId=self.client)
            self._touched = self._touched.union(*(finger for gripper in self._touching() for finger in gripper))
            self._calm_objects()

    def settle(self, joint_rad: list[np.ndarray]) -> None:
        """Let the objects come to rest for one control step while the arms hold `joint_rad`."""
        self.move([[joints] * NUM_SUBSTEPS for joints in joint_rad], [1.0] * len(joint_rad))

    def object_poses(self, num_slots: int) -> np.ndarray:
        """(num_slots, 7) float32, x y z (m) and quaternion wxyz of each object; unused slots are zero."""
        poses = np.zeros((num_slots, 7), np.float32)
        for slot, body in enumerate(self.object_bodies):
            position, (x, y, z, w) = p.getBasePositionAndOrientation(body, physicsClientId=self.client)
            poses[slot] = (*position, w, x, y, z)
        return poses

    def touch(self) -> Touch:
        """Contacts now, and of the fingers during the last control step."""
        pairs = set()
        for i, first in enumerate(self.object_bodies):
            for j in range(i + 1, len(self.object_bodies)):
                if p.getContactPoints(first, self.object_bodies[j], physicsClientId=self.client):
                    pairs.add((i, j))
        return Touch(gripper=self._touching(), finger_during=self._touched, pair=frozenset(pairs))

    def _touching(self) -> tuple[tuple[frozenset[int], frozenset[int]], ...]:
        """Slots of the objects that the left and the right finger of each gripper touch now."""
        return tuple((self.slots_of(arm.touching(0)), self.slots_of(arm.touching(1))) for arm in self.arms)

    def slots_of(self, bodies: set[int]) -> frozenset[int]:
        """Object slots of some of PyBullet's bodies; distractors have none."""
        return frozenset(self._slot[body] for body in bodies if body in self._slot)

    def _calm_objects(self) -> None:
        """Slow down an object that was squeezed out between gripper and table: a stiff arm would shoot it away, a real
        one is compliant."""
        for body in self.movable_bodies:
            (x, y, z), angular = p.getBaseVelocity(body, physicsClientId=self.client)
            fast = max(hypot(x, y, max(z, 0.0)) / MAX_OBJECT_M_S, hypot(*angular) / MAX_OBJECT_RAD_S)
            if fast > 1.0:
                linear = (x / fast, y / fast, min(z, z / fast))  # falling is left alone
                turning = [value / fast for value in angular]
                p.resetBaseVelocity(body, linear, turning, physicsClientId=self.client)

    def _add_table(self, render_config: RenderConfig) -> None:
        half = TABLE_HALF_M
        solid = p.createCollisionShape(p.GEOM_BOX, halfExtents=half, physicsClientId=self.client)
        if render_config.cloth:
            seen = self._cloth_top()
        else:
            rgba = (*render_config.table_rgb, 1)
            seen = p.createVisualShape(p.GEOM_BOX, halfExtents=half, rgbaColor=rgba, physicsClientId=self.client)
        table = p.createMultiBody(0, solid, seen, basePosition=(0.4, 0, -half[2]), physicsClientId=self.client)
        p.changeDynamics(table, -1, lateralFriction=0.8, physicsClientId=self.client)
        if render_config.cloth:
            p.changeVisualShape(table, -1, textureUniqueId=self._load(render_config.cloth), physicsClientId=self.client)

    def _cloth_top(self) -> int:
        """Make the upper side of the table as a separate body: PyBullet maps only a quarter of a texture's width onto a
        box."""
        x, y, z = TABLE_HALF_M
        return p.createVisualShape(
            p.GEOM_MESH,
            vertices=[[-x, -y, z], [x, -y, z], [x, y, z], [-x, y, z]],
            indices=[0, 1, 2, 0, 2, 3],
            uvs=[[0, 0], [1, 0], [1, 1], [0, 1]],
            normals=[[0, 0, 1]] * 4,
            rgbaColor=(1, 1, 1, 1),
            physicsClientId=self.client,
        )

    def _load(self, cloth: Cloth) -> int:
        """Id of the cloth's texture. PyBullet's software renderer accepts textures from files only (a bitmap needs no
        codec)."""
        with tempfile.NamedTemporaryFile(suffix=".bmp") as file:
            Image.fromarray(texture(cloth, side_m=2 * TABLE_HALF_M[0])).save(file.name)
            # Otherwise the file stays in memory: 0.75 MiB per episode.
            p.setPhysicsEngineParameter(enableFileCaching=0, physicsClientId=self.client)
            number = p.loadTexture(file.name, physicsClientId=self.client)
            p.setPhysicsEngineParameter(enableFileCaching=1, physicsClientId=self.client)
        return number

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
    """Arguments of PyBullet's create...ShapeArray for `parts`, placed from the object's center."""
    lift = -model.half_size_m[2]
    return {
        "shapeTypes": [_KIND[part.shape] for part in parts],
        "halfExtents": [[side / 2 for side in part.size_m] for part in parts],
        "radii": [part.size_m[0] for part in parts],
        "lengths": [part.size_m[2] for part in parts],
        f"{kind}FramePositions": [(part.at_m[0], part.at_m[1], part.at_m[2] + lift) for part in parts],
        f"{kind}FrameOrientations": [_LYING if part.lying else (0, 0, 0, 1) for part in parts],
    }

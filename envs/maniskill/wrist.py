"""Mounts a camera on the gripper of a digital twin. It renders the 3D scene: no photograph is laid over its image."""

from math import radians
from typing import Any

import numpy as np

from envs.kinematics.rotations import matrix_quaternion
from envs.robots import WRIST_FOV_DEG, WRIST_M, WRIST_TARGET_M

WRIST_CAMERA = "wrist_camera"


def mount_wrist_camera(env: Any, side_px: int) -> None:
    """Add a camera of `side_px` x `side_px` to ManiSkill's environment, from the next time on that its scene is built.

    The pose in the tool frame is that of PyBullet's wrist camera, and the near clipping plane too (CameraConfig's own).
    """
    import sapien
    from mani_skill.sensors.camera import Camera, CameraConfig
    from mani_skill.utils.structs.pose import Pose

    own_setup = env._setup_sensors
    pose = Pose.create(sapien.Pose(WRIST_M, matrix_quaternion(wrist_matrix()).tolist()))

    def setup_sensors(options: dict[str, Any]) -> None:
        own_setup(options)
        config = CameraConfig(
            uid=WRIST_CAMERA,
            pose=pose,
            width=side_px,
            height=side_px,
            fov=radians(WRIST_FOV_DEG),
            mount=env.agent.robot.links_map["ee_gripper_link"],
        )
        env._sensors[WRIST_CAMERA] = Camera(config, env.scene)

    env._setup_sensors = setup_sensors


def wrist_matrix() -> np.ndarray:
    """(3, 3) orientation of the camera in the tool frame: x forward, y left in the image, z up, as SAPIEN has it."""
    forward = np.array(WRIST_TARGET_M) - WRIST_M
    left = np.cross((0.0, 0.0, 1.0), forward)
    axes = np.stack([forward, left, np.cross(forward, left)], axis=1)
    return axes / np.linalg.norm(axes, axis=0)

"""Makes the image behind a digital-twin task: SIMPLER's camera and photograph, after a perturbation. NumPy and OpenCV.

A background is one photograph (SIMPLER's "green screen"); only the robot and the objects are rendered. A tablecloth is
therefore drawn into the photograph, on the plane of the table. For a camera that moves, the photograph is transformed
as if all of it lay on that plane: this is exact for the table, and approximate for the wall behind it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.kinematics.rotations import quaternion_matrix
from envs.maniskill.tasks import ManiSkillTask
from envs.observations import resized_projection
from envs.scene.scenarios import CameraOffset, Viewpoint, camera_move, camera_turn
from envs.scene.textures import Cloth, texture

FOCAL_PX, CENTER_PX, PHOTO_PX = 623.588, (319.501, 239.545), (640, 480)
"""SIMPLER's camera, a Logitech C920; the same as in mani_skill's bridge_dataset_eval/base_env.py."""
FAR_M = 1.0
"""Points of the table's plane beyond this distance from the base, m, do not belong to the table."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera in the robot's base frame; it looks along its x axis, y is left, z up in the image."""

    camera_pos_m: np.ndarray
    """(3,)."""
    matrix: np.ndarray
    """(3, 3) orientation."""
    intrinsics: np.ndarray
    """(3, 3) intrinsics, px."""

    def moved(self, offset: CameraOffset | None) -> "Camera":
        """The camera after an offset."""
        if offset is None:
            return self
        forward = self.matrix[:, 0]
        return Camera(
            camera_pos_m=self.camera_pos_m + camera_move(forward, offset),
            matrix=camera_turn(forward, offset) @ self.matrix,
            intrinsics=self.intrinsics,
        )

    def rays(self, width_height_px: tuple[int, int]) -> np.ndarray:
        """(Y, X, 3) directions of the pixels."""
        u, v = np.meshgrid(np.arange(width_height_px[0]), np.arange(width_height_px[1]))
        (fx, _, cx), (_, fy, cy), _ = self.intrinsics
        return np.stack([np.ones_like(u, float), (cx - u) / fx, (cy - v) / fy], axis=-1) @ self.matrix.T

    def pixels(self, away_N3: np.ndarray) -> np.ndarray:
        """(..., 2) pixels at which directions or points relative to the camera are seen."""
        in_camera_N3 = away_N3 @ self.matrix
        (fx, _, cx), (_, fy, cy), _ = self.intrinsics
        depth = np.maximum(in_camera_N3[..., 0], 1e-6)
        return np.stack([cx - fx * in_camera_N3[..., 1] / depth, cy - fy * in_camera_N3[..., 2] / depth], axis=-1)

    def projection(self, width_height_px: tuple[int, int], size: int) -> np.ndarray:
        """(3, 4): how it projects points of the base frame onto its image of `width_height_px` after this has become
        `size` x `size`, as `info["camera"]`."""
        (fx, _, cx), (_, fy, cy), _ = self.intrinsics
        onto_photo_34 = (
            np.array([[cx, -fx, 0.0], [cy, 0.0, -fy], [1.0, 0.0, 0.0]])
            @ self.matrix.T
            @ np.column_stack([np.eye(3), -self.camera_pos_m])
        )
        width, height = width_height_px
        return resized_projection(onto_photo_34, across=size / width, down=size / height)

    def viewpoint(self, table_z_m: float, height_px: int) -> Viewpoint:
        """The camera in the form that scenarios use."""
        forward = self.matrix[:, 0]
        target = self.camera_pos_m + forward * (table_z_m - self.camera_pos_m[2]) / forward[2]
        fov = 2 * np.degrees(np.arctan(height_px / 2 / self.intrinsics[1, 1]))
        return Viewpoint(camera_pos_m=_vector(self.camera_pos_m), target_m=_vector(target), fov_deg=float(fov))


def camera_of(pose: Any, intrinsics: np.ndarray) -> Camera:
    """The camera of a SAPIEN pose in the robot's base frame."""
    return Camera(
        camera_pos_m=np.array(pose.p, float), matrix=quaternion_matrix(np.array(pose.q, float)), intrinsics=intrinsics
    )


def background(
    photo: np.ndarray,
    camera: Camera,
    task: ManiSkillTask,
    *,
    cloth: Cloth | None = None,
    offset: CameraOffset | None = None,
) -> np.ndarray:
    """(Y, X, 3) uint8: the photograph (Y, X, 3) that `camera` took, seen from an offset, with a cloth on the table."""
    import cv2  # mani-skill's own dependency, which needs libGL

    if cloth is None and offset is None:
        return photo
    now = camera.moved(offset)
    ray = now.rays((photo.shape[1], photo.shape[0]))
    with np.errstate(divide="ignore"):
        far = (task.table_z_m - now.camera_pos_m[2]) / ray[..., 2:]
    point = now.camera_pos_m + far * ray
    on_table = (far[..., 0] > 0) & (np.hypot(point[..., 0], point[..., 1]) < FAR_M)
    seen = photo
    if offset is not None:
        source = camera.pixels(np.where(on_table[..., None], point - camera.camera_pos_m, ray)).astype(np.float32)
        seen = cv2.remap(photo, source[..., 0], source[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    if cloth is None:
        return seen
    low, high = np.array(task.cloth_low_m), np.array(task.cloth_high_m)
    under = on_table & ((point[..., :2] >= low) & (point[..., :2] <= high)).all(axis=-1)
    side_m = float(2 * np.abs([low, high]).max())
    image = texture(cloth, side_m=side_m)
    column, row = (np.stack([point[under, 0], -point[under, 1]]) / side_m + 0.5) * len(image)
    painted = seen.copy()
    painted[under] = image[row.astype(int) % len(image), column.astype(int) % len(image)]
    return painted


def photo_px(size: int) -> tuple[int, int]:
    """Width and height in which an image is rendered before it becomes `size` x `size`: twice that, at most the C920's.

    Drawing 640 x 480 on a CPU takes five times as long as the rest of a step; docs/results/log.md says what is lost.
    """
    return (2 * size, 2 * size) if 2 * size <= PHOTO_PX[1] else PHOTO_PX


def intrinsics_of(width_height_px: tuple[int, int]) -> np.ndarray:
    """(3, 3) intrinsics of SIMPLER's camera for an image of another size, px."""
    across, down = width_height_px[0] / PHOTO_PX[0], width_height_px[1] / PHOTO_PX[1]
    return np.diag([across, down, 1.0]) @ [[FOCAL_PX, 0, CENTER_PX[0]], [0, FOCAL_PX, CENTER_PX[1]], [0, 0, 1]]


def resized(photo: np.ndarray, width_height_px: tuple[int, int]) -> np.ndarray:
    """The photograph in another size, averaged."""
    import cv2

    return cv2.resize(photo, width_height_px, interpolation=cv2.INTER_AREA)


def _vector(value: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(one) for one in value)
    return x, y, z

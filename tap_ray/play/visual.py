"""Finds objects in the camera's image, so that play needs no object poses from a simulator.

It uses what a real robot has as well: the image, the robot's own mask and the calibration of the camera. Pixels that
differ from the table's median color are blobs; a blob's center and long axis, on a plane a little above the table, are
the pose to reach for; objects that touch in the image are one. Where the robot hides the table, the pixels from before
it came are used.
"""

from dataclasses import dataclass

import numpy as np

from tap_ray.dataset.crops import CropConfig, blobs
from tap_ray.dataset.inpaint_robot import grow
from tap_ray.errors import SpecError
from tap_ray.play.motion import MotionConfig
from tap_ray.types import Info, Observation

ROBUST = 3.0
"""A pixel differs from the table if its contrast is also this many times the table's median contrast, so that the grain
of a table is not taken for objects (a print in two colors is)."""
MARGIN_M = 0.02
"""Objects are looked for so far beyond the safety box B, m."""
SIDE_PX = 96
"""Side of the image for which sizes in pixels are given."""


@dataclass(frozen=True, kw_only=True)
class VisualConfig:
    """How the explorer "visual" finds objects. Its moves are those of "contact"."""

    min_contrast: float = 60.0
    """Least difference between an object's color and the table's, gray levels summed over the channels."""
    min_blob_px: int = 12
    """Fewest pixels of an object in an image of 96 px."""
    object_height_m: tuple[float, float] = (0.01, 0.025)
    """An image does not say how high an object's center is above the table: a uniform draw, (low, high), m."""
    mask_grow_px: int = 1
    """Dilate the robot's mask by this, px: its edge is not an object."""


class VisibleObjects:
    """Where the objects of one robot's table are, as far as its camera has seen them in this episode."""

    def __init__(self, config: VisualConfig, motion: MotionConfig) -> None:
        self._config = config
        self._low_m, self._high_m = np.array(motion.bounds_low_m[:2]), np.array(motion.bounds_high_m[:2])

    def reset(self, obs: Observation, info: Info) -> None:
        """An episode begins: the camera may have moved.

        Raises:
            SpecError: the environment gives no calibration or no mask.
        """
        missing = [key for key in ("camera", "robot_mask") if key not in info]
        if missing:
            raise SpecError(
                f'The explorer "visual" needs {" and ".join(missing)} in info (tap_ray/types.py), which this '
                "environment does not give. Let its simulator state them, or use the explorer waypoint."
            )
        self._camera_34 = np.asarray(info["camera"])
        rows, columns = obs["rgb"].shape[:2]
        point_YX2 = on_plane(self._camera_34, np.mgrid[:rows, :columns].transpose(1, 2, 0), 0.0)
        inside = (point_YX2 >= self._low_m - MARGIN_M) & (point_YX2 <= self._high_m + MARGIN_M)
        self._inside_YX = inside.all(-1)
        self._rgb_YX3 = np.array(obs["rgb"])
        self._seen_YX = np.zeros(self._inside_YX.shape, bool)
        self.watch(obs, info)

    def watch(self, obs: Observation, info: Info) -> None:
        """Remember the pixels that the robot does not hide now."""
        robot_YX = grow(np.asarray(info["robot_mask"])[None] > 0, self._config.mask_grow_px)[0]
        self._rgb_YX3[~robot_YX] = obs["rgb"][~robot_YX]
        self._seen_YX |= ~robot_YX

    def poses(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Of each object, (7,): x y z (m, base frame), and its long side's direction as a quaternion wxyz about the
        vertical."""
        known_YX = self._seen_YX & self._inside_YX
        if not known_YX.any():
            return []
        table = np.median(self._rgb_YX3[known_YX], axis=0)
        contrast_YX = np.abs(self._rgb_YX3 - table).sum(-1)
        threshold = max(self._config.min_contrast, ROBUST * float(np.median(contrast_YX[known_YX])))
        smallest = max(2, round(self._config.min_blob_px * known_YX.size / SIDE_PX**2))
        found = blobs(known_YX & (contrast_YX > threshold), CropConfig(min_blob_px=smallest))
        return [self._pose(blob, float(rng.uniform(*self._config.object_height_m))) for blob in found]

    def _pose(self, blob_YX: np.ndarray, height_m: float) -> np.ndarray:
        point_P2 = on_plane(self._camera_34, np.argwhere(blob_YX), height_m)
        _, axis_22 = np.linalg.eigh(np.cov(point_P2.T))
        yaw = float(np.arctan2(axis_22[1, -1], axis_22[0, -1]))
        return np.array([*point_P2.mean(0), height_m, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])


def on_plane(camera_34: np.ndarray, pixel_P2: np.ndarray, height_m: float) -> np.ndarray:
    """(..., 2): the points x y, m, of the horizontal plane at `height_m` that pixels show; NaN above the horizon.

    Args:
        camera_34: (3, 4) projection of points in the base frame to (column w, row w, w), as `info["camera"]`.
        pixel_P2: (..., 2) row and column of each pixel.
        height_m: of the plane, base frame.
    """
    from_plane = np.column_stack([camera_34[:, :2], camera_34[:, 2] * height_m + camera_34[:, 3]])
    pixel_P3 = np.concatenate([pixel_P2[..., ::-1], np.ones((*pixel_P2.shape[:-1], 1))], axis=-1)
    point_P3 = pixel_P3 @ np.linalg.inv(from_plane).T  # x / w, y / w, 1 / w: positive in front of the camera
    return point_P3[..., :2] / np.where(point_P3[..., 2:] > 0, point_P3[..., 2:], np.nan)

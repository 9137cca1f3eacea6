"""Encodes a trajectory (arrays) as an episode that can be sent and stored: JPEG, PNG, statistics, metadata."""

from typing import Any, Mapping

import numpy as np

from tap_ray.dataset.statistics import image_stats
from tap_ray.media.image import JPEG_QUALITY, encode_jpeg, encode_mask
from tap_ray.types import Episode, Trajectory


def encode_episode(
    trajectory: Trajectory,
    *,
    index: int,
    task: str,
    meta: Mapping[str, Any] | None = None,
    jpeg_quality: int = JPEG_QUALITY,
) -> Episode:
    """Encode one trajectory; runs in the robot's process, so that little data is sent.

    Args:
        trajectory: the trajectory.
        index: the episode's place in the dataset.
        task: sentence for tasks.parquet.
        meta: scalars to store with it (seed, explorer, embodiment, attempt ...); they replace the computed ones:
            contact_rate (where contact is known), object_displacement_m, partial, success, num_clipped, objects.
        jpeg_quality: 1 to 95.

    Raises:
        FloatingPointError: a state, action or object pose is NaN or infinite, because the simulator diverged.
    """
    for name in ("state", "action", "object_pose"):
        broken = ~np.isfinite(getattr(trajectory, name))
        if broken.any():
            raise FloatingPointError(f"{name} is NaN or infinite at step {int(np.argwhere(broken)[0, 0])}")
    computed = {
        **({"contact_rate": float(trajectory.contact.mean())} if trajectory.contact.size else {}),
        "object_displacement_m": object_displacement_m(trajectory.object_pose),
        "partial": bool(trajectory.partial.any()),
        "success": bool(trajectory.entire.any()),
        "num_clipped": int(trajectory.num_clipped),
        "objects": ",".join(trajectory.object_name),
    }
    masks, extra = trajectory.robot_mask, trajectory.extra_rgb
    others = () if extra is None else extra.swapaxes(0, 1)  # camera by camera
    return Episode(
        index=index,
        task=task,
        image_jpeg=[encode_jpeg(rgb, jpeg_quality) for rgb in trajectory.rgb],
        mask_png=None if masks is None else [encode_mask(mask) for mask in masks],
        state=trajectory.state,
        action=trajectory.action,
        contact=trajectory.contact,
        object_pose=trajectory.object_pose,
        image_stats=image_stats(trajectory.rgb),
        meta={**computed, **(meta or {})},
        extra_jpeg=[[encode_jpeg(rgb, jpeg_quality) for rgb in other] for other in others],
        extra_stats=[image_stats(other) for other in others],
    )


def object_displacement_m(object_pose_TM7: np.ndarray) -> float:
    """Largest distance of any object from its initial position during the episode, m; 0 without objects."""
    position_TM3 = object_pose_TM7[:, :, :3].astype(np.float64)
    if position_TM3.size == 0:
        return 0.0
    return float(np.linalg.norm(position_TM3 - position_TM3[:1], axis=2).max())

"""Builds the safe-pose library: poses that a robot may go to, evenly over its reach (arXiv 2607.02466, Algorithm 1,
step 1).

The raw poses come from the robot's kinematics in `envs`; a job passes that function as an argument.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tap_ray.errors import ConfigError
from tap_ray.rng import generator
from tap_ray.types import EnvConfig


@dataclass(frozen=True, kw_only=True)
class SafePosesConfig:
    """Settings of the safe-pose library."""

    num_samples: int = 3000
    """Raw reachable poses to draw before thinning."""
    leaf_m: float = 0.05
    """Edge of a voxel, m; one pose is kept in each."""


class SamplePoses(Protocol):
    """`num` random reachable tool poses (num, 7) of an arm of the robot of `config`: x y z (m), quaternion wxyz."""

    def __call__(self, config: EnvConfig, rng: np.random.Generator, num: int, arm: int = 0) -> np.ndarray: ...


def voxel_of(pos_m: np.ndarray, leaf_m: float) -> np.ndarray:
    """(..., 3) int64 voxel that holds each position (..., 3); voxel (0, 0, 0) begins at the base frame's origin."""
    return np.floor(np.asarray(pos_m, np.float64) / leaf_m).astype(np.int64)


def thin(poses_N7: np.ndarray, low_m: np.ndarray, high_m: np.ndarray, leaf_m: float) -> np.ndarray:
    """Keep the poses inside the box, and in each voxel only the one nearest to its center.

    Unlike the mean of a voxel's points, which point-cloud libraries use, the kept pose is one that the robot can reach.

    Returns:
        (M, 7) poses, ordered by voxel, so that the order of the input does not matter.
    """
    inside = np.all((poses_N7[:, :3] >= low_m) & (poses_N7[:, :3] <= high_m), axis=1)
    poses = poses_N7[inside]
    voxel = voxel_of(poses[:, :3], leaf_m)
    distance = np.linalg.norm(poses[:, :3] - (voxel + 0.5) * leaf_m, axis=1)
    order = np.lexsort((distance, *voxel.T[::-1]))
    _, first = np.unique(voxel[order], axis=0, return_index=True)
    return poses[order[first]]


def build_library(
    config: SafePosesConfig,
    sample_poses: SamplePoses,
    env: EnvConfig,
    *,
    seed: int,
    low_m: tuple[float, float, float],
    high_m: tuple[float, float, float],
) -> np.ndarray:
    """Build the library (M, 7) of one robot inside the safety box `low_m` .. `high_m` (base frame, m).

    Raises:
        ConfigError: there are fewer than two safe poses.
    """
    raw_N7 = sample_poses(env, generator(seed, "safe_poses"), config.num_samples)
    library = thin(np.asarray(raw_N7, np.float64), np.array(low_m), np.array(high_m), config.leaf_m)
    if len(library) < 2:
        raise ConfigError(
            f"Only {len(library)} of {len(raw_N7)} reachable poses of {env.robot!r} are between bounds_low_m {low_m} "
            f"and bounds_high_m {high_m}. Enlarge the box, or draw more poses with num_samples."
        )
    return library

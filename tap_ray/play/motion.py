"""Turns an explorer's waypoints into actions: cosine interpolation, noise, bounds.

Source: arXiv 2607.02466, Algorithm 1, step 4.

Quaternions are wxyz, positions meters in the robot's base frame. The path is that of the *commanded* pose, which an
action moves (specs.py); it is integrated from the actions as executed, so clipping cannot make the two drift apart.
"""

import math
from dataclasses import dataclass

import numpy as np

from tap_ray.errors import ConfigError
from tap_ray.specs import MAX_DELTA_POS_M, MAX_DELTA_ROT_RAD


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """How waypoints are joined."""

    bounds_low_m: tuple[float, float, float] = (0.17, -0.21, 0.014)
    """Lower corner of the safety box B, base frame, m."""
    bounds_high_m: tuple[float, float, float] = (0.41, 0.21, 0.25)
    """Upper corner of B, m."""
    speed_min: float = 0.5
    """Slowest segment: peak of its velocity as a fraction of the largest action."""
    speed_max: float = 1.0
    """Fastest segment, likewise; each segment draws its speed between these."""
    noise_pos_m: float = 0.005
    """Sigma of the Gaussian noise on every interpolated position, m; 0 turns it off."""
    noise_rot_rad: float = 0.04
    """Sigma of the noise on every interpolated rotation, rad; 0 turns it off."""
    gripper_dwell_steps: float = 10.0
    """Mean number of control steps between two changes of the gripper, for explorers that do not decide it; 0: it stays
    open."""
    max_lag_m: float = 0.03
    """Largest tracking error of the end effector, m. Beyond it the robot pushes against something, and the waypoint is
    abandoned. Twice that in ManiSkill, whose controller follows slowly."""
    max_lag_rad: float = 0.3
    """The same for its orientation, rad."""

    def __post_init__(self) -> None:
        if not all(low < high for low, high in zip(self.bounds_low_m, self.bounds_high_m, strict=True)):
            raise ConfigError(
                f"bounds_low_m {self.bounds_low_m} must be below bounds_high_m {self.bounds_high_m} on every axis."
            )
        if self.speed_min > self.speed_max:
            raise ConfigError(f"speed_min {self.speed_min} must be at most speed_max {self.speed_max}.")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A waypoint: a pose, and what the gripper does on the way to it."""

    pos_base_m: np.ndarray
    """(3,) position, m."""
    quat_wxyz: np.ndarray
    """(4,) orientation."""
    gripper: float | None = None
    """+1 open, -1 closed; None leaves it to the explorer's own schedule."""
    hold_steps: int = 0
    """Control steps to stay there before the next waypoint (e.g. for the fingers to close)."""


def clip_to(config: MotionConfig, pos_m: np.ndarray) -> np.ndarray:
    """(3,) position, m, base frame -> (3,) the nearest one inside the safety box B."""
    return np.clip(pos_m, config.bounds_low_m, config.bounds_high_m)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment from pose to pose in `num_steps` control steps."""

    start_pos_m: np.ndarray
    """(3,) position, m, base frame."""
    start_quat: np.ndarray
    """(4,) orientation, wxyz."""
    target: Target
    num_steps: int

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,), m, and quaternion (4,), wxyz, after `step` steps: s(t) = (1 - cos(pi t)) / 2 between the two
        poses."""
        share = (1 - math.cos(math.pi * min(step / self.num_steps, 1.0))) / 2
        pos_m = self.start_pos_m + share * (self.target.pos_base_m - self.start_pos_m)
        turn = quat_log(quat_multiply(self.target.quat_wxyz, quat_conjugate(self.start_quat)))
        return pos_m, quat_multiply(quat_exp(share * turn), self.start_quat)


def segment(pos_m: np.ndarray, quat: np.ndarray, target: Target, speed: float) -> Segment:
    """The segment to `target` whose fastest step is `speed` of the largest action.

    The cosine's peak velocity is pi / 2 of its mean, which sets the number of steps.

    Args:
        pos_m: (3,) position at its start, m, base frame.
        quat: (4,) orientation at its start, wxyz.
        target: its end.
        speed: (0, 1].
    """
    shift = np.abs(target.pos_base_m - pos_m).max() / (speed * MAX_DELTA_POS_M)
    turn = np.abs(quat_log(quat_multiply(target.quat_wxyz, quat_conjugate(quat)))).max() / (speed * MAX_DELTA_ROT_RAD)
    num_steps = max(1, math.ceil(math.pi / 2 * max(shift, turn)))
    return Segment(start_pos_m=pos_m.copy(), start_quat=quat.copy(), target=target, num_steps=num_steps)


def quat_multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Hamilton product (4,) of two wxyz quaternions: first b, then a."""
    # Plain floats: `np.cross` of two vectors costs ten times as much, 4 % of an episode in all.
    w, x, y, z = a.tolist()
    s, i, j, k = b.tolist()
    return np.array(
        [
            w * s - (x * i + y * j + z * k),
            w * i + s * x + (y * k - z * j),
            w * j + s * y + (z * i - x * k),
            w * k + s * z + (x * j - y * i),
        ]
    )


def quat_conjugate(quat: np.ndarray) -> np.ndarray:
    """(4,) wxyz of unit length -> (4,) the inverse rotation."""
    return quat * np.array([1.0, -1.0, -1.0, -1.0])


def quat_exp(rotvec_rad: np.ndarray) -> np.ndarray:
    """Axis-angle (3,) rad -> quaternion (4,) wxyz."""
    angle = float(np.linalg.norm(rotvec_rad))
    return np.concatenate([[math.cos(angle / 2)], rotvec_rad * (0.5 * np.sinc(angle / (2 * math.pi)))])


def quat_log(quat: np.ndarray) -> np.ndarray:
    """Quaternion (4,) wxyz -> axis-angle (3,) rad of at most pi; inverse of `quat_exp`."""
    quat = -quat if quat[0] < 0 else quat
    length = float(np.linalg.norm(quat[1:]))
    if length < 1e-9:
        return 2 * quat[1:]
    return quat[1:] * (2 * math.atan2(length, quat[0]) / length)


def rotate(quat: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """`vector` (3,) turned by `quat` (4,) wxyz."""
    return vector + 2 * np.cross(quat[1:], np.cross(quat[1:], vector) + quat[0] * vector)

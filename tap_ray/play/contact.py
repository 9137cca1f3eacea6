"""Plans waypoints around objects: grasp, lift, carry, drop, place, release and push, all with random parameters.

Where the objects are is **privileged** for the explorer "contact" (`SimulatorPoses`), and seen by its camera for
"visual" (visual.py). The dataset records the explorer's name of each episode.
"""

from dataclasses import dataclass
from typing import Any, Mapping, Protocol

import numpy as np

from tap_ray.errors import ConfigError
from tap_ray.play.motion import MotionConfig, Target, clip_to, quat_exp, quat_multiply, rotate
from tap_ray.types import Info, Observation

OPEN, CLOSED = 1.0, -1.0
CLEAR_M = 0.08
"""Smallest lift of an object that is carried over another one, m: higher than the basket's rim."""
SWING_RAD = 1.2
"""Largest turn of the gripper about the vertical, rad, so that the wrist stays away from its joint limits."""


@dataclass(frozen=True, kw_only=True)
class ContactConfig:
    """Random parameters of the primitives; pairs are (low, high) of a uniform draw."""

    free_probability: float = 0.1
    """Probability of a random waypoint in between, so that there is also motion without an object."""
    push_probability: float = 0.35
    """Probability of a push; otherwise a grasp is attempted."""
    aligned_probability: float = 0.8
    """Probability that the fingers close across the object's long side; otherwise the yaw is random."""
    offset_m: float = 0.006
    """Sigma of the grasp's horizontal error, m."""
    grasp_height_m: tuple[float, float] = (-0.01, 0.004)
    """Height of the tool above the object's center, m; it is never below the floor of the box B."""
    hover_m: tuple[float, float] = (0.04, 0.09)
    """Height above the object from which it is approached, m."""
    lift_m: tuple[float, float] = (0.04, 0.18)
    """Lift to this height above the table, m."""
    place_probability: float = 0.4
    """Probability to set a carried object down; otherwise it is dropped from where it is, or kept in the gripper."""
    keep_probability: float = 0.3
    """Probability to keep it in the gripper for the next waypoints."""
    onto_probability: float = 0.5
    """Probability that a carried object is released over another one; otherwise anywhere in the box B."""
    onto_height_m: tuple[float, float] = (0.025, 0.06)
    """Height above its grasp at which it is released there, m; high enough to clear the basket's rim."""
    push_start_m: tuple[float, float] = (0.05, 0.09)
    """Distance from the object's center at which a push begins, m."""
    push_length_m: tuple[float, float] = (0.03, 0.14)
    """Distance beyond the object's center at which a push ends, m."""
    close_steps: int = 2
    """Control steps to wait while the fingers close or open."""

    def __post_init__(self) -> None:
        if self.place_probability + self.keep_probability > 1:
            raise ConfigError(
                "place_probability + keep_probability must be at most 1; the remaining probability is that of "
                "dropping the object."
            )


class _View(Protocol):
    pos_m: np.ndarray
    home_quat: np.ndarray
    obs: Observation
    info: Info
    rng: np.random.Generator


class ObjectFinder(Protocol):
    """Says where one robot's objects are."""

    def reset(self, obs: Observation, info: Info) -> None:
        """An episode begins."""
        ...

    def watch(self, obs: Observation, info: Info) -> None:
        """Called at every control step."""
        ...

    def poses(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Of each object, (7,): x y z (m, base frame), quaternion wxyz; the x axis is its long side."""
        ...


class SimulatorPoses:
    """The simulator's own poses: privileged."""

    def reset(self, obs: Observation, info: Info) -> None:
        """An episode begins."""
        self._info = info

    def watch(self, obs: Observation, info: Info) -> None:
        """Keep the latest poses."""
        self._info = info

    def poses(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Of each object, (7,): x y z (m, base frame), quaternion wxyz."""
        return [pose for _, pose in present_objects(self._info)]


class ContactPlanner:
    """Plans one primitive after another on randomly chosen objects."""

    def __init__(self, config: ContactConfig, motion: MotionConfig, objects: ObjectFinder) -> None:
        self._config, self._motion, self._objects = config, motion, objects

    def reset(self, view: _View) -> None:
        """Look at the table."""
        self._objects.reset(view.obs, view.info)

    def watch(self, view: _View) -> bool:
        """Look at the table; never drops a waypoint."""
        self._objects.watch(view.obs, view.info)
        return False

    def plan(self, view: _View) -> list[Target]:
        """One primitive on one object, or a free waypoint."""
        config, rng = self._config, view.rng
        objects = self._objects.poses(rng)
        if not objects or rng.random() < config.free_probability:
            return [free_target(self._motion, view.home_quat, rng)]
        chosen = int(rng.integers(len(objects)))
        pose = objects[chosen]
        if rng.random() < config.push_probability:
            angle, length = float(rng.uniform(-np.pi, np.pi)), float(rng.uniform(*config.push_length_m))
            return push(config, self._motion, pose, view.home_quat, rng, angle_rad=angle, length_m=length)
        others = [other for number, other in enumerate(objects) if number != chosen]
        if others and rng.random() < config.onto_probability:
            target = others[rng.integers(len(others))]
            return lift_and_carry(config, self._motion, pose, view.home_quat, rng, goal_m=target[:3], onto=True)
        goal = rng.uniform(self._motion.bounds_low_m, self._motion.bounds_high_m)
        goal[2] = rng.uniform(*config.lift_m)
        return lift_and_carry(config, self._motion, pose, view.home_quat, rng, goal_m=goal)


def present_objects(info: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
    """Names and poses (7,), x y z (m, base frame) and quaternion wxyz, of the objects in the scene: the slots with a
    name."""
    names = str(info["object_name"]).split(",")
    return [(name, np.asarray(pose, np.float64)) for name, pose in zip(names, info["object_pose"], strict=True) if name]


def turned(home_quat: np.ndarray, yaw_rad: float) -> np.ndarray:
    """(4,) wxyz: the home orientation (4,) turned about the vertical, within the wrist's comfortable half turn."""
    yaw = (yaw_rad + np.pi / 2) % np.pi - np.pi / 2
    return quat_multiply(quat_exp(np.array([0.0, 0.0, np.clip(yaw, -SWING_RAD, SWING_RAD)])), home_quat)


def free_target(motion: MotionConfig, home_quat: np.ndarray, rng: np.random.Generator) -> Target:
    """A random position in the box B with a random yaw from `home_quat`, (4,) wxyz."""
    pos_m = rng.uniform(motion.bounds_low_m, motion.bounds_high_m)
    return Target(pos_base_m=pos_m, quat_wxyz=turned(home_quat, float(rng.uniform(-SWING_RAD, SWING_RAD))))


def lift_and_carry(
    config: ContactConfig,
    motion: MotionConfig,
    pose: np.ndarray,
    home_quat: np.ndarray,
    rng: np.random.Generator,
    *,
    goal_m: np.ndarray,
    onto: bool = False,
) -> list[Target]:
    """Waypoints: above the object, down, close, lift, carry to `goal_m`, then place, drop or keep. Whether the object
    was grasped is not checked.

    With `onto` something lies at `goal_m`: come from above, and release a few centimeters higher than the grasp.
    """
    heading = rotate(pose[3:], np.array([1.0, 0.0, 0.0]))
    aligned = rng.random() < config.aligned_probability
    yaw = float(np.arctan2(heading[1], heading[0])) if aligned else float(rng.uniform(-np.pi, np.pi))
    quat = turned(home_quat, yaw)
    grasp = pose[:3] + np.array([*rng.normal(0.0, config.offset_m, 2), rng.uniform(*config.grasp_height_m)])
    above = grasp + np.array([0.0, 0.0, rng.uniform(*config.hover_m)])
    lifted = np.array([grasp[0], grasp[1], max(rng.uniform(*config.lift_m), grasp[2] + CLEAR_M * onto)])
    release_z = grasp[2] + (rng.uniform(*config.onto_height_m) if onto else 0.0)
    carried = np.array([goal_m[0], goal_m[1], max(lifted[2] if onto else goal_m[2], release_z)])
    hold = config.close_steps
    targets = [
        _target(motion, above, quat, OPEN),
        _target(motion, grasp, quat, OPEN),
        _target(motion, grasp, quat, CLOSED, hold),
        _target(motion, lifted, quat, CLOSED),
        _target(motion, carried, turned(home_quat, yaw + float(rng.normal(0.0, 0.5))), CLOSED),
    ]
    end = rng.random()
    if onto or end < config.place_probability:
        low = np.array([carried[0], carried[1], release_z])
        return [*targets, _target(motion, low, quat, CLOSED), _target(motion, low, quat, OPEN, hold)]
    if end < config.place_probability + config.keep_probability:
        return targets
    return [*targets, _target(motion, carried, quat, OPEN, hold)]


def push(
    config: ContactConfig,
    motion: MotionConfig,
    pose: np.ndarray,
    home_quat: np.ndarray,
    rng: np.random.Generator,
    *,
    angle_rad: float,
    length_m: float,
) -> list[Target]:
    """Waypoints: beside the object, down, through it in direction `angle_rad` (base frame, about z) to `length_m`
    beyond, up again."""
    way = np.array([np.cos(angle_rad), np.sin(angle_rad), 0.0])
    height = np.array([0.0, 0.0, rng.uniform(*config.grasp_height_m)])
    start = pose[:3] - rng.uniform(*config.push_start_m) * way + height
    end = pose[:3] + length_m * way + height
    up = np.array([0.0, 0.0, rng.uniform(*config.hover_m)])
    quat = turned(home_quat, float(rng.uniform(-SWING_RAD, SWING_RAD)))
    gripper = CLOSED if rng.random() < 0.7 else OPEN
    return [_target(motion, point, quat, gripper) for point in (start + up, start, end, end + up)]


def _target(motion: MotionConfig, pos_m: np.ndarray, quat: np.ndarray, gripper: float, hold_steps: int = 0) -> Target:
    return Target(pos_base_m=clip_to(motion, pos_m), quat_wxyz=quat, gripper=gripper, hold_steps=hold_steps)

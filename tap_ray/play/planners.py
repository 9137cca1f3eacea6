"""Plans the next waypoints, for Algorithm 1 and for curiosity. `contact.py` has the third planner, for objects.

A planner chooses waypoints, and explorers.py moves to them. All random numbers come from the view's generator.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tap_ray.errors import ConfigError
from tap_ray.play.contact import ContactConfig, lift_and_carry, present_objects, push
from tap_ray.play.motion import MotionConfig, Target
from tap_ray.play.novelty import END_EFFECTOR, VisitCounts, cell, novelty
from tap_ray.play.safe_poses import voxel_of
from tap_ray.types import Info, Observation


@dataclass(kw_only=True)
class View:
    """What a planner knows about its robot at one step."""

    pos_m: np.ndarray
    """(3,) commanded tool position, base frame."""
    quat: np.ndarray
    """(4,) commanded orientation, wxyz."""
    home_quat: np.ndarray
    """(4,) orientation at the start of the episode: tool down."""
    obs: Observation
    """The observation, not batched."""
    info: Info
    """The environment's info; privileged, so a planner that reads it says so."""
    rng: np.random.Generator


class Planner(Protocol):
    """Chooses waypoints for one robot during one episode."""

    def reset(self, view: View) -> None:
        """An episode begins."""
        ...

    def watch(self, view: View) -> bool:
        """Called at every control step; True drops the current waypoints, and `plan` is called for new ones."""
        ...

    def plan(self, view: View) -> list[Target]:
        """The next waypoints, at least one."""
        ...


@dataclass(frozen=True, kw_only=True)
class WaypointConfig:
    """Settings of Algorithm 1, steps 2 and 3. The paper states none of these values."""

    d_min_m: float = 0.10
    """Smallest distance between consecutive waypoints, m."""
    z_thresh_m: float = 0.10
    """Heights above this count as away from the objects, m."""
    c_max_steps: int = 12
    """More than this many control steps in a row above z_thresh_m force a descent; 0 switches the rule off."""


class WaypointPlanner:
    """Draws waypoints from the safe-pose library; a descent is forced after too many steps in the air. It reads no
    object poses."""

    def __init__(self, config: WaypointConfig, library_M7: np.ndarray) -> None:
        self._config = config
        self._library = library_M7
        self._low = library_M7[library_M7[:, 2] <= config.z_thresh_m]
        if config.c_max_steps and not len(self._low):
            raise ConfigError(
                f"No safe pose is below z_thresh_m {config.z_thresh_m} (the lowest is at {library_M7[:, 2].min():.3f} "
                "m), so a descent cannot be forced. Raise z_thresh_m, or set c_max_steps to 0."
            )

    def reset(self, view: View) -> None:
        """Begin an episode with no steps in the air."""
        self._num_high = 0
        self._descending = False

    def watch(self, view: View) -> bool:
        """Whether the robot has been in the air for more than c_max_steps, and is not already descending."""
        self._num_high = self._num_high + 1 if view.pos_m[2] > self._config.z_thresh_m else 0
        if self._num_high == 0:
            self._descending = False
        forced = self._config.c_max_steps > 0 and self._num_high > self._config.c_max_steps
        return forced and not self._descending

    def plan(self, view: View) -> list[Target]:
        """One waypoint of the library, far enough from here; a low one if a descent is due."""
        due = self._config.c_max_steps > 0 and self._num_high > self._config.c_max_steps
        self._descending = due
        poses = far_enough(self._low if due else self._library, view.pos_m, self._config.d_min_m)
        return [target_of(poses[view.rng.integers(len(poses))])]


def far_enough(poses_M7: np.ndarray, pos_m: np.ndarray, d_min_m: float) -> np.ndarray:
    """(M', 7): those of the (M, 7) poses at least `d_min_m` from `pos_m` (3,), m; if there are none, the
    farthest one."""
    distance = np.linalg.norm(poses_M7[:, :3] - pos_m, axis=1)
    far = distance >= d_min_m
    return poses_M7[far] if far.any() else poses_M7[[int(np.argmax(distance))]]


def target_of(pose_7: np.ndarray) -> Target:
    """A library pose (7,), x y z (m) and quaternion wxyz, as a waypoint; the gripper keeps its own schedule."""
    return Target(pos_base_m=pose_7[:3].copy(), quat_wxyz=pose_7[3:].copy())


@dataclass(frozen=True, kw_only=True)
class CuriousConfig:
    """Settings of curiosity: intrinsic novelty over voxels of the end effector and the objects. It reads privileged
    object poses."""

    leaf_m: float = 0.05
    """Edge of a cell, m."""
    num_candidates: int = 32
    """Free waypoints compared at each decision."""
    object_weight: float = 2.0
    """Weight of a new cell of an object relative to a new cell of the end effector."""
    temperature: float = 0.05
    """Temperature of the softmax over the scores; near 0 the most novel candidate is always chosen."""


class CuriousPlanner:
    """Moves, pushes or carries to where end effector or object have been least often, in the run's past rounds and in
    this episode."""

    def __init__(
        self,
        config: CuriousConfig,
        contact: ContactConfig,
        motion: MotionConfig,
        *,
        library_M7: np.ndarray,
        visits: VisitCounts,
    ) -> None:
        self._config, self._contact, self._motion = config, contact, motion
        self._library = library_M7
        self._visits = visits

    def reset(self, view: View) -> None:
        """Forget the last episode."""
        self._episode_visits: Counter[str] = Counter()

    def watch(self, view: View) -> bool:
        """Count the cells of end effector and objects; never drops a waypoint."""
        self._episode_visits[self._cell(END_EFFECTOR, view.pos_m)] += 1
        for name, pose in present_objects(view.info):
            self._episode_visits[self._cell(name, pose[:3])] += 1
        return False

    def plan(self, view: View) -> list[Target]:
        """Draw one of the candidates; those that end in more novel cells are more likely."""
        plans, scores = self._free(view)
        for name, pose in present_objects(view.info):
            for targets, end_m in self._object_plans(view, pose):
                plans.append(targets)
                scores.append(self._config.object_weight * self._novelty(name, end_m))
        logits = np.array(scores) / self._config.temperature
        share = np.exp(logits - logits.max())
        return plans[view.rng.choice(len(plans), p=share / share.sum())]

    def _free(self, view: View) -> tuple[list[list[Target]], list[float]]:
        rows = view.rng.integers(len(self._library), size=self._config.num_candidates)
        poses = far_enough(self._library[rows], view.pos_m, self._config.leaf_m)
        return [[target_of(pose)] for pose in poses], [self._novelty(END_EFFECTOR, pose[:3]) for pose in poses]

    def _object_plans(self, view: View, pose: np.ndarray) -> list[tuple[list[Target], np.ndarray]]:
        """A push and a carry of one object, each with the object position it should lead to."""
        angle = float(view.rng.uniform(-np.pi, np.pi))
        length_m = float(view.rng.uniform(*self._contact.push_length_m))
        pushed = pose[:3] + length_m * np.array([np.cos(angle), np.sin(angle), 0.0])
        goal = self._library[view.rng.integers(len(self._library)), :3]
        down = view.home_quat
        return [
            (push(self._contact, self._motion, pose, down, view.rng, angle_rad=angle, length_m=length_m), pushed),
            (lift_and_carry(self._contact, self._motion, pose, down, view.rng, goal_m=goal), goal),
        ]

    def _novelty(self, name: str, pos_m: np.ndarray) -> float:
        key = self._cell(name, pos_m)
        return novelty(self._visits.get(key, 0) + self._episode_visits[key])

    def _cell(self, name: str, pos_m: np.ndarray) -> str:
        return cell(name, voxel_of(pos_m, self._config.leaf_m))

"""Defines how robots play: six explorers behind `tap_ray.types.Explorer`, chosen by name. No instruction is involved.

uniform    independent noise on every slot: the naive baseline
waypoint   Algorithm 1 of the paper: safe poses, forced descents; sees no object
contact    goes to objects (privileged poses): grasp, lift, carry, drop, place, push
visual     the same with objects that it finds in its camera's image, nothing privileged: the default
curious    goes where end effector and objects have been least often (privileged poses); robots of a run share the
           counts
mixed      each episode uses one of the others
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np

from tap_ray.config import to_dict
from tap_ray.errors import ConfigError, SpecError
from tap_ray.play.contact import ContactConfig, ContactPlanner, ObjectFinder, SimulatorPoses
from tap_ray.play.motion import (
    MotionConfig,
    Segment,
    clip_to,
    quat_conjugate,
    quat_exp,
    quat_log,
    quat_multiply,
    segment,
)
from tap_ray.play.novelty import VisitCounts
from tap_ray.play.planners import CuriousConfig, CuriousPlanner, Planner, View, WaypointConfig, WaypointPlanner
from tap_ray.play.safe_poses import SafePosesConfig
from tap_ray.play.visual import VisibleObjects, VisualConfig
from tap_ray.plugins import Registry
from tap_ray.specs import MAX_DELTA_POS_M, MAX_DELTA_ROT_RAD, ArmSlots
from tap_ray.types import Explorer, Info, Observation

LIMIT_6 = np.array([MAX_DELTA_POS_M] * 3 + [MAX_DELTA_ROT_RAD] * 3)
MIXABLE = ("uniform", "waypoint", "contact", "curious", "visual")
MIXED = "mixed"
NEED_MEMORY = ("curious",)
"""Explorers that read the run's shared novelty memory."""


@dataclass(frozen=True, kw_only=True)
class UniformConfig:
    """The naive baseline."""

    scale: float = 1.0
    """Largest action as a fraction of the allowed one, (0, 1]."""


@dataclass(frozen=True, kw_only=True)
class MixedConfig:
    """Share of the episodes that each explorer plays; only the ratios matter."""

    uniform: float = 0.0
    waypoint: float = 0.45
    contact: float = 0.45
    curious: float = 0.1
    visual: float = 0.0
    others: tuple[str, ...] = ()
    """Explorers of installed packages with their shares, NAME:SHARE, e.g. circles:0.2."""

    def __post_init__(self) -> None:
        shares = list(self.shares.values())
        if not min(shares) >= 0 or not 0 < sum(shares) < np.inf:
            raise ConfigError(
                f"The shares of the explorer 'mixed' must be at least 0, and not all 0; got {self.shares}."
            )

    @property
    def shares(self) -> dict[str, float]:
        """Explorer -> share.

        Raises:
            ConfigError: one of `others` is not NAME:SHARE, or is named twice.
        """
        found = {name: float(getattr(self, name)) for name in MIXABLE}
        for text in self.others:
            name, _, share = text.rpartition(":")
            try:
                value = float(share)
            except ValueError:
                value = -1.0
            if not name or value < 0:
                raise ConfigError(f"explorers.mixed.others must be NAME:SHARE, e.g. circles:0.2; got {text!r}.")
            if name in found:
                setting = f"explorers.mixed.{name}" if name in MIXABLE else "one NAME:SHARE"
                raise ConfigError(
                    f"explorers.mixed.others: {name!r} already has a share. Give it only once, with {setting}."
                )
            found[name] = value
        return found


@dataclass(frozen=True, kw_only=True)
class ExplorerConfig:
    """The constants of all explorers."""

    motion: MotionConfig = field(default_factory=MotionConfig)
    """Safety box, speed and noise of every explorer."""
    safe_poses: SafePosesConfig = field(default_factory=SafePosesConfig)
    """The library that waypoint and curious draw from."""
    uniform: UniformConfig = field(default_factory=UniformConfig)
    waypoint: WaypointConfig = field(default_factory=WaypointConfig)
    contact: ContactConfig = field(default_factory=ContactConfig)
    curious: CuriousConfig = field(default_factory=CuriousConfig)
    visual: VisualConfig = field(default_factory=VisualConfig)
    mixed: MixedConfig = field(default_factory=MixedConfig)


@dataclass(frozen=True, kw_only=True)
class ExplorerInputs:
    """The inputs from which an explorer of one arm is made."""

    config: ExplorerConfig
    """Constants."""
    arm: ArmSlots
    """Where the state has the arm's pose."""
    library_M7: np.ndarray
    """Safe poses: x y z (m, table frame), quaternion wxyz."""
    visits: VisitCounts
    """The run's visits so far; empty except for explorers that share a novelty memory."""


def needs_memory(name: str, config: ExplorerConfig) -> bool:
    """Whether any episode of explorer `name` reads the run's novelty memory."""
    return any(one in NEED_MEMORY for one in choices(name, config))


def choices(name: str, config: ExplorerConfig) -> list[str]:
    """Explorers that may play an episode: those of "mixed" with a share above 0, else `name` alone."""
    return [one for one, share in config.mixed.shares.items() if share > 0] if name == MIXED else [name]


def explorer_values(name: str, config: ExplorerConfig) -> dict[str, Any]:
    """Plain values of `config` for what explorer `name` plays. What was added later and is not used is left out, so
    that older datasets and runs keep their identity."""
    values = to_dict(config)
    if not config.mixed.others:
        del values["mixed"]["others"]
    if "visual" not in choices(name, config):
        del values["visual"], values["mixed"]["visual"]
    return values


def pick(name: str, config: ExplorerConfig, rng: np.random.Generator) -> str:
    """Name of the explorer that plays an episode: draws one for "mixed"."""
    if name != MIXED:
        return name
    shares = config.mixed.shares
    weights = np.array([*shares.values()])
    return str(rng.choice([*shares], p=weights / weights.sum()))


def make_explorer(
    name: str, config: ExplorerConfig, *, arm: ArmSlots, library_M7: np.ndarray, visits: VisitCounts
) -> Explorer:
    """The explorer called `name` (not "mixed": see `pick`) of one arm.

    Args:
        name: a key of EXPLORERS.
        config: constants.
        arm: where the state has the arm's pose.
        library_M7: safe poses.
        visits: the run's visits so far; only "curious" reads them.
    """
    return EXPLORERS[name](ExplorerInputs(config=config, arm=arm, library_M7=library_M7, visits=visits))


class Commanded:
    """Tracks the commanded pose, `pos_m` and `quat` (wxyz), integrated from the executed actions."""

    def __init__(self, motion: MotionConfig, arm: ArmSlots, obs: Observation) -> None:
        self._motion, self._arm = motion, arm
        self.pos_m, self.quat = pose_of(obs, arm)

    def follow(self, obs: Observation, info: Info) -> bool:
        """Update the pose with the last action. Returns True if the end effector was blocked; then its measured pose is
        used."""
        action = np.asarray(info["ee_action"], np.float64)
        self.pos_m = self.pos_m + action[:3]
        self.quat = quat_multiply(quat_exp(action[3:6]), self.quat)
        self.quat /= np.linalg.norm(self.quat)
        pos_m, quat = pose_of(obs, self._arm)
        far = float(np.linalg.norm(self.pos_m - pos_m)) > self._motion.max_lag_m
        turned = (
            float(np.linalg.norm(quat_log(quat_multiply(self.quat, quat_conjugate(quat))))) > self._motion.max_lag_rad
        )
        if far or turned:
            self.pos_m, self.quat = pos_m, quat
        return far or turned

    def action_to(self, pos_m: np.ndarray, quat: np.ndarray, gripper: float) -> np.ndarray:
        """The action (7,) float32 toward this pose, limited to the largest step; it never leaves the box B."""
        shift = clip_to(self._motion, pos_m) - self.pos_m
        turn = quat_log(quat_multiply(quat, quat_conjugate(self.quat)))
        delta = np.clip(np.concatenate([shift, turn]), -LIMIT_6, LIMIT_6)
        return np.append(delta, gripper).astype(np.float32)


def pose_of(obs: Observation, arm: ArmSlots) -> tuple[np.ndarray, np.ndarray]:
    """An arm's tool position (3,) and quaternion (4,) wxyz, as measured.

    Raises:
        SpecError: the state does not have them.
    """
    state = np.asarray(obs["state"], np.float64)
    quat = state[..., arm.ee_quat]
    length = float(np.linalg.norm(quat))
    if not arm.ee_pos or abs(length - 1) > 0.01:
        raise SpecError(
            "An explorer needs the tool's pose in the state (specs.EE_POSE_STATE: x y z, quaternion wxyz); it has "
            f"the position {state[..., arm.ee_pos].tolist()} and a quaternion {quat.tolist()} of length {length:.3f}."
        )
    return state[..., arm.ee_pos], quat / length


class UniformExplorer:
    """Draws every slot uniformly from its range at every step."""

    def __init__(self, config: UniformConfig, motion: MotionConfig, arm: ArmSlots) -> None:
        self._config, self._motion, self._arm = config, motion, arm

    def reset(self, obs: Observation, info: Info, rng: np.random.Generator) -> None:
        """Begin an episode."""
        self._commanded = Commanded(self._motion, self._arm, obs)
        self._rng = rng

    def act(self, obs: Observation, info: Info) -> np.ndarray:
        """A random action, clipped so that it does not leave the box B."""
        self._commanded.follow(obs, info)
        delta = self._rng.uniform(-LIMIT_6, LIMIT_6) * self._config.scale
        gripper = 1.0 if self._rng.random() < 0.5 else -1.0
        quat = quat_multiply(quat_exp(delta[3:]), self._commanded.quat)
        return self._commanded.action_to(self._commanded.pos_m + delta[:3], quat, gripper)


class PathExplorer:
    """Follows a planner's waypoints by cosine interpolation, with noise (Algorithm 1, step 4)."""

    def __init__(self, motion: MotionConfig, arm: ArmSlots, planner: Planner) -> None:
        self._motion, self._arm, self._planner = motion, arm, planner

    def reset(self, obs: Observation, info: Info, rng: np.random.Generator) -> None:
        """Begin an episode."""
        self._commanded = Commanded(self._motion, self._arm, obs)
        self._rng = rng
        self._gripper = 1.0
        self._queue: deque = deque()
        self._segment: Segment | None = None
        self._step = 0
        self._home_quat = self._commanded.quat
        self._planner.reset(self._view(obs, info))

    def act(self, obs: Observation, info: Info) -> np.ndarray:
        """The next point of the path."""
        held_up = self._commanded.follow(obs, info)
        view = self._view(obs, info)
        if self._planner.watch(view) or held_up:
            self._queue.clear()
            self._segment = None
        now = self._current_segment(view)
        self._step += 1
        pos_m, quat = now.at(self._step)
        pos_m = pos_m + self._rng.normal(0.0, self._motion.noise_pos_m, 3)
        quat = quat_multiply(quat_exp(self._rng.normal(0.0, self._motion.noise_rot_rad, 3)), quat)
        return self._commanded.action_to(pos_m, quat, self._next_gripper(now.target.gripper))

    def _view(self, obs: Observation, info: Info) -> View:
        pose = self._commanded
        return View(pos_m=pose.pos_m, quat=pose.quat, home_quat=self._home_quat, obs=obs, info=info, rng=self._rng)

    def _current_segment(self, view: View) -> Segment:
        now = self._segment
        if now is not None and self._step < now.num_steps + now.target.hold_steps:
            return now
        if not self._queue:
            self._queue.extend(self._planner.plan(view))
        speed = float(self._rng.uniform(self._motion.speed_min, self._motion.speed_max))
        self._segment = segment(view.pos_m, view.quat, self._queue.popleft(), speed)
        self._step = 0
        return self._segment

    def _next_gripper(self, command: float | None) -> float:
        dwell = self._motion.gripper_dwell_steps
        if command is not None:
            self._gripper = command
        elif dwell > 0 and self._rng.random() < 1 / dwell:
            self._gripper = -self._gripper
        return self._gripper


def _uniform(to: ExplorerInputs) -> Explorer:
    return UniformExplorer(to.config.uniform, to.config.motion, to.arm)


def _waypoint(to: ExplorerInputs) -> Explorer:
    return PathExplorer(to.config.motion, to.arm, WaypointPlanner(to.config.waypoint, to.library_M7))


def _contact(to: ExplorerInputs) -> Explorer:
    return _to_objects(to, SimulatorPoses())


def _visual(to: ExplorerInputs) -> Explorer:
    return _to_objects(to, VisibleObjects(to.config.visual, to.config.motion))


def _to_objects(to: ExplorerInputs, objects: ObjectFinder) -> Explorer:
    return PathExplorer(to.config.motion, to.arm, ContactPlanner(to.config.contact, to.config.motion, objects))


def _curious(to: ExplorerInputs) -> Explorer:
    constants = to.config.curious, to.config.contact, to.config.motion
    return PathExplorer(
        to.config.motion, to.arm, CuriousPlanner(*constants, library_M7=to.library_M7, visits=to.visits)
    )


EXPLORERS: Registry[Callable[[ExplorerInputs], Explorer]] = Registry(
    "explorer",
    {"uniform": _uniform, "waypoint": _waypoint, "contact": _contact, "curious": _curious, "visual": _visual},
)
"""Name -> function that makes the explorer, including those of installed packages; "mixed" draws one of them
(`pick`)."""
